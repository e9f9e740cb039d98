package webhook_test

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// awaitState waits for a state and gives its reason.
func awaitState(t *testing.T, endpoint relay.Endpoint, state relay.State) string {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		health, changed := endpoint.Health()
		if health.State == state {
			return health.Reason
		}
		select {
		case <-changed:
		case <-deadline:
			require.Failf(t, "wrong health", "%v: %s", health.State, health.Reason)
		}
	}
}

// An endpoint that fails is left alone but for one message now and then, whatever it is
// that it answers, until it takes one.
func TestOutage(t *testing.T) {
	for _, c := range []struct {
		status int
		reason string
	}{
		{500, "status 5xx"}, {429, "status 429"}, {401, "status 401"}, {403, "status 403"}, {404, "status 404"},
	} {
		t.Run(http.StatusText(c.status), func(t *testing.T) {
			var status atomic.Int64
			far := start(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })
			endpoint := open(t, func(config *webhook.Config) { config.URL = setting.NewURL(far.url) })
			run(t, endpoint)
			sink, other := bind(t, endpoint), bind(t, endpoint)
			require.Empty(t, awaitState(t, endpoint, relay.Up))

			status.Store(int64(c.status))
			deliver(t, sink, make([]relay.Message, 4)...)
			awaitState(t, endpoint, relay.Up)
			deliver(t, other, message("of another route"))
			health, _ := endpoint.Health()
			require.Equal(t, relay.Down, health.State)
			require.Contains(t, health.Reason, c.reason)
			sent := far.count()
			for _, result := range deliver(t, sink, make([]relay.Message, 16)...) {
				requireFailure(t, relay.Retry, "circuit_open", result)
			}
			require.Equal(t, sent, far.count())

			awaitState(t, endpoint, relay.Probe)
			deliver(t, sink, make([]relay.Message, 16)...)
			require.Equal(t, sent+1, far.count(), "one message finds out")
			awaitState(t, endpoint, relay.Down)

			status.Store(http.StatusOK)
			awaitState(t, endpoint, relay.Probe)
			require.Equal(t, relay.Delivered, deliver(t, other, message("2"))[0].Outcome)
			awaitState(t, endpoint, relay.Up)
			for _, result := range deliver(t, sink, make([]relay.Message, 16)...) {
				require.Equal(t, relay.Delivered, result.Outcome)
			}
		})
	}
}

// A batch does not go on for long against an endpoint that has failed meanwhile.
func TestOutageEndsABatch(t *testing.T) {
	far := start(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Concurrency = 1
	})
	run(t, endpoint)
	results := deliver(t, bind(t, endpoint), make([]relay.Message, 16)...)
	require.Equal(t, 5, far.count())
	requireFailure(t, relay.Retry, "status_5xx", results[4])
	requireFailure(t, relay.Retry, "circuit_open", results[5])
}

// What a message brought upon itself is no outage.
func TestRejectionIsNoOutage(t *testing.T) {
	far := start(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) })
	endpoint := open(t, func(c *webhook.Config) { c.URL = setting.NewURL(far.url) })
	run(t, endpoint)
	for _, result := range deliver(t, bind(t, endpoint), make([]relay.Message, 32)...) {
		requireFailure(t, relay.Rejected, "status_4xx", result)
	}
	health, _ := endpoint.Health()
	require.Equal(t, relay.Up, health.State)
}
