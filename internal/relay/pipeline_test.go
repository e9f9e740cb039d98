package relay_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
)

// rig is a pipeline between a queue in memory and recording sinks, inside a synctest
// bubble: its clock moves only when everything waits.
type rig struct {
	t        *testing.T
	queue    *relaytest.Queue
	sinks    []*relaytest.Recorder
	stats    *relay.Stats
	room     *relay.Room
	shared   *relay.Room
	pipeline *relay.Pipeline
	logs     *observer.ObservedLogs

	soft, hard context.CancelFunc
	ended      chan struct{}
}

type option func(*relay.Config, *relay.Deps)

// newRig makes a pipeline with one target for each sink; start runs it.
func newRig(t *testing.T, sinks int, options ...option) *rig {
	t.Helper()
	r := &rig{t: t, queue: relaytest.NewQueue("q"), stats: relay.NewStats(), ended: make(chan struct{})}
	r.room = relay.NewRoom(256, 64<<20)
	r.shared = relay.NewRoom(4096, 256<<20)
	core, logs := observer.New(zapcore.DebugLevel)
	r.logs = logs
	route := relay.Route{Name: "r"}
	for i := range sinks {
		s := relaytest.NewRecorder()
		r.sinks = append(r.sinks, s)
		name := relay.TargetName{Route: "r", Sink: fmt.Sprintf("s%d", i)}
		route.Targets = append(route.Targets, relay.Target{Name: name, Sink: s, Health: s})
	}
	cfg := relay.Config{
		Source: "q", BatchSize: 16, Wait: 30 * time.Second, MinPollers: 1, MaxPollers: 4,
		Redelivery: relay.Redelivery{Initial: 5 * time.Second, Max: time.Hour},
	}
	deps := relay.Deps{
		Source: r.queue,
		Decode: func(m relay.Message) (relay.Message, error) { return m, nil },
		Routes: []relay.Route{route},
		Room:   r.room, Shared: r.shared, Spare: relay.NewRoom(2048, 128<<20), Stats: r.stats, Log: zap.New(core),
	}
	for _, o := range options {
		o(&cfg, &deps)
	}
	r.room, r.shared = deps.Room, deps.Shared
	r.pipeline = relay.New(cfg, deps)
	return r
}

func (r *rig) start() {
	receive, soft := context.WithCancel(context.Background())
	work, hard := context.WithCancel(context.Background())
	r.soft, r.hard = soft, hard
	go func() {
		defer close(r.ended)
		r.pipeline.Run(receive, work)
	}()
}

// stop ends receiving and waits for the drain; then nothing is in flight, no room is
// taken and every message is accounted for.
func (r *rig) stop() {
	r.t.Helper()
	r.soft()
	<-r.ended
	r.hard()
	counts := r.stats.Counts()
	require.Zero(r.t, counts.InFlight, "in flight after the drain")
	require.True(r.t, counts.Balanced(), "balance: %+v", counts)
	require.Zero(r.t, counts.Pollers)
	messages, bytes := r.room.InFlight()
	require.Zero(r.t, messages)
	require.Zero(r.t, bytes)
	messages, bytes = r.shared.InFlight()
	require.Zero(r.t, messages)
	require.Zero(r.t, bytes)
}

// pass lets time go by and everything that is due then be done.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func bodies(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("body %d", i)
	}
	return out
}

func TestEveryMessageIsDeliveredOnceAndDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		ids := r.queue.Send(bodies(1000)...)
		r.start()
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		for _, s := range r.sinks {
			times := s.Times()
			require.Len(t, times, 1000)
			for _, id := range ids {
				require.Equal(t, 1, times[id])
			}
		}
		counts := r.stats.Counts()
		require.EqualValues(t, 1000, counts.Received)
		require.EqualValues(t, 1000, counts.Deleted)
		require.EqualValues(t, 1000, counts.Delivered[relay.TargetName{Route: "r", Sink: "s1"}])
		state, _ := r.pipeline.State()
		require.Equal(t, relay.SourceRunning, state)
		r.stop()
		state, _ = r.pipeline.State()
		require.Equal(t, relay.SourceStopped, state)
	})
}

// What one sink refuses keeps the message in the queue for all of them.
func TestOnlyWhatEverySinkConfirmedIsDeleted(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]relay.Result{
		"retry":     {Outcome: relay.Retry, Err: relay.Fail("nack", errors.New("no"))},
		"rejected":  {Outcome: relay.Rejected, Err: relay.Fail("invalid", errors.New("no"))},
		"forgotten": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2)
				ids := r.queue.Send(bodies(20)...)
				r.sinks[1].Answer(func(_ context.Context, m relay.Message) relay.Result {
					if m.ID == ids[3] {
						return answer
					}
					return relay.Result{Outcome: relay.Delivered}
				})
				r.start()
				pass(time.Second)
				require.Equal(t, []string{ids[3]}, r.queue.Left())
				require.Zero(t, r.queue.Visible(), "it stays invisible for a while")
				r.stop()
			})
		})
	}
}

// A sink that returns without answering has delivered nothing, whatever it says later.
func TestALateAnswerCountsForNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var late func()
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) {
			d.Routes[0].Targets[0].Sink = sinkFunc(func(_ context.Context, _ []relay.Message, done func(int, relay.Result)) {
				late = func() { done(0, relay.Result{Outcome: relay.Delivered}) }
			})
		})
		ids := r.queue.Send("x")
		r.start()
		pass(time.Second)
		late()
		pass(time.Second)
		require.Equal(t, ids, r.queue.Left())
		require.EqualValues(t, 1, r.stats.Counts().Returned["unanswered"])
		r.stop()
	})
}

type sinkFunc func(ctx context.Context, ms []relay.Message, done func(int, relay.Result))

func (f sinkFunc) Deliver(ctx context.Context, ms []relay.Message, done func(int, relay.Result)) {
	f(ctx, ms, done)
}

func TestAFailedMessageComesBackLaterAndLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var tries []time.Time
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			tries = append(tries, time.Now())
			if len(tries) == 5 {
				return relay.Result{Outcome: relay.Delivered}
			}
			return relay.Result{Outcome: relay.Retry, Err: relay.Fail("nack", errors.New("no"))}
		})
		r.queue.Send("x")
		r.start()
		pass(5 * time.Minute)
		require.Len(t, tries, 5)
		for i, want := range []time.Duration{5 * time.Second, 10 * time.Second, 20 * time.Second, 40 * time.Second} {
			gap := tries[i+1].Sub(tries[i])
			require.GreaterOrEqual(t, gap, want*3/4)
			require.LessOrEqual(t, gap, want+time.Second)
		}
		require.Empty(t, r.queue.Left())
		require.EqualValues(t, 4, r.stats.Counts().Returned["nack"])
		require.Equal(t, 1, r.logs.FilterMessage("delivery failed").Len(), "said once")
		require.Equal(t, 1, r.logs.FilterMessage("sink delivers again").Len())
		r.stop()
	})
}

func TestRetryAfterIsHonoured(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var tries []time.Time
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			tries = append(tries, time.Now())
			return relay.Result{Err: errors.New("busy"), RetryAfter: 3 * time.Minute}
		})
		r.queue.Send("x")
		r.start()
		pass(4 * time.Minute)
		require.Len(t, tries, 2)
		require.GreaterOrEqual(t, tries[1].Sub(tries[0]), 3*time.Minute)
		r.stop()
	})
}

// A message that takes longer than its lease is renewed until it is settled, with the
// newest receipt.
func TestTheLeaseIsRenewedUntilSettled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var renewals atomic.Int64
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" {
				renewals.Add(1)
			}
			return nil
		}
		r.sinks[0].Answer(func(ctx context.Context, _ relay.Message) relay.Result {
			<-time.After(100 * time.Second)
			return relay.Result{Outcome: relay.Delivered}
		})
		ids := r.queue.Send("slow")
		r.start()
		pass(105 * time.Second)
		require.Empty(t, r.queue.Left())
		require.Equal(t, map[string]int{ids[0]: 1}, r.sinks[0].Times())
		require.InDelta(t, 6, renewals.Load(), 1, "one for each half life of 15 s")
		r.stop()
	})
}

// A renewal changes the receipt, so a delete waits for the one that is under way and uses
// what it gives: one of the two would be refused otherwise.
func TestADeleteWaitsForTheRenewalUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var calls []string // the lease keeper and the settlement take turns
		r.queue.Fault = func(op, _ string) error {
			switch op {
			case "extend":
				calls = append(calls, "renewal begins")
				<-time.After(3 * time.Second)
				calls = append(calls, "renewal ends")
			case "delete":
				calls = append(calls, op)
			}
			return nil
		}
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(16 * time.Second) // a second after half the lease
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("x")
		r.start()
		pass(30 * time.Second)
		require.Equal(t, []string{"renewal begins", "renewal ends", "delete"}, calls)
		require.Empty(t, r.queue.Left())
		counts := r.stats.Counts()
		require.EqualValues(t, 1, counts.Deleted)
		require.Zero(t, counts.LostLeases)
		r.stop()
	})
}

// A renewal that fails is tried again while the lease lasts.
func TestAFailedRenewalIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var failures atomic.Int64
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" && failures.Add(1) <= 3 {
				return errors.New("502")
			}
			return nil
		}
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(40 * time.Second)
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("slow")
		r.start()
		pass(45 * time.Second)
		require.Empty(t, r.queue.Left())
		require.Zero(t, r.stats.Counts().LostLeases)
		r.stop()
	})
}

// A credential that may only receive and delete: said once, and what is quick enough is
// still deleted.
func TestWithoutThePermissionToRenewTheFirstLeaseMustDo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var extends atomic.Int64
		r.queue.Fault = func(op, _ string) error {
			switch op {
			case "extend":
				extends.Add(1)
				return fmt.Errorf("visibility: %w", relay.ErrNotPermitted)
			case "return":
				return relay.ErrNotPermitted
			}
			return nil
		}
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			if m.Attempt == 1 && string(m.Body) == "fails" {
				return relay.Result{Err: relay.Fail("nack", errors.New("no"))}
			}
			<-time.After(20 * time.Second)
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("a", "b", "fails")
		r.start()
		pass(2 * time.Minute)
		require.Empty(t, r.queue.Left())
		require.Positive(t, extends.Load())
		require.Equal(t, 1, r.logs.FilterMessageSnippet("may not renew").Len())
		require.EqualValues(t, 1, r.stats.Counts().Returned["nack"])
		r.stop()
	})
}

func TestALostLeaseIsCountedAndNotDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" {
				return relay.ErrLeaseLost
			}
			return nil
		}
		var tries atomic.Int64
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			if tries.Add(1) == 1 {
				<-time.After(40 * time.Second)
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("x")
		r.start()
		pass(2 * time.Minute)
		counts := r.stats.Counts()
		require.EqualValues(t, 1, counts.LostLeases)
		require.EqualValues(t, 1, counts.Deleted, "the second receive")
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

// A delete that is not confirmed may have happened or not: it is counted as a lost
// lease, and the message, if it comes again, is delivered again.
func TestAnUnconfirmedDeleteIsALostLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var deletes atomic.Int64
		r.queue.Fault = func(op, _ string) error {
			if op == "delete" && deletes.Add(1) == 1 {
				return errors.New("reset")
			}
			return nil
		}
		ids := r.queue.Send("x")
		r.start()
		pass(time.Minute)
		require.Equal(t, map[string]int{ids[0]: 2}, r.sinks[0].Times())
		require.EqualValues(t, 1, r.stats.Counts().LostLeases)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

// One message that hangs does not hold up the delete of the others.
func TestAHungMessageDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		release := make(chan struct{})
		ids := r.queue.Send(bodies(64)...)
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			if m.ID == ids[5] {
				<-release
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.start()
		pass(time.Second)
		require.Equal(t, []string{ids[5]}, r.queue.Left())
		require.EqualValues(t, 1, r.stats.Counts().InFlight)
		close(release)
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

func TestRoomBoundsWhatIsInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) { d.Room = relay.NewRoom(40, 64<<20) })
		release := make(chan struct{})
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-release
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send(bodies(200)...)
		r.start()
		pass(10 * time.Minute) // leases are renewed all the while
		counts := r.stats.Counts()
		require.EqualValues(t, 32, counts.Received, "two batches fit, a third does not")
		for _, n := range r.sinks[0].Times() {
			require.Equal(t, 1, n)
		}
		close(release)
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

func TestTheSharedRoomStopsNewReceives(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) { d.Shared = relay.NewRoom(1, 64<<20) })
		release := make(chan struct{})
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-release
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send(bodies(200)...)
		r.start()
		pass(time.Minute)
		require.LessOrEqual(t, r.stats.Counts().Received, uint64(32), "what was being received when it filled up")
		close(release)
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

// While a required sink is down nothing is received, so that no attempt is used up.
func TestASinkThatIsDownStopsReceiving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		r.sinks[1].Set(relay.Down, "connection refused")
		r.queue.Send(bodies(100)...)
		r.start()
		pass(time.Hour)
		require.Empty(t, r.queue.Receives())
		state, reason := r.pipeline.State()
		require.Equal(t, relay.SourceWaiting, state)
		require.Equal(t, "sink s1 is down: connection refused", reason)
		r.sinks[1].Set(relay.Up, "")
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

// The waiting poll is ended when a sink goes down: otherwise a message that arrives
// then is leased for nothing.
func TestASinkGoingDownEndsTheWaitingPoll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.start()
		pass(10 * time.Second)
		r.sinks[0].Set(relay.Down, "gone")
		synctest.Wait()
		ids := r.queue.Send("x")
		pass(time.Minute)
		require.Empty(t, r.sinks[0].Messages())
		r.sinks[0].Set(relay.Up, "")
		pass(time.Second)
		require.Equal(t, map[string]int{ids[0]: 1}, r.sinks[0].Times())
		require.Equal(t, 1, r.sinks[0].Messages()[0].Attempt, "no attempt was used up")
		r.stop()
	})
}

// A short outage costs nothing: what could not be confirmed is held and sent again.
func TestAShortOutageIsSatOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		s := r.sinks[0]
		var broken atomic.Bool
		broken.Store(true)
		s.Answer(func(_ context.Context, m relay.Message) relay.Result {
			if broken.Load() {
				s.Set(relay.Down, "connection lost")
				return relay.Result{Err: relay.Fail("connection_lost", fmt.Errorf("EOF: %w", relay.ErrSinkDown))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send(bodies(16)...)
		r.start()
		pass(5 * time.Second)
		require.EqualValues(t, 16, r.stats.Counts().InFlight)
		broken.Store(false)
		s.Set(relay.Up, "")
		pass(time.Second)
		counts := r.stats.Counts()
		require.EqualValues(t, 16, counts.Deleted)
		require.EqualValues(t, 16, counts.Received, "nothing was received a second time")
		require.Empty(t, counts.Retried, "a sink that is down is no failed try")
		r.stop()
	})
}

// A long outage gives the messages back before half their lease is over, and takes none
// until it ends.
func TestALongOutageGivesMessagesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		s := r.sinks[0]
		var broken atomic.Bool
		broken.Store(true)
		s.Answer(func(_ context.Context, m relay.Message) relay.Result {
			if broken.Load() {
				s.Set(relay.Down, "connection lost")
				return relay.Result{Err: relay.Fail("connection_lost", fmt.Errorf("EOF: %w", relay.ErrSinkDown))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send(bodies(16)...)
		r.start()
		pass(17 * time.Second)
		counts := r.stats.Counts()
		require.Zero(t, counts.InFlight)
		require.EqualValues(t, 16, counts.Returned["sink_down"])
		require.Equal(t, 16, r.queue.Visible())
		pass(time.Hour)
		require.EqualValues(t, 16, r.stats.Counts().Received)
		broken.Store(false)
		s.Set(relay.Up, "")
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

func TestDrainFinishesWhatIsInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(40 * time.Second) // longer than the lease: renewed through the drain
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send(bodies(20)...)
		r.start()
		pass(time.Second)
		begun := time.Now()
		r.soft()
		synctest.Wait()
		state, _ := r.pipeline.State()
		require.Equal(t, relay.SourceDraining, state)
		r.queue.Send("too late")
		<-r.ended
		require.Less(t, time.Since(begun), 40*time.Second)
		require.EqualValues(t, 20, r.stats.Counts().Deleted)
		require.Len(t, r.queue.Left(), 1)
		r.stop()
	})
}

// A drain that is cut gives back at once what the sink has not confirmed.
func TestACutDrainGivesMessagesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.sinks[0].Answer(func(ctx context.Context, m relay.Message) relay.Result {
			if string(m.Body) == "quick" {
				return relay.Result{Outcome: relay.Delivered}
			}
			<-ctx.Done()
			return relay.Result{Err: ctx.Err()}
		})
		r.queue.Send("quick", "hangs")
		r.start()
		pass(time.Second)
		r.soft()
		pass(45 * time.Second)
		r.hard()
		<-r.ended
		counts := r.stats.Counts()
		require.EqualValues(t, 1, counts.Deleted)
		require.EqualValues(t, 1, counts.Returned["drain"])
		pass(relay.MinRedelivery)
		require.Equal(t, 1, r.queue.Visible())
		r.stop()
	})
}

// A drain does not wait for a sink that is down.
func TestADrainDoesNotWaitForASinkThatIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		s := r.sinks[0]
		s.Answer(func(context.Context, relay.Message) relay.Result {
			s.Set(relay.Down, "connection lost")
			return relay.Result{Err: relay.Fail("connection_lost", fmt.Errorf("EOF: %w", relay.ErrSinkDown))}
		})
		r.queue.Send(bodies(3)...)
		r.start()
		pass(time.Second)
		begun := time.Now()
		r.stop()
		require.Zero(t, time.Since(begun))
		require.EqualValues(t, 3, r.stats.Counts().Returned["sink_down"])
	})
}

func TestPollersGrowWithTheBacklogAndShrinkToOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var mu sync.Mutex
		most := 0
		r.queue.Fault = func(op, _ string) error {
			if op == "receive" {
				mu.Lock()
				most = max(most, r.stats.Counts().Pollers)
				mu.Unlock()
				<-time.After(10 * time.Millisecond) // a round trip
			}
			return nil
		}
		r.queue.Send(bodies(2000)...)
		r.start()
		pass(10 * time.Second)
		require.Empty(t, r.queue.Left())
		require.Equal(t, 4, most)
		require.Equal(t, 1, r.stats.Counts().Pollers)
		receives := len(r.queue.Receives())
		require.LessOrEqual(t, receives, 2000/16+8, "full batches")
		waiting := 0
		for _, call := range r.queue.Receives() {
			if call.Wait && call.Given == 0 {
				waiting++
			}
		}
		require.Zero(t, waiting, "the one that waits still waits")
		r.stop()
	})
}

func TestAnIdleSourceMakesTwoRequestsAMinute(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.start()
		pass(time.Hour)
		require.LessOrEqual(t, len(r.queue.Receives()), 121)
		r.stop()
	})
}

// Over a hidden limit of polls the server answers empty at once.
func TestFastEmptyAnswersAreSlowedDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.queue.Wait = time.Millisecond
		r.start()
		pass(10 * time.Minute)
		require.Less(t, len(r.queue.Receives()), 10*60/3)
		ids := r.queue.Send("x")
		pass(7 * time.Second)
		require.Equal(t, 1, r.sinks[0].Times()[ids[0]], "still received within the longest pause")
		r.stop()
	})
}

type classified relay.Class

func (c classified) Error() string      { return "the queue says no" }
func (c classified) Class() relay.Class { return relay.Class(c) }

func TestReceiveErrorsBackOffAndRecover(t *testing.T) {
	t.Parallel()
	for class, limit := range map[relay.Class]int{
		relay.ClassUnknown: 80, relay.ClassThrottled: 30, relay.ClassAuth: 150,
		relay.ClassNotFound: 30, relay.ClassNetwork: 150, relay.ClassServer: 80,
	} {
		t.Run(class.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1)
				var failing atomic.Bool
				failing.Store(true)
				r.queue.Fault = func(op, _ string) error {
					if op == "receive" && failing.Load() {
						return fmt.Errorf("receive: %w", classified(class))
					}
					return nil
				}
				r.queue.Send("x")
				r.start()
				pass(10 * time.Minute)
				require.Less(t, len(r.queue.Receives()), limit)
				require.Greater(t, len(r.queue.Receives()), 15)
				state, reason := r.pipeline.State()
				require.Equal(t, relay.SourceRetrying, state)
				require.Equal(t, "receive: the queue says no", reason)
				require.False(t, r.stats.Counts().Worked)
				require.Equal(t, 1, r.logs.FilterMessageSnippet("receive failed").Len(), "said once")
				failing.Store(false)
				pass(40 * time.Second)
				require.Empty(t, r.queue.Left())
				require.Equal(t, 1, r.logs.FilterMessage("receive works again").Len())
				require.Nil(t, r.stats.Counts().LastError)
				r.stop()
			})
		})
	}
}

func TestAMessageThatCannotBeDecodedIsRejectedAndBlocksNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) {
			d.Decode = func(m relay.Message) (relay.Message, error) {
				if string(m.Body) == "bad" {
					return m, relay.Fail("decode", errors.New("not base64"))
				}
				m.Body = append([]byte("decoded "), m.Body...)
				return m, nil
			}
		})
		ids := r.queue.Send("a", "bad", "b")
		r.start()
		pass(time.Second)
		require.Equal(t, ids[1:2], r.queue.Left())
		require.Len(t, r.sinks[0].Messages(), 2)
		require.Equal(t, "decoded a", string(r.sinks[0].Messages()[0].Body))
		require.EqualValues(t, 1, r.stats.Counts().Returned["decode"])
		r.stop()
	})
}

func TestPausedReceivesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(c *relay.Config, _ *relay.Deps) { c.Paused = true })
		r.queue.Send("x")
		r.start()
		pass(time.Minute)
		require.Empty(t, r.queue.Receives())
		state, reason := r.pipeline.State()
		require.Equal(t, relay.SourcePaused, state)
		require.Equal(t, "paused by the configuration", reason)
		r.pipeline.Resume()
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		r.pipeline.Pause("an operator")
		pass(time.Second)
		r.queue.Send("y")
		pass(time.Minute)
		require.Len(t, r.queue.Left(), 1)
		r.stop()
	})
}
