package webhook

import (
	"container/list"
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
)

// limit is how many requests may be under way: at most the configured concurrency, less
// where the endpoint asks for less. Each 429 or 503 halves it, once for all requests that
// were under way together, and each answer of 2xx raises it by its share, so that a whole
// round of them makes one more. It begins at the most, since nothing is known against it.
type limit struct {
	most int
	log  *zap.Logger

	mu      sync.Mutex
	now     float64    // 1 to most
	lowered time.Time  // requests begun before then have been counted
	used    int        // requests under way
	waiting *list.List // of chan struct{}, closed when the slot is theirs
	closed  bool
	idle    chan struct{} // closed when nothing is under way and nothing will be
}

func newLimit(most int, log *zap.Logger) *limit {
	return &limit{most: most, log: log, now: float64(most), waiting: list.New(), idle: make(chan struct{})}
}

// acquire waits for a slot, which goes to the one that has waited longest. The error is
// that of ctx, or errStopped.
func (l *limit) acquire(ctx context.Context) error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return errStopped
	}
	if l.used < int(l.now) && l.waiting.Len() == 0 {
		l.used++
		l.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	place := l.waiting.PushBack(mine)
	l.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-mine: // just then
		return nil // the request does not begin: its context has ended
	default:
		l.waiting.Remove(place)
		return context.Cause(ctx)
	}
}

// load is what a request says about the load; of several, the largest counts.
type load int8

const (
	loadSame  load = iota // it says nothing about the load
	loadFine              // 2xx
	loadHeavy             // 429, 503
)

// release gives the slot of a request that began at a time back.
func (l *limit) release(began time.Time, said load) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used--
	most := float64(l.most)
	switch {
	case said == loadHeavy && began.After(l.lowered):
		if l.now == most && l.most > 1 {
			l.log.Warn("the webhook is overloaded (429 or 503): sending fewer requests at once", zap.Int("concurrency", max(1, l.most/2)))
		}
		l.now, l.lowered = max(1, l.now/2), time.Now()
	case said == loadFine && l.now < most:
		if l.now = min(most, l.now+1/l.now); l.now == most {
			l.log.Info("the webhook takes as many requests at once as before", zap.Int("concurrency", l.most))
		}
	}
	for l.used < int(l.now) && l.waiting.Len() > 0 && !l.closed {
		l.used++
		close(l.waiting.Remove(l.waiting.Front()).(chan struct{})) //nolint:forcetypeassert // Nothing else is put in.
	}
	if l.closed && l.used == 0 {
		close(l.idle)
	}
}

// close lets no request begin any more and waits for those under way. Who waits for a
// slot waits until its context ends.
func (l *limit) close() {
	l.mu.Lock()
	l.closed = true
	if l.used == 0 {
		close(l.idle)
	}
	l.mu.Unlock()
	<-l.idle
}
