package webhook

import (
	"math"
	"net/url"
	"time"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// ProbeEvery sets how long an open circuit waits, before anything is bound.
func ProbeEvery(e relay.Endpoint, d time.Duration) {
	endpoint := e.(*Endpoint)
	endpoint.breaker = relay.NewBreaker(relay.BreakerConfig{Probe: d}, endpoint.log)
}

// RenderURL gives the URL for a message.
func RenderURL(template string, m *relay.Message) (*url.URL, error) {
	c := Defaults()
	c.URL = setting.NewURL(template)
	_, t, err := c.parseURL()
	if err != nil {
		return nil, err
	}
	return renderURL(t, expr.Of(m))
}

// MaxAge sets how long a pool of connections is used.
func MaxAge(e relay.Endpoint, d time.Duration) {
	t := e.(*Endpoint).pools
	t.mu.Lock()
	defer t.mu.Unlock()
	t.maxAge = d
}

// Limit is how many requests there may be at once.
func Limit(e relay.Endpoint) int {
	l := e.(*Endpoint).limit
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.now)
}

// NeverOpen keeps the circuit closed, before anything is bound.
func NeverOpen(e relay.Endpoint) {
	endpoint := e.(*Endpoint)
	endpoint.breaker = relay.NewBreaker(relay.BreakerConfig{Failures: math.MaxInt}, endpoint.log)
}

// IdleTimeout is how long a connection is kept that is not used.
func IdleTimeout(e relay.Endpoint) time.Duration { return e.(*Endpoint).pools.get().IdleConnTimeout }
