package mns_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/mns"
)

func TestDeadlineIsNeverLaterThanTheServersClockSays(t *testing.T) {
	start := time.Now()
	for name, offset := range map[string]time.Duration{
		"same": 0, "server ahead": 37*time.Minute + 300*time.Millisecond, "server behind": -2*time.Hour - 700*time.Millisecond,
	} {
		t.Run(name, func(t *testing.T) {
			c := mns.NewClock(start)
			// Answers of 20 ms, made in their middle, at odd moments of the second.
			now := start
			for i := range 200 {
				now = now.Add(time.Duration(i*37) * time.Millisecond)
				made := now.Add(10 * time.Millisecond)
				c.Observe(made.Add(offset).Truncate(time.Second), now, now.Add(20*time.Millisecond))

				serverSays := now.Add(offset + 30*time.Second).Round(0)
				deadline := c.Deadline(serverSays, now)
				right := now.Add(30 * time.Second)
				require.False(t, deadline.After(right), "answer %d: %v late", i, deadline.Sub(right))
				require.LessOrEqual(t, right.Sub(deadline), 1100*time.Millisecond, "answer %d", i)
				if i > 100 {
					require.LessOrEqual(t, right.Sub(deadline), 100*time.Millisecond, "many answers narrow it down")
				}
			}
			require.InDelta(t, offset, c.Skew(now), float64(100*time.Millisecond))
		})
	}
}

func TestClockBelievesTheNewestAnswerAfterAJump(t *testing.T) {
	now := time.Now()
	c := mns.NewClock(now)
	c.Observe(now.Truncate(time.Second), now, now)
	now = now.Add(time.Second)
	c.Observe(now.Add(time.Hour).Truncate(time.Second), now, now)
	require.InDelta(t, time.Hour, c.Skew(now), float64(time.Second))
}
