package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
)

// MNS bills requests: a backlog is fetched and deleted in full batches. Not parallel, since
// it measures.
func TestRequestsAtBacklog(t *testing.T) {
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	b := newInbox(t, broker.URL(t))
	sent := send(t, server, queue, 20_000, 0)
	r := startRelay(t, toRabbitMQ(url, queue, b, ""))
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	perMessage := float64(requests(server)) / float64(len(sent))
	t.Logf("%.4f requests a message", perMessage)
	require.LessOrEqual(t, perMessage, 0.13)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A minute, so that it is among the first of those that run beside each other.
func TestRequestsAtRest(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	hook := httptest.NewServer(http.NotFoundHandler())
	defer hook.Close()
	r := startRelay(t, toWebhook(url, queue, hook.URL, "    wait: 30s"))
	eventually(t, 10*time.Second, "ready", func() bool { code, _ := r.get("/readyz"); return code == http.StatusOK })
	<-time.After(3 * time.Second) // the start: a first receive, the attributes
	before := requests(server)
	<-time.After(time.Minute)
	require.LessOrEqual(t, requests(server)-before, int64(2), "2.2 a minute, the attributes every five minutes included")
	begun := time.Now()
	require.Zero(t, r.end(syscall.SIGTERM))
	require.Less(t, time.Since(begun), 2*time.Second, "the waiting poll is cut")
}
