package relay

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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
	// Paused starts the pipeline without receiving.
	Paused bool
}

// Route says to which targets a message goes.
type Route struct {
	Name    string
	Targets []Target
}

// Deps are what a pipeline works with.
type Deps struct {
	Source Source
	// Decode unwraps a message and decodes its body. Its error rejects the message.
	Decode func(Message) (Message, error)
	Routes []Route
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
	cfg     Config
	deps    Deps
	log     *zap.Logger
	gate    *gate
	keeper  *keeper
	targets []*target
	trouble trouble

	pollers  sync.WaitGroup
	batches  sync.WaitGroup
	watchers sync.WaitGroup

	mu     sync.Mutex
	asking int
	phase  SourceState // starting, running, draining, stopped
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
		cfg:   cfg,
		deps:  deps,
		log:   deps.Log.With(zap.String("source", cfg.Source)),
		phase: SourceStarting,
	}
	p.trouble.log = p.log
	p.keeper = newKeeper(deps.Source, p.log)
	var sinks []string
	for _, route := range deps.Routes {
		for _, t := range route.Targets {
			log := p.log.With(zap.String("route", route.Name), zap.String("sink", t.Name.Sink))
			p.targets = append(p.targets, &target{Target: t, stats: deps.Stats, trouble: trouble{log: log}})
			if !slices.Contains(sinks, t.Name.Sink) {
				sinks = append(sinks, t.Name.Sink)
			}
		}
	}
	p.gate = newGate(sinks)
	if cfg.Paused {
		p.gate.pause("paused by the configuration")
	}
	return p
}

// Pause stops receiving for the given reason until Resume; what is in flight goes on.
func (p *Pipeline) Pause(reason string) { p.gate.pause(reason) }

// Resume receives again.
func (p *Pipeline) Resume() { p.gate.resume() }

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
		p.watchers.Go(func() { p.gate.watch(watch, t.Name.Sink, t.Health) })
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
		n, err := p.receive(receive, work, settle, proven && p.cfg.Wait > 0)
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
		case n == 0 && proven && time.Since(asked) < p.cfg.Wait/2, n == 0 && proven && p.cfg.Wait == 0:
			// Over its hidden limit of waiting polls MNS answers at once, and bills.
			if empty.backoff == nil {
				empty.backoff = emptyBackoff()
			}
			empty.wait(receive)
		default:
			empty = pause{}
		}
		proven = true
		p.grow(receive, work, settle, n)
	}
}

// ask is a poller of a backlog: it does not wait, and is gone with the first batch
// that is not full.
func (p *Pipeline) ask(receive, work, settle context.Context) {
	defer p.changeAsking(-1)
	for {
		n, err := p.receive(receive, work, settle, false)
		if err != nil || n < p.cfg.BatchSize {
			return
		}
		p.grow(receive, work, settle, n)
	}
}

// grow adds pollers after a batch of n: up to the least number when there is anything,
// one more when it was full.
func (p *Pipeline) grow(receive, work, settle context.Context, n int) {
	p.mu.Lock()
	more := 0
	if n > 0 {
		more = max(p.cfg.MinPollers-p.asking, 0)
	}
	if n == p.cfg.BatchSize && more == 0 && p.asking < p.cfg.MaxPollers {
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
// it on its way. It tells how many messages came; it never waits for their delivery.
func (p *Pipeline) receive(receive, work, settle context.Context, wait bool) (int, error) {
	ctx, leave, err := p.gate.enter(receive)
	if err != nil {
		return 0, err
	}
	defer leave()

	// Room for the batch at its largest, taken before any lease begins to age.
	if err := p.deps.Shared.Await(ctx); err != nil {
		return 0, fmt.Errorf("%w: %w", errShut, err)
	}
	asked, reserved := p.cfg.BatchSize, int64(p.cfg.BatchSize)*maxBody
	if err := p.deps.Room.Reserve(ctx, asked, reserved); err != nil {
		return 0, fmt.Errorf("%w: %w", errShut, err)
	}

	ds, err := p.deps.Source.Receive(ctx, asked, wait)
	size := bodies(ds)
	p.deps.Room.Give(asked-len(ds), reserved-size)
	if err != nil {
		if ctx.Err() != nil {
			return 0, fmt.Errorf("%w: %w", errShut, err)
		}
		return 0, err
	}
	p.deps.Stats.receiveWorked(ds, asked)
	if len(ds) == 0 {
		return 0, nil
	}
	p.deps.Shared.Charge(len(ds), size)
	p.batches.Go(func() { p.carry(work, settle, receive.Done(), newBatch(ds, p.confirmed)) })
	return len(ds), nil
}

// carry takes a batch from its receive to its settlement.
func (p *Pipeline) carry(work, settle context.Context, draining <-chan struct{}, b *batch) {
	release := p.keeper.keep(settle, b.leases)
	defer release()

	accepted := p.decode(b)
	p.route(b, accepted)

	var deliveries sync.WaitGroup
	defer deliveries.Wait()
	for _, t := range p.targets {
		if len(accepted) == 0 {
			break
		}
		deliveries.Go(func() {
			t.deliver(work, draining, b.messages, accepted, b.leaseEnds(), b.answer)
		})
	}
	b.completions(settle, settleLinger, func(ctx context.Context, index []int) {
		p.settle(ctx, work, b, index)
	})
}

func (p *Pipeline) confirmed(m *Message) {
	if p.deps.Confirmed != nil {
		p.deps.Confirmed(time.Since(m.EnqueuedAt))
	}
}

// decode unwraps and decodes each message and gives the index of those that can be
// delivered. The others are rejected.
func (p *Pipeline) decode(b *batch) (accepted []int) {
	accepted = make([]int, 0, len(b.messages))
	for i := range b.messages {
		decoded, err := p.deps.Decode(b.messages[i])
		if err == nil {
			b.messages[i] = decoded
			accepted = append(accepted, i)
			continue
		}
		reason := ReasonOf(err)
		p.deps.Stats.retried(reason)
		p.log.Warn("message rejected; it stays in the queue", zap.String("reason", reason), zap.Error(err),
			zap.String("message_id", b.messages[i].ID), zap.Int("attempt", b.messages[i].Attempt))
		b.expect(i, 1)
		b.answer(i, Result{Outcome: Rejected, Err: err})
	}
	return accepted
}

// route says which targets each message goes to: every route of the source applies.
func (p *Pipeline) route(b *batch, accepted []int) {
	for _, i := range accepted {
		b.expect(i, len(p.targets))
	}
}

// settle deletes what every target has confirmed, gives the rest back to the queue,
// and frees their room.
func (p *Pipeline) settle(ctx, work context.Context, b *batch, index []int) {
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

	for k, err := range p.deps.Source.Settle(ctx, settlements) {
		v := &b.verdicts[settled[k]]
		switch {
		case settlements[k].Delete && err == nil:
			deleted++
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

	var size int64
	for _, i := range index {
		size += int64(len(b.leases[i].delivery.Body))
	}
	p.deps.Room.Give(len(index), size)
	p.deps.Shared.Give(len(index), size)
	p.deps.Stats.settled(deleted, lost, returned)
}

// settlement says what to tell the queue of a message: only Delivered deletes.
func (p *Pipeline) settlement(work context.Context, d Delivery, v *verdict) Settlement {
	switch {
	case v.outcome == Delivered:
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

func bodies(ds []Delivery) (size int64) {
	for i := range ds {
		size += int64(len(ds[i].Body))
	}
	return size
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
