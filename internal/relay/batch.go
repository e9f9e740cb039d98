package relay

import (
	"context"
	"sync"
	"time"
)

// batch is what one receive brought, on its way.
type batch struct {
	leases   []lease
	messages []Message

	// confirmed is told of each message that every target has confirmed.
	confirmed func(*Message)

	mu       sync.Mutex
	verdicts []verdict
	// completed carries the index of each message of which every target has
	// answered; it has room for all, so that nobody waits to send.
	completed chan int
}

// verdict is what the targets of one message say of it together.
type verdict struct {
	// pending counts the targets that have not answered.
	pending int
	// outcome is the worst so far: Rejected, then Retry, then Delivered.
	outcome    Outcome
	err        error
	retryAfter time.Duration
}

func newBatch(ds []Delivery, confirmed func(*Message)) *batch {
	b := &batch{
		leases:    make([]lease, len(ds)),
		messages:  make([]Message, len(ds)),
		verdicts:  make([]verdict, len(ds)),
		completed: make(chan int, len(ds)),
		confirmed: confirmed,
	}
	for i := range ds {
		b.leases[i].delivery = ds[i]
		b.messages[i] = ds[i].Message
		b.verdicts[i].outcome = Delivered
	}
	return b
}

// expect says how many targets will answer for a message, before any does.
func (b *batch) expect(i, targets int) { b.verdicts[i].pending = targets }

// answer records the result of one target for a message.
func (b *batch) answer(i int, r Result) {
	b.mu.Lock()
	v := &b.verdicts[i]
	if worse(r.Outcome, v.outcome) {
		v.outcome, v.err = r.Outcome, r.Err
	}
	v.retryAfter = max(v.retryAfter, r.RetryAfter)
	v.pending--
	done, outcome := v.pending == 0, v.outcome
	b.mu.Unlock()
	if !done {
		return
	}
	if outcome == Delivered {
		b.confirmed(&b.messages[i])
	}
	b.completed <- i
}

func worse(a, b Outcome) bool {
	rank := [...]int{Delivered: 0, Retry: 1, Rejected: 2}
	return rank[a] > rank[b]
}

// leaseEnds is when the first lease of the batch ends.
func (b *batch) leaseEnds() time.Time {
	first := b.leases[0].deadline()
	for i := range b.leases[1:] {
		if d := b.leases[i+1].deadline(); d.Before(first) {
			first = d
		}
	}
	return first
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
	ready := make([]int, 0, len(b.leases))
	for left := len(b.leases); left > 0; {
		select {
		case i := <-b.completed:
			if len(ready) == 0 {
				timer.Reset(linger)
			}
			ready = append(ready, i)
			left--
		case <-timer.C:
			early := ready
			ready = make([]int, 0, left)
			settling.Go(func() { settle(ctx, early) })
		}
	}
	settle(ctx, ready)
}
