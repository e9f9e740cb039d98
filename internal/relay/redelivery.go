package relay

import (
	"math/rand/v2"
	"time"
)

// Bounds of the time for which a queue can hide a message (MNS:
// ChangeMessageVisibility takes 1 to 43200 seconds).
const (
	MinRedelivery = time.Second
	MaxRedelivery = 12 * time.Hour
)

// Redelivery is how long a message that failed stays invisible before the queue
// gives it out again: Initial after the first attempt, doubled with each further one
// up to Max.
type Redelivery struct {
	Initial, Max time.Duration
}

// Delay is the time after the given attempt, 1 being the first: up to a quarter
// shorter at random, so that messages that failed together do not come back
// together, but never shorter than the far side asked for with retryAfter.
func (r Redelivery) Delay(attempt int, retryAfter time.Duration) time.Duration {
	delay := r.Initial
	for i := 1; i < attempt && delay < r.Max; i++ {
		delay *= 2
	}
	delay = min(delay, r.Max)
	if quarter := int64(delay / 4); quarter > 0 {
		delay -= time.Duration(rand.Int64N(quarter)) //nolint:gosec // spreads load, guards nothing
	}
	return min(max(delay, retryAfter, MinRedelivery), MaxRedelivery)
}
