package e2e_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// A secret is replaced in its file and the relay reloaded, under load, and the receiver
// takes the new one only from then on: no message is lost, and what was refused meanwhile
// is sent again.
func TestASecretThatIsReplacedUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	const messages, secrets = 3000, 4
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	var valid atomic.Pointer[string]
	change := func(secret string) { valid.Store(&secret) }
	change("Bearer first-secret-of-the-receiver")
	var refused, twice atomic.Int64
	var taken sync.Map
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if req.Header.Get("authorization") != *valid.Load() {
			refused.Add(1)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if _, again := taken.LoadOrStore(req.Header.Get("webhook-id"), true); again {
			twice.Add(1)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer hook.Close()
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("first-secret-of-the-receiver\n"), 0o600))
	configuration := strings.Replace(toWebhook(url, queue, hook.URL, "    redelivery: {initial: 1s, max: 2s}"),
		"timeout: 2s", fmt.Sprintf(`timeout: 2s, retry: {max_attempts: 1}, headers: {authorization: "Bearer ${file:%s}"}`, secret), 1)
	file := newConfigFile(t, configuration)
	r := runRelay(t, file.path)
	var sent map[string]string
	var sending sync.WaitGroup
	sending.Go(func() { sent = send(t, server, queue, messages, 500) })
	for n := range secrets {
		deleted := r.source().Balance.Deleted
		eventually(t, 30*time.Second, "messages flow", func() bool { return r.source().Balance.Deleted > deleted+200 })
		next := fmt.Sprintf("secret-number-%d", n)
		change("Bearer " + next)
		before := refused.Load()
		eventually(t, 10*time.Second, "the receiver refuses the old one", func() bool { return refused.Load() > before })
		require.NoError(t, os.WriteFile(secret+".next", []byte(next+"\n"), 0o600))
		require.NoError(t, os.Rename(secret+".next", secret))
		require.NoError(t, r.Signal(syscall.SIGHUP))
		eventually(t, 10*time.Second, "reloaded", func() bool { return r.status().Configuration.Generation == n+2 })
	}
	sending.Wait()
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	arrived := 0
	taken.Range(func(any, any) bool { arrived++; return true })
	require.Equal(t, len(sent), arrived)
	require.Zero(t, twice.Load())
	require.True(t, r.source().Balance.Exact)
	for n := range secrets {
		require.NotContains(t, r.log(), fmt.Sprintf("secret-number-%d", n))
	}
	require.Zero(t, r.end(syscall.SIGTERM))
}

// What the queue would do on its own is said at once, in the log and in the status, with
// both numbers and what to do.
func TestTheQueuesOwnDeadLetterPolicyIsSaid(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{DeadLetterQueue: "theirs", MaxReceives: 5})
	r := startRelay(t, fmt.Sprintf(`
sources:
  sms: {queue: %s, endpoint: %s, credentials: {endpoint: %s}, to: lines, dead_letter: dead, max_receives: 7}
sinks:
  lines: {type: file, path: %s/lines}
  dead: {type: file, path: %[4]s/dead}
`, queue, url, url, t.TempDir()))
	const said = "moves a message to theirs after 5 receives, the relay gives it up after 7: raise the queue's MaxReceiveCount"
	eventually(t, 10*time.Second, "said in the status", func() bool {
		s := r.source()
		return s.State == "running" && strings.Contains(s.Reason, said)
	})
	require.Equal(t, 1, strings.Count(r.log(), "dead-letter policy comes before"))
	_, metrics := r.get("/metrics")
	require.Contains(t, metrics, "\nmnsrelay_queue_retention_seconds{source=\"sms\"} ")
	require.Contains(t, metrics, "\nmnsrelay_sink_required{sink=\"dead\"} 0\n", "its dead letters hold up no delete but their own")
	require.Contains(t, r.log(), `"queue_max_receives":5`)
	require.Contains(t, r.log(), `"max_receives":7`)
	send(t, server, queue, 1, 0)
	eventually(t, 10*time.Second, "it relays all the same", func() bool { return left(t, server, queue) == 0 })
	require.Zero(t, r.end(syscall.SIGTERM))
}

// Labels come from the configuration: ten thousand messages of whatever content, that match
// and do not, that are delivered and refused, add no series.
func TestMessagesAddNoSeries(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	folder := t.TempDir()
	r := startRelay(t, fmt.Sprintf(`
sources:
  sms: {queue: %s, endpoint: %s, wait: 1s, unmatched: dead_letter, dead_letter: dead, dead_letter_limit: {count: 100000}, credentials: {type: mns_token, endpoint: %[2]s}}
sinks:
  out: {type: file, path: %q}
  dead: {type: file, path: %q}
routes:
  - {name: odd, from: [sms], when: 'body.n %% 2 == 1', to: [out]}
`, queue, url, filepath.Join(folder, "out-{{ body.day }}.jsonl"), filepath.Join(folder, "dead.jsonl")))
	series := func() []string {
		_, text := r.get("/metrics")
		var all []string
		for line := range strings.Lines(text) {
			name, _, found := strings.Cut(line, "} ")
			// What the queue tells of itself comes and goes with the telling.
			if found && !strings.HasPrefix(name, "mnsrelay_queue_") && !strings.Contains(name, `op="attributes"`) {
				all = append(all, name)
			}
		}
		slices.Sort(all)
		return all
	}
	n := 0
	sendSome := func(count int) {
		var messages []emulator.Message
		for range count {
			n++
			hostile := fmt.Sprintf("%q", fmt.Sprintf("x\"} 1\nmnsrelay_up{a=\"%d", n))
			body := fmt.Sprintf(`{"n": %d, "day": "2026-01-%02d", "tag": %s, %s: 1}`, n, n%28+1, hostile, hostile)
			if n%10 == 0 {
				body = hostile // no object: the condition fails
			}
			messages = append(messages, emulator.Message{Body: []byte(base64.StdEncoding.EncodeToString([]byte(body)))})
		}
		_, err := server.SendAll(queue, messages)
		require.NoError(t, err)
		eventually(t, time.Minute, "all are deleted", func() bool { return left(t, server, queue) == 0 })
	}
	sendSome(100)
	before := series()
	sendSome(10_000)
	require.Equal(t, before, series())
	require.EqualValues(t, 10_100, r.source().Balance.Received)
	require.True(t, r.source().Balance.Exact)
	require.Zero(t, r.end(syscall.SIGTERM))
}
