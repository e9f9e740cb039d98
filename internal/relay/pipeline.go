package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Config is how one source is relayed. Its values have been checked by the
// configuration.
type Config struct {
	// Source is the source's name.
	Source string
	// BatchSize is how many messages a poll asks for: 1 to 16.
	BatchSize int
	// Wait is how long a poll waits on an empty queue: 0 to 30 s.
	Wait time.Duration
	// MinPollers poll as soon as there are messages, MaxPollers when batches are
	// full; on an empty queue one is left.
	MinPollers, MaxPollers int
	Redelivery             Redelivery
	// MaxReceives is after how many receives a message whose delivery fails is dead-lettered,
	// given that there is a dead-letter sink; 0: never.
	MaxReceives int
	// DeadLetterLimit pauses the source where more is dead-lettered.
	DeadLetterLimit DeadLetterLimit
	// Unmatched says what becomes of a message that no route takes.
	Unmatched Unmatched
	// AtMostOnce deletes before it delivers, and delivers once.
	AtMostOnce bool
	// Paused starts the pipeline without receiving.
	Paused bool
}

// Unmatched says what becomes of a message that no route takes.
type Unmatched uint8

// UnmatchedRetain, the zero value, leaves it in the queue for later and later.
const (
	UnmatchedRetain Unmatched = iota
	UnmatchedDelete
	UnmatchedDeadLetter
)

// Route says to which targets a message goes. Every route that matches applies.
type Route struct {
	Name string
	// Match tells whether the route takes a message; nil: it takes every one. Its error
	// rejects the message.
	Match   func(*Message) (bool, error)
	Targets []Target
}

// Deps are what a pipeline works with.
type Deps struct {
	Source Source
	// Decode unwraps a message and decodes its body. Its error rejects the message.
	Decode func(Message) (Message, error)
	Routes []Route
	// DeadLetter takes dead letters; nil: what fails stays in the queue.
	DeadLetter *Target
	// Ledger, if not nil, remembers confirms until the message is deleted.
	Ledger Ledger
	// Room is that of this source, Shared that of all sources together.
	Room, Shared *Room
	// Spare is what all sources together have for messages on their way to optional targets,
	// whose own room is given back without waiting for these.
	Spare *Room
	Stats *Stats
	// Audit, if not nil, is told what becomes of each message. Of required sinks and dead
	// letters it is flushed before the delete is asked for.
	Audit Auditor
	// Confirmed, if not nil, is told how long after it was enqueued a message was
	// confirmed by all its sinks.
	Confirmed func(after time.Duration, m *Message)
	// Tracer, if not nil, makes spans.
	Tracer Tracer
	Log    *zap.Logger
}

// Pipeline is one source with its routes, running.
type Pipeline struct {
	cfg    Config
	deps   Deps
	log    *zap.Logger
	gate   *gate
	keeper *keeper
	// targets are those of all routes, in their order; required counts those that are
	// not optional.
	targets  []*target
	required int
	// conditional says that a route has a condition.
	conditional bool
	dead        *deadLetters // nil: none
	// spare is the part of Deps.Spare that the source may have: as much as its room.
	spare   *Room
	trouble trouble
	aged    trouble
	// undeleted is about deletes that were not confirmed.
	undeleted trouble
	// preempted is about the dead-letter policy of the queue itself, policy what it says
	// where that is so.
	preempted trouble
	policy    atomic.Pointer[string]
	// stayed are messages of which it was said that they were rejected and stay.
	stayed recent

	// retention is how long the queue keeps a message, in nanoseconds; 0: not known.
	retention atomic.Int64

	pollers  sync.WaitGroup
	batches  sync.WaitGroup
	watchers sync.WaitGroup

	mu     sync.Mutex
	asking int
	phase  SourceState // starting, draining, stopped
	// underWay are the batches that are not settled.
	underWay map[*batch]struct{}
}

// maxBody is the most that one message can weigh (MNS: message size limit).
const maxBody = 64 << 10

// settleLinger is how long the completed messages of a batch wait for the others.
const settleLinger = 20 * time.Millisecond

// settleGrace is how long settling may still take once the work context has ended.
const settleGrace = 5 * time.Second

// New makes a pipeline; Run runs it.
func New(cfg Config, deps Deps) *Pipeline {
	p := &Pipeline{
		cfg: cfg, deps: deps, phase: SourceStarting, underWay: make(map[*batch]struct{}),
		log: deps.Log.With(zap.String("source", cfg.Source)),
	}
	p.trouble.log, p.aged.log, p.undeleted.log, p.preempted.log = p.log, p.log, p.log, p.log
	p.keeper = newKeeper(deps.Source, p.log, &p.retention)
	p.spare = deps.Room.alike()
	var waitFor []string
	for r := range deps.Routes {
		p.conditional = p.conditional || deps.Routes[r].Match != nil
		for _, to := range deps.Routes[r].Targets {
			t := newTarget(to, deps.Stats, p.log)
			t.route, t.index, t.audit = r, len(p.targets), deps.Audit
			p.targets = append(p.targets, t)
			if t.Optional {
				continue
			}
			p.required++
			if !slices.Contains(waitFor, t.Name.Sink) {
				waitFor = append(waitFor, t.Name.Sink)
			}
		}
	}
	if deps.DeadLetter != nil {
		p.dead = &deadLetters{target: newTarget(*deps.DeadLetter, deps.Stats, p.log), limit: cfg.DeadLetterLimit}
	}
	p.gate = newGate(waitFor)
	if cfg.Paused {
		p.gate.pause("paused by the configuration")
	}
	return p
}

// Pause stops receiving for the given reason until Resume; what is in flight goes on.
func (p *Pipeline) Pause(reason string) { p.gate.pause(reason) }

// Resume receives again. What was dead-lettered before no longer counts towards the limit
// of dead letters.
func (p *Pipeline) Resume() {
	if p.dead != nil {
		p.dead.reset()
	}
	p.gate.resume()
}

// UnderWay counts, once receiving has ended, the messages that are not settled or are on
// their way to a sink all the same: to an optional one, or after the delete where the
// source delivers at most once.
func (p *Pipeline) UnderWay() int {
	messages, _ := p.deps.Room.InFlight()
	optional, _ := p.spare.InFlight()
	return messages + optional
}

// track notes that a batch is under way, until untrack is called.
func (p *Pipeline) track(b *batch) (untrack func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.underWay[b] = struct{}{}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.underWay, b)
	}
}

// InFlight tells whether a message is between receive and settle, and how often it was
// received.
func (p *Pipeline) InFlight(id string) (attempt int, found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for b := range p.underWay {
		for i := range b.leases {
			if b.leases[i].of(id) {
				return b.leases[i].delivery.Attempt, true
			}
		}
	}
	return 0, false
}

// SetRetention tells how long the queue keeps a message, consumed or not. It bounds
// the renewal of leases, and messages older than half of it are warned of.
func (p *Pipeline) SetRetention(retention time.Duration) { p.retention.Store(int64(retention)) }

// Retention is what SetRetention was last told; 0: not known.
func (p *Pipeline) Retention() time.Duration { return time.Duration(p.retention.Load()) }

// SetQueuePolicy tells after how many receives the queue itself moves a message to another
// queue; 0: never, as far as is known. It is warned of where that comes before the relay
// gives a message up: such a message reaches neither its sinks nor the dead-letter sink.
func (p *Pipeline) SetQueuePolicy(maxReceives int, queue string) {
	if maxReceives == 0 || p.cfg.MaxReceives > 0 && p.cfg.MaxReceives < maxReceives {
		p.preempted.ended("the queue's own dead-letter policy no longer comes before the relay's")
		p.policy.Store(nil)
		return
	}
	ours := "never"
	if p.cfg.MaxReceives > 0 {
		ours = fmt.Sprintf("after %d", p.cfg.MaxReceives)
	}
	text := fmt.Sprintf("the queue's own dead-letter policy moves a message to %s after %d receives, the relay gives it up %s: %s", queue, maxReceives, ours, policyHint)
	p.policy.Store(&text)
	p.preempted.failed(text, "the queue's own dead-letter policy comes before the relay's: messages that fail as often are moved past the relay; "+policyHint,
		zap.Int("queue_max_receives", maxReceives), zap.String("queue_dead_letter", queue), zap.Int("max_receives", p.cfg.MaxReceives))
}

// policyHint says what to do about the queue's own dead-letter policy.
const policyHint = "raise the queue's MaxReceiveCount, or set dead_letter and a max_receives below it"

// State tells what the pipeline is doing and, where it does not receive, why; where it
// does, what is to be warned of.
func (p *Pipeline) State() (state SourceState, reason string) {
	p.mu.Lock()
	phase := p.phase
	p.mu.Unlock()
	if phase == SourceDraining || phase == SourceStopped {
		return phase, ""
	}
	if state, reason := p.gate.shut(); state != SourceRunning {
		return state, reason
	}
	counts := p.deps.Stats.Counts()
	switch {
	case counts.LastError != nil:
		return SourceRetrying, counts.LastError.Text
	case !counts.Worked:
		return SourceStarting, ""
	}
	return SourceRunning, p.warning()
}

// warning is what an operator of a source that runs should know; empty: nothing.
func (p *Pipeline) warning() string {
	if text := p.policy.Load(); text != nil {
		return *text
	}
	if p.aged.lasts() {
		return "messages are older than half the queue's retention; what is not delivered by its end is lost"
	}
	return ""
}

func (p *Pipeline) enter(phase SourceState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase = phase
}

// Run relays until receive ends, then finishes what is in flight. When work ends too
// it stops waiting for sinks and gives back what they have not confirmed.
func (p *Pipeline) Run(receive, work context.Context) {
	defer p.enter(SourceStopped)
	watch, unwatch := context.WithCancel(work)
	for _, t := range p.targets {
		if !t.Optional {
			p.watchers.Go(func() { p.gate.watch(watch, t.Name.Sink, t.Health) })
		}
	}
	// Settling goes on for a moment after everything else was told to end: what was
	// confirmed is still deleted.
	settle, cancelSettle := context.WithCancel(context.WithoutCancel(work))
	stopGrace := context.AfterFunc(work, func() {
		timer := time.AfterFunc(settleGrace, cancelSettle)
		context.AfterFunc(settle, func() { timer.Stop() })
	})

	p.changeAsking(1)
	p.pollers.Go(func() { p.poll(receive, work, settle) })
	p.pollers.Wait()
	p.enter(SourceDraining)
	p.batches.Wait()

	stopGrace()
	cancelSettle()
	unwatch()
	p.watchers.Wait()
}

// poll is the poller that is always there: the only one that waits on an empty queue.
// It calls more pollers up when there is more to fetch.
func (p *Pipeline) poll(receive, work, settle context.Context) {
	defer p.changeAsking(-1)
	var retry, empty pause
	proven := false // the first call does not wait: it tells at once whether the queue can be used
	for {
		asked := time.Now()
		b, err := p.receive(receive, work, settle, proven && p.cfg.Wait > 0)
		switch {
		case receive.Err() != nil:
			return
		case errors.Is(err, errShut):
			continue
		case err != nil:
			p.deps.Stats.receiveFailed(err)
			p.trouble.failed(kindOf(err), "receive failed; it is tried again", zap.Error(err), zap.Stringer("class", ClassOf(err)))
			if retry.backoff == nil || retry.class != ClassOf(err) {
				retry = pause{class: ClassOf(err), backoff: backoffFor(ClassOf(err))}
			}
			retry.wait(receive)
			continue
		}
		p.trouble.ended("receive works again")
		retry = pause{}
		switch {
		case b == nil && proven && (p.cfg.Wait == 0 || time.Since(asked) < p.cfg.Wait/2):
			// Over its hidden limit of waiting polls MNS answers at once, and bills.
			if empty.backoff == nil {
				empty.backoff = emptyBackoff()
			}
			empty.wait(receive)
		default:
			empty = pause{}
		}
		proven = true
		if b != nil && p.gate.probing() {
			// One message at a time, until it is known whether the sink works.
			select {
			case <-b.settled:
			case <-receive.Done():
			}
			continue
		}
		p.grow(receive, work, settle, b)
	}
}

// ask is a poller of a backlog: it does not wait, and is gone with the first batch
// that is not full.
func (p *Pipeline) ask(receive, work, settle context.Context) {
	defer p.changeAsking(-1)
	for {
		b, err := p.receive(receive, work, settle, false)
		if err != nil || b == nil || len(b.leases) < p.cfg.BatchSize {
			return
		}
		p.grow(receive, work, settle, b)
	}
}

// grow adds pollers after a batch: up to the least number when there is anything, one
// more when it was full.
func (p *Pipeline) grow(receive, work, settle context.Context, b *batch) {
	if b == nil {
		return
	}
	p.mu.Lock()
	more := max(p.cfg.MinPollers-p.asking, 0)
	if len(b.leases) == p.cfg.BatchSize && more == 0 && p.asking < p.cfg.MaxPollers {
		more = 1
	}
	p.asking += more // before others ask whether there is room for one
	p.mu.Unlock()
	p.deps.Stats.pollersChanged(more)
	for range more {
		p.pollers.Go(func() { p.ask(receive, work, settle) })
	}
}

func (p *Pipeline) changeAsking(by int) {
	p.mu.Lock()
	p.asking += by
	p.mu.Unlock()
	p.deps.Stats.pollersChanged(by)
}

// errShut says that a poll was ended because the gate was shut.
var errShut = errors.New("receiving was stopped")
