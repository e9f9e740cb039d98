package relay_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
)

// What fails is tried again in two ranges: a few times soon, under the same lease, and
// then by the queue, later and later.
func TestRetryInTwoRanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, withRetries(relay.Retries{Attempts: 3, Initial: 200 * time.Millisecond, Max: 5 * time.Second, Timeout: 10 * time.Second}))
		var tries []time.Time
		var attempts []int
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			tries, attempts = append(tries, time.Now()), append(attempts, m.Attempt)
			if len(tries) == 9 {
				return relay.Result{Outcome: relay.Delivered}
			}
			return relay.Result{Err: relay.Fail("status_5xx", errors.New("503"))}
		})
		r.queue.Send("x")
		r.start()
		pass(time.Minute)
		require.Equal(t, []int{1, 1, 1, 2, 2, 2, 3, 3, 3}, attempts)
		require.Less(t, tries[2].Sub(tries[0]), time.Second, "under the first lease")
		for _, c := range []struct {
			last int
			want time.Duration
		}{{2, 5 * time.Second}, {5, 10 * time.Second}} {
			gap := tries[c.last+1].Sub(tries[c.last])
			require.GreaterOrEqual(t, gap, c.want*3/4)
			require.LessOrEqual(t, gap, c.want+time.Second)
		}
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

// A sink that asks for time gets it: from the short retries where they have as much, and
// from the queue otherwise.
func TestRetryAfterIsHonouredInBothRanges(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		after    time.Duration
		attempts []int
	}{
		"by a short retry": {3 * time.Second, []int{1, 1}},
		"by the queue":     {time.Minute, []int{1, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1, withRetries(relay.Retries{Attempts: 3, Initial: 200 * time.Millisecond, Max: 5 * time.Second, Timeout: 10 * time.Second}))
				var tries []time.Time
				var attempts []int
				r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
					tries, attempts = append(tries, time.Now()), append(attempts, m.Attempt)
					if len(tries) == 1 {
						return relay.Result{Err: relay.Fail("status_429", errors.New("429")), RetryAfter: c.after}
					}
					return relay.Result{Outcome: relay.Delivered}
				})
				r.queue.Send("x")
				r.start()
				pass(2 * time.Minute)
				require.Equal(t, c.attempts, attempts)
				require.GreaterOrEqual(t, tries[1].Sub(tries[0]), c.after)
				require.LessOrEqual(t, tries[1].Sub(tries[0]), c.after+time.Second)
				r.stop()
			})
		})
	}
}

// Of the answers for a message the worst one counts, in whatever order they come: one
// sink's confirm deletes nothing that another has not taken.
func TestTheWorstAnswerDecides(t *testing.T) {
	t.Parallel()
	answers := map[string]relay.Result{
		"delivered": {Outcome: relay.Delivered},
		"retry":     {Err: relay.Fail("nack", errors.New("no"))},
		"rejected":  {Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("400"))},
	}
	for _, c := range []struct{ first, last, becomes string }{
		{"retry", "delivered", "returned"},
		{"rejected", "delivered", "dead"},
		{"rejected", "retry", "dead"},
		{"delivered", "retry", "returned"},
		{"delivered", "rejected", "dead"},
		{"retry", "rejected", "dead"},
		{"delivered", "delivered", "deleted"},
	} {
		t.Run(c.first+" then "+c.last, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dead := relaytest.NewRecorder()
				r := newRig(t, 2, withDeadLetter(dead, relay.DeadLetterLimit{}))
				r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result { return answers[c.first] })
				r.sinks[1].Answer(func(context.Context, relay.Message) relay.Result {
					<-time.After(time.Second)
					return answers[c.last]
				})
				r.queue.Send("x")
				r.start()
				pass(2 * time.Second)
				counts := r.stats.Counts()
				require.Len(t, r.queue.Left(), map[string]int{"returned": 1}[c.becomes])
				require.Equal(t, map[string]uint64{"returned": 1}[c.becomes], counts.Returned["nack"])
				require.Len(t, dead.Messages(), map[string]int{"dead": 1}[c.becomes])
				r.stop()
			})
		})
	}
}

// farAway leases at the server, and takes a while to bring the answer.
type farAway struct{ relay.Source }

func (f *farAway) Receive(ctx context.Context, limit int, wait bool) ([]relay.Delivery, error) {
	ds, err := f.Source.Receive(ctx, limit, wait)
	select {
	case <-time.After(50 * time.Millisecond):
		return ds, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A drain takes what is on its way from the queue, which would be leased for nothing
// otherwise; a poll that waits is ended at once.
func TestADrainTakesWhatIsOnItsWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) { d.Source = &farAway{d.Source} })
		r.queue.Send(bodies(16)...)
		r.start()
		pass(20 * time.Millisecond)
		begun := time.Now()
		r.stop()
		require.Equal(t, 30*time.Millisecond, time.Since(begun))
		require.Empty(t, r.queue.Left())
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) { d.Source = &farAway{d.Source} })
		r.start()
		pass(10 * time.Second)
		begun := time.Now()
		r.stop()
		require.Zero(t, time.Since(begun))
	})
}

// One receipt a message: a delete waits for the renewal under way, whose receipt it needs,
// and a renewal that comes due while the delete is under way is not made.
func TestTheLeaseKeeperRenewsAndDeletesOneAfterTheOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		var mu sync.Mutex
		var order []string
		note := func(what string) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, what)
		}
		r.queue.Fault = func(op, _ string) error {
			switch op {
			case "extend": // takes from 15 s to 18 s
				note("extend begins")
				<-time.After(3 * time.Second)
				note("extend ends")
			case "delete": // takes past the next half life
				note("delete begins")
				<-time.After(20 * time.Second)
				note("delete ends")
			}
			return nil
		}
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(16 * time.Second)
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("x")
		r.start()
		pass(time.Minute)
		require.Equal(t, []string{"extend begins", "extend ends", "delete begins", "delete ends"}, order)
		require.Empty(t, r.queue.Left())
		require.EqualValues(t, 1, r.stats.Counts().Deleted)
		require.Zero(t, r.stats.Counts().LostLeases)
		r.stop()
	})
}

// Once it is known that leases cannot be renewed, a delivery ends in time for its message
// to be settled under the first lease.
func TestTheLeaseKeeperPlansDeliveriesInsideTheFirstLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" {
				return fmt.Errorf("visibility: %w", relay.ErrNotPermitted)
			}
			return nil
		}
		var took time.Duration
		r.sinks[0].Answer(func(ctx context.Context, m relay.Message) relay.Result {
			if string(m.Body) == "slow" {
				<-time.After(20 * time.Second) // past half the lease, when it is found out
				return relay.Result{Outcome: relay.Delivered}
			}
			begun := time.Now()
			<-ctx.Done()
			took = time.Since(begun)
			return relay.Result{Err: ctx.Err()}
		})
		r.queue.Send("slow")
		r.start()
		pass(25 * time.Second)
		ids := r.queue.Send("hangs")
		pass(30 * time.Second)
		require.InDelta(t, 29, took.Seconds(), 0.1, "a lease of 30 s less the time to settle")
		counts := r.stats.Counts()
		require.Zero(t, counts.LostLeases)
		require.EqualValues(t, 1, counts.Returned["error"])
		require.Equal(t, ids, r.queue.Left())
		r.sinks[0].Answer(nil)
		pass(time.Minute)
		r.stop()
	})
}

// A confirm that comes after the lease has run out: the message has come again by then, and
// is delivered twice. The delete with the dead receipt is counted, and the next receive
// finds that it was confirmed: there is no loop.
func TestAConfirmAfterTheLeaseHasRunOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, withLedger(relaytest.NewLedger()))
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" {
				return relay.ErrLeaseLost
			}
			return nil
		}
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(40 * time.Second) // the lease has 30 s, each time
			return relay.Result{Outcome: relay.Delivered}
		})
		ids := r.queue.Send("x")
		r.start()
		pass(10 * time.Minute)
		require.Empty(t, r.queue.Left())
		require.Equal(t, 2, r.sinks[0].Times()[ids[0]], "one duplicate")
		counts := r.stats.Counts()
		require.EqualValues(t, 3, counts.Received)
		require.EqualValues(t, 2, counts.LostLeases)
		require.EqualValues(t, 1, counts.Deleted)
		require.Equal(t, map[string]uint64{"s0": 1}, counts.Skipped)
		r.stop()
	})
}

// Bytes bound what is in flight as messages do, of the source and of all together.
func TestBackpressureCountsBytes(t *testing.T) {
	t.Parallel()
	const size = 60 << 10
	for name, c := range map[string]struct {
		source, shared int64
		most           uint64
	}{
		// A receive reserves room for the largest message and gives back what is left.
		"of the source": {source: 4 * 64 << 10, shared: 256 << 20, most: 4},
		// Filled, and then what the pollers were receiving.
		"of all": {source: 64 << 20, shared: 4 * size, most: 4 + 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1, func(cfg *relay.Config, d *relay.Deps) {
					cfg.BatchSize = 1
					d.Room, d.Shared = relay.NewRoom(1000, c.source), relay.NewRoom(1000, c.shared)
				})
				release := make(chan struct{})
				r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
					<-release
					return relay.Result{Outcome: relay.Delivered}
				})
				for range 50 {
					r.queue.Send(strings.Repeat("x", size))
				}
				r.start()
				pass(10 * time.Minute)
				require.GreaterOrEqual(t, r.stats.Counts().Received, uint64(4))
				require.LessOrEqual(t, r.stats.Counts().Received, c.most)
				close(release)
				pass(10 * time.Second)
				require.Empty(t, r.queue.Left())
				r.stop()
			})
		})
	}
}

// A message that hangs keeps the memory of its whole batch, and so the room of its bodies.
func TestOneThatHangsKeepsTheRoomOfItsBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const size = 60 << 10
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) { d.Room = relay.NewRoom(1000, 8<<20) })
		release := make(chan struct{})
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			if m.Body[0] == 'h' {
				<-release
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		for i := range 400 {
			r.queue.Send(string("hxxxxxxxxxxxxxxx"[i%16]) + strings.Repeat("x", size)) // one of each batch hangs
		}
		r.start()
		pass(time.Minute)
		messages, bytes := r.room.InFlight()
		batches := int64(r.stats.Counts().Received) / 16
		require.LessOrEqual(t, batches, int64(8), "8 MiB hold no more")
		require.GreaterOrEqual(t, bytes, batches*16*size)
		require.Less(t, messages, 100, "those that are settled are not in flight")
		close(release)
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

// waiters counts the receives that wait at the same time.
type waiters struct {
	relay.Source
	now, most atomic.Int64
}

func (w *waiters) Receive(ctx context.Context, limit int, wait bool) ([]relay.Delivery, error) {
	if wait {
		w.most.Store(max(w.most.Load(), w.now.Add(1)))
		defer w.now.Add(-1)
	}
	return w.Source.Receive(ctx, limit, wait)
}

// The least number of pollers asks as soon as there is anything, and still no more than
// one poll waits on an empty queue.
func TestPollersFallBackAndOnlyOneWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		polls := &waiters{}
		r := newRig(t, 1, func(c *relay.Config, d *relay.Deps) {
			c.MinPollers, c.MaxPollers = 3, 3
			polls.Source = d.Source
			d.Source = polls
		})
		var mu sync.Mutex
		most := 0
		r.queue.Fault = func(op, _ string) error {
			if op == "receive" {
				mu.Lock()
				most = max(most, r.stats.Counts().Pollers)
				mu.Unlock()
				<-time.After(10 * time.Millisecond)
			}
			return nil
		}
		r.start()
		pass(time.Minute)
		require.Equal(t, 1, most, "an empty queue")
		for range 5 { // never a full batch
			r.queue.Send("x", "y")
			pass(10 * time.Second)
		}
		require.Equal(t, 3, most)
		require.Equal(t, 1, r.stats.Counts().Pollers)
		require.EqualValues(t, 1, polls.most.Load())
		require.EqualValues(t, 1, polls.now.Load(), "and that one does")
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

// backlogFirst gives what there is to those who do not wait.
type backlogFirst struct {
	relay.Source
	calls atomic.Int64
}

func (b *backlogFirst) Receive(ctx context.Context, limit int, wait bool) ([]relay.Delivery, error) {
	b.calls.Add(1)
	if wait {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	return b.Source.Receive(ctx, limit, wait)
}

// A poller of a backlog asks no more once a batch was not full: MNS bills requests.
func TestPollersRetireOnABatchThatIsNotFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		polls := &backlogFirst{}
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) {
			polls.Source = d.Source
			d.Source = polls
		})
		r.start()
		pass(time.Second)
		before := polls.calls.Load()
		for range 20 { // a full batch, and one message for the poller that it calls up
			r.queue.Send(bodies(17)...)
			pass(time.Second)
		}
		require.Empty(t, r.queue.Left())
		require.EqualValues(t, 20*2, polls.calls.Load()-before, "of each kind of poller one a batch")
		r.stop()
	})
}

// Without a dead letter what is rejected stays in the queue, for later and later, counted
// each time and said once, whatever else is delivered meanwhile.
func TestWithoutADeadLetterARejectedMessageStaysAndIsSaidOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) {
			d.Decode = func(m relay.Message) (relay.Message, error) {
				if string(m.Body) == "garbage" {
					return m, relay.Fail("decode", errors.New("not base64"))
				}
				return m, nil
			}
		})
		var tries []time.Time
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			if string(m.Body) == "poison" {
				tries = append(tries, time.Now())
				return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("400"))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		ids := r.queue.Send("poison", "garbage")
		r.start()
		for range 20 * 60 {
			r.queue.Send("fine")
			pass(time.Second)
		}
		require.Equal(t, ids, r.queue.Left())
		require.GreaterOrEqual(t, len(tries), 8)
		require.LessOrEqual(t, len(tries), 10, "5 s, 10 s, 20 s...")
		require.Greater(t, tries[len(tries)-1].Sub(tries[len(tries)-2]), 3*time.Minute)
		require.EqualValues(t, len(tries), r.stats.Counts().Returned["status_4xx"])
		require.Greater(t, r.stats.Counts().Returned["decode"], uint64(7))
		said := r.logs.FilterMessageSnippet("it stays in the queue")
		require.Equal(t, 2, said.Len(), "of each message once")
		require.ElementsMatch(t, ids, []any{said.All()[0].ContextMap()["message_id"], said.All()[1].ContextMap()["message_id"]})
		require.LessOrEqual(t, r.logs.Len(), 10)
		r.stop()
	})
}

// The balance holds at every moment, not only at rest.
func TestTheBalanceHoldsAtEveryMoment(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dead := relaytest.NewRecorder()
		r := newRig(t, 2, withDeadLetter(dead, relay.DeadLetterLimit{}))
		var calls atomic.Int64
		r.queue.Fault = func(op, _ string) error {
			n := calls.Add(1)
			<-time.After(time.Duration(n%7) * time.Millisecond)
			if n%11 == 0 {
				return fmt.Errorf("%s: no answer", op)
			}
			return nil
		}
		r.sinks[1].Answer(func(_ context.Context, m relay.Message) relay.Result {
			n := calls.Add(1)
			<-time.After(time.Duration(n%50) * time.Second)
			switch n % 5 {
			case 0:
				return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("400"))}
			case 1:
				return relay.Result{Err: relay.Fail("status_5xx", errors.New("503"))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send(bodies(300)...)
		r.start()
		inFlight := false
		for range 60_000 { // ten minutes
			<-time.After(10 * time.Millisecond)
			counts := r.stats.Counts()
			inFlight = inFlight || counts.InFlight > 0
			require.True(t, counts.Balanced(), "%+v", counts)
		}
		counts := r.stats.Counts()
		require.True(t, inFlight)
		require.Positive(t, counts.LostLeases)
		require.NotEmpty(t, counts.Returned)
		require.NotEmpty(t, counts.DeadLettered)
		r.stop()
	})
}

// What an operator should know of a source that runs is in its status, with what to do.
func TestWarningsAreInTheStatusOfARunningSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(c *relay.Config, _ *relay.Deps) { c.MaxReceives = 16 })
		r.queue.Send("x")
		r.start()
		pass(time.Second)
		reason := func() string {
			state, reason := r.pipeline.State()
			require.Equal(t, relay.SourceRunning, state)
			return reason
		}
		require.Empty(t, reason())
		r.pipeline.SetQueuePolicy(5, "theirs")
		require.Equal(t, "the queue's own dead-letter policy moves a message to theirs after 5 receives, the relay gives it up after 16: "+
			"raise the queue's MaxReceiveCount, or set dead_letter and a max_receives below it", reason())
		r.pipeline.SetQueuePolicy(17, "theirs")
		require.Empty(t, reason())

		r.pipeline.SetRetention(4 * 24 * time.Hour)
		r.pipeline.Pause("an operator")
		synctest.Wait()
		r.queue.Send("y")
		pass(49 * time.Hour)
		r.pipeline.Resume()
		pass(time.Second)
		require.Contains(t, reason(), "older than half the queue's retention")
		r.queue.Send("z")
		pass(time.Second)
		require.Empty(t, reason())
		r.stop()
	})
}
