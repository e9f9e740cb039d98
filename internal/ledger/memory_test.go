package ledger_test

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"mnsrelay/internal/ledger"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
)

func openMemory(tb testing.TB, ttl time.Duration, entries int) *ledger.Memory {
	tb.Helper()
	cfg := ledger.Defaults()
	cfg.TTL, cfg.MaxEntries = ttl, entries
	l, err := ledger.NewMemory(cfg)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, l.Close()) })
	return l
}

func TestMemory(t *testing.T) {
	relaytest.TestLedger(t, relaytest.LedgerHarness{
		Open:   func(t *testing.T, ttl time.Duration) relay.Ledger { return openMemory(t, ttl, 10_000) }, //nolint:thelper // A harness.
		Bubble: true,
	})
}

// keysOf makes n keys with ids as long as those of MNS.
func keysOf(from, n int) []relay.LedgerKey {
	keys := make([]relay.LedgerKey, n)
	for i := range keys {
		keys[i] = relay.LedgerKey{Source: "reports", Message: fmt.Sprintf("%032X", from+i), Route: "all", Sink: "broker"}
	}
	return keys
}

func TestMemoryStartsNoGoroutine(t *testing.T) {
	before := goleak.IgnoreCurrent()
	l := openMemory(t, time.Hour, 1000)
	require.NoError(t, l.Record(t.Context(), keysOf(0, 5000)))
	goleak.VerifyNone(t, before)
}

func TestMemoryIsBounded(t *testing.T) {
	const limit, recorded = 1000, 20_000
	l := openMemory(t, time.Hour, limit)
	for i := 0; i < recorded; i += 16 {
		require.NoError(t, l.Record(t.Context(), keysOf(i, 16)))
		require.LessOrEqual(t, l.Status().Entries, limit+16)
	}
	status := l.Status()
	require.InDelta(t, limit, status.Entries, limit/10)
	require.InDelta(t, recorded-limit, status.Evicted, limit/10)
	require.NoError(t, status.Err)

	require.Equal(t, status.Entries, known(t, l, keysOf(0, recorded)), "what is counted is what is remembered")
}

// known counts the keys that a ledger remembers.
func known(t *testing.T, l *ledger.Memory, keys []relay.LedgerKey) (count int) {
	t.Helper()
	answers, err := l.Confirmed(t.Context(), keys)
	require.NoError(t, err)
	for _, confirmed := range answers {
		if confirmed {
			count++
		}
	}
	return count
}

func TestMemoryKeepsPartOfAFloodThatComesRound(t *testing.T) {
	// Twice as many messages as there is room for, redelivered in turn: a ledger that
	// drops the oldest would know none.
	const limit, messages, rounds = 1000, 2000, 10
	l := openMemory(t, time.Hour, limit)
	known := 0
	for range rounds {
		for i := 0; i < messages; i += 16 {
			batch := keysOf(i, 16)
			answers, err := l.Confirmed(t.Context(), batch)
			require.NoError(t, err)
			for j, confirmed := range answers {
				if confirmed {
					known++
				} else {
					require.NoError(t, l.Record(t.Context(), batch[j:j+1]))
				}
			}
		}
	}
	require.Greater(t, known, messages*(rounds-1)/5)
}

func TestMemoryGivesRoomOfTheExpiredBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1000
		l := openMemory(t, time.Hour, limit)
		require.NoError(t, l.Record(t.Context(), keysOf(0, limit*9/10)))
		time.Sleep(2 * time.Hour) //nolint:forbidigo // The bubble's time.
		fresh := keysOf(limit, limit/2)
		require.NoError(t, l.Record(t.Context(), fresh))
		answers, err := l.Confirmed(t.Context(), fresh)
		require.NoError(t, err)
		require.NotContains(t, answers, false, "none of the new made room for one that had expired")
		require.Equal(t, limit/2, l.Status().Entries)
		require.Zero(t, l.Status().Evicted)
	})
}

// A confirm is remembered for its time wherever it is kept, and forgotten in both places.
func TestMemoryExpiresWhatItHasMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 1600 // of which 100 are fresh
		l := openMemory(t, time.Hour, limit)
		first, later := keysOf(0, 64), keysOf(1000, 64)
		require.NoError(t, l.Record(t.Context(), first))
		time.Sleep(40 * time.Minute) //nolint:forbidigo // The bubble's time.
		require.NoError(t, l.Record(t.Context(), later))
		require.Equal(t, 64, known(t, l, first))
		require.Equal(t, 64, known(t, l, later))
		time.Sleep(21 * time.Minute) //nolint:forbidigo // The bubble's time.
		require.Zero(t, known(t, l, first), "an hour has passed since they were recorded, not since they were moved")
		require.Equal(t, 64, known(t, l, later))
		require.NoError(t, l.Forget(t.Context(), later))
		require.Zero(t, known(t, l, later))

		// A confirm that is recorded again is in both.
		require.NoError(t, l.Record(t.Context(), keysOf(2000, 160)))
		require.NoError(t, l.Record(t.Context(), keysOf(2000, 16)))
		require.Equal(t, 160, known(t, l, keysOf(2000, 160)))
		require.NoError(t, l.Forget(t.Context(), keysOf(2000, 160)))
		require.Zero(t, known(t, l, keysOf(2000, 160)))
	})
}

func TestMemoryForgetsOnClose(t *testing.T) {
	l := openMemory(t, time.Hour, 10)
	require.NoError(t, l.Record(t.Context(), keysOf(0, 5)))
	require.Equal(t, 5, l.Status().Entries)
	require.True(t, l.Status().Counted)
	require.NoError(t, l.Close())
	require.Zero(t, l.Status().Entries)
}

// BenchmarkMemory is what a batch costs: asked for, recorded and forgotten.
func BenchmarkMemory(b *testing.B) {
	const size = 16
	batches := make([][]relay.LedgerKey, 1024)
	for i := range batches {
		batches[i] = keysOf(i*size, size)
	}
	l := openMemory(b, time.Hour, ledger.Defaults().MaxEntries)
	ctx := context.Background()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		keys := batches[i%len(batches)]
		_, err := l.Confirmed(ctx, keys)
		require.NoError(b, err)
		require.NoError(b, l.Record(ctx, keys))
		require.NoError(b, l.Forget(ctx, keys))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/message")
}

// BenchmarkMemoryEntry is what a confirm costs in memory, in a ledger that is full.
func BenchmarkMemoryEntry(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, entries := range []int{10_000, 100_000, ledger.Defaults().MaxEntries, 200_000, 1_000_000} {
		b.Run(strconv.Itoa(entries), func(b *testing.B) {
			for b.Loop() {
				before := heap()
				l := openMemory(b, time.Hour, entries)
				for i := 0; i < 2*entries; i += 16 {
					require.NoError(b, l.Record(context.Background(), keysOf(i, 16)))
				}
				after := heap()
				b.ReportMetric(float64(after-before)/float64(l.Status().Entries), "B/entry")
				require.NoError(b, l.Close())
			}
		})
	}
}
