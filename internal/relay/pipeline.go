package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
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
	// MaxReceives is after how many receives a message whose delivery fails is given up,
	// given that there is a dead-letter sink; 0: never.
	MaxReceives int
	// DeadLetterLimit pauses the source where more is given up.
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
	// DeadLetter takes what is given up; nil: it stays in the queue.
	DeadLetter *Target
	// Ledger, if not nil, remembers confirms until the message is deleted.
	Ledger Ledger
	// Room is that of this source, Shared that of all sources together.
	Room, Shared *Room
	Stats        *Stats
	// Confirmed, if not nil, is told how long after it was enqueued a message was
	// confirmed by all its sinks.
	Confirmed func(time.Duration)
	Log       *zap.Logger
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
	// spare is the room of messages on their way to optional targets only.
	spare   *Room
	trouble trouble
	aged    trouble

	// retention is how long the queue keeps a message, in nanoseconds; 0: not known.
	retention atomic.Int64

	pollers  sync.WaitGroup
	batches  sync.WaitGroup
	watchers sync.WaitGroup

	mu     sync.Mutex
	asking int
	phase  SourceState // starting, draining, stopped
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
		cfg: cfg, deps: deps, phase: SourceStarting,
		log: deps.Log.With(zap.String("source", cfg.Source)),
	}
	p.trouble.log, p.aged.log = p.log, p.log
	p.keeper = newKeeper(deps.Source, p.log, &p.retention)
	p.spare = deps.Room.alike()
	var waitFor []string
	for r := range deps.Routes {
		p.conditional = p.conditional || deps.Routes[r].Match != nil
		for _, to := range deps.Routes[r].Targets {
			t := newTarget(to, deps.Stats, p.log)
			t.route, t.index = r, len(p.targets)
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

// Resume receives again. What was given up before no longer counts towards the limit
// of dead letters.
func (p *Pipeline) Resume() {
	if p.dead != nil {
		p.dead.reset()
	}
	p.gate.resume()
}

// SetRetention tells how long the queue keeps a message, consumed or not. It bounds
// the renewal of leases, and messages older than half of it are warned of.
func (p *Pipeline) SetRetention(retention time.Duration) { p.retention.Store(int64(retention)) }

// State tells what the pipeline is doing and, where it does not receive, why.
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
	return SourceRunning, ""
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
	p.mu.Unlock()
	for range more {
		p.changeAsking(1)
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

// From here on the way of a message, top to bottom.

// receive makes one poll: it waits for the gate and for room, leases a batch and sends
// it on its way, for whose end it does not wait. Nothing there: nil, nil.
func (p *Pipeline) receive(receive, work, settle context.Context, wait bool) (*batch, error) {
	ctx, leave, err := p.gate.enter(receive)
	if err != nil {
		return nil, err
	}
	defer leave()

	// Room for the batch at its largest, taken before any lease begins to age.
	if err := p.deps.Shared.Await(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errShut, err)
	}
	asked := p.cfg.BatchSize
	if p.gate.probing() {
		asked = 1
	}
	reserved := int64(asked) * maxBody
	if err := p.deps.Room.Reserve(ctx, asked, reserved); err != nil {
		return nil, fmt.Errorf("%w: %w", errShut, err)
	}

	ds, err := p.deps.Source.Receive(ctx, asked, wait)
	b := newBatch(ds, len(p.targets), p.confirmed)
	p.deps.Room.Give(asked-len(ds), reserved-b.size)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", errShut, err)
		}
		return nil, err
	}
	p.deps.Stats.receiveWorked(ds, asked)
	if len(ds) == 0 {
		return nil, nil //nolint:nilnil // nothing there is the usual answer
	}
	p.warnOfAge()
	p.deps.Shared.Charge(len(ds), b.size)
	p.batches.Go(func() { p.carry(work, settle, receive.Done(), b) })
	return b, nil
}

// carry takes a batch from its receive to its settlement.
func (p *Pipeline) carry(work, settle context.Context, draining <-chan struct{}, b *batch) {
	release := p.keeper.keep(settle, b.leases)
	defer release()

	accepted := p.decode(b)
	plans := p.route(b, accepted)
	if p.cfg.AtMostOnce {
		p.once(work, settle, draining, b, plans)
		return
	}
	p.recall(work, b, plans)
	defer p.deliver(work, draining, b, plans)()
	b.completions(settle, settleLinger, func(ctx context.Context, index []int) {
		p.bury(ctx, work, b, index)
		p.record(ctx, b, index)
		deleted := p.settle(ctx, work, b, index)
		p.give(b, index)
		p.forget(ctx, b, deleted)
	})
	close(b.settled)
}

// decode unwraps and decodes each message and gives the index of those that can be
// delivered. The others are rejected.
func (p *Pipeline) decode(b *batch) (accepted []int) {
	accepted = make([]int, 0, len(b.messages))
	for i := range b.messages {
		decoded, err := p.deps.Decode(b.messages[i])
		if err != nil {
			p.reject(b, i, err)
			continue
		}
		b.messages[i] = decoded
		accepted = append(accepted, i)
	}
	return accepted
}

// reject decides on a message that no target is asked about.
func (p *Pipeline) reject(b *batch, i int, err error) {
	p.deps.Stats.retried(ReasonOf(err))
	p.log.Warn("message rejected", zap.String("reason", ReasonOf(err)), zap.Error(err),
		zap.String("message_id", b.messages[i].ID), zap.Int("attempt", b.messages[i].Attempt))
	b.decide(i, Result{Outcome: Rejected, Err: err})
}

// errUnmatched is the cause of a message that stays in the queue since no route takes
// it.
var errUnmatched = Fail("unmatched", errors.New("no route takes the message"))

// route gives, for each target, the messages that go to it: every route that matches
// applies. It decides on those that no route takes.
func (p *Pipeline) route(b *batch, accepted []int) (plans [][]int) {
	plans = make([][]int, len(p.targets))
	if !p.conditional {
		for t := range plans {
			plans[t] = accepted
		}
		return plans
	}
	matches := make([]bool, len(p.deps.Routes))
	for _, i := range accepted {
		matched, err := p.match(&b.messages[i], matches)
		switch {
		case err != nil:
			p.reject(b, i, err)
			continue
		case !matched:
			p.unmatched(b, i)
			continue
		}
		for _, t := range p.targets {
			if matches[t.route] {
				plans[t.index] = append(plans[t.index], i)
			}
		}
	}
	return plans
}

// match fills in which routes take a message.
func (p *Pipeline) match(m *Message, matches []bool) (matched bool, err error) {
	for r := range p.deps.Routes {
		matches[r] = true
		if match := p.deps.Routes[r].Match; match != nil {
			if matches[r], err = match(m); err != nil {
				return false, fmt.Errorf("route %s: %w", p.deps.Routes[r].Name, err)
			}
		}
		matched = matched || matches[r]
	}
	return matched, nil
}

func (p *Pipeline) unmatched(b *batch, i int) {
	switch p.cfg.Unmatched {
	case UnmatchedDelete:
		b.decide(i, Result{Outcome: Delivered})
	case UnmatchedDeadLetter:
		b.decide(i, Result{Outcome: Rejected, Err: errUnmatched})
	case UnmatchedRetain:
		b.decide(i, Result{Outcome: Retry, Err: errUnmatched})
	}
}

// deliver starts bringing each target its messages; wait waits for all of them.
func (p *Pipeline) deliver(work context.Context, draining <-chan struct{}, b *batch, plans [][]int) (wait func()) {
	pending := make([]int, len(b.messages))
	planned := make([]bool, len(b.messages))
	for _, t := range p.targets {
		for _, i := range plans[t.index] {
			planned[i] = true
			if !t.Optional {
				pending[i]++
			}
		}
	}
	for i := range b.messages {
		if planned[i] || b.known(i) {
			b.expect(i, pending[i])
		}
	}

	ctx, cancel := work, func() {}
	if p.keeper.forbidden.Load() {
		// The first lease has to do: what is not confirmed in it comes again anyway.
		left := time.Until(b.leases.ends())
		ctx, cancel = context.WithTimeout(work, left-min(settleMargin, left/4))
	}
	var deliveries sync.WaitGroup
	for _, t := range p.targets {
		if index := plans[t.index]; len(index) > 0 {
			d := &delivery{target: t, leases: b.leases, messages: b.messages, draining: draining}
			deliveries.Go(func() { p.deliverTo(ctx, d, b, index) })
		}
	}
	return func() {
		deliveries.Wait()
		cancel()
	}
}

// deliverTo brings a target its messages.
func (p *Pipeline) deliverTo(ctx context.Context, d *delivery, b *batch, index []int) {
	if !d.Optional {
		d.answer = func(i int, r Result) { b.answer(i, d.target, r) }
		d.deliver(ctx, index)
		p.recordEarly(ctx, b, index)
		return
	}
	// The room of the batch is given back without asking an optional target, so what
	// is on its way to it has a room of its own.
	if !p.spare.Try(len(index), b.size) {
		for range index {
			p.deps.Stats.givenUp("busy")
		}
		return
	}
	defer p.spare.Give(len(index), b.size)
	d.answer = func(i int, r Result) {
		if r.Outcome == Delivered {
			b.confirm(i, d.target)
			return
		}
		p.buryOptional(ctx, b, d.target, i, r)
	}
	d.deliver(ctx, index)
}

// once delivers at most once: what was deleted first is sent, and what then fails is
// counted as given up.
func (p *Pipeline) once(work, settle context.Context, draining <-chan struct{}, b *batch, plans [][]int) {
	planned := make([]bool, len(b.messages))
	for _, index := range plans {
		for _, i := range index {
			planned[i] = true
		}
	}
	var all []int
	for i := range planned {
		if planned[i] {
			b.decide(i, Result{Outcome: Delivered})
		}
		all = append(all, i)
	}
	for range all {
		<-b.completed // each was decided on, here or before
	}
	p.bury(settle, work, b, all)
	gone := make([]bool, len(all))
	for _, i := range p.settle(settle, work, b, all) {
		gone[i] = planned[i]
	}
	var deliveries sync.WaitGroup
	for _, t := range p.targets {
		var index []int
		for _, i := range plans[t.index] {
			if gone[i] {
				index = append(index, i)
			}
		}
		if len(index) == 0 {
			continue
		}
		d := &delivery{target: t, leases: b.leases, messages: b.messages, draining: draining, answer: func(_ int, r Result) {
			if r.Outcome != Delivered {
				p.deps.Stats.givenUp(ReasonOf(r.Err))
			}
		}}
		deliveries.Go(func() { d.deliver(work, index) })
	}
	deliveries.Wait()
	p.give(b, all)
	close(b.settled)
}

func (p *Pipeline) confirmed(m *Message) {
	if p.deps.Confirmed != nil {
		p.deps.Confirmed(time.Since(m.EnqueuedAt))
	}
}

// settle deletes what every required target or the dead-letter sink has confirmed, and
// gives the rest back to the queue. It gives the index of what was deleted.
func (p *Pipeline) settle(ctx, work context.Context, b *batch, index []int) (gone []int) {
	settlements := make([]Settlement, 0, len(index))
	settled := make([]int, 0, len(index))
	var deleted, lost int
	var returned []string
	for _, i := range index {
		d, ok := b.leases[i].settle()
		if !ok {
			lost++
			continue
		}
		settlements = append(settlements, p.settlement(work, d, &b.verdicts[i]))
		settled = append(settled, i)
	}

	gone = make([]int, 0, len(settled))
	for k, err := range p.deps.Source.Settle(ctx, settlements) {
		v := &b.verdicts[settled[k]]
		switch {
		case settlements[k].Delete && err == nil:
			deleted++
			gone = append(gone, settled[k])
		case settlements[k].Delete || errors.Is(err, ErrLeaseLost):
			// A delete whose outcome is unknown: the message may come again.
			lost++
			p.log.Warn("message is delivered but its delete is not confirmed; it may come again", zap.Error(err),
				zap.String("message_id", settlements[k].ID), zap.Int("attempt", settlements[k].Attempt))
		default:
			// Where the queue did not take the delay, the lease runs out by itself.
			returned = append(returned, returnReason(work, v))
		}
	}
	p.deps.Stats.settled(deleted, lost, returned)
	return gone
}

// settlement says what to tell the queue of a message: only Delivered deletes.
func (p *Pipeline) settlement(work context.Context, d Delivery, v *verdict) Settlement {
	switch {
	case v.outcome == Delivered || v.buried != "":
		return Settlement{Delivery: d, Delete: true}
	case errors.Is(v.err, errSinkDown), work.Err() != nil:
		// Not the message's fault: whoever can deliver it may have it at once.
		return Settlement{Delivery: d, Delay: MinRedelivery}
	default:
		return Settlement{Delivery: d, Delay: p.cfg.Redelivery.Delay(d.Attempt, v.retryAfter)}
	}
}

func returnReason(work context.Context, v *verdict) string {
	if work.Err() != nil {
		return "drain"
	}
	return ReasonOf(v.err)
}

// give gives back the room of messages that are settled.
func (p *Pipeline) give(b *batch, index []int) {
	var size int64
	for _, i := range index {
		size += int64(len(b.leases[i].delivery.Body))
	}
	p.deps.Room.Give(len(index), size)
	p.deps.Shared.Give(len(index), size)
}

// warnOfAge warns of messages that have been in the queue for half the time that it
// keeps them.
func (p *Pipeline) warnOfAge() {
	retention := time.Duration(p.retention.Load())
	if retention == 0 {
		return
	}
	if age := p.deps.Stats.oldest(); age > retention/2 {
		p.aged.failed("aged", "messages are older than half the queue's retention; what is not delivered by its end is lost",
			zap.Duration("age", age), zap.Duration("retention", retention))
		return
	}
	p.aged.ended("messages are younger than half the queue's retention again")
}

// pause is a growing time to wait between tries.
type pause struct {
	class   Class
	backoff backoff.BackOff
}

func (p *pause) wait(ctx context.Context) {
	timer := time.NewTimer(p.backoff.NextBackOff())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// backoffFor is how long a poller waits after an error of the class: long where only
// an operator can mend it, short where it passes by itself.
func backoffFor(class Class) backoff.BackOff {
	switch class {
	case ClassThrottled:
		return exponential(time.Second, 30*time.Second)
	case ClassAuth:
		return exponential(500*time.Millisecond, 5*time.Second)
	case ClassNotFound:
		return exponential(time.Second, 30*time.Second)
	case ClassNetwork:
		return exponential(200*time.Millisecond, 5*time.Second)
	case ClassServer, ClassUnknown:
		return exponential(500*time.Millisecond, 10*time.Second)
	}
	return exponential(500*time.Millisecond, 10*time.Second)
}

// emptyBackoff is the pause after a poll that came back empty before its time.
func emptyBackoff() backoff.BackOff { return exponential(100*time.Millisecond, 5*time.Second) }

func exponential(initial, limit time.Duration) backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = initial
	b.MaxInterval = limit
	b.Multiplier = 2
	b.RandomizationFactor = 0.3
	b.Reset()
	return b
}

// kindOf tells failures apart for the log: by class and code, not by their text.
func kindOf(err error) string {
	var coded interface{ ErrorCode() string }
	if errors.As(err, &coded) {
		return ClassOf(err).String() + " " + coded.ErrorCode()
	}
	return ClassOf(err).String()
}
