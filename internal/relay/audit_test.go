package relay_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
)

// auditor keeps what it is told, and whether it was flushed since.
type auditor struct {
	mu      sync.Mutex
	entries []relay.AuditEntry
	flushed int
}

func (a *auditor) Record(e relay.AuditEntry) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.entries = append(a.entries, e)
}

func (a *auditor) Flush(context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.flushed = len(a.entries)
}

// onDisk tells whether an event of the message was flushed.
func (a *auditor) onDisk(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.entries[:a.flushed], func(e relay.AuditEntry) bool { return e.Message.ID == id })
}

func (a *auditor) events() (events []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.entries {
		events = append(events, strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s %s %d", e.Message.Body, e.Event, e.Target.Route, e.Target.Sink, e.Reason, e.Message.Attempt)), " "))
	}
	slices.Sort(events)
	return events
}

func withAudit(a *auditor) option {
	return func(_ *relay.Config, d *relay.Deps) { d.Audit = a }
}

// Every way out of the queue is told of, with the message as routes see it, before the
// delete is asked for; what comes again is not.
func TestTheAuditIsToldOfEveryWayOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &auditor{}
		dead := relaytest.NewRecorder()
		r := newRig(t, 2, twoRoutes, withDeadLetter(dead, relay.DeadLetterLimit{}), withAudit(a), func(c *relay.Config, d *relay.Deps) {
			c.Unmatched = relay.UnmatchedDelete
			d.Decode = func(m relay.Message) (relay.Message, error) {
				m.Body = []byte(strings.TrimPrefix(string(m.Body), "encoded "))
				return m, nil
			}
			d.Routes[1].Targets[0].Optional = true
			d.Routes[0].Targets[0].Address = "exchange"
		})
		r.queue.Fault = func(op, id string) error {
			if op == "delete" {
				assert.True(t, a.onDisk(id), id)
			}
			return nil
		}
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			switch {
			case string(m.Body) == "a late" && m.Attempt < 3:
				return relay.Result{Err: relay.Fail("nack", errors.New("no"))}
			case string(m.Body) == "a wrong":
				return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("refused", errors.New("no"))}
			}
			return relay.Result{Outcome: relay.Delivered, Dropped: string(m.Body) == "a drop"}
		})
		r.sinks[1].Answer(func(context.Context, relay.Message) relay.Result {
			return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("refused", errors.New("no"))}
		})
		r.queue.Send("encoded a", "a late", "encoded a wrong", "a drop", "c", "ab", "bad")
		r.start()
		pass(time.Hour)
		require.Empty(t, r.queue.Left())
		require.Equal(t, []string{
			"a delivered as s0 1", "a drop dropped as s0 1", "a late delivered as s0 3", "a wrong dead_lettered dead refused 1",
			"ab dead_lettered dead refused 1", "ab delivered as s0 1", "ab given_up bs s1 refused 1",
			"bad dead_lettered dead expression 1", "c unmatched 1",
		}, a.events())
		for _, e := range a.entries {
			require.False(t, e.Time.IsZero())
			require.Equal(t, e.Event == relay.AuditDelivered || e.Event == relay.AuditDropped, !e.Begun.IsZero())
			if e.Target.Sink == "s0" {
				require.Equal(t, "exchange", e.Address)
			}
		}
		r.stop()
	})
}

// A source that delivers at most once has lost what fails.
func TestTheAuditTellsOfWhatIsDeliveredAtMostOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &auditor{}
		r := newRig(t, 1, withAudit(a), func(c *relay.Config, _ *relay.Deps) { c.AtMostOnce = true })
		r.sinks[0].Answer(func(_ context.Context, m relay.Message) relay.Result {
			if string(m.Body) == "lost" {
				return relay.Result{Err: relay.Fail("nack", errors.New("no"))}
			}
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send("lost", "there")
		r.start()
		pass(time.Minute)
		require.Equal(t, []string{"lost given_up r s0 nack 1", "there delivered r s0 1"}, a.events())
		r.stop()
	})
}

// What was given up before the delete has its line before it there, too.
func TestTheAuditIsWrittenBeforeADeleteAtMostOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &auditor{}
		r := newRig(t, 2, twoRoutes, withDeadLetter(relaytest.NewRecorder(), relay.DeadLetterLimit{}), withAudit(a), func(c *relay.Config, d *relay.Deps) {
			c.AtMostOnce, c.Unmatched = true, relay.UnmatchedDelete
			d.Decode = func(m relay.Message) (relay.Message, error) { return m, nil }
		})
		r.queue.Fault = func(op, id string) error {
			if op == "delete" {
				assert.True(t, a.onDisk(id), id)
			}
			return nil
		}
		r.queue.Send("c", "bad")
		r.start()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		require.Equal(t, []string{"bad dead_lettered dead expression 1", "c unmatched 1"}, a.events())
		r.stop()
	})
}

// A message is in flight from its receive to its settlement, and not after.
func TestWhatIsInFlightIsKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		held := make(chan struct{})
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-held
			return relay.Result{Outcome: relay.Delivered}
		})
		ids := r.queue.Send("a", "b")
		_, found := r.pipeline.InFlight(ids[0])
		require.False(t, found)
		r.start()
		pass(time.Minute) // and leases are renewed meanwhile
		attempt, found := r.pipeline.InFlight(ids[1])
		require.True(t, found)
		require.Equal(t, 1, attempt)
		_, found = r.pipeline.InFlight("another")
		require.False(t, found)
		close(held)
		pass(time.Second)
		_, found = r.pipeline.InFlight(ids[1])
		require.False(t, found)
		r.stop()
	})
}
