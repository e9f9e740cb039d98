package relay

import (
	"strconv"
	"strings"
	"sync"
	"time"
)

// Message is what a source received and what sinks deliver. It is immutable: a
// stage that changes something works on a copy, and neither Body nor Attributes
// may be written to by anyone who was handed a Message.
type Message struct {
	// ID never changes within a queue: a redelivered message carries the id it
	// had before, so that the far side can recognise a duplicate.
	ID string
	// Source is the name of the source in the configuration, Queue that of its queue.
	Source, Queue string
	// Body is the payload, decoded; nil and empty mean the same.
	Body []byte
	// Attributes hold what is known beside the body, by the Attribute names
	// below and, of an unwrapped topic message, topic, tag and publish time. May
	// be nil; it may be shared between messages.
	Attributes map[string]string
	// EnqueuedAt is when the queue accepted the message, by the server's clock.
	EnqueuedAt time.Time
	// Attempt counts receives, this one included: 1 for the first.
	Attempt int
	// Dead says why the message goes to a dead-letter sink; nil on its ordinary way.
	Dead *DeadLetter
	// Trace is the context that the message came with, and at a sink that of the delivery
	// where it is traced; nil: none.
	Trace *TraceContext

	memo *memo
}

// memo keeps what was worked out from a message for all copies of it.
type memo struct {
	once  sync.Once
	value any
}

// Memo gives what work makes of the message, worked out once for all copies of a
// message on its way; that is the place for a parsed body. It is safe for concurrent
// use. All callers must mean the same thing: there is one value.
func (m *Message) Memo(work func() any) any {
	if m.memo == nil {
		return work()
	}
	m.memo.once.Do(func() { m.memo.value = work() })
	return m.memo.value
}

// DeadLetter is why a message was dead-lettered.
type DeadLetter struct {
	// Reason is the name under which it is counted, Error the last error in words.
	Reason, Error string
	// Sink is the sink that would not take it; empty where none was asked.
	Sink string
	// First is when the message was enqueued, Last when it was dead-lettered.
	First, Last time.Time
}

// AttributeBody is the attribute that says how the body was encoded in the
// queue: BodyBase64 or BodyRaw.
const AttributeBody = "body"

// The values of AttributeBody.
const (
	BodyBase64 = "base64"
	BodyRaw    = "raw"
)

// Names of the headers that every sink sends along with a message.
const (
	HeaderSource     = "x-mnsrelay-source"
	HeaderAttempt    = "x-mnsrelay-attempt"
	HeaderEnqueuedAt = "x-mnsrelay-enqueued-at"
	HeaderBody       = "x-mnsrelay-body"
)

// Names of the headers that a dead letter has beside the others.
const (
	HeaderDeadReason = "x-mnsrelay-dead-reason"
	HeaderDeadError  = "x-mnsrelay-dead-error"
	HeaderDeadSink   = "x-mnsrelay-dead-sink"
	HeaderDeadFirst  = "x-mnsrelay-dead-first"
	HeaderDeadLast   = "x-mnsrelay-dead-last"
)

// maxDeadError bounds HeaderDeadError, in bytes: some far sides bound all headers
// together.
const maxDeadError = 512

// EnqueuedAtFormat is how HeaderEnqueuedAt is written: RFC 3339 in UTC, in
// milliseconds, the precision that MNS has.
const EnqueuedAtFormat = "2006-01-02T15:04:05.000Z"

// BodyEncoding is the value of HeaderBody: how the body was encoded in the queue.
func (m *Message) BodyEncoding() string {
	if e := m.Attributes[AttributeBody]; e != "" {
		return e
	}
	return BodyRaw
}

// Headers gives every header that a sink sends along, but for the id, for which each
// protocol has a place of its own, and the trace context. Values are text of one line.
func (m *Message) Headers(yield func(name, value string) bool) {
	if !yield(HeaderSource, m.Source) || !yield(HeaderAttempt, strconv.Itoa(m.Attempt)) ||
		!yield(HeaderEnqueuedAt, m.EnqueuedAtText()) || !yield(HeaderBody, m.BodyEncoding()) {
		return
	}
	if t := m.Trace; t != nil && (!yield(HeaderTraceParent, t.Parent) || t.State != "" && !yield(HeaderTraceState, t.State)) {
		return
	}
	if m.Dead == nil {
		return
	}
	for _, h := range [...][2]string{
		{HeaderDeadReason, m.Dead.Reason},
		{HeaderDeadError, oneLine(m.Dead.Error)},
		{HeaderDeadSink, m.Dead.Sink},
		{HeaderDeadFirst, m.Dead.First.UTC().Format(EnqueuedAtFormat)},
		{HeaderDeadLast, m.Dead.Last.UTC().Format(EnqueuedAtFormat)},
	} {
		if h[1] != "" && !yield(h[0], h[1]) {
			return
		}
	}
}

// oneLine makes a header's value of an error: printable ASCII, bounded.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, text)
	return strings.TrimSpace(text[:min(len(text), maxDeadError)])
}

// EnqueuedAtText is the value of HeaderEnqueuedAt.
func (m *Message) EnqueuedAtText() string {
	return m.EnqueuedAt.UTC().Format(EnqueuedAtFormat)
}

// Delivery is a message under lease: a snapshot taken when it was received. The
// lease keeper owns the current receipt and deadline.
type Delivery struct {
	Message
	// Receipt is the handle that settles the message until Deadline.
	Receipt string
	// Deadline is when the lease ends, by the local clock and with its monotonic
	// reading: the server shows the message to others from then on.
	Deadline time.Time
}

// Settlement tells the queue what became of a delivery. Its zero value never
// deletes.
type Settlement struct {
	Delivery
	// Delete says that every required sink, or the dead letter, has the message.
	Delete bool
	// Delay is how long the message stays invisible where Delete is false: at
	// least a second, at most twelve hours; the source clamps it to that.
	Delay time.Duration
}

// Outcome is what became of one message at one sink.
type Outcome uint8

// Retry is the zero value: a result that was forgotten means that the message is
// delivered again, never that it arrived.
const (
	Retry Outcome = iota
	Delivered
	Rejected
)

func (o Outcome) String() string {
	switch o {
	case Retry:
		return "retry"
	case Delivered:
		return "delivered"
	case Rejected:
		return "rejected"
	}
	return "unknown"
}

// Result is an Outcome with its cause.
type Result struct {
	Outcome Outcome
	// Err says why the outcome is not Delivered. Wrap it with Fail to give it the
	// reason under which it is counted.
	Err error
	// Dropped says of Delivered that the far side threw the message away and that the
	// configuration wants it so.
	Dropped bool
	// RetryAfter is how long the far side asked to be left alone; zero where it
	// did not ask.
	RetryAfter time.Duration
}

// Failure is an error with the name under which it is counted.
type Failure struct {
	// Reason is a constant of the code that reports it, lower case with
	// underscores: it becomes the label of a metric.
	Reason string
	Err    error
}

// Fail names the reason of err.
func Fail(reason string, err error) error { return &Failure{Reason: reason, Err: err} }

func (f *Failure) Error() string {
	return strings.ReplaceAll(f.Reason, "_", " ") + ": " + f.Err.Error()
}

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }
