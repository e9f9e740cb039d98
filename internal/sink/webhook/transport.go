package webhook

import (
	"net/http"
	"sync"
	"time"
)

// maxAge is how long requests share connections before others are made, so that a name
// whose addresses change is followed under a load that never pauses, over HTTP/2 too.
const maxAge = 5 * time.Minute

// transport gives requests their connections. A pool that has been used for maxAge is left
// to the requests under way and replaced.
type transport struct {
	create func() *http.Transport

	mu      sync.Mutex
	maxAge  time.Duration
	made    time.Time
	current *http.Transport
	old     *http.Transport // which may still dial for those that it was left to; nil: none
}

func newTransport(create func() *http.Transport) *transport {
	return &transport{create: create, maxAge: maxAge, made: time.Now(), current: create()}
}

// get gives the pool to use now.
func (t *transport) get() *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.made) < t.maxAge {
		return t.current
	}
	if t.old != nil {
		t.old.CloseIdleConnections()
	}
	t.old, t.current, t.made = t.current, t.create(), time.Now()
	t.old.CloseIdleConnections()
	return t.current
}

// close closes what is idle and ends dials that nobody waits for.
func (t *transport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current.CloseIdleConnections()
	if t.old != nil {
		t.old.CloseIdleConnections()
	}
}
