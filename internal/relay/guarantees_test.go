package relay_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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

// bodyIs is a route's condition.
func bodyIs(prefix string) func(*relay.Message) (bool, error) {
	return func(m *relay.Message) (bool, error) {
		if strings.HasPrefix(string(m.Body), "bad") {
			return false, relay.Fail("expression", errors.New("no such field"))
		}
		return strings.HasPrefix(string(m.Body), prefix), nil
	}
}

// twoRoutes sends bodies with a to the first sink and those with b to the second.
func twoRoutes(cfg *relay.Config, d *relay.Deps) {
	targets := d.Routes[0].Targets
	targets[0].Name.Route, targets[1].Name.Route = "as", "bs"
	d.Routes = []relay.Route{
		{Name: "as", Match: bodyIs("a"), Targets: targets[:1]},
		{Name: "bs", Match: func(m *relay.Message) (bool, error) {
			return strings.Contains(string(m.Body), "b"), nil
		}, Targets: targets[1:]},
	}
}

func TestRoutesTakeWhatMatches(t *testing.T) {
	t.Parallel()
	for name, want := range map[relay.Unmatched]struct {
		left    []string
		dead    []string
		deleted int
	}{
		relay.UnmatchedRetain:     {left: []string{"q-0004", "q-0005"}, deleted: 3},
		relay.UnmatchedDelete:     {left: []string{"q-0005"}, deleted: 4},
		relay.UnmatchedDeadLetter: {left: []string{"q-0005"}, deleted: 3},
	} {
		t.Run(fmt.Sprint(name), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2, twoRoutes, func(c *relay.Config, _ *relay.Deps) { c.Unmatched = name })
				ids := r.queue.Send("a", "b", "ab", "c", "bad")
				r.start()
				pass(time.Second)
				require.Equal(t, map[string]int{ids[0]: 1, ids[2]: 1}, r.sinks[0].Times())
				require.Equal(t, map[string]int{ids[1]: 1, ids[2]: 1}, r.sinks[1].Times())
				if name != relay.UnmatchedDeadLetter { // without a dead letter it stays
					require.Equal(t, want.left, r.queue.Left())
				}
				require.EqualValues(t, want.deleted, r.stats.Counts().Deleted)
				require.EqualValues(t, 1, r.stats.Counts().Returned["expression"])
				r.stop()
			})
		})
	}
}

// The work on a message is done once for all routes and sinks.
func TestTheMemoOfAMessageIsSharedByItsCopies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var worked atomic.Int64
		parse := func(m *relay.Message) { m.Memo(func() any { worked.Add(1); return "parsed " + m.ID }) }
		r := newRig(t, 2, func(_ *relay.Config, d *relay.Deps) {
			d.Routes[0].Match = func(m *relay.Message) (bool, error) { parse(m); return true, nil }
		})
		for _, s := range r.sinks {
			s.Answer(func(_ context.Context, m relay.Message) relay.Result {
				parse(&m)
				return relay.Result{Outcome: relay.Delivered}
			})
		}
		r.queue.Send(bodies(10)...)
		r.start()
		pass(time.Second)
		require.EqualValues(t, 10, worked.Load())
		r.stop()
	})
}

// withLedger gives the pipeline a ledger in memory.
func withLedger(l *relaytest.Ledger) option {
	return func(_ *relay.Config, d *relay.Deps) { d.Ledger = l }
}

// What one sink has confirmed is not sent to it again; a message that all have
// confirmed is just deleted.
func TestARedeliveredMessageGoesOnlyToTheSinksThatMissIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ledger := relaytest.NewLedger()
		r := newRig(t, 2, withLedger(ledger))
		ids := r.queue.Send(bodies(20)...)
		r.sinks[1].Answer(func(_ context.Context, m relay.Message) relay.Result {
			if m.ID == ids[3] && m.Attempt < 3 {
				return relay.Result{Err: relay.Fail("nack", errors.New("no"))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.start()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		for _, n := range r.sinks[0].Times() {
			require.Equal(t, 1, n)
		}
		require.Equal(t, 3, r.sinks[1].Times()[ids[3]])
		require.Equal(t, map[string]uint64{"s0": 2}, r.stats.Counts().Skipped)
		require.Zero(t, ledger.Len(), "forgotten after the delete")
		r.stop()
	})
}

func TestAMessageThatAllHaveConfirmedIsJustDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ledger := relaytest.NewLedger()
		r := newRig(t, 2, withLedger(ledger))
		var deletes atomic.Int64
		r.queue.Fault = func(op, _ string) error {
			if op == "delete" && deletes.Add(1) == 1 {
				return errors.New("no answer")
			}
			return nil
		}
		ids := r.queue.Send("x")
		r.start()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		require.Equal(t, 1, r.sinks[0].Times()[ids[0]])
		require.Equal(t, 1, r.sinks[1].Times()[ids[0]])
		require.Zero(t, ledger.Len())
		r.stop()
	})
}

// A confirm is remembered while other sinks have not answered: a crash then costs no
// duplicate.
func TestAConfirmIsRecordedBeforeTheOthersHaveAnswered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ledger := relaytest.NewLedger()
		r := newRig(t, 2, withLedger(ledger))
		release := make(chan struct{})
		r.sinks[1].Answer(func(context.Context, relay.Message) relay.Result {
			<-release
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("x", "y")
		r.start()
		pass(time.Second)
		require.Equal(t, 2, ledger.Len())
		close(release)
		pass(time.Second)
		require.Zero(t, ledger.Len())
		r.stop()
	})
}

func TestALedgerThatFailsCostsDuplicatesOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ledger := relaytest.NewLedger()
		ledger.Fail(errors.New("connection refused"))
		r := newRig(t, 2, withLedger(ledger))
		ids := r.queue.Send(bodies(5)...)
		r.sinks[1].Answer(func(_ context.Context, m relay.Message) relay.Result {
			if m.ID == ids[0] && m.Attempt == 1 {
				return relay.Result{Err: errors.New("no")}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.start()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		require.Equal(t, 2, r.sinks[0].Times()[ids[0]], "a duplicate")
		r.stop()
	})
}

// withDeadLetter adds a dead-letter sink, for what fails three times.
func withDeadLetter(dead *relaytest.Recorder, limit relay.DeadLetterLimit) option {
	return func(c *relay.Config, d *relay.Deps) {
		c.MaxReceives = 3
		c.DeadLetterLimit = limit
		d.DeadLetter = &relay.Target{Name: relay.TargetName{Sink: "dead"}, Sink: dead, Health: dead}
		decode := d.Decode
		d.Decode = func(m relay.Message) (relay.Message, error) {
			if string(m.Body) == "garbage" {
				return m, relay.Fail("decode", errors.New("not base64"))
			}
			m.Body = append([]byte("decoded "), m.Body...)
			return decode(m)
		}
	}
}

func TestDeadLettersCarryTheOriginalBodyAndTheReason(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dead := relaytest.NewRecorder()
		r := newRig(t, 1, withDeadLetter(dead, relay.DeadLetterLimit{}))
		sentAt := time.Now()
		ids := r.queue.Send("fine", "poison", "unlucky", "garbage")
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			switch string(m.Body) {
			case "decoded poison":
				return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("invalid_property", errors.New("too long"))}
			case "decoded unlucky":
				return relay.Result{Err: relay.Fail("nack", errors.New("queue full"))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.start()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		letters := map[string]relay.Message{}
		for _, m := range dead.Messages() {
			letters[m.ID] = m
		}
		require.Len(t, letters, 3)
		poison := letters[ids[1]]
		require.Equal(t, "poison", string(poison.Body), "as it was received")
		require.Equal(t, "invalid_property", poison.Dead.Reason)
		require.Equal(t, "invalid property: too long", poison.Dead.Error)
		require.Equal(t, "s0", poison.Dead.Sink)
		require.Equal(t, 1, poison.Attempt)
		unlucky := letters[ids[2]]
		require.Equal(t, "max_receives", unlucky.Dead.Reason)
		require.Equal(t, "nack: queue full", unlucky.Dead.Error)
		require.Equal(t, 3, unlucky.Attempt)
		require.Equal(t, sentAt, unlucky.Dead.First)
		require.True(t, unlucky.Dead.Last.After(sentAt))
		require.Equal(t, "decode", letters[ids[3]].Dead.Reason)
		headers := maps.Collect(unlucky.Headers)
		require.Equal(t, "max_receives", headers[relay.HeaderDeadReason])
		require.Equal(t, "3", headers[relay.HeaderAttempt])
		require.Equal(t, map[string]uint64{"invalid_property": 1, "max_receives": 1, "decode": 1}, r.stats.Counts().DeadLettered)
		require.EqualValues(t, 4, r.stats.Counts().Deleted)
		r.stop()
	})
}

// A dead letter is deleted only when its sink has confirmed it; a dead-letter sink that
// is down does not pause the source.
func TestADeadLetterThatIsNotConfirmedStays(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(dead *relaytest.Recorder){
		"down": func(dead *relaytest.Recorder) { dead.Set(relay.Down, "gone") },
		"refuses": func(dead *relaytest.Recorder) {
			dead.Answer(func(context.Context, relay.Message) relay.Result { return relay.Result{Outcome: relay.Rejected} })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dead := relaytest.NewRecorder()
				breakIt(dead)
				r := newRig(t, 1, withDeadLetter(dead, relay.DeadLetterLimit{}))
				ids := r.queue.Send("fine", "garbage")
				r.start()
				pass(time.Minute)
				require.Equal(t, ids[1:], r.queue.Left())
				state, _ := r.pipeline.State()
				require.Equal(t, relay.SourceRunning, state)
				dead.Set(relay.Up, "")
				dead.Answer(nil)
				pass(2 * time.Minute)
				require.Empty(t, r.queue.Left())
				r.stop()
			})
		})
	}
}

// A message is never dead-lettered for the receive count alone: a sink that was down is no
// failed try.
func TestAnOutageDeadLettersNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dead := relaytest.NewRecorder()
		r := newRig(t, 1, withDeadLetter(dead, relay.DeadLetterLimit{}))
		s := r.sinks[0]
		outage := func(context.Context, relay.Message) relay.Result {
			s.Set(relay.Down, "connection lost")
			return relay.Result{Err: relay.Fail("connection_lost", fmt.Errorf("EOF: %w", relay.ErrSinkDown))}
		}
		ids := r.queue.Send("x")
		r.start()
		for range 6 { // outages that each take the message from under delivery
			s.Answer(outage)
			s.Set(relay.Up, "")
			pass(20 * time.Second)
		}
		s.Answer(nil)
		s.Set(relay.Up, "")
		pass(time.Second)
		require.Empty(t, dead.Messages())
		require.Empty(t, r.queue.Left())
		require.Greater(t, s.Messages()[len(s.Messages())-1].Attempt, 3)
		require.Equal(t, ids[0], s.Messages()[0].ID)
		r.stop()
	})
}

// A receiver's bad deploy must not drain the queue into the dead letters.
func TestTheDeadLetterLimitPausesTheSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dead := relaytest.NewRecorder()
		r := newRig(t, 1, withDeadLetter(dead, relay.DeadLetterLimit{Count: 10, Per: 5 * time.Minute}))
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("400"))}
		})
		r.queue.Send(bodies(100)...)
		r.start()
		pass(time.Hour)
		require.Len(t, dead.Messages(), 10)
		require.Len(t, r.queue.Left(), 90)
		state, reason := r.pipeline.State()
		require.Equal(t, relay.SourcePaused, state)
		require.Contains(t, reason, "more than 10 dead letters in 5m0s, the last for status_4xx")
		require.Contains(t, reason, "resume")
		r.sinks[0].Answer(nil)
		r.pipeline.Resume()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		require.Len(t, dead.Messages(), 10)
		r.stop()
	})
}

// An optional sink never holds up the delete nor stops the source, down or hanging.
func TestAnOptionalSinkHoldsNothingUp(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(s *relaytest.Recorder){
		"down": func(s *relaytest.Recorder) { s.Set(relay.Down, "gone") },
		"fails": func(s *relaytest.Recorder) {
			s.Answer(func(context.Context, relay.Message) relay.Result {
				return relay.Result{Err: relay.Fail("status_5xx", errors.New("500"))}
			})
		},
		"hangs": func(s *relaytest.Recorder) {
			s.Answer(func(ctx context.Context, _ relay.Message) relay.Result {
				<-ctx.Done()
				return relay.Result{Err: ctx.Err()}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 2, func(_ *relay.Config, d *relay.Deps) { d.Routes[0].Targets[1].Optional = true })
				breakIt(r.sinks[1])
				r.queue.Send(bodies(1000)...)
				r.start()
				pass(10 * time.Second)
				require.Empty(t, r.queue.Left())
				require.Len(t, r.sinks[0].Times(), 1000)
				var givenUp uint64
				for _, n := range r.stats.Counts().GivenUp {
					givenUp += n
				}
				if name != "hangs" {
					require.EqualValues(t, 1000, givenUp)
				} else {
					require.GreaterOrEqual(t, givenUp, uint64(700), "what does not fit into its room")
				}
				state, _ := r.pipeline.State()
				require.Equal(t, relay.SourceRunning, state)
				r.hard()
				r.stop()
			})
		})
	}
}

// What is on its way to optional sinks alone is bounded for all sources together, and what
// is above it is given up: bodies of a slow one do not fill the memory.
func TestOptionalSinksOfAllSourcesShareTheirRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		spare := relay.NewRoom(32, 1<<20)
		release := make(chan struct{})
		var rigs []*rig
		for range 2 {
			r := newRig(t, 2, func(_ *relay.Config, d *relay.Deps) {
				d.Routes[0].Targets[1].Optional = true
				d.Spare = spare
			})
			r.sinks[1].Answer(func(context.Context, relay.Message) relay.Result {
				<-release
				return relay.Result{Outcome: relay.Delivered}
			})
			r.queue.Send(bodies(100)...)
			r.start()
			rigs = append(rigs, r)
		}
		pass(time.Second)
		var busy uint64
		for _, r := range rigs {
			require.Empty(t, r.queue.Left())
			require.Len(t, r.sinks[0].Times(), 100)
			busy += r.stats.Counts().GivenUp["busy"]
		}
		held, _ := spare.InFlight()
		require.LessOrEqual(t, held, 32)
		require.EqualValues(t, 200-held, busy)
		close(release)
		pass(time.Second)
		for _, r := range rigs {
			r.stop()
		}
		messages, bytes := spare.InFlight()
		require.Zero(t, messages)
		require.Zero(t, bytes)
	})
}

func TestWhatAnOptionalSinkRefusesIsDeadLettered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dead := relaytest.NewRecorder()
		r := newRig(t, 2, withDeadLetter(dead, relay.DeadLetterLimit{}), func(_ *relay.Config, d *relay.Deps) { d.Routes[0].Targets[1].Optional = true })
		r.sinks[1].Answer(func(context.Context, relay.Message) relay.Result {
			return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("400"))}
		})
		ids := r.queue.Send("x")
		r.start()
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		require.Equal(t, ids[0], dead.Messages()[0].ID)
		require.Equal(t, "s1", dead.Messages()[0].Dead.Sink)
		r.stop()
	})
}

func withRetries(retries relay.Retries) option {
	return func(_ *relay.Config, d *relay.Deps) { d.Routes[0].Targets[0].Retries = retries }
}

// Only what failed is tried again, under the same lease.
func TestShortRetriesHappenInProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, withRetries(relay.Retries{Attempts: 3, Initial: 200 * time.Millisecond, Max: 5 * time.Second, Timeout: 10 * time.Second}))
		var mu sync.Mutex
		tries := map[string]int{}
		ids := r.queue.Send(bodies(16)...)
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			mu.Lock()
			defer mu.Unlock()
			tries[m.ID]++
			if m.ID == ids[0] && tries[m.ID] < 3 || m.ID == ids[1] {
				return relay.Result{Err: relay.Fail("status_5xx", errors.New("503"))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.start()
		pass(2 * time.Second)
		require.Equal(t, []string{ids[1]}, r.queue.Left())
		require.Equal(t, 3, r.sinks[0].Times()[ids[0]])
		require.Equal(t, 3, r.sinks[0].Times()[ids[1]])
		require.Equal(t, 1, r.sinks[0].Times()[ids[2]])
		require.EqualValues(t, 5, r.stats.Counts().Retried["status_5xx"])
		require.EqualValues(t, 1, r.stats.Counts().Returned["status_5xx"])
		r.stop()
	})
}

// Pauses between tries are spread over all of their time, so that messages that failed together
// do not come back together.
func TestRetriesAreSpread(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const messages, initial = 200, 8 * time.Second
		r := newRig(t, 1, withRetries(relay.Retries{Attempts: 2, Initial: initial, Max: initial, Timeout: time.Second}), func(c *relay.Config, _ *relay.Deps) { c.BatchSize = 1 })
		var mu sync.Mutex
		failed, pauses := map[string]time.Time{}, []time.Duration(nil)
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			mu.Lock()
			defer mu.Unlock()
			if at, again := failed[m.ID]; again {
				pauses = append(pauses, time.Since(at))
				return relay.Result{Outcome: relay.Delivered}
			}
			failed[m.ID] = time.Now()
			return relay.Result{Err: relay.Fail("status_5xx", errors.New("503"))}
		})
		r.queue.Send(bodies(messages)...)
		r.start()
		pass(time.Minute)
		require.Len(t, pauses, messages)
		quarters := [4]int{}
		for _, pause := range pauses {
			require.Less(t, pause, initial)
			quarters[pause*4/initial]++
		}
		for _, n := range quarters {
			require.Greater(t, n, messages/4/3, "%v", quarters)
		}
		r.stop()
	})
}

// A retry never outlives the lease: with no time for another try and its settling, the
// queue's redelivery takes over.
func TestARetryStaysInsideTheLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, withRetries(relay.Retries{Attempts: 100, Initial: time.Second, Max: time.Second, Timeout: 10 * time.Second}))
		r.queue.Visibility = 20 * time.Second
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" {
				return relay.ErrNotPermitted
			}
			return nil
		}
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(3 * time.Second)
			return relay.Result{Err: relay.Fail("status_5xx", errors.New("503"))}
		})
		r.queue.Send("x")
		r.start()
		pass(12 * time.Second)
		require.EqualValues(t, 1, r.stats.Counts().Returned["status_5xx"])
		require.LessOrEqual(t, r.sinks[0].Calls(), 3)
		require.GreaterOrEqual(t, r.sinks[0].Calls(), 2)
		r.stop()
	})
}

// loseTheLease lets the first sink fail in a way that is tried again, by when the lease is lost.
func (r *rig) loseTheLease() {
	s := r.sinks[0]
	r.queue.Fault = func(op, _ string) error {
		if op == "extend" {
			return relay.ErrLeaseLost
		}
		return nil
	}
	r.queue.Visibility = 60 * time.Second
	s.Answer(func(context.Context, relay.Message) relay.Result {
		s.Set(relay.Down, "connection lost")
		<-time.After(31 * time.Second) // past half the lease, when it is renewed
		s.Set(relay.Up, "")
		return relay.Result{Err: fmt.Errorf("EOF: %w", relay.ErrSinkDown)} // is held and sent again
	})
}

// A lease that was lost cancels what has not been sent again.
func TestALostLeaseIsNotSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.loseTheLease()
		r.queue.Send("x")
		r.start()
		pass(50 * time.Second)
		require.Equal(t, 1, r.sinks[0].Calls())
		require.EqualValues(t, 1, r.stats.Counts().LostLeases)
		r.soft()
		pass(time.Minute)
		r.stop()
	})
}

// A sink that is to be found out about gets one message at a time.
func TestASinkOnProbationGetsOneMessageAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		s := r.sinks[0]
		s.Set(relay.Probe, "circuit half open")
		var inFlight, most atomic.Int64
		s.Answer(func(context.Context, relay.Message) relay.Result {
			most.Store(max(most.Load(), inFlight.Add(1)))
			defer inFlight.Add(-1)
			<-time.After(time.Second)
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send(bodies(100)...)
		r.start()
		pass(10*time.Second + time.Millisecond)
		require.EqualValues(t, 1, most.Load())
		require.InDelta(t, 10, len(s.Messages()), 1)
		s.Answer(nil)
		s.Set(relay.Up, "")
		pass(10 * time.Second)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

// What is held while a circuit is open is not sent all at once to find out.
func TestHeldBatchesDoNotFloodASinkOnProbation(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		s := r.sinks[0]
		s.Answer(func(context.Context, relay.Message) relay.Result {
			s.Set(relay.Down, "circuit open")
			return relay.Result{Err: errors.New("500")}
		})
		r.queue.Send(bodies(64)...)
		r.start()
		pass(time.Second)
		before := len(s.Messages())
		s.Set(relay.Probe, "")
		pass(time.Second)
		require.Len(t, s.Messages(), before+1, "one message found out that it still fails")
		s.Answer(func(context.Context, relay.Message) relay.Result {
			s.Set(relay.Up, "")
			return relay.Result{Outcome: relay.Delivered}
		})
		s.Set(relay.Probe, "")
		pass(time.Second)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}

func TestAtMostOnceDeletesFirstAndSendsOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(c *relay.Config, d *relay.Deps) {
			c.AtMostOnce = true
			d.Decode = func(m relay.Message) (relay.Message, error) {
				if string(m.Body) == "garbage" {
					return m, relay.Fail("decode", errors.New("not base64"))
				}
				return m, nil
			}
		})
		ids := r.queue.Send("a", "b", "c", "garbage")
		r.queue.Fault = func(op, id string) error {
			if op == "delete" && id == ids[2] {
				return errors.New("no answer")
			}
			return nil
		}
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			if left := r.queue.Left(); len(left) != 2 {
				t.Errorf("delivered before the delete: %v", left)
			}
			if m.ID == ids[1] {
				return relay.Result{Err: relay.Fail("nack", errors.New("no"))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.start()
		pass(time.Second)
		require.Equal(t, map[string]int{ids[0]: 1, ids[1]: 1}, r.sinks[0].Times())
		require.Equal(t, map[string]uint64{"nack": 1}, r.stats.Counts().GivenUp)
		require.Equal(t, ids[2:], r.queue.Left(), "not deleted for sure, so not sent")
		r.stop()
	})
}

func TestOldMessagesAreWarnedOfBeforeTheQueueDropsThem(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(c *relay.Config, _ *relay.Deps) { c.Paused = true })
		r.pipeline.SetRetention(4 * 24 * time.Hour)
		r.queue.Send("x")
		r.start()
		pass(49 * time.Hour)
		r.queue.Send("y")
		r.pipeline.Resume()
		pass(time.Second)
		require.Equal(t, 1, r.logs.FilterMessageSnippet("older than half the queue's retention").Len())
		r.stop()
	})
}

// The queue's own dead-letter policy is warned of where it takes messages before the relay
// gives them up, once, and again only when it changes.
func TestTheQueuesOwnDeadLetterPolicyIsWarnedOf(t *testing.T) {
	t.Parallel()
	const said = "own dead-letter policy comes before"
	for name, c := range map[string]struct {
		ours, queues int
		warned       int
	}{
		"the queue has none":      {16, 0, 0},
		"the relay's comes first": {16, 17, 0},
		"both at once":            {16, 16, 1},
		"the queue first":         {16, 3, 1},
		"the relay has none":      {0, 100, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1, func(cfg *relay.Config, _ *relay.Deps) { cfg.MaxReceives = c.ours })
				for range 3 {
					r.pipeline.SetQueuePolicy(c.queues, "dead")
				}
				require.Equal(t, c.warned, r.logs.FilterMessageSnippet(said).Len())
				if c.warned > 0 {
					context := r.logs.FilterMessageSnippet(said).All()[0].ContextMap()
					require.EqualValues(t, c.queues, context["queue_max_receives"])
					require.EqualValues(t, c.ours, context["max_receives"])
					require.Equal(t, "dead", context["queue_dead_letter"])
					r.pipeline.SetQueuePolicy(1, "dead")
					require.Equal(t, 2, r.logs.FilterMessageSnippet(said).Len(), "it has changed")
				}
				r.start()
				r.stop()
			})
		})
	}
}

// A renewal after the queue has dropped the message is a request for nothing.
func TestRenewalStopsAtTheRetention(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.pipeline.SetRetention(2 * time.Minute)
		var renewals atomic.Int64
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" {
				renewals.Add(1)
			}
			return nil
		}
		release := make(chan struct{})
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-release
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("x")
		r.start()
		pass(10 * time.Minute)
		require.LessOrEqual(t, renewals.Load(), int64(8))
		close(release)
		pass(time.Second)
		r.stop()
	})
}

// Results of a second try belong to the messages that were sent again, in whatever
// order the first try failed.
func TestASecondTryDoesNotMixUpMessages(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"held", "retries"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				health := relaytest.NewRecorder()
				calls := 0
				delivered := map[string]bool{}
				sink := sinkFunc(func(_ context.Context, ms []relay.Message, done func(int, relay.Result)) {
					calls++
					if calls == 1 { // all fail, told in the opposite order
						if mode == "held" {
							health.Set(relay.Down, "connection lost")
							time.AfterFunc(time.Second, func() { health.Set(relay.Up, "") })
						}
						for i := range slices.Backward(ms) {
							done(i, relay.Result{Err: relay.Fail("nack", errors.New("no"))})
						}
						return
					}
					for i := range ms {
						if calls == 2 && i >= len(ms)/2 {
							done(i, relay.Result{Err: relay.Fail("nack", errors.New("no"))})
							continue
						}
						delivered[ms[i].ID] = true
						done(i, relay.Result{Outcome: relay.Delivered})
					}
				})
				r := newRig(t, 1, withRetries(relay.Retries{Attempts: 3, Initial: time.Millisecond, Max: time.Second, Timeout: time.Second}),
					func(_ *relay.Config, d *relay.Deps) {
						d.Routes[0].Targets[0].Sink, d.Routes[0].Targets[0].Health = sink, health
					})
				ids := r.queue.Send(bodies(8)...)
				r.start()
				pass(3 * time.Minute)
				r.stop()
				require.Empty(t, r.queue.Left())
				for _, id := range ids {
					require.True(t, delivered[id], "%s was deleted and never delivered", id)
				}
			})
		})
	}
}

// A connection that is lost and back before anyone looks is no failed try.
func TestAFlappingSinkCostsNoTry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dead := relaytest.NewRecorder()
		r := newRig(t, 1, withDeadLetter(dead, relay.DeadLetterLimit{}))
		calls := 0
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			if calls++; calls < 50 { // its health says Up all the while
				<-time.After(10 * time.Millisecond)
				return relay.Result{Err: relay.Fail("channel_closed", fmt.Errorf("EOF: %w", relay.ErrSinkDown))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("x")
		r.start()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		require.Empty(t, dead.Messages())
		require.Empty(t, r.stats.Counts().Retried)
		require.EqualValues(t, 1, r.stats.Counts().Received)
		r.stop()
	})
}

// A sink that is up and says all the while that it is down, as where one of its addresses is, is
// asked now and then, and does not hold up a drain.
func TestASinkThatIsUpAndSaysItIsDownIsNotAskedInALoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		calls := 0
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			calls++
			return relay.Result{Err: relay.Fail("no_credit", fmt.Errorf("no credit: %w", relay.ErrSinkDown))}
		})
		r.queue.Send("x")
		r.start()
		pass(10 * time.Second)
		require.Less(t, calls, 100)
		require.Greater(t, calls, 10)
		begun := time.Now()
		r.stop()
		require.Less(t, time.Since(begun), time.Second)
		require.Len(t, r.queue.Left(), 1)
	})
}

// What optional sinks would not take has a limit of its own: they never pause a source.
func TestAnOptionalSinkDoesNotUseUpTheDeadLetterLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dead := relaytest.NewRecorder()
		r := newRig(t, 2, withDeadLetter(dead, relay.DeadLetterLimit{Count: 10, Per: 5 * time.Minute}),
			func(_ *relay.Config, d *relay.Deps) { d.Routes[0].Targets[1].Optional = true })
		r.sinks[1].Answer(func(context.Context, relay.Message) relay.Result {
			return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("400"))}
		})
		r.queue.Send(bodies(20)...)
		r.start()
		pass(10 * time.Second)
		r.queue.Send("garbage")
		pass(10 * time.Second)
		state, _ := r.pipeline.State()
		require.Equal(t, relay.SourceRunning, state)
		require.Empty(t, r.queue.Left())
		require.Len(t, dead.Messages(), 11)
		r.stop()
	})
}

// What the dead-letter sink did not take was not dead-lettered.
func TestAFailedBurialDoesNotUseUpTheLimit(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]relay.Result{
		"fails":   {Err: relay.Fail("unroutable", errors.New("no queue"))},
		"refuses": {Outcome: relay.Rejected, Err: relay.Fail("too_large", errors.New("no envelope holds it"))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dead := relaytest.NewRecorder()
				dead.Answer(func(context.Context, relay.Message) relay.Result { return answer })
				r := newRig(t, 1, withDeadLetter(dead, relay.DeadLetterLimit{Count: 10, Per: time.Hour}))
				r.queue.Send("garbage", "garbage", "garbage")
				r.start()
				pass(10 * time.Minute)
				require.Greater(t, dead.Calls(), 10, "more were tried than the limit allows to be taken")
				state, _ := r.pipeline.State()
				require.Equal(t, relay.SourceRunning, state)
				require.Len(t, r.queue.Left(), 3)
				r.stop()
			})
		})
	}
}

// The ledger holds for optional sinks too, the slow and the refusing.
func TestAnOptionalSinkIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]relay.Result{
		"slow":    {Outcome: relay.Delivered},
		"refuses": {Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("400"))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				dead := relaytest.NewRecorder()
				ledger := relaytest.NewLedger()
				r := newRig(t, 2, withLedger(ledger), withDeadLetter(dead, relay.DeadLetterLimit{}), func(c *relay.Config, d *relay.Deps) {
					c.MaxReceives = 0
					d.Routes[0].Targets[1].Optional = true
				})
				tries := 0
				r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
					if tries++; tries < 4 {
						return relay.Result{Err: relay.Fail("nack", errors.New("no"))}
					}
					return relay.Result{Outcome: relay.Delivered}
				})
				r.sinks[1].Answer(func(context.Context, relay.Message) relay.Result {
					<-time.After(time.Second)
					return answer
				})
				ids := r.queue.Send("x")
				r.start()
				pass(5 * time.Minute)
				require.Empty(t, r.queue.Left())
				require.Equal(t, 4, r.sinks[0].Times()[ids[0]])
				require.Equal(t, 1, r.sinks[1].Times()[ids[0]])
				if name == "refuses" {
					require.Len(t, dead.Messages(), 1)
				}
				require.Zero(t, ledger.Len())
				r.stop()
			})
		})
	}
}

// A lease that seems to be lost may not be: what every sink has confirmed is deleted all
// the same where the queue still takes the receipt.
func TestAConfirmedMessageIsDeletedEvenIfItsLeaseSeemsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" {
				return relay.ErrLeaseLost
			}
			return nil
		}
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(20 * time.Second) // past the renewal, inside the lease
			return relay.Result{Outcome: relay.Delivered}
		})
		ids := r.queue.Send("x")
		r.start()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		require.Equal(t, map[string]int{ids[0]: 1}, r.sinks[0].Times())
		require.Zero(t, r.stats.Counts().LostLeases)
		r.stop()
	})
}

// A source that delivers at most once has messages under way after their delete: a drain
// that is cut then has given something up.
func TestWhatIsUnderWayAfterItsDeleteIsCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1, func(c *relay.Config, _ *relay.Deps) { c.AtMostOnce = true })
		r.sinks[0].Answer(func(ctx context.Context, _ relay.Message) relay.Result {
			<-ctx.Done()
			return relay.Result{Err: ctx.Err()}
		})
		r.queue.Send(bodies(5)...)
		r.start()
		pass(time.Second)
		r.soft()
		pass(time.Second)
		require.Equal(t, 5, r.pipeline.UnderWay())
		r.hard()
		pass(time.Second)
		require.Zero(t, r.pipeline.UnderWay())
		r.stop()
	})
}
