package shadow_test

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

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/dryrun"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/shadow"
)

var (
	errDenied = errors.New("peek: 403 AccessDenied")
	errGone   = errors.New("peek: no route to host")
)

// head is the head of a queue.
type head struct {
	mu       sync.Mutex
	messages []relay.Message
	err      error
	peeks    int
}

func (h *head) peek(_ context.Context, n int) ([]relay.Message, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.peeks++
	return slices.Clone(h.messages[:min(n, len(h.messages))]), h.err
}

func (h *head) set(err error, ids ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err, h.messages = err, nil
	for _, id := range ids {
		h.messages = append(h.messages, relay.Message{ID: id, Source: "orders", Body: []byte("secret body")})
	}
}

func (h *head) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.peeks
}

// ledger records what it is told.
type ledger struct {
	mu      sync.Mutex
	entries []relay.AuditEntry
}

func (l *ledger) Record(e relay.AuditEntry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, e)
}

func (l *ledger) Flush(context.Context) {}

func (l *ledger) events() (events []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		events = append(events, strings.TrimSpace(fmt.Sprintf("%s %s %s %s%s", e.Message.ID, e.Event, e.Target.Route, e.Target.Sink, e.Reason)))
	}
	return events
}

// explain is a configuration whose messages say by their ids what becomes of them.
func explain(m relay.Message) (*dryrun.Explanation, error) {
	e := &dryrun.Explanation{Message: m, End: "Deleted from the queue once events has confirmed it."}
	fail := relay.Fail("expression", errors.New("no such key"))
	switch kind, _, _ := strings.Cut(m.ID, "-"); kind {
	case "dead":
		e.Rejected, e.DeadLetter = fail, &dryrun.Delivery{Sink: "parking", Address: "dead"}
		e.Routes = []dryrun.Route{{Name: "all", Matches: true, Deliveries: []dryrun.Delivery{{Route: "all", Sink: "events", Err: fail}}}}
	case "stays":
		e.Rejected, e.Retained = fail, true
	case "unmatched":
		e.Routes = []dryrun.Route{{Name: "all"}}
	default:
		e.Routes = []dryrun.Route{{Name: "all", Matches: true, Deliveries: []dryrun.Delivery{{Route: "all", Sink: "events", Address: "sms"}, {Route: "all", Sink: "hook"}}}}
	}
	return e, nil
}

// running is a Pipeline at work, inside a bubble of synctest.
func running(t *testing.T, h *head, paused bool) (p *shadow.Pipeline, l *ledger, said *observer.ObservedLogs) {
	t.Helper()
	core, said := observer.New(zap.InfoLevel)
	l = &ledger{}
	p = shadow.New(paused, shadow.Deps{
		Peek: h.peek, Denied: func(err error) bool { return errors.Is(err, errDenied) }, Explain: explain, Audit: l, Log: zap.New(core),
	})
	ctx, cancel := context.WithCancel(t.Context())
	var looking sync.WaitGroup
	looking.Go(func() { p.Run(ctx, ctx) })
	t.Cleanup(func() {
		cancel()
		looking.Wait()
		state, _ := p.State()
		require.Equal(t, relay.SourceStopped, state)
	})
	synctest.Wait()
	return p, l, said
}

func TestEachMessageIsShownOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &head{}
		h.set(nil, "good-1", "dead-1", "stays-1", "unmatched-1")
		p, l, _ := running(t, h, false)
		<-time.After(time.Second) // between two looks
		for range 10 {
			<-time.After(10 * time.Second)
		}
		h.set(nil) // leased by somebody, and back
		<-time.After(10 * time.Second)
		h.set(nil, "good-2", "good-1")
		<-time.After(10 * time.Second)
		require.Equal(t, []string{
			"good-1 would_deliver all events", "good-1 would_deliver all hook", "dead-1 would_dead_letter  parkingexpression",
			"stays-1 would_retain  expression", "unmatched-1 would_delete", "good-2 would_deliver all events", "good-2 would_deliver all hook",
		}, l.events())
		r := p.Report()
		require.Equal(t, []uint64{5, 2, 1, 1, 1}, []uint64{r.Seen, r.Delivered, r.DeadLettered, r.Deleted, r.Retained})
		require.Equal(t, map[relay.TargetName]uint64{{Route: "all", Sink: "events"}: 2, {Route: "all", Sink: "hook"}: 2}, r.Deliveries)
		require.Equal(t, "good-2", r.Previews[0].Message)
		require.Equal(t, 2, r.Head)
		require.NotContains(t, fmt.Sprint(r), "secret body")
		require.Equal(t, 13, h.count(), "one in ten seconds")
		state, reason := p.State()
		require.Equal(t, relay.SourceShadow, state)
		require.Empty(t, reason)
	})
}

// However many pass by, what is kept of them is bounded.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &head{}
		p, _, _ := running(t, h, false)
		<-time.After(time.Second) // between two looks
		for n := range 1000 {
			ids := make([]string, 16)
			for i := range ids {
				ids[i] = fmt.Sprintf("good-%d-%s", n*16+i, strings.Repeat("x", 1000))
			}
			h.set(nil, ids...)
			<-time.After(10 * time.Second)
		}
		r := p.Report()
		require.Equal(t, uint64(16_000), r.Seen)
		require.Len(t, r.Previews, 20)
		require.Len(t, r.Previews[0].Message, 256)
	})
}

// A credential that may not peek is said once and asked again now and then; one that may by
// then goes on.
func TestACredentialThatMayNotPeek(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &head{}
		h.set(errDenied)
		p, _, said := running(t, h, false)
		<-time.After(time.Hour + time.Second)
		state, reason := p.State()
		require.Equal(t, relay.SourceShadow, state)
		require.Contains(t, reason, "mns:PeekMessage")
		require.Equal(t, 13, h.count())
		require.Equal(t, 1, said.Len())
		h.set(nil, "good-1")
		<-time.After(5 * time.Minute)
		_, reason = p.State()
		require.Empty(t, reason)
		require.Equal(t, uint64(1), p.Report().Seen)
		require.Equal(t, "peek works again", said.All()[1].Message)
	})
}

func TestAQueueThatFailsIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &head{}
		h.set(errGone)
		p, _, said := running(t, h, false)
		<-time.After(time.Minute + time.Second)
		state, reason := p.State()
		require.Equal(t, relay.SourceRetrying, state)
		require.Equal(t, errGone.Error(), reason)
		require.Equal(t, 7, h.count())
		require.Equal(t, 1, said.Len())
	})
}

func TestAPausedSourceDoesNotLook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &head{}
		h.set(nil, "good-1")
		p, _, _ := running(t, h, true)
		<-time.After(time.Hour + time.Second)
		require.Zero(t, h.count())
		state, reason := p.State()
		require.Equal(t, relay.SourcePaused, state)
		require.Equal(t, "paused by the configuration", reason)
		p.Resume()
		synctest.Wait()
		require.Equal(t, 1, h.count(), "at once")
		p.Pause("by an operator")
		<-time.After(time.Hour)
		require.Equal(t, 1, h.count())
	})
}
