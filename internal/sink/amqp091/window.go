package amqp091

import (
	"context"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"mnsrelay/internal/relay"
)

// The window is how many messages may be unconfirmed on one channel. It follows the
// size of the batch: a source hands over at most 16 messages at a time.
const (
	minWindow = 16
	maxWindow = 1024
)

// stallTime is how long the oldest confirm may be late before the younger ones are
// looked at one by one. Confirms come in order or nearly so.
const stallTime = 20 * time.Millisecond

// pending is a message that waits for its confirm.
type pending struct {
	index   int
	confirm *amqp.DeferredConfirmation
}

// confirm sends the messages on one channel, never more than its window ahead of
// the confirms, until all are confirmed or ctx ends. Where one of them made the broker
// close the channel, those that fell with it are sent again one by one, so that the one
// is found and the others arrive.
func (s *Sink) confirm(ctx context.Context, c *connection, ms []relay.Message, b *relay.Answers) {
	fell := s.window(ctx, c, ms, 0, b)
	if len(ms) == 1 {
		s.refuse(fell, b)
		return
	}
	refused := fallen{took: fell.took}
	for n, i := range fell.index {
		alone := s.window(ctx, c, ms[i:i+1], i, b)
		refused.took = refused.took || alone.took
		switch {
		case len(alone.index) == 0:
			continue
		case alone.cause.Code == amqp.PreconditionFailed:
			s.refuse(alone, b)
			continue
		}
		refused.index, refused.cause = append(refused.index, i), alone.cause
		if !refused.took && len(refused.index) > 1 {
			// It is not the one or the other: the exchange takes nothing.
			refused.index = append(refused.index, fell.index[n+1:]...)
			break
		}
	}
	s.refuse(refused, b)
}

// fallen are messages that fell with a channel over a refusal of the broker's.
type fallen struct {
	index []int // in their batch
	cause *amqp.Error
	// took says that the exchange took others.
	took bool
}

// refuse gives the results of messages that were refused alone.
func (s *Sink) refuse(f fallen, b *relay.Answers) {
	if len(f.index) == 0 {
		return
	}
	result := relay.Result{}
	switch {
	case f.cause.Code == amqp.PreconditionFailed:
		result = s.messageRefused(f.cause)
	case f.took:
		// As topic permissions of RabbitMQ do.
		result.Err = s.keyRefused()
	case len(f.index) == 1 && s.exchange.proven.Load() && s.exchange.refused.Add(1) == 1:
		// It may be the key of this one; the next message tells.
		result.Err = s.keyRefused()
	default:
		result.Err = s.endpoint.fails(s.exchange, f.cause, true)
	}
	for _, i := range f.index {
		b.Give(i, result)
	}
}

// keyRefused is why a message is refused that the exchange might take under another key.
// The broker's own words hold the key, which may be what the message says.
func (s *Sink) keyRefused() error {
	return relay.Fail(reasonExchangeRefused, fmt.Errorf("not permitted to publish to exchange %q with this routing key, %q: grant it (%d)", s.exchange.Name, s.settings.RoutingKey, amqp.AccessRefused))
}

// messageRefused is the result of a message that made the broker close the channel.
func (s *Sink) messageRefused(cause *amqp.Error) relay.Result {
	return relay.Result{Outcome: relay.Rejected, Err: relay.Fail(reasonMessageRefused,
		fmt.Errorf("publish to exchange %q: %w", s.exchange.Name, brokerError{cause}))}
}

// window publishes messages, of which the first has the index base in its batch, and gives
// those that fell with the channel.
func (s *Sink) window(ctx context.Context, c *connection, ms []relay.Message, base int, b *relay.Answers) fallen {
	ch, err := c.acquire(ctx, confirming, s.exchange, len(ms))
	if err != nil {
		s.noChannel(ctx, c, err, b)
		return fallen{}
	}
	w := &window{sink: s, connection: c, channel: ch, messages: ms, base: base, batch: b, pending: ch.pending[:0]}
	w.run(ctx)
	owing := len(w.pending) > 0
	clear(w.pending)
	ch.pending = w.pending[:0]
	c.release(ch, !owing)
	return w.fell
}

// noChannel gives every message its result where there is no channel.
func (s *Sink) noChannel(ctx context.Context, c *connection, err error, b *relay.Answers) {
	switch {
	case ctx.Err() != nil: // and Deliver says so
	case c.amqp.IsClosed():
		s.endpoint.gone(c, err)
		b.Finish(relay.Result{Err: relay.Fail(reasonConnectionLost, fmt.Errorf("open a channel: %w: %w", relay.ErrSinkDown, err))})
	default:
		b.Finish(relay.Result{Err: relay.Fail(reasonChannelClosed, fmt.Errorf("open a channel: %w", err))})
	}
}

// window is what is under way on a channel.
type window struct {
	sink       *Sink
	connection *connection
	channel    *channel
	messages   []relay.Message
	base       int // the index of the first in the batch
	batch      *relay.Answers
	pending    []pending
	returned   map[string]uint16 // reply codes by message id; nil while there are none
	// fell are messages of which one has made the broker close the channel.
	fell fallen
}

// run leaves in pending what was not answered before ctx ended.
func (w *window) run(ctx context.Context) {
	for i := range w.messages {
		key, p, err := w.sink.prepare(w.connection.limits, &w.messages[i], w.channel.headers)
		if err != nil {
			w.report(i, relay.Result{Outcome: relay.Rejected, Err: err})
			continue
		}
		for len(w.pending) == cap(w.channel.returns) {
			if !w.await(ctx) {
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		confirm, err := w.channel.amqp.PublishWithDeferredConfirm(w.sink.exchange.wire(), key, w.sink.settings.Mandatory, false, p)
		if err != nil {
			for j := i; j < len(w.messages); j++ {
				w.failed(j, err)
			}
			break
		}
		w.pending = append(w.pending, pending{i, confirm})
		w.collect()
	}
	for len(w.pending) > 0 {
		if !w.await(ctx) {
			return
		}
	}
}

// report gives the message its result.
func (w *window) report(i int, r relay.Result) { w.batch.Give(w.base+i, r) }

// await waits for the oldest confirm, for a while, and reports what has come. It
// is false when ctx has ended.
func (w *window) await(ctx context.Context) bool {
	w.channel.stall.Reset(stallTime)
	select {
	case <-w.pending[0].confirm.Done():
		w.collect()
	case <-w.channel.stall.C:
		w.sweep()
	case <-ctx.Done():
		w.sweep()
		return len(w.pending) == 0
	}
	return true
}

// collect reports the oldest confirms that have come, up to the first that has not.
func (w *window) collect() {
	n := 0
	for n < len(w.pending) && resolved(w.pending[n].confirm) {
		w.settle(w.pending[n])
		n++
	}
	if n > 0 {
		w.pending = w.pending[:copy(w.pending, w.pending[n:])]
	}
}

// sweep reports every confirm that has come.
func (w *window) sweep() {
	kept := w.pending[:0]
	for _, p := range w.pending {
		if resolved(p.confirm) {
			w.settle(p)
		} else {
			kept = append(kept, p)
		}
	}
	w.pending = kept
}

func resolved(confirm *amqp.DeferredConfirmation) bool {
	select {
	case <-confirm.Done():
		return true
	default:
		return false
	}
}

// settle reports a message whose confirm has come.
func (w *window) settle(p pending) {
	// The broker sends a return before the confirm, so it is here by now.
	w.returned = w.channel.drain(w.returned)
	code, returned := w.returned[w.messages[p.index].ID]
	switch {
	case !p.confirm.Acked():
		w.nacked(p.index)
	case returned:
		// The exchange is there, and has taken it.
		w.took()
		w.report(p.index, w.sink.unroutable(code))
	default:
		w.took()
		w.report(p.index, relay.Result{Outcome: relay.Delivered})
	}
}

// nacked reports a message whose confirm is negative: the broker said so, or the channel
// has ended, after which nobody knows what became of the message.
func (w *window) nacked(i int) {
	if w.channel.amqp.IsClosed() {
		w.failed(i, amqp.ErrClosed)
		return
	}
	w.took()
	w.report(i, relay.Result{Err: relay.Fail(reasonNack, fmt.Errorf("publish to exchange %q: the broker refused the message", w.sink.exchange.Name))})
}

// took notes that the exchange takes messages.
func (w *window) took() {
	w.fell.took = true
	w.sink.works()
}

// failed reports a message that fell with its channel, unless another one may be why.
func (w *window) failed(i int, err error) {
	if cause := refusal(w.channel); cause != nil {
		w.fell.index, w.fell.cause = append(w.fell.index, w.base+i), cause
		return
	}
	w.report(i, relay.Result{Err: w.sink.lost(w.connection, w.channel, err)})
}
