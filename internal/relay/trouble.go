package relay

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

// trouble keeps a failure that repeats from filling the log: it is logged when it
// begins, when its kind changes and when it ends.
type trouble struct {
	log *zap.Logger

	mu    sync.Mutex
	kind  string
	since time.Time
	count int
}

// failed logs message unless the last failure was of the same kind.
func (t *trouble) failed(kind, message string, fields ...zap.Field) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kind == "" {
		t.since = time.Now()
		t.count = 0
	}
	t.count++
	if t.kind == kind {
		return
	}
	t.kind = kind
	t.log.Warn(message, fields...)
}

// ended logs message if there was trouble.
func (t *trouble) ended(message string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kind == "" {
		return
	}
	t.kind = ""
	t.log.Info(message, zap.Duration("after", time.Since(t.since)), zap.Int("failures", t.count))
}

// lasts tells whether there is trouble.
func (t *trouble) lasts() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.kind != ""
}

// recent remembers the last things that were added to it, 4096 of them.
type recent struct {
	mu    sync.Mutex
	known map[string]struct{}
	order []string
	next  int
}

const remembered = 4096

// add reports whether it was not known yet.
func (r *recent) add(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.known[name]; known {
		return false
	}
	if r.known == nil {
		r.known = make(map[string]struct{})
	}
	if len(r.order) < remembered {
		r.order = append(r.order, name)
	} else {
		delete(r.known, r.order[r.next])
		r.order[r.next] = name
		r.next = (r.next + 1) % remembered
	}
	r.known[name] = struct{}{}
	return true
}
