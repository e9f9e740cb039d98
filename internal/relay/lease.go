package relay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

// leaseState is what is being done with a lease. Renewal and settling exclude each
// other: a renewal gives a new receipt and kills the old one, so that a settlement
// that overtook it would use a dead receipt.
type leaseState uint8

const (
	leaseHeld leaseState = iota
	leaseRenewing
	leaseSettling
	leaseLost
)

// lease is the hold on one message; it owns the newest receipt and deadline.
type lease struct {
	mu       sync.Mutex
	state    leaseState
	delivery Delivery
	// claimed says that it is to be settled: no other renewal begins.
	claimed bool
	// renewed is closed when the renewal under way has ended.
	renewed chan struct{}
}

// deadline is when the lease ends unless it is renewed.
func (l *lease) deadline() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delivery.Deadline
}

// kept tells whether the lease is renewed until its message is settled, and when it ends
// otherwise.
func (l *lease) kept() (deadline time.Time, kept bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.delivery.Deadline, !l.claimed && l.state != leaseLost
}

// of tells whether the lease is that of a message which is not being settled.
func (l *lease) of(id string) bool {
	if l.delivery.ID != id { // it never changes
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state != leaseSettling
}

func (l *lease) held() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == leaseHeld && !l.claimed
}

func (l *lease) lost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == leaseLost
}

// renew extends a held lease, and tells whether it was one: it does nothing with any other.
func (l *lease) renew(ctx context.Context, source Source) (asked bool, err error) {
	l.mu.Lock()
	if l.state != leaseHeld || l.claimed {
		l.mu.Unlock()
		return false, nil
	}
	l.state = leaseRenewing
	l.renewed = make(chan struct{})
	d := l.delivery
	l.mu.Unlock()

	extended, err := source.Extend(ctx, d)

	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = leaseHeld
	switch {
	case err == nil:
		l.delivery.Receipt, l.delivery.Deadline = extended.Receipt, extended.Deadline
	case errors.Is(err, ErrLeaseLost):
		l.state = leaseLost
	}
	close(l.renewed)
	return true, err
}

// claim ends renewing for good, but for a renewal under way, which it tells of.
func (l *lease) claim() (renewing bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.claimed = true
	return l.state == leaseRenewing
}

// settle waits for a renewal under way and gives the delivery of a claimed lease with its
// newest receipt. It reports false for a lease that is lost.
func (l *lease) settle() (Delivery, bool) {
	for {
		l.mu.Lock()
		if l.state != leaseRenewing {
			defer l.mu.Unlock()
			ok := l.state == leaseHeld
			if ok {
				l.state = leaseSettling
			}
			return l.delivery, ok
		}
		renewed := l.renewed
		l.mu.Unlock()
		<-renewed
	}
}

// keeper renews the leases of a pipeline's batches at half their life, from receive
// until they are settled.
type keeper struct {
	source Source
	log    *zap.Logger
	// forbidden says that the credential may not renew: every message has to make do
	// with its first lease. New keys may change that, or who grants it, so the
	// source is still asked.
	forbidden atomic.Bool
	// retention is how long the queue keeps a message, in nanoseconds; 0: not known.
	retention *atomic.Int64
}

// renewals is how many renewals of one batch run at a time: MNS renews one message a
// call, and a batch has at most sixteen.
const renewals = 4

// renewRetry is the least time between two tries to renew the same batch.
const renewRetry = 200 * time.Millisecond

func newKeeper(source Source, log *zap.Logger, retention *atomic.Int64) *keeper {
	return &keeper{source: source, log: log, retention: retention}
}

// keep renews the leases of a batch until release is called, which waits for a
// renewal under way.
func (k *keeper) keep(ctx context.Context, held leases) (release func()) {
	ctx, cancel := context.WithCancel(ctx)
	kept := &keptBatch{keeper: k, leases: held}
	kept.mu.Lock()
	kept.timer = time.AfterFunc(held.halfLife(), func() { kept.fire(ctx) })
	kept.mu.Unlock()
	return func() {
		kept.release()
		cancel()
	}
}

// keptBatch is a batch whose leases are being kept.
type keptBatch struct {
	keeper *keeper
	leases leases

	mu       sync.Mutex
	timer    *time.Timer
	released bool
	renewing sync.WaitGroup
}

// fire renews what is still held and sets the timer again.
func (b *keptBatch) fire(ctx context.Context) {
	b.mu.Lock()
	if b.released {
		b.mu.Unlock()
		return
	}
	b.renewing.Add(1)
	b.mu.Unlock()
	defer b.renewing.Done()

	next, more := b.keeper.renew(ctx, b.leases)

	b.mu.Lock()
	defer b.mu.Unlock()
	if more && !b.released {
		b.timer.Reset(next)
	}
}

func (b *keptBatch) release() {
	b.mu.Lock()
	b.released = true
	b.timer.Stop()
	b.mu.Unlock()
	b.renewing.Wait()
}

// renew renews the held leases once and tells when to do so again, if at all.
func (k *keeper) renew(ctx context.Context, held leases) (next time.Duration, more bool) {
	var group errgroup.Group
	group.SetLimit(renewals)
	for i := range held {
		group.Go(func() error { return k.renewOne(ctx, &held[i]) })
	}
	err := group.Wait()
	if ctx.Err() != nil {
		return 0, false
	}
	next = held.halfLife()
	if err != nil {
		// Not lost and not forbidden: the server or the network failed. What is left
		// of the lease is used for more tries.
		next /= 2
	}
	return max(next, renewRetry), held.anyHeld()
}

// renewOne gives the error of a renewal that is worth another try soon.
func (k *keeper) renewOne(ctx context.Context, l *lease) error {
	if kept := time.Duration(k.retention.Load()); kept > 0 && time.Since(l.delivery.EnqueuedAt) > kept {
		return nil // the queue has dropped the message
	}
	asked, err := l.renew(ctx, k.source)
	switch {
	case err == nil:
		if asked {
			k.forbidden.Store(false)
		}
		return nil
	case errors.Is(err, ErrLeaseLost):
		k.log.Warn("lease lost while its message was being delivered; it will come again",
			zap.String("message_id", l.delivery.ID), zap.Int("attempt", l.delivery.Attempt))
		return nil
	case errors.Is(err, ErrNotPermitted):
		if !k.forbidden.Swap(true) {
			k.log.Warn("the credential may not renew leases; deliveries have to end within the queue's visibility timeout",
				zap.Error(err))
		}
		return nil
	default:
		return err
	}
}

// leases are those of one batch.
type leases []lease

// ends is when the first of those that are not settled ends unless it is renewed; of a
// batch that is settled, when the first of all would have.
func (ls leases) ends() time.Time {
	var ofKept, ofAll time.Time
	for i := range ls {
		deadline, kept := ls[i].kept()
		if ofAll.IsZero() || deadline.Before(ofAll) {
			ofAll = deadline
		}
		if kept && (ofKept.IsZero() || deadline.Before(ofKept)) {
			ofKept = deadline
		}
	}
	if ofKept.IsZero() {
		return ofAll
	}
	return ofKept
}

// halfLife is half of what is left of the held lease that ends first.
func (ls leases) halfLife() time.Duration {
	var first time.Time
	for i := range ls {
		if d := ls[i].deadline(); ls[i].held() && (first.IsZero() || d.Before(first)) {
			first = d
		}
	}
	return max(time.Until(first)/2, 0)
}

func (ls leases) anyHeld() bool {
	for i := range ls {
		if ls[i].held() {
			return true
		}
	}
	return false
}
