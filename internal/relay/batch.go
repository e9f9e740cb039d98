package relay

import (
	"context"
	"errors"
	"sync"
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
	// completed carries the index of each message of which every required target has
	// answered; it has room for all, so that nobody waits to send.
	completed chan int
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
		completed: make(chan int, len(ds)),
		settled:   make(chan struct{}),
		confirmed: confirmed,
		received:  time.Now(),
	}
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
	b.completed <- i
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
	b.completed <- i
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
