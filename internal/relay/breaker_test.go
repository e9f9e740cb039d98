package relay_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
)

var errStatus = relay.Fail("status_5xx", errors.New("the endpoint answered 503"))

// answering gives every message the same result.
func answering(r relay.Result) func(context.Context, relay.Message) relay.Result {
	return func(context.Context, relay.Message) relay.Result { return r }
}

// guarded sends each message as its circuit lets it, all at once.
type guarded struct {
	breaker *relay.Breaker
	sink    relay.Sink
}

func guard(b *relay.Breaker, s relay.Sink) relay.Sink { return &guarded{b, s} }

func (g *guarded) Deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	var all sync.WaitGroup
	for i := range ms {
		all.Go(func() {
			done(i, g.breaker.Do(ctx, func() (result relay.Result) {
				g.sink.Deliver(ctx, ms[i:i+1], func(_ int, r relay.Result) { result = r })
				return result
			}))
		})
	}
	all.Wait()
}

// results delivers n messages at once and gives their results.
func results(ctx context.Context, t *testing.T, s relay.Sink, n int) []relay.Result {
	t.Helper()
	rs := make([]relay.Result, n)
	calls := make([]atomic.Int64, n)
	s.Deliver(ctx, make([]relay.Message, n), func(i int, r relay.Result) {
		rs[i] = r
		calls[i].Add(1)
	})
	for i := range calls {
		require.EqualValues(t, 1, calls[i].Load(), "results of message %d", i)
	}
	return rs
}

func reasons(rs []relay.Result) map[string]int {
	counts := make(map[string]int)
	for _, r := range rs {
		name := r.Outcome.String()
		if r.Err != nil {
			name += " " + relay.ReasonOf(r.Err)
		}
		counts[name]++
	}
	return counts
}

func requireHealth(t *testing.T, b relay.Reporter, state relay.State, reason string) {
	t.Helper()
	health, _ := b.Health()
	require.Equal(t, state, health.State, health.Reason)
	require.Equal(t, reason, health.Reason)
}

const brokenReason = "status 5xx: the endpoint answered 503"

func TestBreakerOpensAndFindsOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		breaker := relay.NewBreaker(relay.BreakerConfig{}, zap.New(core))
		defer breaker.Close("")
		far := relaytest.NewRecorder()
		sink := guard(breaker, far)
		requireHealth(t, breaker, relay.Up, "")

		far.Answer(answering(relay.Result{Err: errStatus}))
		_, changed := breaker.Health()
		results(t.Context(), t, sink, 4)
		requireHealth(t, breaker, relay.Up, "")
		far.Answer(nil)
		results(t.Context(), t, sink, 1) // one that arrives starts the count over
		far.Answer(answering(relay.Result{Err: errStatus}))
		results(t.Context(), t, sink, 4)
		requireHealth(t, breaker, relay.Up, "")
		require.Empty(t, logs.All())

		results(t.Context(), t, sink, 1)
		requireHealth(t, breaker, relay.Down, "circuit open: "+brokenReason)
		<-changed
		sent := len(far.Messages())
		rs := results(t.Context(), t, sink, 16)
		require.Equal(t, map[string]int{"retry circuit_open": 16}, reasons(rs))
		require.ErrorIs(t, rs[0].Err, errStatus)
		require.Len(t, far.Messages(), sent, "nothing is sent while the circuit is open")

		// It fails, and again, and again: one message every five seconds.
		for range 3 {
			pass(5*time.Second - 1)
			requireHealth(t, breaker, relay.Down, "circuit open: "+brokenReason)
			pass(1)
			requireHealth(t, breaker, relay.Probe, "circuit half open: "+brokenReason)
			require.Equal(t, map[string]int{"retry status_5xx": 1, "retry circuit_open": 15}, reasons(results(t.Context(), t, sink, 16)))
			requireHealth(t, breaker, relay.Down, "circuit open: "+brokenReason)
			sent++
			require.Len(t, far.Messages(), sent)
		}

		far.Answer(nil)
		pass(5 * time.Second)
		require.Equal(t, map[string]int{"delivered": 1}, reasons(results(t.Context(), t, sink, 1)))
		requireHealth(t, breaker, relay.Up, "")
		require.Equal(t, map[string]int{"delivered": 16}, reasons(results(t.Context(), t, sink, 16)))
		require.Equal(t, 2, logs.Len(), "said once when it opens, once when it closes: %v", logs.All())
		require.Equal(t, 20*time.Second, logs.All()[1].ContextMap()["after"])
	})
}

// While one message finds out, no other is sent, by whichever route it comes.
func TestBreakerLetsOneMessageThroughOnProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		breaker := relay.NewBreaker(relay.BreakerConfig{Failures: 1, Probe: time.Minute}, zap.NewNop())
		defer breaker.Close("")
		far := relaytest.NewRecorder()
		one, other := guard(breaker, far), guard(breaker, far)
		far.Answer(answering(relay.Result{Err: errStatus}))
		results(t.Context(), t, one, 1)
		pass(time.Minute)

		far.Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(time.Second)
			return relay.Result{Outcome: relay.Delivered}
		})
		first := make(chan []relay.Result)
		go func() {
			rs := make([]relay.Result, 3)
			one.Deliver(t.Context(), make([]relay.Message, len(rs)), func(i int, r relay.Result) { rs[i] = r })
			first <- rs
		}()
		synctest.Wait()
		require.Equal(t, map[string]int{"retry circuit_open": 3}, reasons(results(t.Context(), t, other, 3)))
		require.Equal(t, map[string]int{"delivered": 1, "retry circuit_open": 2}, reasons(<-first))
		requireHealth(t, breaker, relay.Up, "")
	})
}

func TestBreakerIsNotMovedByWhatSaysNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ended  bool
		result relay.Result
	}{
		"rejected":        {false, relay.Result{Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("400"))}},
		"context ended":   {true, relay.Result{Err: relay.Fail("stopped", context.Canceled)}},
		"nothing is sent": {true, relay.Result{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.ended {
					cancel()
				}
				breaker := relay.NewBreaker(relay.BreakerConfig{}, zap.NewNop())
				defer breaker.Close("")
				far := relaytest.NewRecorder()
				sink := guard(breaker, far)
				far.Answer(answering(relay.Result{Err: errStatus}))
				results(t.Context(), t, sink, 4)
				far.Answer(answering(c.result))
				results(ctx, t, sink, 20)
				requireHealth(t, breaker, relay.Up, "")

				far.Answer(answering(relay.Result{Err: errStatus}))
				results(t.Context(), t, sink, 1) // the fifth, for nothing lay between
				requireHealth(t, breaker, relay.Down, "circuit open: "+brokenReason)

				// On probe it leaves the question open, and the next may ask.
				pass(5 * time.Second)
				far.Answer(answering(c.result))
				for range 3 {
					require.NotContains(t, reasons(results(ctx, t, sink, 1)), "retry circuit_open")
					health, _ := breaker.Health()
					require.Equal(t, relay.Probe, health.State)
				}
				far.Answer(nil)
				results(t.Context(), t, sink, 1)
				requireHealth(t, breaker, relay.Up, "")
			})
		})
	}
}

// A forgotten result is a failure like others.
func TestBreakerCountsAResultThatNeverCame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		breaker := relay.NewBreaker(relay.BreakerConfig{Failures: 2}, zap.NewNop())
		defer breaker.Close("")
		forgetful := func() relay.Result { return relay.Result{} }
		breaker.Do(t.Context(), forgetful)
		requireHealth(t, breaker, relay.Up, "")
		require.Equal(t, relay.Retry, breaker.Do(t.Context(), forgetful).Outcome)
		health, _ := breaker.Health()
		require.Equal(t, relay.Down, health.State)
	})
}

// What was sent before the circuit opened and ends afterwards does not close it.
func TestBreakerForgetsWhatWasSentBeforeItOpened(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		breaker := relay.NewBreaker(relay.BreakerConfig{}, zap.NewNop())
		defer breaker.Close("")
		slow, far := relaytest.NewRecorder(), relaytest.NewRecorder()
		slow.Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(6 * time.Second)
			return relay.Result{Outcome: relay.Delivered}
		})
		go guard(breaker, slow).Deliver(t.Context(), make([]relay.Message, 1), func(int, relay.Result) {})
		synctest.Wait()
		far.Answer(answering(relay.Result{Err: errStatus}))
		results(t.Context(), t, guard(breaker, far), 5)
		pass(7 * time.Second)
		requireHealth(t, breaker, relay.Probe, "circuit half open: "+brokenReason)
	})
}

func TestBreakerThatIsClosedStaysDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		breaker := relay.NewBreaker(relay.BreakerConfig{Failures: 1}, zap.NewNop())
		far := relaytest.NewRecorder()
		far.Answer(answering(relay.Result{Err: errStatus}))
		results(t.Context(), t, guard(breaker, far), 1)
		breaker.Close("the end")
		requireHealth(t, breaker, relay.Down, "the end")
		pass(time.Minute)
		far.Answer(nil)
		results(t.Context(), t, guard(breaker, far), 1)
		requireHealth(t, breaker, relay.Down, "the end")
	})
}

// An outage of what has no connection: its source stops within a second, probes with one
// message every five seconds, and resumes; no attempt is used up meanwhile.
func TestAnOpenCircuitPausesItsSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		breaker := relay.NewBreaker(relay.BreakerConfig{}, zap.NewNop())
		defer breaker.Close("")
		r := newRig(t, 1, func(c *relay.Config, d *relay.Deps) {
			target := &d.Routes[0].Targets[0]
			target.Sink, target.Health = guard(breaker, target.Sink), breaker
			c.MaxReceives = 3
		})
		far := r.sinks[0]
		far.Answer(answering(relay.Result{Err: errStatus}))
		r.queue.Send(bodies(100)...)
		r.start()
		pass(time.Second)
		state, reason := r.pipeline.State()
		require.Equal(t, relay.SourceWaiting, state)
		require.Contains(t, reason, brokenReason)
		received, sent := r.stats.Counts().Received, len(far.Messages())

		const outage = time.Minute
		pass(outage)
		require.LessOrEqual(t, r.stats.Counts().Received-received, uint64(outage/(5*time.Second)), "one message a probe is received")
		require.InDelta(t, outage/(5*time.Second), len(far.Messages())-sent, 1, "one message a probe is sent")
		require.LessOrEqual(t, r.stats.Counts().Retried["status_5xx"], uint64(4), "tries that count")

		far.Answer(nil)
		pass(10 * time.Second)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

const askedReason = "status 429: the endpoint answered 429"

var errAsked = relay.Fail("status_429", errors.New("the endpoint answered 429"))

// A breaker that is held sends nothing, whatever its circuit says, and then again says
// what the circuit says. The longest time holds.
func TestBreakerIsHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		breaker := relay.NewBreaker(relay.BreakerConfig{}, zap.NewNop())
		defer breaker.Close("")
		far := relaytest.NewRecorder()
		sink := guard(breaker, far)

		began := time.Now()
		breaker.Hold(time.Minute, errAsked)
		breaker.Hold(time.Second, errAsked)
		requireHealth(t, breaker, relay.Down, "left alone until "+began.Add(time.Minute).UTC().Format("15:04:05Z")+": "+askedReason)
		require.Equal(t, map[string]int{"retry held": 3}, reasons(results(t.Context(), t, sink, 3)))
		health, changed := breaker.Health()
		require.Equal(t, relay.Down, health.State)
		<-changed
		require.Equal(t, time.Minute, time.Since(began))
		requireHealth(t, breaker, relay.Up, "")
		require.Equal(t, map[string]int{"delivered": 1}, reasons(results(t.Context(), t, sink, 1)))

		// A longer time replaces a shorter one.
		began = time.Now()
		breaker.Hold(time.Second, errAsked)
		breaker.Hold(time.Minute, errAsked)
		for health, changed := breaker.Health(); health.State != relay.Up; health, changed = breaker.Health() {
			<-changed
		}
		require.Equal(t, time.Minute, time.Since(began))

		// What is stopped is not started by a time, only by Resume.
		breaker.Hold(relay.UntilResumed, errAsked)
		breaker.Hold(time.Second, errAsked)
		<-time.After(1000 * time.Hour)
		requireHealth(t, breaker, relay.Down, "stopped until a reload: "+askedReason)
		breaker.Resume()
		requireHealth(t, breaker, relay.Up, "")
		breaker.Resume()
		requireHealth(t, breaker, relay.Up, "")
	})
}

// A circuit that opens while the far side is left alone is open afterwards.
func TestBreakerOpensWhileItIsHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		breaker := relay.NewBreaker(relay.BreakerConfig{Probe: time.Hour}, zap.NewNop())
		defer breaker.Close("")
		far := relaytest.NewRecorder()
		far.Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(time.Second) // all five are under way
			breaker.Hold(time.Minute, errAsked)
			return relay.Result{Err: errStatus}
		})
		results(t.Context(), t, guard(breaker, far), 5)
		health, changed := breaker.Health()
		require.Contains(t, health.Reason, "left alone until ")
		<-changed
		requireHealth(t, breaker, relay.Down, "circuit open: "+brokenReason)
	})
}
