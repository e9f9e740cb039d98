package relaytest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

// LedgerHarness is how TestLedger handles one kind of ledger.
type LedgerHarness struct {
	// Open makes an empty ledger for t that remembers for ttl and has room for all
	// that a test records, and ends it with t.
	Open func(t *testing.T, ttl time.Duration) relay.Ledger
	// Bubble says that the ledger needs nothing outside this process, so that its time
	// can be that of a synctest bubble.
	Bubble bool
	// Eventually is after how long at most what has outlived its time is gone; 0: at
	// once.
	Eventually time.Duration
}

// TestLedger proves that a ledger keeps the contract of relay.Ledger:
//
//   - a key is confirmed from its Record to its Forget or the end of its time, and no
//     key that was not recorded ever is, whatever its fields hold;
//   - answers are in the order of the keys;
//   - it can be shared by goroutines;
//   - the end of a context ends a call, and nothing is recorded under one that has ended.
func TestLedger(t *testing.T, h LedgerHarness) {
	t.Helper()
	for _, c := range []struct {
		promise string
		test    func(*testing.T, LedgerHarness)
	}{
		{"a confirm is remembered until it is forgotten", testLedgerPhases},
		{"a redelivery goes only to the sinks that are missing", testLedgerRedelivery},
		{"what has outlived its time is gone", testLedgerExpiry},
		{"a confirm that is recorded again lives on", testLedgerRecordAgain},
		{"keys that look alike are different", testLedgerKeys},
		{"nothing is nothing", testLedgerEmpty},
		{"a large batch is answered in order", testLedgerLargeBatch},
		{"it is shared by goroutines", testLedgerConcurrent},
		{"a context that has ended ends a call", testLedgerEndedContext},
	} {
		t.Run(c.promise, func(t *testing.T) {
			if h.Bubble {
				synctest.Test(t, func(t *testing.T) { c.test(t, h) })
				return
			}
			c.test(t, h)
		})
	}
}

// aDay outlives every test.
const aDay = 24 * time.Hour

func ledgerKey(message, sink string) relay.LedgerKey {
	return relay.LedgerKey{Source: "reports", Message: message, Route: "all", Sink: sink}
}

// confirmed asks the ledger and requires an answer for each key.
func confirmed(t *testing.T, l relay.Ledger, keys ...relay.LedgerKey) []bool {
	t.Helper()
	answers, err := l.Confirmed(t.Context(), keys)
	require.NoError(t, err)
	require.Len(t, answers, len(keys))
	return answers
}

func record(t *testing.T, l relay.Ledger, keys ...relay.LedgerKey) {
	t.Helper()
	require.NoError(t, l.Record(t.Context(), keys))
}

func forget(t *testing.T, l relay.Ledger, keys ...relay.LedgerKey) {
	t.Helper()
	require.NoError(t, l.Forget(t.Context(), keys))
}

func testLedgerPhases(t *testing.T, h LedgerHarness) {
	l := h.Open(t, aDay)
	a, b := ledgerKey("1", "broker"), ledgerKey("2", "broker")
	require.Equal(t, []bool{false, false}, confirmed(t, l, a, b), "nothing was recorded yet")

	record(t, l, a)
	require.Equal(t, []bool{true, false}, confirmed(t, l, a, b))
	require.Equal(t, []bool{true, false}, confirmed(t, l, a, b), "asking changes nothing")
	record(t, l, a, b)
	require.Equal(t, []bool{true, true}, confirmed(t, l, a, b), "to record again is fine")

	forget(t, l, a)
	require.Equal(t, []bool{false, true}, confirmed(t, l, a, b))
	forget(t, l, a, b)
	require.Equal(t, []bool{false, false}, confirmed(t, l, a, b), "to forget again is fine")

	record(t, l, a)
	require.Equal(t, []bool{true, false}, confirmed(t, l, a, b), "what was forgotten can be recorded again")
}

func testLedgerRedelivery(t *testing.T, h LedgerHarness) {
	l := h.Open(t, aDay)
	broker, hook, file := ledgerKey("1", "broker"), ledgerKey("1", "hook"), ledgerKey("1", "file")
	record(t, l, broker, file)
	require.Equal(t, []bool{true, false, true}, confirmed(t, l, broker, hook, file))
	record(t, l, hook)
	require.Equal(t, []bool{true, true, true}, confirmed(t, l, broker, hook, file), "all have it: the message is deleted")
	forget(t, l, broker, hook, file)
	require.Equal(t, []bool{false, false, false}, confirmed(t, l, broker, hook, file))
}

func testLedgerExpiry(t *testing.T, h LedgerHarness) {
	const ttl = time.Second
	l := h.Open(t, ttl)
	key := ledgerKey("1", "broker")
	begun := time.Now()
	record(t, l, key)
	if answers := confirmed(t, l, key); time.Since(begun) < ttl {
		require.Equal(t, []bool{true}, answers)
	}
	wait(t, time.Until(begun.Add(ttl+time.Millisecond)))
	if h.Eventually == 0 {
		require.Equal(t, []bool{false}, confirmed(t, l, key))
		return
	}
	require.Eventually(t, func() bool { return !confirmed(t, l, key)[0] }, h.Eventually, h.Eventually/100)
}

func testLedgerRecordAgain(t *testing.T, h LedgerHarness) {
	const ttl = 2 * time.Second
	l := h.Open(t, ttl)
	key := ledgerKey("1", "broker")
	begun := time.Now()
	record(t, l, key)
	wait(t, ttl/2)
	again := time.Now()
	record(t, l, key)
	wait(t, time.Until(begun.Add(ttl+ttl/4)))
	if answers := confirmed(t, l, key); time.Since(again) < ttl {
		require.Equal(t, []bool{true}, answers, "a confirm lives from the last time that it was recorded")
	}
}

// wait waits for d, by the clock of the bubble in one.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
		require.NoError(t, t.Context().Err())
	}
}

func testLedgerKeys(t *testing.T, h LedgerHarness) {
	l := h.Open(t, aDay)
	// Each differs from the others in one field, or in where one field ends.
	var keys []relay.LedgerKey
	for _, separator := range []string{"", ":", "/", "\x00", "|", ",", " ", "\n", "{", "}", "*", "\xff", "短"} {
		for _, fields := range [][4]string{
			{"a" + separator + "b", "c", "d", "e"},
			{"a", "b" + separator + "c", "d", "e"},
			{"a", "b", "c" + separator + "d", "e"},
			{"a", "b", "c", "d" + separator + "e"},
			{"a" + separator, "b", "c", "d"},
			{"a", separator + "b", "c", "d"},
			{"a", "b" + separator, "c", "d"},
			{"a", "b", separator + "c", "d"},
			{"a", "b", "c" + separator, "d"},
			{"a", "b", "c", separator + "d"},
			{separator, separator, separator, ""},
			{"", separator, separator, separator},
			{separator + separator, separator, "", ""},
			{separator, separator + separator, "", ""},
			{separator + separator + separator, "", "", ""},
			{"", "", "", separator + separator + separator},
		} {
			key := relay.LedgerKey{Source: fields[0], Message: fields[1], Route: fields[2], Sink: fields[3]}
			if !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	for _, n := range []int{127, 128, 255, 256, 16 << 10} {
		long := strings.Repeat("x", n)
		keys = append(keys,
			relay.LedgerKey{Source: long, Message: "m", Route: "r", Sink: "s"},
			relay.LedgerKey{Source: long + "m", Route: "r", Sink: "s"},
			relay.LedgerKey{Source: "s", Message: long, Route: "r", Sink: "s"})
	}
	expected := make([]bool, len(keys))
	for i, key := range keys {
		record(t, l, key)
		expected[i] = true
		require.Equal(t, expected, confirmed(t, l, keys...), "only %q and those before it are recorded", key)
	}
	for i, key := range keys {
		forget(t, l, key)
		expected[i] = false
		require.Equal(t, expected, confirmed(t, l, keys...), "only %q and those before it are forgotten", key)
	}
}

func testLedgerEmpty(t *testing.T, h LedgerHarness) {
	l := h.Open(t, aDay)
	require.Empty(t, confirmed(t, l))
	record(t, l)
	forget(t, l)
}

func testLedgerLargeBatch(t *testing.T, h LedgerHarness) {
	const size = 256
	l := h.Open(t, aDay)
	var all, odd []relay.LedgerKey
	var expected []bool
	for i := range size {
		key := ledgerKey(fmt.Sprintf("%032X", i), "broker")
		all = append(all, key)
		if i%2 == 1 {
			odd = append(odd, key)
		}
		expected = append(expected, i%2 == 1)
	}
	record(t, l, odd...)
	require.Equal(t, expected, confirmed(t, l, all...))
	record(t, l, all...)
	require.NotContains(t, confirmed(t, l, all...), false)
	forget(t, l, all...)
	require.NotContains(t, confirmed(t, l, all...), true)
}

func testLedgerConcurrent(t *testing.T, h LedgerHarness) {
	const batches, rounds, size = 8, 20, 16
	l := h.Open(t, aDay)
	kept := ledgerKey("kept", "broker")
	record(t, l, kept)
	var running sync.WaitGroup
	problems := make(chan error, batches)
	for batch := range batches {
		running.Go(func() { problems <- ledgerRounds(t.Context(), l, batch, rounds, size, kept) })
	}
	running.Wait()
	for range batches {
		require.NoError(t, <-problems)
	}
	require.Equal(t, []bool{true}, confirmed(t, l, kept))
}

// ledgerRounds records, asks for and forgets batches of keys of its own, as the batches
// of a pipeline do.
func ledgerRounds(ctx context.Context, l relay.Ledger, batch, rounds, size int, kept relay.LedgerKey) error {
	for round := range rounds {
		keys := []relay.LedgerKey{kept}
		for i := range size {
			keys = append(keys, ledgerKey(fmt.Sprintf("%d-%d-%d", batch, round, i), "broker"))
		}
		for _, step := range []struct {
			name string
			do   func(context.Context, []relay.LedgerKey) error
			want bool
		}{
			{"before", nil, false},
			{"recorded", l.Record, true},
			{"forgotten", l.Forget, false},
		} {
			if step.do != nil {
				if err := step.do(ctx, keys[1:]); err != nil {
					return fmt.Errorf("%s: %w", step.name, err)
				}
			}
			answers, err := l.Confirmed(ctx, keys)
			if err != nil {
				return fmt.Errorf("ask %s: %w", step.name, err)
			}
			want := slices.Repeat([]bool{step.want}, len(keys))
			want[0] = true
			if !slices.Equal(want, answers) {
				return fmt.Errorf("%s: batch %d, round %d: %v", step.name, batch, round, answers)
			}
		}
	}
	return nil
}

func testLedgerEndedContext(t *testing.T, h LedgerHarness) {
	l := h.Open(t, aDay)
	a, b := ledgerKey("1", "broker"), ledgerKey("2", "broker")
	record(t, l, a)
	ended, end := context.WithCancel(t.Context())
	end()
	_, err := l.Confirmed(ended, []relay.LedgerKey{a})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, l.Record(ended, []relay.LedgerKey{b}), context.Canceled)
	require.ErrorIs(t, l.Forget(ended, []relay.LedgerKey{a}), context.Canceled)
	require.Equal(t, []bool{true, false}, confirmed(t, l, a, b), "nothing was done")
}
