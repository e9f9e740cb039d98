package webhook

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// idleTimeout closes connections that are not used.
	idleTimeout = 90 * time.Second
	// An HTTP/2 connection on which nothing came for pingAfter is asked whether it
	// lives and closed after pingTimeout: all requests share it, so a dead one
	// would fail them all.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// maxAge is how long requests share connections before others are made, so that a name
// whose addresses change is followed under a load that never pauses, over HTTP/2 too.
const maxAge = 5 * time.Minute

// pools gives requests their connections. A pool that has been used for maxAge is left
// to the requests under way and replaced.
type pools struct {
	create func() *http.Transport

	mu      sync.Mutex
	maxAge  time.Duration
	made    time.Time
	current *http.Transport
	old     *http.Transport // which may still dial for those that it was left to; nil: none
}

func newPools(create func() *http.Transport) *pools {
	return &pools{create: create, maxAge: maxAge, made: time.Now(), current: create()}
}

// get gives the pool to use now.
func (p *pools) get() *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.made) < p.maxAge {
		return p.current
	}
	p.old, p.current, p.made = p.current, p.create(), time.Now()
	p.old.CloseIdleConnections()
	return p.current
}

// close closes what is idle and ends dials that nobody waits for.
func (p *pools) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current.CloseIdleConnections()
	if p.old != nil {
		p.old.CloseIdleConnections()
	}
}

// newPool makes a pool of connections.
func (e *Endpoint) newPool(c *Config) *http.Transport {
	return &http.Transport{
		DialContext:       e.connections.dial,
		DialTLSContext:    e.connections.dialTLS,
		ForceAttemptHTTP2: true,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout:           pingAfter,
			PingTimeout:               pingTimeout,
			WriteByteTimeout:          c.Timeout,
			MaxReceiveBufferPerStream: maxAnswer, // else a receiver may send 4 MiB before we have read any
		},
		// net/http goes on with a dial after its request has ended; the limit
		// bounds those, too.
		MaxConnsPerHost:        c.Concurrency,
		MaxIdleConnsPerHost:    c.Concurrency,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswer,
		DisableCompression:     true,
	}
}

// roundTrip sends a request, and once more where the connection had been used before and
// was closed before an answer began: a receiver may close it at any time, and just then.
// Of what it may have got twice the receiver knows the id. net/http itself would go through
// all idle connections, and does nothing about a connection of HTTP/2 that is reset.
func (e *Endpoint) roundTrip(request *http.Request, seen *attempt) (*http.Response, error) {
	pool := e.pools.get()
	resp, err := pool.RoundTrip(request)
	if err == nil || !seen.reused.Load() || seen.answered.Load() || request.Context().Err() != nil || !isClosed(err) {
		return resp, err
	}
	if request.GetBody != nil {
		if request.Body, err = request.GetBody(); err != nil {
			return nil, err
		}
	}
	return pool.RoundTrip(request)
}

// attempt is what net/http tells of the connection of a request.
type attempt struct {
	reused, answered atomic.Bool
	trace            httptrace.ClientTrace
}

// watch gives the context for the request.
func (a *attempt) watch(ctx context.Context) context.Context {
	a.trace.GotConn = func(c httptrace.GotConnInfo) { a.reused.Store(c.Reused) }
	a.trace.GotFirstResponseByte = func() { a.answered.Store(true) }
	return httptrace.WithClientTrace(ctx, &a.trace)
}

// isClosed tells whether an error says that the other side has closed the connection. Of the
// last two net/http does not export the errors.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.Contains(err.Error(), "server closed idle connection") || strings.Contains(err.Error(), "client connection lost")
}
