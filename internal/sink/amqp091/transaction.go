package amqp091

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"mnsrelay/internal/relay"
)

// transact publishes the messages in a transaction, as many at once as the channel's
// window holds, and waits for its commit. A commit acknowledges: the broker has what it
// has not given back. It is no atomicity: of a commit that failed some messages may have
// arrived, so all of it is tried again.
func (s *Sink) transact(ctx context.Context, c *connection, ms []relay.Message, b *relay.Answers) {
	for base := 0; base < len(ms); base += maxWindow {
		part := ms[base:min(base+maxWindow, len(ms))]
		failure := s.commit(ctx, c, part, base, b)
		if !errors.Is(failure, errMessageRefused) {
			continue
		}
		// One of them made it fail, and the others with it: each for itself.
		for i := range part {
			if b.Given(base+i) || ctx.Err() != nil {
				continue
			}
			if len(part) > 1 {
				failure = s.commit(ctx, c, part[i:i+1], base+i, b)
			}
			if errors.Is(failure, errMessageRefused) && !s.refusedAlone(ctx, c, &part[i], base+i, b) {
				b.Give(base+i, relay.Result{Err: failure})
			}
		}
	}
}

// errMessageRefused is wrapped where the broker may have ended a transaction over one of
// its messages.
var errMessageRefused = errors.New("the broker refused the transaction")

// commit makes one transaction and reports the results of its messages. Its error says why
// it failed; where that wraps errMessageRefused they have no result yet.
func (s *Sink) commit(ctx context.Context, c *connection, ms []relay.Message, base int, b *relay.Answers) error {
	ch, err := c.acquire(ctx, transactional, s.exchange, len(ms))
	if err != nil {
		s.noChannel(ctx, c, err, b)
		return err
	}
	committed := false
	defer func() { c.release(ch, committed) }() // what was not committed goes with its channel

	failed := func(err error) error {
		var failure error
		cause := refusal(ch)
		switch {
		case cause != nil && (len(ms) > 1 || cause.Code == amqp.PreconditionFailed):
			return relay.Fail(reasonTransactionFailed, fmt.Errorf("publish to exchange %q: %w: %w", s.exchange.Name, errMessageRefused, brokerError{cause}))
		default:
			failure = s.lost(c, ch, err)
		}
		for i := range ms {
			b.Give(base+i, relay.Result{Err: failure})
		}
		return failure
	}
	published := 0
	for i := range ms {
		key, p, err := s.prepare(c.limits, &ms[i], ch.headers)
		if err != nil {
			b.Give(base+i, relay.Result{Outcome: relay.Rejected, Err: err})
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := ch.amqp.Publish(s.exchange.wire(), key, s.settings.Mandatory, false, p); err != nil {
			return failed(err)
		}
		published++
	}
	if published == 0 { // and nothing is known of the exchange
		committed = true
		return nil
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
			b.Give(base+i, s.unroutable(code))
			continue
		}
		b.Give(base+i, relay.Result{Outcome: relay.Delivered})
	}
	return nil
}

// refusedAlone rejects a message that the broker refuses for what it is; a commit does not
// tell that from a queue that takes nothing.
func (s *Sink) refusedAlone(ctx context.Context, c *connection, m *relay.Message, i int, b *relay.Answers) bool {
	_, p, err := s.prepare(c.limits, m, amqp.Table{})
	if err != nil {
		return false // and it has its result
	}
	cause := s.refuses(ctx, c, p)
	if cause != nil {
		b.Give(i, s.messageRefused(cause))
	}
	return cause != nil
}

// write publishes the messages and waits for nothing.
func (s *Sink) write(ctx context.Context, c *connection, ms []relay.Message, b *relay.Answers) {
	ch, err := c.acquire(ctx, plain, s.exchange, len(ms))
	if err != nil {
		s.noChannel(ctx, c, err, b)
		return
	}
	defer c.release(ch, true)
	for i := range ms {
		key, p, err := s.prepare(c.limits, &ms[i], ch.headers)
		if err != nil {
			b.Give(i, relay.Result{Outcome: relay.Rejected, Err: err})
			continue
		}
		if ctx.Err() != nil {
			return
		}
		if err := ch.amqp.Publish(s.exchange.wire(), key, false, false, p); err != nil {
			// A refusal of what was written before shows here.
			b.Finish(relay.Result{Err: s.lost(c, ch, err)})
			return
		}
		b.Give(i, relay.Result{Outcome: relay.Delivered})
	}
}
