package relaytest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/relay"
)

// Patience bounds what has to happen in a test of a sink and takes no set time.
const Patience = 30 * time.Second

// Running is an endpoint that runs until its test ends, or End is called, with a sink that
// is bound without overrides.
type Running struct {
	t        testing.TB
	Endpoint relay.Endpoint
	Sink     relay.Sink
	Log      *observer.ObservedLogs
	End      func()
}

// Run opens an endpoint and runs it.
func Run(tb testing.TB, open func(deps relay.SinkDeps) (relay.Endpoint, error)) *Running {
	tb.Helper()
	core, log := observer.New(zapcore.DebugLevel)
	endpoint, err := open(relay.SinkDeps{Name: "events", Instance: "mnsrelay/test (here)", Log: zap.New(core)})
	require.NoError(tb, err)
	sink, err := endpoint.Bind(nil)
	require.NoError(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- endpoint.Run(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		timeout := time.NewTimer(Patience)
		defer timeout.Stop()
		select {
		case err := <-ended:
			require.NoError(tb, err)
		case <-timeout.C:
			require.FailNow(tb, "Run did not end")
		}
	})
	tb.Cleanup(end)
	return &Running{t: tb, Endpoint: endpoint, Sink: sink, Log: log, End: end}
}

// Await waits for a state and gives its health.
func (r *Running) Await(state relay.State) relay.Health {
	r.t.Helper()
	return r.AwaitReason(state, "")
}

// AwaitReason waits for a state whose reason holds the text.
func (r *Running) AwaitReason(state relay.State, text string) relay.Health {
	r.t.Helper()
	timeout := time.NewTimer(Patience)
	defer timeout.Stop()
	for {
		health, changed := r.Endpoint.Health()
		if health.State == state && strings.Contains(health.Reason, text) {
			return health
		}
		select {
		case <-changed:
		case <-timeout.C:
			require.FailNow(r.t, "wrong health", "want %v %q, have %v: %s", state, text, health.State, health.Reason)
		}
	}
}

// Logged is everything that was logged, as text.
func (r *Running) Logged() string {
	var b strings.Builder
	for _, entry := range r.Log.All() {
		fmt.Fprintf(&b, "%s %v\n", entry.Message, entry.ContextMap())
	}
	return b.String()
}

// Deliver gives the results of messages, one for each.
func Deliver(ctx context.Context, t *testing.T, sink relay.Sink, ms []relay.Message) []relay.Result {
	t.Helper()
	var mu sync.Mutex
	results := make([]relay.Result, len(ms))
	calls := 0
	sink.Deliver(ctx, ms, func(i int, r relay.Result) {
		mu.Lock()
		defer mu.Unlock()
		results[i] = r
		calls++
	})
	mu.Lock()
	defer mu.Unlock()
	if calls != len(ms) {
		t.Errorf("done was called %d times for %d messages", calls, len(ms))
	}
	return results
}

// Messages makes n messages of a size, with ids that begin with prefix.
func Messages(prefix string, n, size int) []relay.Message {
	body := []byte(strings.Repeat("x", size))
	ms := make([]relay.Message, n)
	for i := range ms {
		ms[i] = relay.Message{
			ID:         fmt.Sprintf("%s-%d", prefix, i),
			Source:     "sms",
			Body:       body,
			EnqueuedAt: time.Date(2026, time.March, 1, 9, 30, 0, 45e6, time.UTC),
			Attempt:    1,
		}
	}
	return ms
}

// RequireReason checks that a message is to be tried again, for the named reason.
func RequireReason(t *testing.T, reason string, r relay.Result) {
	t.Helper()
	require.Equal(t, relay.Retry, r.Outcome, "error: %v", r.Err)
	require.Equal(t, reason, relay.ReasonOf(r.Err), "error: %v", r.Err)
}

// RequireDelivered checks that every message was delivered.
func RequireDelivered(t *testing.T, results []relay.Result) {
	t.Helper()
	for i, r := range results {
		require.NoError(t, r.Err, "message %d", i)
		require.Equal(t, relay.Delivered, r.Outcome, "message %d", i)
	}
}
