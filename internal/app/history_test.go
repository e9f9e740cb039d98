package app

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAMeterTellsRatesOfAMinuteAndOfHalfAnHour(t *testing.T) {
	begun := time.Now()
	m := &meter{marks: []mark{{at: begun}}}
	rate, _, _, measured := m.minute(begun, 0)
	require.Zero(t, rate)
	require.False(t, measured)
	rate, _, _, _ = m.minute(begun.Add(2*time.Second), 10)
	require.InDelta(t, 5, rate, 1e-9, "since the start")
	// 1 a second for half an hour and more, then 7.
	now, count := begun, uint64(0)
	for n := range 200 {
		now = now.Add(10 * time.Second)
		count += 10
		if n >= 190 {
			count += 60
		}
		m.sample(now, count)
	}
	points := m.points()
	require.Len(t, points, 180)
	require.InDelta(t, 1, points[0], 1e-6)
	require.InDelta(t, 1, points[169], 1e-6)
	require.InDelta(t, 7, points[170], 1e-6)
	rate, _, _, _ = m.minute(now.Add(5*time.Second), count)
	require.InDelta(t, 7*50.0/55, rate, 1e-9)
	m.sample(now.Add(10*time.Second), 0) // the count began anew
	require.Zero(t, m.points()[179])
}

func TestLatenciesOfTheLastMinute(t *testing.T) {
	require.InEpsilon(t, math.Log(latencyGrowth), float64(logGrowth), 1e-15)
	now := time.Now()
	m := &meter{marks: []mark{{at: now}}}
	for range 99 {
		m.latency.observe(10 * time.Millisecond)
	}
	m.latency.observe(5 * time.Second)
	_, p50, p99, measured := m.minute(now, 100)
	require.True(t, measured)
	require.InEpsilon(t, 10*time.Millisecond, p50, 0.1)
	require.InEpsilon(t, 10*time.Millisecond, p99, 0.1)
	m.latency.observe(5 * time.Second)
	_, _, p99, _ = m.minute(now, 101)
	require.InEpsilon(t, 5*time.Second, p99, 0.1)
	for range 6 {
		now = now.Add(10 * time.Second)
		m.sample(now, 101)
	}
	_, _, _, measured = m.minute(now, 101)
	require.False(t, measured, "what is older than a minute is forgotten")
	for _, d := range []time.Duration{-time.Second, 0, time.Microsecond, 101 * time.Microsecond, time.Second, time.Hour, 24 * time.Hour, 365 * 24 * time.Hour} {
		var l latency
		l.observe(d)
		counts := l.read()
		got, found := counts.quantile(&latencies{}, 0.5)
		require.True(t, found)
		if d > 100*time.Microsecond && d < 48*time.Hour {
			require.InEpsilon(t, d, got, 0.1, d)
		}
	}
}
