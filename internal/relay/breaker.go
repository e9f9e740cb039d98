package relay

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
	"go.uber.org/zap"
)

// BreakerConfig says when a circuit opens and when it is tried again.
type BreakerConfig struct {
	// Failures is how many messages in a row fail before the circuit opens; 0 means 5.
	Failures int
	// Probe is how long an open circuit lets nothing through before one message may find
	// out; 0 means 5 s.
	Probe time.Duration
}

const (
	defaultFailures = 5
	defaultProbe    = 5 * time.Second
)

// ReasonCircuitOpen is why a message was not sent to a sink behind an open circuit.
const ReasonCircuitOpen = "circuit_open"

// ReasonHeld is why a message was not sent to a sink that asked to be left alone.
const ReasonHeld = "held"

// Breaker tells, by what becomes of messages, the health of a far side that no
// connection tells of. It is Up until a number of messages in a row have failed, then
// Down for a while, then on Probe: one message at a time goes through. The first that is
// Delivered makes it Up, a Retry makes it Down again.
//
// Rejected counts for neither: it may have been said of a message that was never sent.
// So does what failed because its context had ended. Make it with NewBreaker.
type Breaker struct {
	circuit *gobreaker.TwoStepCircuitBreaker[Outcome]
	monitor *Monitor
	probe   time.Duration
	log     *zap.Logger
	// timer ends the time for which the circuit is open; it does not run otherwise.
	timer *time.Timer

	// resume ends a Hold; it does not run otherwise.
	resume *time.Timer

	mu     sync.Mutex
	last   error // of the message that failed last
	opened time.Time
	closed bool
	// circuitState and circuitReason are the health by the circuit alone.
	circuitState  State
	circuitReason string
	held          error // why nothing is sent until heldUntil; nil: nothing holds it
	heldUntil     time.Time
}

var _ Reporter = (*Breaker)(nil)

// errNeutral stands for what says nothing about the far side.
var errNeutral = errors.New("neither delivered nor failed")

// NewBreaker makes a Breaker that is Up.
func NewBreaker(cfg BreakerConfig, log *zap.Logger) *Breaker {
	if cfg.Failures == 0 {
		cfg.Failures = defaultFailures
	}
	if cfg.Probe == 0 {
		cfg.Probe = defaultProbe
	}
	b := &Breaker{monitor: NewMonitor(Up, ""), circuitState: Up, probe: cfg.Probe, log: log}
	b.circuit = gobreaker.NewTwoStepCircuitBreaker[Outcome](gobreaker.Settings{
		MaxRequests: 1,
		// It goes by itself from open to half-open after more than this, when asked: the
		// timer asks.
		Timeout:       cfg.Probe - 1,
		ReadyToTrip:   func(c gobreaker.Counts) bool { return int64(c.ConsecutiveFailures) >= int64(cfg.Failures) },
		IsExcluded:    func(err error) bool { return errors.Is(err, errNeutral) },
		OnStateChange: b.changed,
	})
	b.timer = time.AfterFunc(math.MaxInt64, func() { b.circuit.State() })
	b.timer.Stop()
	b.resume = time.AfterFunc(math.MaxInt64, b.expire)
	b.resume.Stop()
	return b
}

// Health is that of the far side, as far as messages tell.
func (b *Breaker) Health() (Health, <-chan struct{}) { return b.monitor.Health() }

// Close stops the timer and makes the health Down for good.
func (b *Breaker) Close(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.timer.Stop()
	b.resume.Stop()
	b.monitor.Set(Down, reason)
}

// changed is called by the circuit, which is locked meanwhile.
func (b *Breaker) changed(_ string, from, to gobreaker.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	switch to {
	case gobreaker.StateOpen:
		b.timer.Reset(b.probe)
		b.circuitState, b.circuitReason = Down, "circuit open: "+b.last.Error()
		if from == gobreaker.StateClosed {
			b.opened = time.Now()
			b.log.Warn("circuit opened: messages fail one after another; one is sent now and then until it is delivered",
				zap.Duration("every", b.probe), zap.Error(b.last))
		}
	case gobreaker.StateHalfOpen:
		b.circuitState, b.circuitReason = Probe, "circuit half open: "+b.last.Error()
	case gobreaker.StateClosed:
		b.circuitState, b.circuitReason = Up, ""
		b.log.Info("circuit closed: messages are delivered again", zap.Duration("after", time.Since(b.opened)))
	}
	b.publish()
}

// publish tells the health; mu is held.
func (b *Breaker) publish() {
	switch {
	case b.closed:
	case b.held == nil:
		b.monitor.Set(b.circuitState, b.circuitReason)
	case b.heldUntil.IsZero():
		b.monitor.Set(Down, "stopped until a reload: "+b.held.Error())
	default:
		b.monitor.Set(Down, "left alone until "+b.heldUntil.UTC().Format("15:04:05Z")+": "+b.held.Error())
	}
}

// UntilResumed is as long as it takes until Resume is called.
const UntilResumed time.Duration = math.MaxInt64

// Hold makes the health Down for a time, because the far side asked for it by what cause
// says. A longer time replaces a shorter one.
func (b *Breaker) Hold(d time.Duration, cause error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	until := time.Now().Add(d)
	switch {
	case b.closed, b.held != nil && (b.heldUntil.IsZero() || !until.After(b.heldUntil)):
		return
	case d == UntilResumed:
		until = time.Time{}
		b.resume.Stop()
		b.log.Error("stopped: nothing is sent until the configuration is reloaded", zap.Error(cause))
	default:
		b.resume.Reset(d)
		if b.held == nil {
			b.log.Warn("paused for a while, as the far side asked", zap.Duration("for", d), zap.Error(cause))
		}
	}
	b.held, b.heldUntil = cause, until
	b.publish()
}

// expire ends a Hold whose time is over.
func (b *Breaker) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held != nil && !b.heldUntil.IsZero() && !time.Now().Before(b.heldUntil) { // or it was made longer just then
		b.held, b.heldUntil = nil, time.Time{}
		b.publish()
	}
}

// Resume ends a Hold.
func (b *Breaker) Resume() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.resume.Stop()
	b.held, b.heldUntil = nil, time.Time{}
	b.publish()
}

// allow lets a message through, whose result is to be given to report, or says why not.
func (b *Breaker) allow() (report func(error), err error) {
	b.mu.Lock()
	held := b.held
	b.mu.Unlock()
	if held != nil {
		return nil, Fail(ReasonHeld, fmt.Errorf("%w: not sent, for it asked to be left alone: %w", ErrSinkDown, held))
	}
	report, err = b.circuit.Allow()
	if err == nil {
		return report, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return nil, Fail(ReasonCircuitOpen, fmt.Errorf("%w: not sent, for the last one failed: %w", ErrSinkDown, b.last))
}

// judge tells the circuit what became of a message.
func (b *Breaker) judge(ctx context.Context, report func(error), r Result) {
	switch {
	case r.Outcome == Delivered:
		report(nil)
	case r.Outcome == Rejected || ctx.Err() != nil:
		report(errNeutral)
	default:
		if r.Err == nil {
			r.Err = errUnanswered
		}
		b.mu.Lock()
		b.last = r.Err
		b.mu.Unlock()
		report(r.Err)
	}
}

// Do sends what the circuit lets through, and answers for the rest at once: Retry with
// ReasonCircuitOpen or ReasonHeld. When it returns, the health tells what became of it.
// All that send to one far side share a Breaker.
func (b *Breaker) Do(ctx context.Context, send func() Result) Result {
	report, err := b.allow()
	if err != nil {
		return Result{Err: err}
	}
	r := send()
	b.judge(ctx, report, r)
	return r
}
