package relay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// batch is what one receive brought, on its way.
type batch struct {
	leases   leases
	messages []Message
	memos    []memo
	// received is when they came.
	received time.Time
	// span is nil where nothing is traced.
	span BatchSpan
	// size is the bytes of the bodies as they were received.
	size int64
	// room counts the messages whose room has not been given back.
	room atomic.Int64
	// settled is closed when the last message has been settled.
	settled chan struct{}
	// confirmed is told of each message that every required target has confirmed.
	confirmed func(*Message)

	mu       sync.Mutex
	verdicts []verdict
	// gone says of each message whether it has been deleted.
	gone []bool
	// confirms has an entry for each message of each target, by target.
	confirms []confirm
	// completed are the messages of which every required target has answered and that are not
	// settled yet, unsettled counts them and those that are still to come.
	completed []int
	unsettled int
	// wake tells of the first that is completed and of the last. To be told of each would
	// wake a goroutine for each message. Its size is 1.
	wake chan struct{}
}

// verdict is what the required targets of one message say of it together.
type verdict struct {
	// pending counts the required targets that have not answered.
	pending int
	// outcome is the worst so far: Rejected, then Retry, then Delivered.
	outcome    Outcome
	err        error
	sink       string // whose outcome that is; empty: nobody was asked
	retryAfter time.Duration
	// buried is the reason for which the dead-letter sink has the message; empty: it
	// has not.
	buried string
}

// confirm is what is known of a message at a target.
type confirm uint8

const (
	unconfirmed confirm = iota
	confirmed           // the target has confirmed, the ledger does not know
	recorded            // the ledger knows
)

func newBatch(ds []Delivery, targets int, confirmed func(*Message)) *batch {
	b := &batch{
		leases:    make(leases, len(ds)),
		messages:  make([]Message, len(ds)),
		memos:     make([]memo, len(ds)),
		verdicts:  make([]verdict, len(ds)),
		gone:      make([]bool, len(ds)),
		confirms:  make([]confirm, len(ds)*targets),
		completed: make([]int, 0, len(ds)),
		unsettled: len(ds),
		wake:      make(chan struct{}, 1),
		settled:   make(chan struct{}),
		confirmed: confirmed,
		received:  time.Now(),
	}
	b.room.Store(int64(len(ds)))
	for i := range ds {
		b.leases[i].delivery = ds[i]
		b.messages[i] = ds[i].Message
		b.messages[i].memo = &b.memos[i]
		b.verdicts[i].outcome = Delivered
		b.size += int64(len(ds[i].Body))
	}
	return b
}

// known tells whether the ledger knows a target that has confirmed the message.
func (b *batch) known(i int) bool {
	for at := i; at < len(b.confirms); at += len(b.messages) {
		if b.confirms[at] == recorded {
			return true
		}
	}
	return false
}

// expect says how many required targets will answer for a message. Where there are none
// the message is complete: all that had to be done has been.
func (b *batch) expect(i, targets int) {
	b.mu.Lock()
	v := &b.verdicts[i]
	v.pending = targets
	b.mu.Unlock()
	if targets == 0 {
		b.complete(i, v.outcome)
	}
}

// decide completes a message of which no target is asked.
func (b *batch) decide(i int, r Result) {
	b.mu.Lock()
	b.verdicts[i].outcome, b.verdicts[i].err = r.Outcome, r.Err
	b.mu.Unlock()
	b.ready(i)
}

// at is the place of a message at a target in confirms.
func (b *batch) at(t *target, i int) int { return t.index*len(b.messages) + i }

// confirm notes that a target has confirmed a message.
func (b *batch) confirm(i int, t *target) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.confirms[b.at(t, i)] = confirmed
}

// answer records the result of a required target for a message.
func (b *batch) answer(i int, t *target, r Result) {
	b.mu.Lock()
	v := &b.verdicts[i]
	if r.Outcome == Delivered {
		b.confirms[b.at(t, i)] = confirmed
	}
	// A sink that is down does not hide the failure of another.
	hides := r.Outcome == v.outcome && errors.Is(v.err, ErrSinkDown) && !errors.Is(r.Err, ErrSinkDown)
	if worse(r.Outcome, v.outcome) || hides {
		v.outcome, v.err, v.sink = r.Outcome, r.Err, t.Name.Sink
	}
	v.retryAfter = max(v.retryAfter, r.RetryAfter)
	v.pending--
	done, outcome := v.pending == 0, v.outcome
	b.mu.Unlock()
	if done {
		b.complete(i, outcome)
	}
}

// markGone notes that a message has been deleted.
func (b *batch) markGone(i int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.gone[i] = true
}

func (b *batch) complete(i int, outcome Outcome) {
	if outcome == Delivered {
		b.confirmed(&b.messages[i])
	}
	b.ready(i)
}

// ready adds a completed message to those that can be settled.
func (b *batch) ready(i int) {
	b.mu.Lock()
	b.completed = append(b.completed, i)
	n := len(b.completed)
	tell := n == 1 || n == b.unsettled
	b.mu.Unlock()
	if tell {
		select {
		case b.wake <- struct{}{}:
		default: // it has not been looked at since it was told of another
		}
	}
}

// take gives what is completed to be settled, and whether that was the last of it.
func (b *batch) take(early bool) (index []int, last bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	last = len(b.completed) == b.unsettled
	if !early && !last {
		return nil, false
	}
	index, b.completed = b.completed, nil
	b.unsettled -= len(index)
	return index, last
}

func worse(a, b Outcome) bool {
	rank := [...]int{Delivered: 0, Retry: 1, Rejected: 2}
	return rank[a] > rank[b]
}

// completions calls settle with the messages that are completed: all at once where
// they complete together, and otherwise without letting the quick wait for the slow
// for longer than linger. It returns when settle has returned for all.
func (b *batch) completions(ctx context.Context, linger time.Duration, settle func(ctx context.Context, index []int)) {
	var settling sync.WaitGroup
	defer settling.Wait()
	timer := time.NewTimer(linger)
	timer.Stop()
	defer timer.Stop()
	for lingering := false; ; {
		if all, last := b.take(false); last {
			if len(all) > 0 {
				settle(ctx, all)
			}
			return
		}
		select {
		case <-b.wake:
			if !lingering {
				timer.Reset(linger)
				lingering = true
			}
		case <-timer.C:
			lingering = false
			if early, _ := b.take(true); len(early) > 0 {
				settling.Go(func() { settle(ctx, early) })
			}
		}
	}
}
