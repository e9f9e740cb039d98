package mns

import (
	"sync"
	"time"
)

// clock relates the server's clock to the local one. It runs on the monotonic clock,
// so that setting the machine's clock changes nothing.
type clock struct {
	start time.Time

	mu sync.Mutex
	// The server's time less the local one, in nanoseconds, lies within [lo, hi].
	lo, hi time.Duration
	known  bool
}

// local is the local time since start, put on the wall time of start.
func (c *clock) local(t time.Time) time.Time { return c.start.Add(t.Sub(c.start)) }

// observe learns from an answer: date is its Date header, in whole seconds, rounded
// down; the answer was made at some moment between sent and got.
func (c *clock) observe(date, sent, got time.Time) {
	lo := date.Sub(c.local(got))
	hi := date.Add(time.Second).Sub(c.local(sent))
	c.mu.Lock()
	defer c.mu.Unlock()
	// Bounds that exclude each other mean that a clock was set, or that another
	// machine answered: the newest is right.
	if !c.known || lo > c.hi || hi < c.lo {
		c.lo, c.hi, c.known = lo, hi, true
		return
	}
	c.lo, c.hi = max(c.lo, lo), min(c.hi, hi)
}

func (c *clock) bounds() (lo, hi time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lo, c.hi
}

// server estimates the server's time at the local time now.
func (c *clock) server(now time.Time) time.Time {
	lo, hi := c.bounds()
	return c.local(now).Add(lo/2 + hi/2)
}

// deadline is the local time, with its monotonic reading, at which the server's clock
// shows t, or a little before.
func (c *clock) deadline(t, now time.Time) time.Time {
	_, hi := c.bounds()
	return now.Add(t.Sub(c.local(now).Add(hi)))
}

// skew is how far the server's clock is from the wall clock, which the SDK signs with.
func (c *clock) skew(now time.Time) time.Duration {
	return c.server(now).Sub(now.Round(0))
}
