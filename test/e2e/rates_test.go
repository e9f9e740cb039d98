package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
)

// The same messages have the same rate at their source, route and sink, from the first
// second on, and the route that takes none has none.
func TestRatesAgreeFromTheStart(t *testing.T) {
	t.Parallel()
	const messages = 300
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	sent := send(t, server, queue, messages, 0)
	r := startRelay(t, fmt.Sprintf(`
sources:
  sms: {queue: %s, endpoint: %s, wait: 1s, credentials: {endpoint: %[2]s}}
sinks:
  lines: {type: file, path: %[3]s/lines}
  others: {type: file, path: %[3]s/others}
routes:
  - {name: all, from: [sms], to: [lines]}
  - {name: some, from: [sms], when: 'body.success == false', to: [others]}
`, queue, url, t.TempDir()))
	eventually(t, 10*time.Second, "everything is delivered", func() bool { return left(t, server, queue) == 0 })
	status := r.status()
	rate := status.Sources[0].ReceivedPerSecond
	require.Positive(t, rate)
	target := status.Routes[0].To[0]
	require.Equal(t, uint64(len(sent)), target.Delivered)
	// All three began at the start of the process, one a little after the other.
	require.InEpsilon(t, rate, status.Sinks[0].DeliveredPerSecond, 0.1)
	require.InEpsilon(t, rate, target.DeliveredPerSecond, 0.1)
	require.Equal(t, status.Sinks[0].Latency, target.Latency)
	require.NotNil(t, target.Latency)
	require.Zero(t, status.Routes[1].To[0].DeliveredPerSecond)
	require.Nil(t, status.Routes[1].To[0].Latency)

	var history api.History
	eventually(t, 15*time.Second, "there is a point of the history", func() bool {
		code, body := r.get("/api/v1/history")
		require.Equal(t, http.StatusOK, code)
		require.NoError(t, json.Unmarshal([]byte(body), &history))
		return len(history.Sinks["lines"]) > 0
	})
	require.InEpsilon(t, history.Sources["sms"][0], history.Routes["all"]["lines"][0], 0.1)
	require.InEpsilon(t, history.Sinks["lines"][0], history.Routes["all"]["lines"][0], 0.1)
	require.Equal(t, api.Points{0}, history.Routes["some"]["others"][:1], "a target that has delivered nothing has its points too")
	require.Zero(t, r.end(syscall.SIGTERM))
}
