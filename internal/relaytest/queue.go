package relaytest

import (
	"context"
	"fmt"
	"sync"
	"time"

	"mnsrelay/internal/relay"
)

// Queue is a relay.Source in memory that behaves as an MNS queue does: a message that
// was received is invisible until its lease ends, every receive and renewal gives a
// new receipt and kills the old one, and messages that were not deleted come again.
// It runs on the clock of the test, a fake one inside a synctest bubble.
type Queue struct {
	// Name is the source name its messages carry.
	Name string
	// Visibility is how long a lease lasts.
	Visibility time.Duration
	// Wait is how long a waiting receive waits.
	Wait time.Duration
	// Fault, if not nil, is asked before each call ("receive", "extend", "delete",
	// "return") with the message id, empty for a receive; its error is what the
	// call gives, and the call then does nothing.
	Fault func(op, id string) error

	mu       sync.Mutex
	messages []*queued
	sent     int
	receipts int
	receives []Receive
	arrived  chan struct{}
}

var _ relay.Source = (*Queue)(nil)

// Receive is one call of Queue.Receive.
type Receive struct {
	At    time.Time
	Wait  bool
	Given int
}

type queued struct {
	relay.Message
	receipt string
	visible time.Time
}

// NewQueue makes an empty queue with a lease and a wait of 30 s.
func NewQueue(name string) *Queue {
	return &Queue{
		Name: name, Visibility: 30 * time.Second, Wait: 30 * time.Second,
		arrived: make(chan struct{}),
	}
}

// Send puts a message with each body and gives the ids.
func (q *Queue) Send(bodies ...string) (ids []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, body := range bodies {
		q.sent++
		m := relay.Message{ID: fmt.Sprintf("%s-%04d", q.Name, q.sent), Source: q.Name, Body: []byte(body), EnqueuedAt: time.Now()}
		q.messages = append(q.messages, &queued{Message: m, visible: time.Now()})
		ids = append(ids, m.ID)
	}
	close(q.arrived)
	q.arrived = make(chan struct{})
	return ids
}

// Receive is part of relay.Source.
func (q *Queue) Receive(ctx context.Context, limit int, wait bool) ([]relay.Delivery, error) {
	if err := q.fault("receive", ""); err != nil {
		q.record(wait, 0)
		return nil, err
	}
	deadline := time.Now().Add(q.Wait)
	for {
		ds, next, arrived := q.take(limit)
		if len(ds) > 0 || !wait || !time.Now().Before(deadline) {
			q.record(wait, len(ds))
			return ds, nil
		}
		if next.IsZero() || next.After(deadline) {
			next = deadline
		}
		timer := time.NewTimer(time.Until(next))
		select {
		case <-timer.C:
		case <-arrived:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			q.record(wait, 0)
			return nil, ctx.Err()
		}
	}
}

// take leases what is visible and tells when the next message will be.
func (q *Queue) take(limit int) (ds []relay.Delivery, next time.Time, arrived chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for _, m := range q.messages {
		switch {
		case m.visible.After(now):
			if next.IsZero() || m.visible.Before(next) {
				next = m.visible
			}
		case len(ds) < limit:
			m.Attempt++
			q.lease(m)
			ds = append(ds, relay.Delivery{Message: m.Message, Receipt: m.receipt, Deadline: m.visible})
		}
	}
	return ds, next, q.arrived
}

func (q *Queue) lease(m *queued) {
	q.receipts++
	m.receipt = fmt.Sprintf("receipt-%d", q.receipts)
	m.visible = time.Now().Add(q.Visibility)
}

// Extend is part of relay.Source.
func (q *Queue) Extend(ctx context.Context, d relay.Delivery) (relay.Delivery, error) {
	if ctx.Err() != nil {
		return relay.Delivery{}, ctx.Err()
	}
	if err := q.fault("extend", d.ID); err != nil {
		return relay.Delivery{}, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	m, _ := q.find(d.Receipt)
	if m == nil {
		return relay.Delivery{}, relay.ErrLeaseLost
	}
	q.lease(m)
	d.Receipt, d.Deadline = m.receipt, m.visible
	return d, nil
}

// Settle is part of relay.Source.
func (q *Queue) Settle(ctx context.Context, ss []relay.Settlement) []error {
	errs := make([]error, len(ss))
	for i, s := range ss {
		if errs[i] = ctx.Err(); errs[i] != nil {
			continue
		}
		op := "return"
		if s.Delete {
			op = "delete"
		}
		if errs[i] = q.fault(op, s.ID); errs[i] == nil {
			errs[i] = q.settle(s)
		}
	}
	return errs
}

func (q *Queue) settle(s relay.Settlement) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	m, at := q.find(s.Receipt)
	if m == nil {
		return relay.ErrLeaseLost
	}
	if s.Delete {
		q.messages = append(q.messages[:at], q.messages[at+1:]...)
		return nil
	}
	q.lease(m)
	m.visible = time.Now().Add(s.Delay)
	close(q.arrived)
	q.arrived = make(chan struct{})
	return nil
}

// find gives the message whose lease the receipt holds.
func (q *Queue) find(receipt string) (*queued, int) {
	for at, m := range q.messages {
		if m.receipt == receipt && m.visible.After(time.Now()) {
			return m, at
		}
	}
	return nil, 0
}

func (q *Queue) fault(op, id string) error {
	if q.Fault == nil {
		return nil
	}
	return q.Fault(op, id)
}

func (q *Queue) record(wait bool, given int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.receives = append(q.receives, Receive{At: time.Now(), Wait: wait, Given: given})
}

// Left gives the ids of the messages that were not deleted, visible or not.
func (q *Queue) Left() (ids []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.messages {
		ids = append(ids, m.ID)
	}
	return ids
}

// Visible counts the messages that a receive would give now.
func (q *Queue) Visible() (n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.messages {
		if !m.visible.After(time.Now()) {
			n++
		}
	}
	return n
}

// Receives gives every ended call of Receive.
func (q *Queue) Receives() []Receive {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]Receive(nil), q.receives...)
}
