package relaytest

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

// SourceHarness is how TestSource handles one kind of source.
type SourceHarness struct {
	// Open makes a source of an empty queue for t, whose leases are lease and whose polls
	// wait for wait, and a function that puts messages into the queue; it ends it with t.
	Open func(t *testing.T, lease, wait time.Duration) (source relay.Source, send func(bodies ...string))
	// Bubble says that the source needs nothing outside this process, so that its time
	// can be that of a synctest bubble.
	Bubble bool
}

// TestSource proves that a source keeps the contract of relay.Source:
//
//   - a receive gives at most as many as were asked for, at once or as soon as there is one,
//     and ends with its context;
//   - a message that is leased is nobody else's until its lease ends, which a renewal puts off;
//   - the receipt of a lease that has ended or was renewed does nothing;
//   - what is deleted never comes again, and what is returned does when its delay has passed;
//   - it can be shared by goroutines.
func TestSource(t *testing.T, h SourceHarness) {
	t.Helper()
	for _, c := range []struct {
		promise string
		test    func(*testing.T, SourceHarness)
	}{
		{"an empty queue gives nothing", testSourceEmpty},
		{"a message comes with its lease", testSourceMessage},
		{"a receive gives at most what was asked for", testSourceLimit},
		{"a poll ends with the first message", testSourcePoll},
		{"a message comes again when its lease has ended", testSourceLeaseEnds},
		{"a renewal puts the end of a lease off", testSourceExtend},
		{"a settlement deletes and returns, each for itself", testSourceSettle},
		{"the receipt of a lease that is no more does nothing", testSourceDeadReceipt},
		{"nothing is nothing", testSourceSettleNothing},
		{"a context that has ended ends a call", testSourceEndedContext},
		{"it is shared by goroutines", testSourceConcurrent},
	} {
		t.Run(c.promise, func(t *testing.T) {
			t.Parallel()
			if h.Bubble {
				synctest.Test(t, func(t *testing.T) { c.test(t, h) })
				return
			}
			c.test(t, h)
		})
	}
}

const (
	sourceLease = 5 * time.Second
	sourceWait  = time.Second
	// prompt is how long a call takes at most that waits for nothing.
	prompt = 500 * time.Millisecond
)

func (h SourceHarness) open(t *testing.T) (source relay.Source, send func(bodies ...string)) {
	t.Helper()
	return h.Open(t, sourceLease, sourceWait)
}

// receive gives what there is within some time: at least one message.
func receive(t *testing.T, s relay.Source, limit int, within time.Duration) []relay.Delivery {
	t.Helper()
	for end := time.Now().Add(within); ; {
		ds, err := s.Receive(t.Context(), limit, true)
		require.NoError(t, err)
		if len(ds) > 0 {
			return ds
		}
		require.True(t, time.Now().Before(end), "no message within %v", within)
	}
}

func requireNone(t *testing.T, s relay.Source) {
	t.Helper()
	ds, err := s.Receive(t.Context(), 16, false)
	require.NoError(t, err)
	require.Empty(t, ds)
}

func testSourceEmpty(t *testing.T, h SourceHarness) {
	s, _ := h.open(t)
	begun := time.Now()
	requireNone(t, s)
	require.Less(t, time.Since(begun), prompt)
	begun = time.Now()
	ds, err := s.Receive(t.Context(), 16, true)
	require.NoError(t, err)
	require.Empty(t, ds)
	require.InDelta(t, sourceWait.Seconds(), time.Since(begun).Seconds(), prompt.Seconds())
}

func testSourceMessage(t *testing.T, h SourceHarness) {
	s, send := h.open(t)
	begun := time.Now()
	send("hello", "world")
	got := map[string]relay.Delivery{}
	for len(got) < 2 {
		for _, d := range receive(t, s, 1, sourceWait) {
			got[string(d.Body)] = d
		}
	}
	hello, world := got["hello"], got["world"]
	for _, d := range []relay.Delivery{hello, world} {
		require.NotEmpty(t, d.ID)
		require.NotEmpty(t, d.Source)
		require.NotEmpty(t, d.Receipt)
		require.Equal(t, 1, d.Attempt)
		require.WithinDuration(t, begun, d.EnqueuedAt, sourceLease)
		requireDeadline(t, begun, d)
	}
	require.NotEqual(t, hello.ID, world.ID)
	require.NotEqual(t, hello.Receipt, world.Receipt)
}

// requireDeadline: a source may say that a lease ends sooner than it does, so that the last
// request gets there, and never later.
func requireDeadline(t *testing.T, begun time.Time, d relay.Delivery) {
	t.Helper()
	require.Greater(t, d.Deadline.Sub(begun), sourceLease/2)
	require.Less(t, d.Deadline.Sub(begun), sourceLease+prompt)
}

func testSourceLimit(t *testing.T, h SourceHarness) {
	s, send := h.open(t)
	send(strings.Split(strings.Repeat("x", 20), "")...)
	for _, limit := range []int{1, 3, 16} {
		ds := receive(t, s, limit, sourceWait)
		require.LessOrEqual(t, len(ds), limit)
	}
}

func testSourcePoll(t *testing.T, h SourceHarness) {
	s, send := h.Open(t, sourceLease, 10*time.Second)
	begun := time.Now()
	late := time.AfterFunc(200*time.Millisecond, func() { send("late") })
	defer late.Stop()
	ds, err := s.Receive(t.Context(), 16, true)
	require.NoError(t, err)
	require.Len(t, ds, 1)
	require.Less(t, time.Since(begun), 200*time.Millisecond+prompt)
}

func testSourceLeaseEnds(t *testing.T, h SourceHarness) {
	s, send := h.open(t)
	send("x")
	first := receive(t, s, 16, sourceWait)[0]
	requireNone(t, s)
	again := receive(t, s, 16, 2*sourceLease)[0]
	require.False(t, time.Now().Before(first.Deadline.Add(-prompt)), "not before its lease has ended")
	require.Equal(t, first.ID, again.ID)
	require.Equal(t, 2, again.Attempt)
	require.NotEqual(t, first.Receipt, again.Receipt)
}

func testSourceExtend(t *testing.T, h SourceHarness) {
	s, send := h.open(t)
	send("x")
	first := receive(t, s, 16, sourceWait)[0]
	ended := time.NewTimer(sourceLease + 100*time.Millisecond)
	third := time.NewTimer(sourceLease / 3)
	<-third.C
	begun := time.Now()
	renewed, err := s.Extend(t.Context(), first)
	require.NoError(t, err)
	require.NotEqual(t, first.Receipt, renewed.Receipt)
	requireDeadline(t, begun, renewed)
	require.Equal(t, first.ID, renewed.ID)

	<-ended.C // of the first lease
	requireNone(t, s)
	require.Equal(t, []error{nil}, s.Settle(t.Context(), []relay.Settlement{{Delivery: renewed, Delete: true}}))
}

func testSourceSettle(t *testing.T, h SourceHarness) {
	s, send := h.open(t)
	send("a", "b", "c", "d")
	var ds []relay.Delivery
	for len(ds) < 4 {
		ds = append(ds, receive(t, s, 16, sourceWait)...)
	}
	begun := time.Now()
	errs := s.Settle(t.Context(), []relay.Settlement{
		{Delivery: ds[0], Delete: true},
		{Delivery: ds[1], Delay: time.Second},
		{Delivery: ds[2], Delete: true},
		{Delivery: ds[3], Delay: time.Hour},
	})
	require.Equal(t, make([]error, 4), errs)
	requireNone(t, s)
	again := receive(t, s, 16, 3*sourceWait)
	require.Len(t, again, 1)
	require.Equal(t, ds[1].ID, again[0].ID)
	require.Equal(t, 2, again[0].Attempt)
	require.GreaterOrEqual(t, time.Since(begun), time.Second-prompt/2)
	require.Equal(t, []error{nil}, s.Settle(t.Context(), []relay.Settlement{{Delivery: again[0], Delete: true}}))
	over := time.NewTimer(sourceLease)
	<-over.C
	requireNone(t, s)
}

func testSourceDeadReceipt(t *testing.T, h SourceHarness) {
	s, send := h.open(t)
	send("dead", "live")
	var ds []relay.Delivery
	for len(ds) < 2 {
		ds = append(ds, receive(t, s, 16, sourceWait)...)
	}
	_, err := s.Extend(t.Context(), ds[0])
	require.NoError(t, err)
	_, err = s.Extend(t.Context(), ds[0])
	require.ErrorIs(t, err, relay.ErrLeaseLost, "it was renewed by a later receipt")
	errs := s.Settle(t.Context(), []relay.Settlement{{Delivery: ds[0], Delete: true}, {Delivery: ds[0], Delay: time.Second}, {Delivery: ds[1], Delete: true}})
	require.Len(t, errs, 3)
	require.ErrorIs(t, errs[0], relay.ErrLeaseLost)
	require.ErrorIs(t, errs[1], relay.ErrLeaseLost)
	require.NoError(t, errs[2], "the others are none of it")
	again := receive(t, s, 16, 3*sourceLease)
	require.Len(t, again, 1)
	require.Equal(t, ds[0].ID, again[0].ID, "it is there still")
}

func testSourceSettleNothing(t *testing.T, h SourceHarness) {
	s, _ := h.open(t)
	require.Empty(t, s.Settle(t.Context(), nil))
}

func testSourceEndedContext(t *testing.T, h SourceHarness) {
	s, send := h.Open(t, sourceLease, 10*time.Second)
	ctx, cancel := context.WithCancel(t.Context())
	late := time.AfterFunc(100*time.Millisecond, cancel)
	defer late.Stop()
	begun := time.Now()
	_, err := s.Receive(ctx, 16, true)
	require.Error(t, err)
	require.Less(t, time.Since(begun), 100*time.Millisecond+prompt)

	send("x")
	d := receive(t, s, 16, sourceWait)[0]
	_, err = s.Extend(ctx, d)
	require.Error(t, err)
	errs := s.Settle(ctx, []relay.Settlement{{Delivery: d, Delete: true}})
	require.Len(t, errs, 1)
	require.Error(t, errs[0])
	require.Equal(t, d.ID, receive(t, s, 16, 2*sourceLease)[0].ID, "it is not deleted")
}

func testSourceConcurrent(t *testing.T, h SourceHarness) {
	s, send := h.Open(t, time.Minute, sourceWait)
	const messages = 200
	bodies := make([]string, messages)
	for i := range bodies {
		bodies[i] = strconv.Itoa(i)
	}
	send(bodies...)
	var (
		work sync.WaitGroup
		mu   sync.Mutex
		seen = map[string]int{}
	)
	for range 8 {
		work.Go(func() {
			for {
				ds, err := s.Receive(t.Context(), 16, false)
				require.NoError(t, err)
				if len(ds) == 0 {
					return
				}
				settlements := make([]relay.Settlement, len(ds))
				mu.Lock()
				for i, d := range ds {
					seen[string(d.Body)]++
					settlements[i] = relay.Settlement{Delivery: d, Delete: true}
				}
				mu.Unlock()
				require.Equal(t, make([]error, len(ds)), s.Settle(t.Context(), settlements))
			}
		})
	}
	work.Wait()
	require.Len(t, seen, messages)
	for body, n := range seen {
		require.Equal(t, 1, n, body)
	}
	requireNone(t, s)
}
