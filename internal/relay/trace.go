package relay

import (
	"errors"
	"strings"
	"time"
)

// Names of the headers that carry a trace context (W3C: Trace Context).
const (
	HeaderTraceParent = "traceparent"
	HeaderTraceState  = "tracestate"
)

// IsTraceHeader tells whether a header of that name carries a trace context. A sink whose
// configuration has a header of that name sends that one.
func IsTraceHeader(name string) bool {
	return name == HeaderTraceParent || name == HeaderTraceState
}

// TraceContext says to which trace something belongs, as the headers of the same names do
// (W3C: Trace Context). It is immutable: messages share it.
type TraceContext struct {
	// Parent is the version, the id of the trace, the id of the span and the flags:
	// 00-HEX32-HEX16-HEX2.
	Parent string
	// State is what vendors add, a list; empty: nothing.
	State string
}

// Bounds of W3C: Trace Context.
const (
	lengthParent    = 2 + 1 + lengthTraceID + 1 + lengthSpanID + 1 + 2
	lengthTraceID   = 32
	lengthSpanID    = 16
	maxState        = 512 // what everybody has to pass on; what is longer may be dropped
	maxStateMembers = 32
	maxStatePart    = 256 // a key, or a value
)

// ParseTraceContext reads a trace context as whoever sent a message has written it. It gives
// nil for what is none, and leaves out a state that is none: neither says anything against the
// message. Of a version that is not known it takes the parts that the first one has.
func ParseTraceContext(parent, state string) *TraceContext {
	if len(parent) < lengthParent || len(parent) > maxState {
		return nil
	}
	version, rest := parent[:2], parent[lengthParent:]
	t := &TraceContext{Parent: parent[:lengthParent]}
	known := version == "00"
	switch {
	case parent[2] != '-' || parent[35] != '-' || parent[52] != '-':
		return nil
	case !isHex(version) || version == "ff" || !isHex(t.TraceID()) || !isHex(t.SpanID()) || !isHex(parent[53:lengthParent]):
		return nil
	case strings.Trim(t.TraceID(), "0") == "" || strings.Trim(t.SpanID(), "0") == "":
		return nil
	case known && rest != "" || !known && rest != "" && rest[0] != '-':
		return nil
	}
	if !known {
		t.Parent = "00" + t.Parent[2:]
	}
	if isTraceState(state) {
		t.State = state
	}
	return t
}

// TraceID is the id of the trace: 32 digits of hexadecimal.
func (t *TraceContext) TraceID() string { return t.Parent[3 : 3+lengthTraceID] }

// SpanID is the id of the span that is the parent of what follows: 16 digits of hexadecimal.
func (t *TraceContext) SpanID() string { return t.Parent[36 : 36+lengthSpanID] }

// Sampled tells whether the trace is recorded.
func (t *TraceContext) Sampled() bool {
	last := t.Parent[lengthParent-1]
	return strings.IndexByte("13579bdf", last) >= 0
}

func isHex(text string) bool {
	return strings.Trim(text, "0123456789abcdef") == ""
}

// isTraceState tells whether a text is a state that can be passed on as it is (W3C: Trace
// Context, 3.3.1), in a header too.
func isTraceState(state string) bool {
	if state == "" || len(state) > maxState {
		return false
	}
	members := strings.Split(state, ",")
	keys := make(map[string]bool, len(members))
	for _, member := range members {
		member = strings.Trim(member, " \t")
		if member == "" {
			continue // allowed, and says nothing
		}
		key, value, found := strings.Cut(member, "=")
		if !found || !isStateKey(key) || !isStateValue(value) || keys[key] {
			return false
		}
		keys[key] = true
	}
	return len(keys) > 0 && len(keys) <= maxStateMembers
}

func isStateKey(key string) bool {
	isFirst := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	if key == "" || len(key) > maxStatePart || !isFirst(key[0]) {
		return false
	}
	tenant, system, has := strings.Cut(key, "@")
	if has && (len(tenant) > 241 || system == "" || len(system) > 14 || system[0] < 'a' || system[0] > 'z') {
		return false
	}
	return strings.Trim(tenant+system, "abcdefghijklmnopqrstuvwxyz0123456789_-*/") == ""
}

func isStateValue(value string) bool {
	if value == "" || len(value) > maxStatePart {
		return false
	}
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' || r == ',' || r == '=' })
}

// Tracer makes the spans of one source. It is safe for concurrent use.
type Tracer interface {
	// Batch begins the span of messages that came together at the given time. A message
	// that belongs to no trace yet gets the context of that span.
	Batch(at time.Time, ms []Message) BatchSpan
}

// BatchSpan is what becomes of the messages of one receive. It is safe for concurrent use.
type BatchSpan interface {
	// Delivery begins the span of one message on its way to one target.
	Delivery(to TargetName, m *Message) DeliverySpan
	// Settled notes how many messages were deleted, given back and lost.
	Settled(deleted, returned, lost int)
	// End ends the span: all is settled.
	End()
}

// DeliverySpan is one message on its way to one target.
type DeliverySpan interface {
	// Context is what travels with the message. It is never nil, recorded or not.
	Context() *TraceContext
	// Failed notes a try that failed; another one follows.
	Failed(r Result)
	// End ends the span with the result. It is called once.
	End(r Result)
}

// trace begins the span of a batch, whose end is to be called; without a Tracer nothing
// happens in either.
func (p *Pipeline) trace(b *batch) (end func()) {
	if p.deps.Tracer == nil {
		return func() {}
	}
	b.span = p.deps.Tracer.Batch(b.received, b.messages)
	return b.span.End
}

// trace begins the spans of the messages that index names, unless nothing is traced.
func (d *delivery) trace(index []int) {
	if d.batch == nil {
		return
	}
	d.spans = make([]DeliverySpan, len(d.messages))
	for _, i := range index {
		d.spans[i] = d.batch.Delivery(d.Name, &d.messages[i])
	}
}

// traceRetry notes the tries that are followed by another.
func (d *delivery) traceRetry(left *failures) {
	if d.spans == nil {
		return
	}
	for k, i := range left.index {
		if r := left.results[k]; !errors.Is(r.Err, errSinkDown) { // which was not sent
			d.spans[i].Failed(r)
		}
	}
}
