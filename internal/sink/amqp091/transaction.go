package amqp091

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mnsrelay/internal/relay"
)

// transact publishes the messages in a transaction, as many at once as the channel's
// window holds, and waits for its commit. A commit acknowledges: the broker has what it
// has not given back. It is no atomicity: of a commit that failed some messages may have
// arrived, so all of it is tried again.
func (s *Sink) transact(ctx context.Context, c *connection, ms []relay.Message, b *batch) {
	for base := 0; base < len(ms); base += maxWindow {
		part := ms[base:min(base+maxWindow, len(ms))]
		failure := s.commit(ctx, c, part, base, b)
		if failure == nil || len(part) == 1 || !errors.Is(failure, errMessageRefused) {
			continue
		}
		// One of them made it fail, and the others with it: each for itself.
		for i := range part {
			if !b.has(base+i) && ctx.Err() == nil {
				_ = s.commit(ctx, c, part[i:i+1], base+i, b) // and it has its result
			}
		}
	}
}

// errMessageRefused is wrapped where the broker may have ended a transaction over one of
// its messages.
var errMessageRefused = errors.New("the broker refused the transaction")

// commit makes one transaction and reports the results of its messages. Its error says why
// it failed; where that wraps errMessageRefused and there are several messages, they have
// no result yet.
func (s *Sink) commit(ctx context.Context, c *connection, ms []relay.Message, base int, b *batch) error {
	ch, err := c.acquire(ctx, transactional, len(ms))
	if err != nil {
		s.noChannel(ctx, err, b)
		return err
	}
	committed := false
	defer func() { c.release(ch, committed) }() // what was not committed goes with its channel

	failed := func(err error) error {
		failure := s.lost(c, ch, err)
		if refusesMessage(ch) {
			failure = relay.Fail(reasonTransactionFailed, fmt.Errorf("publish to exchange %q: %w: %w", s.exchange.Name, errMessageRefused, brokerError{ch.cause}))
			if len(ms) > 1 {
				return failure
			}
		}
		for i := range ms {
			b.report(base+i, relay.Result{Err: failure})
		}
		return failure
	}
	for i := range ms {
		key, p, err := s.prepare(c, &ms[i], ch.headers)
		if err != nil {
			b.report(base+i, relay.Result{Outcome: relay.Rejected, Err: err})
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := ch.amqp.Publish(s.exchange.wire(), key, s.settings.Mandatory, false, p); err != nil {
			return failed(err)
		}
	}
	// The library waits for the answer without a limit.
	deadline, _ := ctx.Deadline()
	if err := c.within(time.Until(deadline)+answerTimeout, ch.amqp.TxCommit); err != nil {
		return failed(err)
	}
	committed = true
	s.works()
	// The broker sends the returns before the answer to the commit.
	returned := ch.drain(nil)
	for i := range ms {
		if code, found := returned[ms[i].ID]; found {
			b.report(base+i, s.unroutable(code))
			continue
		}
		b.report(base+i, relay.Result{Outcome: relay.Delivered})
	}
	return nil
}

// write publishes the messages and waits for nothing.
func (s *Sink) write(ctx context.Context, c *connection, ms []relay.Message, b *batch) {
	ch, err := c.acquire(ctx, plain, len(ms))
	if err != nil {
		s.noChannel(ctx, err, b)
		return
	}
	defer c.release(ch, true)
	for i := range ms {
		key, p, err := s.prepare(c, &ms[i], ch.headers)
		if err != nil {
			b.report(i, relay.Result{Outcome: relay.Rejected, Err: err})
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if err := ch.amqp.Publish(s.exchange.wire(), key, false, false, p); err != nil {
			// A refusal of what was written before shows here.
			b.finish(relay.Result{Err: s.lost(c, ch, err)})
			return
		}
		b.report(i, relay.Result{Outcome: relay.Delivered})
	}
}
