package mns

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"mnsrelay/internal/relay"
)

// defaultLease is what an Extend asks for before anything was received: the visibility
// timeout of a queue that was made without one (MNS: CreateQueue).
const defaultLease = 30 * time.Second

// Source is one queue as relay.Source.
type Source struct {
	queue *Queue
	// lease is how long the queue's own leases are, in nanoseconds, as last seen; 0:
	// not known.
	lease atomic.Int64
	// counted: the queue has once told of a message, so that its zeros count.
	counted atomic.Bool
	settler settler
	// changes bounds the visibility requests: each takes a connection of its own.
	changes chan struct{}
}

var _ relay.Source = (*Source)(nil)

// NewSource makes a Source. It opens no connection and starts no goroutine.
func NewSource(cfg Config, deps Deps) (*Source, error) {
	queue, err := NewQueue(cfg, deps)
	if err != nil {
		return nil, err
	}
	const concurrentChanges = 8
	return &Source{
		queue:   queue,
		settler: newSettler(queue),
		changes: make(chan struct{}, concurrentChanges),
	}, nil
}

// Queue gives access to the queue itself.
func (s *Source) Queue() *Queue { return s.queue }

// Close ends what is under way with an error, closes every connection and waits for
// the deletes that were being sent. Call it after the last Settle.
func (s *Source) Close() error {
	s.settler.close()
	return nil
}

// Receive leases up to limit messages. With wait it waits as long as the Config says.
func (s *Source) Receive(ctx context.Context, limit int, wait bool) ([]relay.Delivery, error) {
	var duration time.Duration
	if wait {
		duration = s.queue.cfg.Wait
	}
	deliveries, lease, err := s.queue.receive(ctx, limit, duration)
	if len(deliveries) > 0 {
		s.lease.Store(int64(min(max(lease.Round(time.Second), MinVisibility), MaxVisibility)))
	}
	return deliveries, err
}

// Extend renews a lease for as long as the queue's own leases are. Once the keys were
// found not to allow it, it gives relay.ErrNotPermitted without a request until there
// are others, or five minutes have passed.
func (s *Source) Extend(ctx context.Context, d relay.Delivery) (relay.Delivery, error) {
	lease := time.Duration(s.lease.Load())
	if lease == 0 {
		lease = defaultLease
	}
	renewed, err := s.change(ctx, d, lease)
	if err != nil {
		return relay.Delivery{}, err
	}
	d.Receipt, d.Deadline = renewed.Receipt, renewed.Deadline
	return d, nil
}

// change sets when the message is visible again. A lease that has ended is not asked
// about: the handle is dead, or about to be.
func (s *Source) change(ctx context.Context, d relay.Delivery, timeout time.Duration) (Lease, error) {
	if !time.Now().Before(d.Deadline) {
		return Lease{}, fmt.Errorf("%s: %w", OpVisibility, relay.ErrLeaseLost)
	}
	select {
	case s.changes <- struct{}{}:
		defer func() { <-s.changes }()
	case <-ctx.Done():
		return Lease{}, fmt.Errorf("%s: %w", OpVisibility, ctx.Err())
	}
	return s.queue.ChangeVisibility(ctx, d.Receipt, timeout)
}

// Settle deletes and returns deliveries. Deletes share requests with other calls, and
// are tried again until the lease or ctx ends; a return is tried once, for the message
// comes back anyway.
func (s *Source) Settle(ctx context.Context, ss []relay.Settlement) []error {
	c := newSettlement(len(ss))
	if len(ss) == 0 {
		return c.errs
	}
	if ctx.Err() != nil {
		return c.wait(ctx)
	}
	for i := range ss {
		if ss[i].Delete {
			s.settler.add(ctx, entry{receipt: ss[i].Receipt, deadline: ss[i].Deadline, settlement: c, index: i})
		}
	}
	s.giveBack(ctx, c, ss)
	return c.wait(ctx)
}

// Attributes reads the queue's attributes. MNS gives its counts as 0 where it does not
// keep them any more: zeros count only once one was not.
func (s *Source) Attributes(ctx context.Context) (Attributes, error) {
	a, err := s.queue.Attributes(ctx)
	if err != nil {
		return Attributes{}, err
	}
	if a.Counted && (a.Active != 0 || a.Inactive != 0 || a.Delayed != 0) {
		s.counted.Store(true)
	}
	a.Counted = a.Counted && s.counted.Load()
	return a, nil
}
