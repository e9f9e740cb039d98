package amqp091

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strconv"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
)

// The reasons of failures.
const (
	reasonNotConnected      = "not_connected"
	reasonBlocked           = "blocked"
	reasonExchange          = "exchange_unavailable" // not checked yet, or for no reason of its own
	reasonExchangeMissing   = "exchange_missing"     // 404
	reasonExchangeRefused   = "exchange_refused"     // 403
	reasonExchangeMismatch  = "exchange_mismatch"    // 406, of a declaration
	reasonQueue             = "queue_unavailable"
	reasonUnroutable        = "unroutable"
	reasonNack              = "nack"
	reasonMessageRefused    = "message_refused" // 406, of a publish: too large for the broker, say
	reasonChannelClosed     = "channel_closed"
	reasonConnectionLost    = "connection_lost"
	reasonConfirmTimeout    = "confirm_timeout"
	reasonTransactionFailed = "transaction_failed"
	reasonReplyTimeout      = "reply_timeout"
	reasonConsumerFailed    = "consumer_failed"
	reasonConsumerRejected  = "consumer_rejected"
	reasonCancelled         = "cancelled"
	reasonInvalidProperty   = "invalid_property"
)

// Sink publishes to one exchange with the settings of one route.
type Sink struct {
	endpoint   *Endpoint
	exchange   *exchange
	settings   Settings
	key        *expr.Template // the routing key
	format     *format.Formatter
	headers    *headers
	properties *properties
	// varies says that something is decided by each message.
	varies bool
	// dropped counts messages that no queue would get.
	dropped atomic.Uint64
	// replies is nil unless the consumers' answers are waited for.
	replies *replies
}

// newSink binds settings that are valid.
func newSink(e *Endpoint, s Settings) (*Sink, error) {
	key, err := expr.CompileSetting("routing_key", s.RoutingKey)
	if err != nil {
		return nil, err
	}
	formatter, err := s.Formatter()
	if err != nil {
		return nil, err
	}
	headers, err := s.compileHeaders()
	if err != nil {
		return nil, err
	}
	properties, err := s.Properties.compile()
	if err != nil {
		return nil, err
	}
	sink := &Sink{
		endpoint: e, settings: s, key: key, format: formatter, headers: headers, properties: properties,
		varies: !key.Literal() || len(headers.varying) > 0 || len(properties.varying) > 0,
	}
	properties.fixed.DeliveryMode = amqp.Transient
	if s.Persistent {
		properties.fixed.DeliveryMode = amqp.Persistent
	}
	if s.Acknowledge == AcknowledgeReply {
		sink.replies = newReplies(sink)
	}
	return sink, nil
}

// Unbind is part of relay.Unbinder.
func (s *Sink) Unbind() {
	if s.replies != nil {
		s.replies.unbind()
	}
	s.endpoint.leave(s.exchange)
}

// clone gives a copy that shares nothing that overrides could write to.
func (s *Settings) clone() Settings {
	c := *s
	c.Headers = maps.Clone(s.Headers)
	c.Exchange.Arguments = maps.Clone(s.Exchange.Arguments)
	return c
}

// Deliver publishes the messages in order and calls done for each as it is known what
// became of it. Without a connection, and while the broker blocks publishers, it publishes
// nothing and returns at once.
func (s *Sink) Deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	if len(ms) == 0 {
		return
	}
	b := relay.NewAnswers(len(ms), done)
	if ctx.Err() != nil {
		b.Finish(s.late(ctx))
		return
	}
	c, err := s.endpoint.begin(s.exchange)
	if err != nil {
		b.Finish(relay.Result{Err: err})
		return
	}
	timed, cancel := ctx, func() {}
	if s.replies == nil { // an answer has a time of its own
		timed, cancel = context.WithTimeout(ctx, s.settings.Timeout)
	}
	defer cancel()
	// A write to a broker that does not read ends with its deadline, not with the
	// context, so it is left behind where the context ends first. Run waits for it.
	finished := make(chan struct{})
	go func() {
		defer s.endpoint.workers.Done()
		defer close(finished)
		acknowledge := s.settings.Acknowledge
		if acknowledge == AcknowledgeNone && !s.exchange.proven.Load() {
			acknowledge = AcknowledgeConfirm // or nobody would learn that the exchange works
		}
		switch acknowledge {
		case AcknowledgeConfirm:
			s.confirm(timed, c, ms, b)
		case AcknowledgeTransaction:
			s.transact(timed, c, ms, b)
		case AcknowledgeReply:
			s.replies.ask(timed, c, ms, b)
		case AcknowledgeNone:
			s.write(timed, c, ms, b)
		}
	}()
	select {
	case <-finished:
	case <-timed.Done():
	}
	// Otherwise every message has its result.
	if timed.Err() != nil {
		b.Finish(s.late(ctx))
	}
}

// late is the result of a message that was not confirmed before its time was over.
func (s *Sink) late(ctx context.Context) relay.Result {
	if ctx.Err() != nil {
		return relay.Result{Err: relay.Fail(reasonCancelled, fmt.Errorf("publish to exchange %q: %w", s.exchange.Name, context.Cause(ctx)))}
	}
	return relay.Result{Err: relay.Fail(reasonConfirmTimeout, fmt.Errorf("publish to exchange %q: not confirmed within %v", s.exchange.Name, s.settings.Timeout))}
}

// prepare works out the routing key and the properties of a message, its headers in the
// given table, which is written anew. It finds what the broker would end the channel or
// the connection over, and with it the messages of all others. Its error holds nothing of
// the message.
func (s *Sink) prepare(l limits, m *relay.Message, table amqp.Table) (key string, p amqp.Publishing, err error) {
	if len(m.ID) > maxShortString {
		return "", p, tooLong("the message id", len(m.ID), maxShortString)
	}
	if n := len(m.ID) + maxSuffix; s.replies != nil && n > maxShortString {
		return "", p, tooLong("the correlation id", n, maxShortString)
	}
	var in *expr.Input // literals need none
	if s.varies {
		in = expr.Of(m)
	}
	if key, err = s.key.Render(in); err != nil {
		return "", p, fmt.Errorf("work out the routing key: %w", err)
	}
	if len(key) > maxShortString {
		return "", p, tooLong("the routing key", len(key), maxShortString)
	}

	p = s.properties.fixed
	for _, property := range s.properties.varying {
		text, err := property.value.Render(in)
		if err != nil {
			return "", p, fmt.Errorf("work out the property %s: %w", property.name, err)
		}
		if err := property.set(&p, text); err != nil {
			return "", p, relay.Fail(reasonInvalidProperty, fmt.Errorf("the property %s: %w", property.name, err))
		}
	}
	payload, err := s.format.Format(m)
	if err != nil {
		return "", p, err
	}
	if p.ContentType, err = payload.ContentTypeOr(p.ContentType); err != nil {
		return "", p, err
	}
	if p.UserId != "" && l.username != "" && p.UserId != l.username {
		return "", p, relay.Fail(reasonInvalidProperty, errors.New("the property user_id: not the user that the relay has logged in as, and the broker refuses any other"))
	}
	p.MessageId, p.Timestamp, p.Body = m.ID, m.EnqueuedAt, payload.Body

	// The library writes the table out when it publishes, and keeps nothing of it.
	clear(table)
	maps.Copy(table, s.headers.fixed)
	size := s.headers.size
	for _, h := range s.headers.varying {
		value, err := h.value.Render(in)
		if err != nil {
			return "", p, fmt.Errorf("work out the header %s: %w", h.name, err)
		}
		if value == nil {
			continue
		}
		if value, err = headerValue(h.name, h.extension, value); err != nil {
			return "", p, relay.Fail(reasonInvalidProperty, fmt.Errorf("the header %s: %w", h.name, err))
		}
		size += entrySize(h.name, value)
		table[h.name] = value
	}
	for _, a := range payload.Attributes {
		// The time, too, is text, which every reader has to take: a timestamp has whole
		// seconds here.
		size += entrySize(broker.EventPrefix+a.Name, a.Value)
		table[broker.EventPrefix+a.Name] = a.Value
	}
	if size > maxHeaders {
		return "", p, tooLong("the headers", size, maxHeaders)
	}
	for name, value := range m.Headers {
		if _, own := table[name]; own && relay.IsTraceHeader(name) {
			continue // the configuration's own
		}
		table[name] = value
		size += entrySize(name, value)
	}
	table[relay.HeaderAttempt] = int64(m.Attempt) // AMQP has numbers
	p.Headers = table
	if l.frame > 0 && size+maxProperties > l.frame {
		return "", p, tooLong("the headers", size, l.frame-maxProperties)
	}
	return key, p, nil
}

// maxProperties is what all but the headers may take of the frame of the properties: nine
// short strings, and numbers.
const maxProperties = 9*(maxShortString+1) + 64

func tooLong(what string, size, limit int) error {
	return relay.Fail(reasonInvalidProperty, fmt.Errorf("%s: %d bytes long, at most %d fit", what, size, limit))
}

// unroutable is the result of a message that the broker gave back.
func (s *Sink) unroutable(code uint16) relay.Result {
	s.endpoint.redeclare()
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
		return relay.Result{Outcome: relay.Delivered, Dropped: true}
	case UnroutableRetry:
	}
	return relay.Result{Err: relay.Fail(reasonUnroutable, cause)}
}

// works notes that the exchange took a message.
func (s *Sink) works() {
	if s.exchange.refused.Load() > 0 {
		s.exchange.refused.Store(0)
	}
	if !s.exchange.proven.Load() {
		s.endpoint.works(s.exchange)
	}
}

// lost says why a channel has ended, and notes what that tells of the exchange.
func (s *Sink) lost(c *connection, ch *channel, err error) error {
	x := s.exchange
	cause := ch.reason()
	if c.amqp.IsClosed() {
		// Run may not have noticed yet, or have another connection already: what follows
		// are the results of a sink that was down, not failed tries.
		s.endpoint.gone(c, err)
		return relay.Fail(reasonConnectionLost, fmt.Errorf("publish to exchange %q: %w: %w", x.Name, relay.ErrSinkDown, err))
	}
	if cause == nil {
		return relay.Fail(reasonChannelClosed, fmt.Errorf("publish to exchange %q: %w", x.Name, err))
	}
	if cause.Server && (cause.Code == amqp.NotFound || cause.Code == amqp.AccessRefused) {
		return s.endpoint.fails(x, cause, x.Declare == DeclareNone || cause.Code == amqp.AccessRefused)
	}
	return relay.Fail(reasonChannelClosed, fmt.Errorf("publish to exchange %q: %w", x.Name, brokerError{cause}))
}

// refusal is why the broker has ended a channel, if that may be what one message is, and the
// others fell with it: larger than the broker allows (406), or for a routing key that the
// user may not publish to (403).
func refusal(ch *channel) *amqp.Error {
	if !ch.amqp.IsClosed() {
		return nil
	}
	cause := ch.reason()
	if cause == nil || !cause.Server || cause.Code != amqp.PreconditionFailed && cause.Code != amqp.AccessRefused {
		return nil
	}
	return cause
}

// refuses finds out whether the broker refuses a message for what it is, where no confirm
// can tell: it is published to nobody, on a channel that carries nothing else.
func (s *Sink) refuses(ctx context.Context, c *connection, p amqp.Publishing) *amqp.Error {
	ch, err := c.acquire(ctx, plain, new(exchange), 1)
	if err != nil {
		return nil
	}
	defer c.release(ch, false)
	headers := maps.Clone(p.Headers)
	delete(headers, "CC") // which would lead somewhere
	delete(headers, "BCC")
	p.Headers, p.ReplyTo = headers, ""
	nobody := "mnsrelay.nobody." + strconv.FormatUint(rand.Uint64(), 36) //nolint:gosec // No secret.
	if err = ch.amqp.Publish("", nobody, false, false, p); err == nil {
		// Answered after the message was looked at.
		err = c.bounded(func() error { return ch.amqp.Qos(0, 0, false) })
	}
	if err == nil {
		return nil
	}
	if cause := refusal(ch); cause != nil && cause.Code == amqp.PreconditionFailed {
		return cause
	}
	return nil
}
