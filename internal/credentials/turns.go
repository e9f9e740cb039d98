package credentials

import (
	"context"
	"slices"
	"sync"
	"time"
)

// callsPerSecond bounds how often all refreshers of a pool together ask for keys: STS and
// Dybaseapi refuse an account that asks more often.
const callsPerSecond = 10

// lane is who goes first where many wait for a turn.
type lane int

const (
	// underWay is a further call of an attempt that has begun.
	underWay lane = iota
	// atStake is an attempt to replace keys while they last, or a first one.
	atStake
	// retrying is what has failed or was refused before and has the time, or nothing to lose
	// any more: any number of these holds up none of the others.
	retrying
	lanes
)

// turns lets callsPerSecond go on, each lane in the order of asking, and every third time the
// last lane first, so that none waits for ever. It is safe for concurrent use; nil lets
// everyone go on at once.
type turns struct {
	mu      sync.Mutex
	waiting [lanes][]chan struct{}
	next    time.Time // when a turn may be given
	armed   bool      // a timer gives the next one
	given   int
}

// wait returns when the caller's turn has come, or with the cause of ctx's end.
func (t *turns) wait(ctx context.Context, l lane) error {
	if t == nil {
		return nil
	}
	mine := make(chan struct{})
	t.mu.Lock()
	t.waiting[l] = append(t.waiting[l], mine)
	t.give()
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
		t.mu.Lock()
		defer t.mu.Unlock()
		t.waiting[l] = slices.DeleteFunc(t.waiting[l], func(c chan struct{}) bool { return c == mine })
		return context.Cause(ctx)
	}
}

// give gives the turn that is due and sees to the next. The caller holds mu.
func (t *turns) give() {
	if t.armed {
		return
	}
	order := []lane{underWay, atStake, retrying}
	if t.given%3 == 2 {
		order = []lane{retrying, underWay, atStake}
	}
	for _, l := range order {
		if len(t.waiting[l]) == 0 {
			continue
		}
		if due := time.Until(t.next); due > 0 {
			t.armed = true
			time.AfterFunc(due, func() {
				t.mu.Lock()
				defer t.mu.Unlock()
				t.armed = false
				t.give()
			})
			return
		}
		close(t.waiting[l][0])
		t.waiting[l] = t.waiting[l][1:]
		t.given++
		t.next = time.Now().Add(time.Second / callsPerSecond)
		t.give()
		return
	}
}
