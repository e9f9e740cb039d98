package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
)

// The main job at length: tokens that live three seconds, twenty seconds of traffic, a
// real broker. Every message arrives, once, and its queue is empty afterwards. Not parallel:
// a token lasts no longer on a busy machine.
func TestTwentyThousandMessagesOverManyTokens(t *testing.T) {
	server, url, queue := startEmulator(t, emulator.Config{TokenLife: 3 * time.Second}, emulator.QueueConfig{})
	b := newInbox(t, broker.URL(t))
	b.start()
	r := startRelay(t, toRabbitMQ(url, queue, b, ""))
	sent := send(t, server, queue, 20_000, 1000)
	eventually(t, 30*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	_, duplicates := b.counts()
	require.Zero(t, duplicates)

	source := r.source()
	require.EqualValues(t, 20_000, source.Balance.Received)
	require.EqualValues(t, 20_000, source.Balance.Deleted)
	require.True(t, source.Balance.Exact)
	require.Empty(t, source.Returned)
	tokens := server.Requests()[emulator.OpToken]["OK"]
	require.GreaterOrEqual(t, tokens, int64(6), "20 s of tokens that live 3 s")
	for op, codes := range server.Requests() {
		for code, n := range codes {
			if code != "OK" && code != "MessageNotExist" {
				t.Errorf("%d requests of %s were answered %s", n, op, code)
			}
		}
	}
	require.Zero(t, r.end(syscall.SIGTERM))
}

// Nothing that the broker has not confirmed is ever deleted, so a kill at any moment
// costs duplicates and no message.
func TestKilledInTheMiddleNothingIsLost(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 5 * time.Second})
	b := newInbox(t, broker.URL(t))
	b.start()
	configuration := toRabbitMQ(url, queue, b, "")
	r := startRelay(t, configuration)
	var sent map[string]string
	var sending sync.WaitGroup
	sending.Go(func() { sent = send(t, server, queue, 5000, 2500) })
	killed := 0
	for range 3 {
		deleted := 5000 - 1000*(3-killed)
		eventually(t, 20*time.Second, "some are delivered", func() bool {
			stats, _ := server.QueueStats(queue)
			return stats.Deleted > int64(deleted)+rand.Int64N(500)
		})
		require.Equal(t, -1, r.end(syscall.SIGKILL))
		killed++
		r = startRelay(t, configuration)
	}
	sending.Wait()
	eventually(t, 40*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	_, duplicates := b.counts()
	require.LessOrEqual(t, duplicates, 3*512, "at most what was in flight at each kill")
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A broker that is away for ten seconds costs nothing: what is in flight is held, and
// nothing further is received. Not parallel, since it measures.
func TestABrokerThatIsAwayForTenSeconds(t *testing.T) {
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	private := nodes.Private(t)
	b := newInbox(t, private.URL())
	r := startRelay(t, toRabbitMQ(url, queue, b, "    in_flight: {messages: 64}"))
	var sent map[string]string
	var sending sync.WaitGroup
	sending.Go(func() { sent = send(t, server, queue, 8000, 500) })
	eventually(t, 20*time.Second, "messages flow", func() bool { return r.source().Balance.Deleted > 500 })

	require.NoError(t, private.Stop(t.Context()))
	stopped := time.Now()
	eventually(t, time.Second, "the source waits", func() bool { return r.source().State == "waiting" })
	require.Contains(t, r.source().Reason, "sink events is down")
	before := r.source().Balance.Received
	// In flight when the broker went away: at most the room.
	require.LessOrEqual(t, r.source().Balance.InFlight, uint64(64))
	for time.Since(stopped) < 10*time.Second {
		require.Equal(t, before, r.source().Balance.Received, "nothing is received meanwhile")
		code, _ := r.get("/livez")
		require.Equal(t, http.StatusOK, code)
		code, _ = r.get("/readyz")
		require.Equal(t, http.StatusOK, code, "ready is about the past")
		<-time.After(500 * time.Millisecond)
	}
	require.NoError(t, private.Start(t.Context()))
	started := time.Now()
	eventually(t, time.Second, "messages flow again", func() bool { return r.source().Balance.Received > before })
	t.Logf("flowing %v after the broker accepted connections", time.Since(started).Round(10*time.Millisecond))

	sending.Wait()
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	b.start()
	eventually(t, 20*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	_, duplicates := b.counts()
	require.LessOrEqual(t, duplicates, 64, "at most what was in flight")
	require.True(t, r.source().Balance.Exact)
	require.Zero(t, r.end(syscall.SIGTERM))
}

func toWebhook(endpoint, queue, hook, more string) string {
	return fmt.Sprintf(`
sources:
  sms:
    queue: %s
    endpoint: %s
    credentials: {endpoint: %s}
    to: hook
%s
sinks:
  hook: {type: webhook, url: %s, network: {allow: [127.0.0.0/8]}, timeout: 2s}
`, queue, endpoint, endpoint, more, hook)
}

// The process runs without its broker: alive, not ready, receiving nothing.
func TestABrokerThatIsNotThereAtTheStart(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	private := nodes.Private(t)
	b := newInbox(t, private.URL())
	require.NoError(t, private.Stop(t.Context()))
	sent := send(t, server, queue, 100, 0)
	r := startRelay(t, toRabbitMQ(url, queue, b, ""))
	<-time.After(2 * time.Second)
	code, _ := r.get("/livez")
	require.Equal(t, http.StatusOK, code)
	code, body := r.get("/readyz")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Contains(t, body, "sink events has not worked yet")
	require.Zero(t, server.Requests()[emulator.OpReceive]["OK"])
	require.Equal(t, 100, left(t, server, queue))
	require.NoError(t, private.Start(t.Context()))
	eventually(t, 20*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	code, _ = r.get("/readyz")
	require.Equal(t, http.StatusOK, code)
	b.start()
	eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// What only an operator can mend is tried again with growing pauses, said once, and
// mends itself when the cause is gone.
func TestWhatIsWrongAtTheQueue(t *testing.T) {
	t.Parallel()
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }))
	t.Cleanup(hook.Close)
	t.Run("no such queue", func(t *testing.T) {
		t.Parallel()
		server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
		require.True(t, server.DeleteQueue(queue))
		r := startRelay(t, toWebhook(url, queue, hook.URL, ""))
		<-time.After(4 * time.Second)
		code, body := r.get("/readyz")
		require.Equal(t, http.StatusServiceUnavailable, code)
		require.Contains(t, body, "QueueNotExist")
		require.Equal(t, 1, strings.Count(r.log(), "receive failed"), r.log())
		require.LessOrEqual(t, server.Requests()[emulator.OpReceive]["QueueNotExist"], int64(6))
		require.NoError(t, server.CreateQueue(queue, emulator.QueueConfig{}))
		eventually(t, 20*time.Second, "ready", func() bool { code, _ := r.get("/readyz"); return code == http.StatusOK })
		require.Zero(t, r.end(syscall.SIGTERM))
	})
	t.Run("wrong keys", func(t *testing.T) {
		t.Parallel()
		_, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
		configuration := strings.Replace(toWebhook(url, queue, hook.URL, ""), "credentials: {",
			"credentials: {access_key_id: LTAI-wrong, access_key_secret: not-the-secret, ", 1)
		r := startRelay(t, configuration)
		<-time.After(4 * time.Second)
		code, body := r.get("/readyz")
		require.Equal(t, http.StatusServiceUnavailable, code)
		require.Contains(t, body, "InvalidAccessKeyId")
		require.Equal(t, "mns_token", r.source().Credential.Type)
		require.LessOrEqual(t, strings.Count(r.log(), "\n"), 6, r.log())
		require.NotContains(t, r.log(), "not-the-secret")
		require.Zero(t, r.end(syscall.SIGTERM))
	})
}

// hangingHook is a webhook that answers 204 once release is closed; asked counts the
// requests it got.
func hangingHook(t *testing.T) (url string, asked *atomic.Int64, release chan struct{}) {
	t.Helper()
	asked, release = new(atomic.Int64), make(chan struct{})
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		// Only a server that has read the whole request notices that its client is gone.
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		asked.Add(1)
		select {
		case <-release:
			w.WriteHeader(http.StatusNoContent)
		case <-req.Context().Done():
		}
	}))
	t.Cleanup(hook.Close)
	return hook.URL, asked, release
}

// A drain finishes what is in flight.
func TestDrain(t *testing.T) {
	t.Parallel()
	hook, asked, release := hangingHook(t)
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	send(t, server, queue, 5, 0)
	r := startRelay(t, strings.Replace(toWebhook(url, queue, hook, ""), "timeout: 2s", "timeout: 30s", 1))
	eventually(t, 10*time.Second, "all are in flight", func() bool { return asked.Load() == 5 })
	time.AfterFunc(time.Second, func() { close(release) })
	require.Zero(t, r.end(syscall.SIGTERM))
	require.Zero(t, left(t, server, queue))
}

// A second signal cuts the drain, and what was not confirmed stays in the queue.
func TestDrainCutShort(t *testing.T) {
	t.Parallel()
	hook, asked, _ := hangingHook(t)
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	send(t, server, queue, 5, 0)
	r := startRelay(t, strings.Replace(toWebhook(url, queue, hook, ""), "timeout: 2s", "timeout: 30s", 1))
	eventually(t, 10*time.Second, "all are in flight", func() bool { return asked.Load() == 5 })
	require.NoError(t, r.Signal(syscall.SIGTERM))
	eventually(t, 5*time.Second, "draining", func() bool { return strings.Contains(r.log(), "draining") })
	code, _ := r.get("/readyz")
	require.Equal(t, http.StatusServiceUnavailable, code)
	require.Equal(t, 1, r.end(syscall.SIGTERM))
	require.Equal(t, 5, left(t, server, queue))
	require.Contains(t, r.log(), "drain cut short")
}

// Several sources and sinks in one process; what is odd in a body arrives as it was.
func TestEveryBodyArrivesByteForByteInEverySink(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	require.NoError(t, server.CreateQueue("plain", emulator.QueueConfig{}))
	b := newInbox(t, broker.URL(t))
	b.start()
	lines := filepath.Join(t.TempDir(), "messages.jsonl")
	r := startRelay(t, fmt.Sprintf(`
sources:
  sms:
    queue: %s
    endpoint: %s
    credentials: {endpoint: %s}
    body: base64
    to: [events, lines]
  plain:
    queue: plain
    endpoint: %s
    credentials: {type: static, access_key_id: %s, access_key_secret: "${ALIBABA_CLOUD_ACCESS_KEY_SECRET}"}
    body: raw
    to: [lines, events]
sinks:
  events: {type: amqp091, url: %q, exchange: %s, routing_key: x}
  lines: {type: file, path: %s}
`, queue, url, url, url, keyID, b.url, b.exchange, lines))
	binaryBody := make([]byte, 48<<10)
	for i := range binaryBody {
		binaryBody[i] = byte(rand.IntN(256))
	}
	sent := make(map[string]string)
	for _, body := range []string{string(binaryBody), "a <b> & \"c\" ]]> &amp;", "{\"x\":1}", "\u4e2d\u6587", ""} {
		id, err := server.SendBase64(queue, []byte(body))
		require.NoError(t, err)
		sent[id] = body
	}
	for _, body := range []string{"<![CDATA[x]]> & &#65; \t\n", strings.Repeat("y", 64<<10), "aGVsbG8="} {
		id, err := server.Send("plain", []byte(body))
		require.NoError(t, err)
		sent[id] = body
	}
	eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	eventually(t, 5*time.Second, "every message is deleted", func() bool {
		return left(t, server, queue) == 0 && left(t, server, "plain") == 0
	})
	require.Zero(t, r.end(syscall.SIGTERM))
	written, err := os.ReadFile(lines)
	require.NoError(t, err)
	records := strings.Split(strings.TrimSuffix(string(written), "\n"), "\n")
	require.Len(t, records, len(sent))
	for _, text := range records {
		var line struct {
			ID         string `json:"id"`
			Body       string `json:"body"`
			BodyBase64 []byte `json:"body_base64"`
		}
		require.NoError(t, json.Unmarshal([]byte(text), &line))
		require.Equal(t, sent[line.ID], line.Body+string(line.BodyBase64))
	}
}
