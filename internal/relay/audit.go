package relay

import (
	"context"
	"time"
)

// AuditEvent is what became of a message, in the word that an audit has for it.
type AuditEvent string

// The events. Those of a source in shadow mode say what would be.
const (
	AuditDelivered    AuditEvent = "delivered"     // a sink has confirmed it
	AuditDropped      AuditEvent = "dropped"       // a sink took it and threw it away, as its configuration wants
	AuditDeadLettered AuditEvent = "dead_lettered" // the dead-letter sink has confirmed it
	AuditUnmatched    AuditEvent = "unmatched"     // no route takes it: it is deleted, as the configuration wants
	AuditGivenUp      AuditEvent = "given_up"      // not delivered to this sink and not tried again

	AuditWouldDeliver    AuditEvent = "would_deliver"
	AuditWouldDeadLetter AuditEvent = "would_dead_letter"
	AuditWouldDelete     AuditEvent = "would_delete" // no route takes it
	AuditWouldRetain     AuditEvent = "would_retain" // it would stay in the queue
)

// AuditLogger is the name of the logger whose lines are an audit: none of them is left out.
const AuditLogger = "audit"

// AuditEntry is one event of one message.
type AuditEntry struct {
	Event AuditEvent
	// Message is decoded, as routes see it, where it can be.
	Message *Message
	// Target is empty where no sink was asked.
	Target TargetName
	// Address is that of the target: see Target.Address.
	Address string
	// Reason is that under which the event is counted; empty: it needs none.
	Reason string
	// Begun is when the sink was handed the message, zero where none was. Time is when the
	// event was known.
	Begun, Time time.Time
}

// Auditor writes down what became of messages. It is safe for concurrent use. An auditor
// never decides about a message: one that cannot write costs lines.
type Auditor interface {
	// Record takes an entry and waits for nobody. It keeps nothing of the message.
	Record(e AuditEntry)
	// Flush waits until what was recorded before is written, for a moment: not while it is
	// known that nothing can be written, and not beyond ctx.
	Flush(ctx context.Context)
}

// Addressed is a Sink that names what it delivers to at its far side.
type Addressed interface {
	// Address is an exchange, a queue, a file or the path of a URL, as the configuration has
	// it: {{ }} is not worked out, so that nothing of a message is in it. It holds no user,
	// no query and no secret.
	Address() string
}

// flushAudit is called before what was recorded leaves the queue.
func (p *Pipeline) flushAudit(ctx context.Context) {
	if p.deps.Audit != nil {
		p.deps.Audit.Flush(ctx)
	}
}

// audit records an event of a message at a target, which may be nil.
func (p *Pipeline) audit(event AuditEvent, m *Message, t *target, reason string) {
	if p.deps.Audit == nil {
		return
	}
	e := AuditEntry{Event: event, Message: m, Reason: reason, Time: time.Now()}
	if t != nil {
		e.Target, e.Address = t.Name, t.Address
	}
	p.deps.Audit.Record(e)
}

// begun is now, for an audit if there is one.
func (t *target) begun() time.Time {
	if t.audit == nil {
		return time.Time{}
	}
	return time.Now()
}

// auditConfirm records that a target has confirmed a message, for an audit if there is one.
func (t *target) auditConfirm(m *Message, r Result, begun time.Time) {
	if t.audit == nil {
		return
	}
	e := AuditEntry{Event: AuditDelivered, Message: m, Target: t.Name, Address: t.Address, Begun: begun, Time: time.Now()}
	if r.Dropped {
		e.Event = AuditDropped
	}
	t.audit.Record(e)
}
