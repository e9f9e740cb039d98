// Package shadow is a source that only looks: it peeks into its queue, works out what the
// relay would do with each message (internal/dryrun) and shows that. It takes no lease,
// deletes nothing, sends nothing and changes no count of receives, so that it can run beside
// the program that empties the queue today.
//
// A peek shows what is visible at the head of the queue at that moment: shadow mode is a
// sample and no count. What others receive between two peeks is not seen.
package shadow

import (
	"context"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/dryrun"
	"mnsrelay/internal/relay"
)

const (
	// peekEvery is the time between two peeks, each of which MNS bills as a request: a peek
	// never waits at the server for a message.
	peekEvery = 10 * time.Second
	// deniedEvery is that time while the credential may not peek: somebody may grant it.
	deniedEvery = 5 * time.Minute
	// peeked is how many messages a peek asks for, the most that MNS shows.
	peeked = 16
	// previewsKept is how many of the last previews are kept, and idLength how many bytes of
	// an id.
	previewsKept = 20
	idLength     = 256
)

// Deps are what a Pipeline works with.
type Deps struct {
	// Peek shows up to n messages at the head of the queue, and takes none.
	Peek func(ctx context.Context, n int) ([]relay.Message, error)
	// Denied tells an error of Peek that says the keys are good and may not peek.
	Denied func(err error) bool
	// Explain tells what would become of a message, which is as it is in the queue.
	Explain func(relay.Message) (*dryrun.Explanation, error)
	// Audit, if not nil, is told what would become of each message.
	Audit relay.Auditor
	Log   *zap.Logger
}

// Pipeline is one source in shadow mode. Make it with New; it is safe for concurrent use.
type Pipeline struct {
	deps Deps
	// wake ends the pause between two peeks; size 1.
	wake chan struct{}
	seen seen // Run's goroutine only

	mu     sync.Mutex
	paused string // why; empty: it is not
	phase  relay.SourceState
	// trouble is why the last peek failed; nil: it worked. Denied says that it may not.
	trouble error
	denied  bool
	report  Report
}

// New makes a Pipeline that starts paused or not. It starts nothing.
func New(paused bool, deps Deps) *Pipeline {
	p := &Pipeline{deps: deps, wake: make(chan struct{}, 1), phase: relay.SourceStarting}
	p.report.Deliveries = make(map[relay.TargetName]uint64)
	if paused {
		p.paused = "paused by the configuration"
	}
	return p
}

// Run peeks until receive ends. There is no work to be finished.
func (p *Pipeline) Run(receive, _ context.Context) {
	defer p.enter(relay.SourceStopped)
	for receive.Err() == nil {
		pause := p.look(receive)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-p.wake:
			timer.Stop()
		case <-receive.Done():
			timer.Stop()
		}
	}
}

// look peeks once, unless the source is paused, and tells how long to wait.
func (p *Pipeline) look(ctx context.Context) time.Duration {
	if p.isPaused() {
		return peekEvery
	}
	messages, err := p.deps.Peek(ctx, peeked)
	if ctx.Err() != nil {
		return 0
	}
	if denied := p.note(err, len(messages)); denied {
		return deniedEvery
	}
	for i := range messages {
		if p.seen.add(messages[i].ID) {
			p.preview(messages[i])
		}
	}
	return peekEvery
}

// preview works out what would become of a message and keeps it.
func (p *Pipeline) preview(m relay.Message) {
	e, err := p.deps.Explain(m)
	if err != nil {
		p.deps.Log.Warn("message not previewed", zap.String("message_id", m.ID), zap.Error(err))
		return
	}
	p.audit(e)
	one := newPreview(e)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.count(e, one)
}

// deniedHint says what to do about a credential that may not peek.
const deniedHint = "the credential may not peek, so nothing can be shown: grant mns:PeekMessage, or use keys that have it; a token of an Alicom queue may only receive and delete, try the routes with 'mnsrelay explain --message' there"

// note keeps how a peek went, and logs when that changes.
func (p *Pipeline) note(err error, n int) (denied bool) {
	denied = err != nil && p.deps.Denied(err)
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.trouble
	p.trouble, p.denied = err, denied
	switch {
	case err == nil:
		p.report.LastPeek, p.report.Head = time.Now(), n
		if before != nil {
			p.deps.Log.Info("peek works again")
		}
	case before != nil && relay.ClassOf(before) == relay.ClassOf(err):
	case denied:
		p.deps.Log.Warn("shadow mode sees nothing: "+deniedHint, zap.Error(err))
	default:
		p.deps.Log.Warn("peek failed; it is tried again", zap.Error(err), zap.Stringer("class", relay.ClassOf(err)))
	}
	return denied
}

// State tells what the pipeline is doing and, where it sees nothing, why.
func (p *Pipeline) State() (state relay.SourceState, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.phase == relay.SourceStopped:
		return relay.SourceStopped, ""
	case p.paused != "":
		return relay.SourcePaused, p.paused
	case p.denied:
		return relay.SourceShadow, deniedHint
	case p.trouble != nil:
		return relay.SourceRetrying, p.trouble.Error()
	case p.report.LastPeek.IsZero():
		return relay.SourceStarting, ""
	}
	return relay.SourceShadow, ""
}

func (p *Pipeline) enter(phase relay.SourceState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase = phase
}

func (p *Pipeline) isPaused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused != ""
}

// Pause stops peeking for the given reason until Resume.
func (p *Pipeline) Pause(reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = reason
}

// Resume peeks again.
func (p *Pipeline) Resume() {
	p.mu.Lock()
	p.paused = ""
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// UnderWay is 0: nothing is ever received.
func (p *Pipeline) UnderWay() int { return 0 }

// InFlight is false for every message.
func (p *Pipeline) InFlight(string) (attempt int, found bool) { return 0, false }

// SetRetention does nothing: no lease is renewed, and no message is kept.
func (p *Pipeline) SetRetention(time.Duration) {}

// Retention is not known.
func (p *Pipeline) Retention() time.Duration { return 0 }

// SetQueuePolicy does nothing: no message fails.
func (p *Pipeline) SetQueuePolicy(int, string) {}

// Report is what was seen so far; the caller may keep it.
func (p *Pipeline) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report.clone()
}

// audit records what would become of a message.
func (p *Pipeline) audit(e *dryrun.Explanation) {
	if p.deps.Audit == nil {
		return
	}
	record := func(event relay.AuditEvent, d *dryrun.Delivery, reason string) {
		entry := relay.AuditEntry{Event: event, Message: &e.Message, Reason: reason, Time: time.Now()}
		if d != nil {
			entry.Target, entry.Address = relay.TargetName{Route: d.Route, Sink: d.Sink}, d.Address
		}
		p.deps.Audit.Record(entry)
	}
	reason := ""
	if e.Rejected != nil {
		reason = relay.ReasonOf(e.Rejected)
	}
	for _, r := range e.Routes {
		for i := range r.Deliveries {
			if r.Deliveries[i].Err == nil {
				record(relay.AuditWouldDeliver, &r.Deliveries[i], "")
			}
		}
	}
	switch {
	case e.DeadLetter != nil && e.DeadLetter.Err == nil:
		record(relay.AuditWouldDeadLetter, e.DeadLetter, reason)
	case e.Retained:
		record(relay.AuditWouldRetain, nil, reason)
	case unmatched(e):
		record(relay.AuditWouldDelete, nil, "")
	}
}

// unmatched tells whether no route takes a message that is deleted all the same.
func unmatched(e *dryrun.Explanation) bool {
	for _, r := range e.Routes {
		if r.Matches {
			return false
		}
	}
	return e.Rejected == nil && !e.Retained
}

// seen remembers the last ids, between seenKept and twice as many: a message is shown once
// while it is at the head, also where it leaves the head for a while.
type seen struct{ newer, older map[string]struct{} }

const seenKept = 2048

// add reports whether the id was not known yet.
func (s *seen) add(id string) bool {
	id = strings.Clone(id[:min(len(id), idLength)])
	_, isNewer := s.newer[id]
	_, isOlder := s.older[id]
	if isNewer {
		return false
	}
	if len(s.newer) >= seenKept || s.newer == nil {
		s.newer, s.older = make(map[string]struct{}), s.newer
	}
	s.newer[id] = struct{}{}
	return !isOlder
}

// errorText is what is kept of an error, and its reason.
func errorText(err error) (reason, text string) {
	if err == nil {
		return "", ""
	}
	const most = 1 << 10
	text = err.Error()
	// It may be a piece of a whole answer, which must not live as long.
	return relay.ReasonOf(err), strings.ToValidUTF8(strings.Clone(text[:min(len(text), most)]), "")
}
