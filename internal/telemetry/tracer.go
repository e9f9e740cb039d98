package telemetry

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"mnsrelay/internal/relay"
)

// Attributes of spans that the conventions of OpenTelemetry do not have.
const (
	keySource    = attribute.Key("mnsrelay.source")
	keyRoute     = attribute.Key("mnsrelay.route")
	keyAttempt   = attribute.Key("mnsrelay.attempt")
	keyOutcome   = attribute.Key("mnsrelay.outcome")
	keyDeleted   = attribute.Key("mnsrelay.deleted")
	keyReturned  = attribute.Key("mnsrelay.returned")
	keyLost      = attribute.Key("mnsrelay.lost_leases")
	keyDeadCause = attribute.Key("mnsrelay.dead_reason")
)

// Values of messaging.system. That of MNS, whose name now is Simple Message Queue, is what
// other clients of it say. A system that OpenTelemetry has no name for has that of the sink's
// type.
const (
	systemMNS      = "smq"
	systemRabbitMQ = "rabbitmq"
)

func systemOf(kind string) string {
	switch kind {
	case "amqp091":
		return systemRabbitMQ
	case "mns":
		return systemMNS
	}
	return kind
}

// tracer makes the spans of one source.
type tracer struct {
	trace.Tracer
	process string // the name of a batch's span
	batch   []attribute.KeyValue
	sinks   map[string]destination
}

// destination is a sink as its spans tell of it.
type destination struct {
	send       string // the name of a span
	attributes []attribute.KeyValue
}

// Tracer makes spans for one source: of a queue, with the types of all sinks by name.
func (t *Tracing) Tracer(source, queue string, sinks map[string]string) relay.Tracer {
	made := &tracer{
		Tracer: t.tracer, process: "process " + queue, sinks: make(map[string]destination, len(sinks)),
		batch: []attribute.KeyValue{
			semconv.MessagingSystemKey.String(systemMNS), semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("process"),
			semconv.MessagingDestinationName(queue), keySource.String(source),
		},
	}
	for name, kind := range sinks {
		made.sinks[name] = destination{
			send: "send " + name,
			attributes: []attribute.KeyValue{
				semconv.MessagingSystemKey.String(systemOf(kind)), semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("send"),
				semconv.MessagingDestinationName(name), keySource.String(source),
			},
		}
	}
	return made
}

// Batch is part of relay.Tracer.
func (t *tracer) Batch(at time.Time, ms []relay.Message) relay.BatchSpan {
	links := make([]trace.Link, 0, len(ms))
	for i := range ms {
		if c := ms[i].Trace; c != nil {
			links = append(links, trace.Link{SpanContext: spanContext(c, true), Attributes: []attribute.KeyValue{semconv.MessagingMessageID(ms[i].ID)}})
		}
	}
	_, span := t.Start(context.Background(), t.process, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(at), trace.WithLinks(links...),
		trace.WithAttributes(t.batch...), trace.WithAttributes(semconv.MessagingBatchMessageCount(len(ms))))
	b := &batchSpan{tracer: t, span: span, own: traceContext(span.SpanContext())}
	for i := range ms {
		if ms[i].Trace == nil {
			ms[i].Trace = b.own
		}
	}
	return b
}

// batchSpan is the span of a batch.
type batchSpan struct {
	tracer *tracer
	span   trace.Span
	own    *relay.TraceContext
}

// Delivery is part of relay.BatchSpan.
func (b *batchSpan) Delivery(to relay.TargetName, m *relay.Message) relay.DeliverySpan {
	parent := m.Trace
	options := make([]trace.SpanStartOption, 0, 4)
	if parent == nil {
		parent = b.own
	}
	if parent != b.own {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: b.span.SpanContext()}))
	}
	destination := b.tracer.sinks[to.Sink]
	more := append(make([]attribute.KeyValue, 0, 4), semconv.MessagingMessageID(m.ID), keyAttempt.Int(m.Attempt))
	if to.Route != "" {
		more = append(more, keyRoute.String(to.Route))
	}
	if m.Dead != nil {
		more = append(more, keyDeadCause.String(m.Dead.Reason))
	}
	options = append(options, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(destination.attributes...), trace.WithAttributes(more...))
	ctx := trace.ContextWithSpanContext(context.Background(), spanContext(parent, parent != b.own))
	_, span := b.tracer.Start(ctx, destination.send, options...)
	return &deliverySpan{span: span, context: traceContext(span.SpanContext())}
}

// Settled is part of relay.BatchSpan.
func (b *batchSpan) Settled(deleted, returned, lost int) {
	b.span.AddEvent("settled", trace.WithAttributes(keyDeleted.Int(deleted), keyReturned.Int(returned), keyLost.Int(lost)))
}

// End is part of relay.BatchSpan.
func (b *batchSpan) End() { b.span.End() }

// deliverySpan is the span of a delivery. It says why one failed, by the name of the reason:
// the text of an error stays here.
type deliverySpan struct {
	span    trace.Span
	context *relay.TraceContext
}

// Context is part of relay.DeliverySpan.
func (d *deliverySpan) Context() *relay.TraceContext { return d.context }

// Failed is part of relay.DeliverySpan.
func (d *deliverySpan) Failed(r relay.Result) {
	d.span.AddEvent("retry", trace.WithAttributes(semconv.ErrorTypeKey.String(relay.ReasonOf(r.Err))))
}

// End is part of relay.DeliverySpan.
func (d *deliverySpan) End(r relay.Result) {
	d.span.SetAttributes(keyOutcome.String(r.Outcome.String()))
	if r.Outcome != relay.Delivered {
		reason := relay.ReasonOf(r.Err)
		d.span.SetAttributes(semconv.ErrorTypeKey.String(reason))
		d.span.SetStatus(codes.Error, reason)
	}
	d.span.End()
}

// spanContext is what the library makes of a trace context.
func spanContext(c *relay.TraceContext, remote bool) trace.SpanContext {
	traceID, _ := trace.TraceIDFromHex(c.TraceID()) // it has been checked
	spanID, _ := trace.SpanIDFromHex(c.SpanID())
	state, _ := trace.ParseTraceState(c.State) // one that it does not like is left out
	var flags trace.TraceFlags
	return trace.NewSpanContext(trace.SpanContextConfig{
		TraceID: traceID, SpanID: spanID, TraceFlags: flags.WithSampled(c.Sampled()), TraceState: state, Remote: remote,
	})
}

// traceContext is the opposite of spanContext.
func traceContext(c trace.SpanContext) *relay.TraceContext {
	return &relay.TraceContext{
		Parent: "00-" + c.TraceID().String() + "-" + c.SpanID().String() + "-" + c.TraceFlags().String(),
		State:  c.TraceState().String(),
	}
}
