package amqp091

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/expr"
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

// The reasons of failures.
const (
	reasonNotConnected    = "not_connected"
	reasonBlocked         = "blocked"
	reasonExchange        = "exchange_unavailable"
	reasonUnroutable      = "unroutable"
	reasonNack            = "nack"
	reasonChannelClosed   = "channel_closed"
	reasonConnectionLost  = "connection_lost"
	reasonConfirmTimeout  = "confirm_timeout"
	reasonCancelled       = "cancelled"
	reasonInvalidProperty = "invalid_property"
)

// Sink publishes to one exchange with the settings of one route.
type Sink struct {
	endpoint *Endpoint
	exchange *exchange
	settings Settings
	mode     uint8
	headers  map[string]any // those that are the same for every message
	size     int            // of their names and values, in bytes
	key      *expr.Template // the routing key
	// templates are the headers that each message decides.
	templates []header
	// dropped counts messages that no queue would get.
	dropped atomic.Uint64
}

// header is one whose value each message decides.
type header struct {
	name  string
	value *expr.Template
}

// newSink binds settings that are valid.
func newSink(e *Endpoint, s Settings, x *exchange) (*Sink, error) {
	key, err := expr.CompileSetting("routing_key", s.RoutingKey)
	if err != nil {
		return nil, err
	}
	sink := &Sink{endpoint: e, exchange: x, settings: s, mode: amqp.Transient, headers: map[string]any{}, key: key}
	if s.Persistent {
		sink.mode = amqp.Persistent
	}
	for name, source := range s.Headers {
		value, err := expr.CompileSetting("headers."+name, source)
		if err != nil {
			return nil, err
		}
		sink.size += len(name)
		if !value.Literal() {
			sink.templates = append(sink.templates, header{name, value})
			continue
		}
		text := value.Sample("")
		sink.size += len(text)
		sink.headers[name] = text
	}
	return sink, nil
}

// clone gives a copy that shares nothing that overrides could write to.
func (s *Settings) clone() Settings {
	c := *s
	c.Headers = maps.Clone(s.Headers)
	return c
}

// Deliver publishes the messages in order and calls done for each as its confirm
// comes. Without a connection, and while the broker blocks publishers, it publishes
// nothing and returns at once.
func (s *Sink) Deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	if len(ms) == 0 {
		return
	}
	b := &batch{done: done, reported: make([]bool, len(ms))}
	if ctx.Err() != nil {
		b.finish(s.late(ctx))
		return
	}
	c, err := s.endpoint.begin(s.exchange)
	if err != nil {
		b.finish(relay.Result{Err: err})
		return
	}
	timed, cancel := context.WithTimeout(ctx, s.settings.Timeout)
	defer cancel()
	// A write to a broker that does not read ends with its deadline, not with the
	// context, so it is left behind where the context ends first. Run waits for it.
	finished := make(chan struct{})
	go func() {
		defer s.endpoint.workers.Done()
		defer close(finished)
		s.publish(timed, c, ms, b)
	}()
	select {
	case <-finished:
	case <-timed.Done():
	}
	// Otherwise every message has its result.
	if timed.Err() != nil {
		b.finish(s.late(ctx))
	}
}

// late is the result of a message that was not confirmed before its time was over.
func (s *Sink) late(ctx context.Context) relay.Result {
	if ctx.Err() != nil {
		return relay.Result{Err: relay.Fail(reasonCancelled, fmt.Errorf("publish to exchange %q: %w", s.exchange.Name, context.Cause(ctx)))}
	}
	return relay.Result{Err: relay.Fail(reasonConfirmTimeout, fmt.Errorf("publish to exchange %q: not confirmed within %v", s.exchange.Name, s.settings.Timeout))}
}

// batch sees to it that each message gets one result, and none after Deliver has
// returned.
type batch struct {
	mu       sync.Mutex
	done     func(int, relay.Result)
	reported []bool
	over     bool
}

func (b *batch) report(i int, r relay.Result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over && !b.reported[i] {
		b.reported[i] = true
		b.done(i, r)
	}
}

// finish gives r to every message that has no result.
func (b *batch) finish(r relay.Result) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	for i, reported := range b.reported {
		if !reported {
			b.reported[i] = true
			b.done(i, r)
		}
	}
}

// pending is a message that waits for its confirm.
type pending struct {
	index   int
	confirm *amqp.DeferredConfirmation
}

// publish sends the messages on one channel, never more than its window ahead of
// the confirms, until all are confirmed or ctx ends.
func (s *Sink) publish(ctx context.Context, c *connection, ms []relay.Message, b *batch) {
	ch, err := c.acquire(ctx, len(ms))
	if err != nil {
		if ctx.Err() == nil {
			b.finish(relay.Result{Err: relay.Fail(reasonChannelClosed, fmt.Errorf("open a channel: %w", err))})
		}
		return
	}
	w := &window{sink: s, connection: c, channel: ch, messages: ms, batch: b, pending: ch.pending[:0]}
	w.run(ctx)
	owing := len(w.pending) > 0
	clear(w.pending)
	ch.pending = w.pending[:0]
	c.release(ch, !owing)
}

// window is what is under way on a channel.
type window struct {
	sink       *Sink
	connection *connection
	channel    *channel
	messages   []relay.Message
	batch      *batch
	pending    []pending
	returned   map[string]uint16 // reply codes by message id; nil while there are none
}

// run leaves in pending what was not answered before ctx ended.
func (w *window) run(ctx context.Context) {
	for i := range w.messages {
		m := &w.messages[i]
		key, err := w.prepare(m)
		if err != nil {
			w.batch.report(i, relay.Result{Outcome: relay.Rejected, Err: err})
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
		confirm, err := w.send(m, key)
		if err != nil {
			failure := w.lost(err)
			for j := i; j < len(w.messages); j++ {
				w.batch.report(j, relay.Result{Err: failure})
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

// prepare works out the routing key of a message, and its headers into those of the
// channel. It finds what the broker would end the connection over, and with it the
// messages of all others. Its error holds nothing of the message.
func (w *window) prepare(m *relay.Message) (key string, err error) {
	s, headers := w.sink, w.channel.headers
	if len(m.ID) > maxShortString {
		return "", tooLong("the message id", len(m.ID), maxShortString)
	}
	var in *expr.Input // literals need none
	if !s.key.Literal() || len(s.templates) > 0 {
		in = expr.Of(m)
	}
	if key, err = s.key.Render(in); err != nil {
		return "", fmt.Errorf("work out the routing key: %w", err)
	}
	if len(key) > maxShortString {
		return "", tooLong("the routing key", len(key), maxShortString)
	}

	// The library writes the table out when it publishes, and keeps nothing of it.
	clear(headers)
	maps.Copy(headers, s.headers)
	size := s.size
	for _, h := range s.templates {
		value, err := h.value.Render(in)
		if err != nil {
			return "", fmt.Errorf("work out the header %s: %w", h.name, err)
		}
		if size += len(value); size > maxHeaders {
			return "", tooLong("the headers", size, maxHeaders)
		}
		headers[h.name] = value
	}
	for name, value := range m.Headers {
		headers[name] = value
	}
	headers[relay.HeaderAttempt] = int64(m.Attempt) // AMQP has numbers
	return key, nil
}

func tooLong(what string, size, limit int) error {
	return relay.Fail(reasonInvalidProperty, fmt.Errorf("%s: %d bytes long, at most %d fit", what, size, limit))
}

// send publishes a message that was just prepared.
func (w *window) send(m *relay.Message, key string) (*amqp.DeferredConfirmation, error) {
	s := w.sink
	return w.channel.amqp.PublishWithDeferredConfirm(s.exchange.Name, key, s.settings.Mandatory, false, amqp.Publishing{
		Headers:      w.channel.headers,
		ContentType:  m.ContentType(),
		DeliveryMode: s.mode,
		MessageId:    m.ID,
		Timestamp:    m.EnqueuedAt,
		Body:         m.Body,
	})
}

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
	w.drain()
	s, m := w.sink, &w.messages[p.index]
	var result relay.Result
	switch code, returned := w.returned[m.ID]; {
	case !p.confirm.Acked():
		result.Err = w.refused()
	case returned:
		result = s.unroutable(code)
	default:
		result.Outcome = relay.Delivered
	}
	if result.Outcome == relay.Delivered || !w.channel.amqp.IsClosed() {
		w.answered()
	}
	w.batch.report(p.index, result)
}

// unroutable is the result of a message that the broker gave back.
func (s *Sink) unroutable(code uint16) relay.Result {
	// The key as the configuration has it: what it became may hold what the message says.
	cause := fmt.Errorf("publish to exchange %q with routing key %q: no queue is bound for it (%d)", s.exchange.Name, s.settings.RoutingKey, code)
	switch s.settings.Unroutable {
	case UnroutableDeadLetter:
		return relay.Result{Outcome: relay.Rejected, Err: relay.Fail(reasonUnroutable, cause)}
	case UnroutableDrop:
		// Said of the first, the second, the fourth: often enough, and never a flood.
		if n := s.dropped.Add(1); n&(n-1) == 0 {
			s.endpoint.log.Warn("message dropped, as unroutable: drop asks for", zap.Uint64("dropped", n), zap.Error(cause))
		}
		return relay.Result{Outcome: relay.Delivered}
	case UnroutableRetry:
	}
	return relay.Result{Err: relay.Fail(reasonUnroutable, cause)}
}

// answered notes that the exchange took a message.
func (w *window) answered() {
	if !w.sink.exchange.proven.Load() {
		w.sink.endpoint.works(w.sink.exchange)
	}
}

func (w *window) drain() {
	for {
		select {
		case r, ok := <-w.channel.returns:
			if !ok {
				return
			}
			if w.returned == nil {
				w.returned = map[string]uint16{}
			}
			w.returned[r.MessageId] = r.ReplyCode
		default:
			return
		}
	}
}

// refused says why a confirm was negative: a nack, or the end of the channel, after
// which nobody knows what became of the message.
func (w *window) refused() error {
	if !w.channel.amqp.IsClosed() {
		return relay.Fail(reasonNack, fmt.Errorf("publish to exchange %q: the broker refused the message", w.sink.exchange.Name))
	}
	return w.lost(amqp.ErrClosed)
}

// lost says why the channel has ended, and notes what that tells of the exchange.
func (w *window) lost(err error) error {
	x := w.sink.exchange
	cause := w.channel.reason()
	if w.connection.amqp.IsClosed() {
		// Run may not have noticed yet, or have another connection already: what follows
		// are the results of a sink that was down, not failed tries.
		w.sink.endpoint.gone(w.connection, err)
		return relay.Fail(reasonConnectionLost, fmt.Errorf("publish to exchange %q: %w: %w", x.Name, relay.ErrSinkDown, err))
	}
	if cause == nil {
		return relay.Fail(reasonChannelClosed, fmt.Errorf("publish to exchange %q: %w", x.Name, err))
	}
	if cause.Server && (cause.Code == amqp.NotFound || cause.Code == amqp.AccessRefused) {
		failure := fmt.Errorf("%s: %w", advice(cause, x.Exchange), brokerError{cause})
		w.sink.endpoint.fails(x, failure, x.Declare == DeclareNone || cause.Code == amqp.AccessRefused)
		return relay.Fail(reasonExchange, failure)
	}
	return relay.Fail(reasonChannelClosed, fmt.Errorf("publish to exchange %q: %w", x.Name, brokerError{cause}))
}
