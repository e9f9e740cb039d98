package webhook_test

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// What Retry-After asks for holds for the whole endpoint, over all routes: nothing is sent
// meanwhile, and it is up again by itself.
func TestRetryAfterHoldsTheEndpoint(t *testing.T) {
	for _, status := range []int{429, 503} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			var busy atomic.Bool
			busy.Store(true)
			far := start(t, func(w http.ResponseWriter, _ *http.Request) {
				if busy.Load() {
					w.Header().Set("Retry-After", "1")
					w.WriteHeader(status)
				}
			})
			endpoint := open(t, func(c *webhook.Config) { c.URL = setting.NewURL(far.url) })
			run(t, endpoint)
			began := time.Now()
			result := deliver(t, bind(t, endpoint), message("1"))[0]
			require.Equal(t, time.Second, result.RetryAfter)
			health, _ := endpoint.Health()
			require.Equal(t, relay.Down, health.State, "before the result is known")
			require.Contains(t, health.Reason, "left alone until ")
			require.Contains(t, health.Reason, fmt.Sprintf("the endpoint answered %d", status))
			busy.Store(false)
			for _, result := range deliver(t, bind(t, endpoint), message("2"), message("3")) {
				requireFailure(t, relay.Retry, "held", result)
			}
			require.Equal(t, 1, far.count())
			require.Empty(t, awaitState(t, endpoint, relay.Up))
			require.GreaterOrEqual(t, time.Since(began), time.Second)
			requireDelivered(t, deliver(t, bind(t, endpoint), message("2")))
		})
	}
}

// 410 stops the endpoint until it is resumed, as a reload does. Of a URL that each message
// makes it says nothing about the others.
func TestGone(t *testing.T) {
	var gone atomic.Bool
	gone.Store(true)
	far := start(t, func(w http.ResponseWriter, _ *http.Request) {
		if gone.Load() {
			w.WriteHeader(http.StatusGone)
		}
	})
	endpoint := open(t, func(c *webhook.Config) { c.URL = setting.NewURL(far.url) })
	run(t, endpoint)
	sink := bind(t, endpoint)
	requireFailure(t, relay.Retry, "status_410", deliver(t, sink, message("1"))[0])
	gone.Store(false)
	health, _ := endpoint.Health()
	require.Equal(t, relay.Down, health.State)
	require.Contains(t, health.Reason, "stopped until a reload")
	requireFailure(t, relay.Retry, "held", deliver(t, sink, message("2"))[0])
	require.Equal(t, 1, far.count())
	endpoint.(relay.Resumer).Resume()
	require.Empty(t, awaitState(t, endpoint, relay.Up))
	requireDelivered(t, deliver(t, sink, message("2")))

	gone.Store(true)
	each := open(t, func(c *webhook.Config) { c.URL = setting.NewURL(far.url + "/{{ id }}") })
	run(t, each)
	requireFailure(t, relay.Retry, "status_410", deliver(t, bind(t, each), message("1"))[0])
	gone.Store(false)
	requireDelivered(t, deliver(t, bind(t, each), message("2")))
}

// crowd is a receiver that counts the requests at once, and refuses some.
type crowd struct {
	mu        sync.Mutex
	now, most int
	room      int // more at once are answered with 429
	refused   int
}

func (c *crowd) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	over := c.now > c.room
	if over {
		c.refused++
	}
	c.mu.Unlock()
	<-time.After(2 * time.Millisecond) // as long as work takes
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	if over {
		w.WriteHeader(http.StatusTooManyRequests)
	}
}

// reset forgets what was, and sets how many there may be at once.
func (c *crowd) reset(room int) (most, refused int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	most, refused = c.most, c.refused
	c.most, c.refused, c.room = 0, 0, room
	return most, refused
}

// Answers of 429 lower how many requests there are at once, and answers of 2xx raise it
// again, to the configured concurrency and no further.
func TestConcurrencyAdapts(t *testing.T) {
	const concurrency, room = 32, 8
	far := &crowd{room: 1000}
	server := start(t, far.ServeHTTP)
	endpoint := open(t, func(c *webhook.Config) { c.URL, c.Concurrency = setting.NewURL(server.url), concurrency })
	run(t, endpoint)
	webhook.NeverOpen(endpoint)
	sink := bind(t, endpoint)
	ms := make([]relay.Message, 2000)
	for i := range ms {
		ms[i] = message(strconv.Itoa(i))
	}
	deliver(t, sink, ms...)
	most, refused := far.reset(room)
	require.Zero(t, refused)
	require.InDelta(t, concurrency, most, 8)

	deliver(t, sink, ms...)
	_, refused = far.reset(room)
	require.Positive(t, refused)
	// It has settled: of 2000 messages a limit of 32 would have 1500 refused.
	deliver(t, sink, ms...)
	most, refused = far.reset(1000)
	require.Less(t, refused, len(ms)/5)
	require.LessOrEqual(t, most, 2*room)

	deliver(t, sink, ms...)
	most, refused = far.reset(1000)
	require.Zero(t, refused)
	require.Greater(t, most, 2*room)
	require.LessOrEqual(t, most, concurrency)
}

// Only what was sent says something about the load: one answer lowers the limit once,
// whatever is refused here because of it.
func TestRefusalsDoNotLowerTheConcurrency(t *testing.T) {
	far := start(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	endpoint := open(t, func(c *webhook.Config) { c.URL = setting.NewURL(far.url) })
	run(t, endpoint)
	sink := bind(t, endpoint)
	requireFailure(t, relay.Retry, "status_429", deliver(t, sink, message("1"))[0])
	for _, result := range deliver(t, sink, make([]relay.Message, 100)...) {
		requireFailure(t, relay.Retry, "held", result)
		require.ErrorIs(t, result.Err, relay.ErrSinkDown, "it is no failed try")
	}
	require.Equal(t, 8, webhook.Limit(endpoint))
}

func TestRateLimit(t *testing.T) {
	far := start(t, accept)
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.RateLimit = webhook.RateLimit{PerSecond: 100, Burst: 5}
	})
	run(t, endpoint)
	sink, other := bind(t, endpoint), bind(t, endpoint) // of two routes
	began := time.Now()
	var both sync.WaitGroup
	for _, s := range []relay.Sink{sink, other} {
		both.Go(func() { deliver(t, s, make([]relay.Message, 20)...) })
	}
	both.Wait()
	require.Equal(t, 40, far.count())
	require.GreaterOrEqual(t, time.Since(began), 350*time.Millisecond)

	// Who waits for the rate ends with its context.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	sink.Deliver(ctx, make([]relay.Message, 100), func(_ int, r relay.Result) {
		if r.Outcome != relay.Delivered {
			requireFailure(t, relay.Retry, "stopped", r)
		}
	})
	require.Less(t, far.count(), 60)
}

// A message that the rate keeps back until its lease ends was not sent: that is no failed try
// of it, and it is not asked for again and again.
func TestRateLimitBeyondTheLease(t *testing.T) {
	for name, batch := range map[string]int{"alone": 1, "batch": 2} {
		t.Run(name, func(t *testing.T) {
			far := start(t, accept)
			sink := sinkWith(t, func(c *webhook.Config) {
				c.URL = setting.NewURL(far.url)
				c.RateLimit = webhook.RateLimit{PerSecond: 0.01, Burst: 1}
				c.Batch.MaxMessages = batch
			})
			requireDelivered(t, deliver(t, sink, message("1")))
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			results := 0
			sink.Deliver(ctx, []relay.Message{message("2"), message("3"), message("4")}, func(_ int, r relay.Result) {
				results++
				requireFailure(t, relay.Retry, "stopped", r)
				require.ErrorIs(t, r.Err, relay.ErrSinkDown)
				require.Error(t, ctx.Err(), "it had its time")
			})
			require.Equal(t, 3, results)
			require.Equal(t, 1, far.count())
		})
	}
}
