package mns

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"mnsrelay/internal/relay"
)

// settlement is one call of Settle.
type settlement struct {
	mu   sync.Mutex
	errs []error
	left int
	// over: the caller has its results, whatever comes now.
	over bool
	done chan struct{}
}

var errUnsettled = errors.New("not settled")

func newSettlement(n int) *settlement {
	c := &settlement{errs: make([]error, n), left: n, done: make(chan struct{})}
	for i := range c.errs {
		c.errs[i] = errUnsettled
	}
	return c
}

func (c *settlement) finish(i int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.errs[i] = err
	if c.left--; c.left == 0 {
		c.over = true
		close(c.done)
	}
}

func (c *settlement) wanted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.over
}

// wait gives the results, the unfinished ones with ctx's error once it ends.
func (c *settlement) wait(ctx context.Context) []error {
	select {
	case <-c.done:
		return c.errs
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	for i, err := range c.errs {
		if errors.Is(err, errUnsettled) {
			c.errs[i] = fmt.Errorf("settle: the outcome is not known: %w", ctx.Err())
		}
	}
	return c.errs
}

// entry is one delete that a settlement waits for.
type entry struct {
	receipt    string
	deadline   time.Time
	settlement *settlement
	index      int
}

func (e *entry) finish(err error) { e.settlement.finish(e.index, err) }

// batch is deletes that go in one request.
type batch struct {
	entries []entry
	full    chan struct{}
}

// settler collects deletes into batches and sends them.
type settler struct {
	queue *Queue
	// sending bounds the requests at a time: each takes a connection of its own.
	sending chan struct{}
	closing chan struct{}

	mu      sync.Mutex
	open    *batch // nil: none
	closed  bool
	running sync.WaitGroup
}

func newSettler(q *Queue) settler {
	const concurrentDeletes = 16
	return settler{queue: q, sending: make(chan struct{}, concurrentDeletes), closing: make(chan struct{})}
}

// add puts a delete into the open batch, which has a goroutine of its own until it is
// done. The batch outlives ctx: it carries the deletes of other calls too.
func (s *settler) add(ctx context.Context, e entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		e.finish(&Error{Op: OpDelete, Err: errClosed})
		return
	}
	b := s.open
	if b == nil {
		b = &batch{entries: make([]entry, 0, MaxBatch), full: make(chan struct{})}
		s.open = b
		ctx := context.WithoutCancel(ctx)
		s.running.Go(func() { s.run(ctx, b) })
	}
	b.entries = append(b.entries, e)
	if len(b.entries) == MaxBatch {
		close(b.full)
		s.open = nil
	}
}

func (s *settler) close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	s.queue.Close()
	s.running.Wait()
}

// run waits until the batch is full or has lingered, and deletes.
func (s *settler) run(ctx context.Context, b *batch) {
	if linger := s.queue.cfg.Linger; linger > 0 {
		timer := time.NewTimer(linger)
		defer timer.Stop()
		select {
		case <-b.full:
		case <-timer.C:
		case <-s.closing:
		}
	}
	s.mu.Lock()
	if s.open == b {
		s.open = nil
	}
	s.mu.Unlock()
	const element = 160 // a handle of some 100 characters in its tags
	d := deletion{
		settler:  s,
		receipts: make([]string, 0, len(b.entries)),
		results:  make([]error, len(b.entries)),
		body:     make([]byte, 0, (len(b.entries)+1)*element),
	}
	d.delete(ctx, b.entries)
}

// deletion is a batch on its way, with the memory that its requests share.
type deletion struct {
	*settler
	receipts []string
	results  []error
	body     []byte
}

// delete sends the deletes, and again those that may have failed for a while only,
// while their lease and their caller's interest last. It uses up entries.
func (d *deletion) delete(ctx context.Context, entries []entry) {
	for try := 0; ; try++ {
		if len(entries) == 0 {
			return
		}
		if try > 0 && !d.pause(try) {
			for i := range entries {
				entries[i].finish(&Error{Op: OpDelete, Err: errClosed})
			}
			return
		}
		err := d.send(ctx, entries)
		if len(entries) > 1 && isRejected(err) {
			// One handle that the server cannot read fails the request as a whole.
			for i := range entries {
				d.delete(ctx, entries[i:i+1])
			}
			return
		}
		soon := time.Now().Add(longestPause(try + 1))
		left := entries[:0]
		for i, e := range entries {
			result := d.results[i]
			if err != nil {
				result = err
			}
			if isTemporary(result) && soon.Before(e.deadline) && e.settlement.wanted() {
				left = append(left, e)
				continue
			}
			e.finish(result)
		}
		entries = left
	}
}

// send makes one request. Results are in d.results.
func (d *deletion) send(ctx context.Context, entries []entry) error {
	select {
	case d.sending <- struct{}{}:
		defer func() { <-d.sending }()
	case <-d.closing:
		return &Error{Op: OpDelete, Err: errClosed}
	}
	d.receipts = d.receipts[:0]
	for i := range entries {
		d.receipts = append(d.receipts, entries[i].receipt)
	}
	d.body = appendHandles(d.body[:0], d.receipts)
	d.results = d.results[:len(entries)]
	clear(d.results)
	return d.queue.delete(ctx, d.body, d.receipts, d.results)
}

const (
	firstPause = 100 * time.Millisecond
	mostPause  = 2 * time.Second
)

// longestPause is the most that is waited before a try.
func longestPause(try int) time.Duration {
	return min(firstPause<<min(try-1, 10), mostPause)
}

// pause waits before a try, between half the longest pause and all of it; false: the
// source closes.
func (s *settler) pause(try int) bool {
	longest := longestPause(try)
	timer := time.NewTimer(longest/2 + rand.N(longest/2)) //nolint:gosec // jitter needs no secrecy
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.closing:
		return false
	}
}

// isRejected tells an answer that may be about one handle of several.
func isRejected(err error) bool {
	if err == nil {
		return false
	}
	var e *Error
	return errors.As(err, &e) && (e.Code == codeMessageNotExist || e.Status == http.StatusBadRequest && e.Code != "")
}

// isTemporary tells what may be different in a moment. New keys are fetched meanwhile
// where the old ones were refused.
func isTemporary(err error) bool {
	if err == nil {
		return false
	}
	switch relay.ClassOf(err) {
	case relay.ClassThrottled, relay.ClassAuth, relay.ClassNetwork, relay.ClassServer, relay.ClassNoKeys:
		return true
	case relay.ClassUnknown, relay.ClassNotFound:
	}
	return false
}

// giveBack makes the messages that are not to be deleted visible again after their
// delay, one call each, and waits for the calls.
func (s *Source) giveBack(ctx context.Context, c *settlement, ss []relay.Settlement) {
	var calls sync.WaitGroup
	defer calls.Wait()
	for i := range ss {
		if ss[i].Delete {
			continue
		}
		// Known before: no goroutine for an answer that is no question.
		if err := s.queue.permitted(OpVisibility); err != nil {
			c.finish(i, err)
			continue
		}
		calls.Go(func() {
			_, err := s.change(ctx, ss[i].Delivery, ss[i].Delay)
			c.finish(i, err)
		})
	}
}
