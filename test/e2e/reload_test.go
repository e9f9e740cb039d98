package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
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

const adminToken = "e2e-admin-token-0123456789"

// post asks for a change with the admin token.
func (r *relay) post(path string) int {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL()+path, http.NoBody)
	require.NoError(r.t, err)
	request.Header.Set("Authorization", "Bearer "+adminToken)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	require.NoError(r.t, err)
	require.NoError(r.t, response.Body.Close())
	return response.StatusCode
}

// configFile is a configuration that a test changes.
type configFile struct {
	t    *testing.T
	path string
}

func (c configFile) write(text string) {
	c.t.Helper()
	text = fmt.Sprintf("server: {listen: 127.0.0.1:0, admin_token: %s}\n", adminToken) + text
	next := c.path + ".next"
	require.NoError(c.t, os.WriteFile(next, []byte(text), 0o600))
	require.NoError(c.t, os.Rename(next, c.path))
}

func newConfigFile(t *testing.T, text string) configFile {
	t.Helper()
	c := configFile{t: t, path: filepath.Join(t.TempDir(), "mnsrelay.yaml")}
	c.write(text)
	return c
}

// Reloads under load: the source that changes drains and starts again, and no message
// is lost.
func TestReloadsUnderLoadLoseNothing(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	b := newInbox(t, broker.URL(t))
	b.start()
	configuration := toRabbitMQ(url, queue, b, "")
	file := newConfigFile(t, configuration)
	r := runRelay(t, file.path)
	var sent map[string]string
	var sending sync.WaitGroup
	sending.Go(func() { sent = send(t, server, queue, 6000, 1000) })
	for n := range 4 {
		<-time.After(time.Second)
		file.write(strings.Replace(configuration, "routing_key: sms.report", fmt.Sprintf("routing_key: sms.report.%d", n), 1))
		require.NoError(t, r.Signal(syscall.SIGHUP))
		eventually(t, 10*time.Second, "reloaded", func() bool { return r.status().Configuration.Generation == n+2 })
	}
	sending.Wait()
	eventually(t, 30*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	_, duplicates := b.counts()
	require.Zero(t, duplicates, "a reload drains what it changes")
	require.EqualValues(t, 6000, r.source().Balance.Received, "counts outlive a reload")
	require.True(t, r.source().Balance.Exact)
	sink := r.status().Sinks[0]
	require.EqualValues(t, 6000, sink.Delivered, "those of a sink that was made anew, too")
	require.Positive(t, sink.DeliveredPerSecond)
	_, metrics := r.get("/metrics")
	require.Regexp(t, `(?m)^mnsrelay_batch_fill_ratio\{source="sms"\} (0\.[0-9]+|1)$`, metrics)
	require.Contains(t, metrics, "\nmnsrelay_oldest_message_age_seconds{source=\"sms\"} ")
	require.Zero(t, r.end(syscall.SIGTERM))
}

// What a reload does not change runs on untouched; what it refuses changes nothing.
func TestAReloadTouchesOnlyWhatItChanges(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	require.NoError(t, server.CreateQueue("other", emulator.QueueConfig{}))
	dir := t.TempDir()
	text := func(path string) string {
		return fmt.Sprintf(`
sources:
  sms: {queue: %s, endpoint: %s, credentials: {endpoint: %s}, to: lines, wait: 30s}
  other:
    queue: other
    endpoint: %s
    credentials: {type: static, access_key_id: %s, access_key_secret: "${ALIBABA_CLOUD_ACCESS_KEY_SECRET}"}
    to: others
sinks:
  lines: {type: file, path: %s/lines}
  others: {type: file, path: %s/%s}
`, queue, url, url, url, keyID, dir, dir, path)
	}
	file := newConfigFile(t, text("one"))
	r := runRelay(t, file.path)
	eventually(t, 10*time.Second, "ready", func() bool { code, _ := r.get("/readyz"); return code == http.StatusOK })
	eventually(t, 10*time.Second, "both poll", func() bool {
		one, _ := server.QueueStats(queue)
		two, _ := server.QueueStats("other")
		return one.Waiting == 1 && two.Waiting == 1
	})
	polls := server.Requests()[emulator.OpReceive]["MessageNotExist"]

	file.write(text("two"))
	require.Equal(t, http.StatusOK, r.post("/api/v1/reload"))
	eventually(t, 10*time.Second, "the changed source polls again", func() bool {
		two, _ := server.QueueStats("other")
		return two.Waiting == 1 && strings.Contains(r.log(), `"message":"reloaded"`)
	})
	one, _ := server.QueueStats(queue)
	require.Equal(t, 1, one.Waiting)
	require.LessOrEqual(t, server.Requests()[emulator.OpReceive]["MessageNotExist"], polls+2, "of the source that changed: the poll that was cut, the first of the new one")
	require.Contains(t, r.log(), `"stop_sources":["other"],"start_sources":["other"]`)
	_, err := server.Send("other", []byte("x"))
	require.NoError(t, err)
	eventually(t, 10*time.Second, "delivered to the new file", func() bool {
		written, _ := os.ReadFile(filepath.Join(dir, "two"))
		return len(written) > 0
	})

	before := r.status().Configuration
	for name, bad := range map[string]string{
		"a misspelt key":       strings.Replace(text("two"), "wait: 30s", "weit: 30s", 1),
		"what needs a restart": text("two") + "tracing: {otlp_endpoint: \"http://127.0.0.1:4318\"}\nledger: {ttl: 1h}\nlog: {format: console}\nreload: {watch: true}\n",
	} {
		file.write(bad)
		require.Equal(t, http.StatusUnprocessableEntity, r.post("/api/v1/reload"), name)
		now := r.status().Configuration
		require.Equal(t, before.Generation, now.Generation)
		require.Equal(t, before.Digest, now.Digest)
		require.NotNil(t, now.LastError)
	}
	require.Contains(t, r.status().Configuration.LastError.Text+r.log(), "weit")
	require.Contains(t, r.status().Configuration.LastError.Text+r.log(), "changes of ledger, tracing, log.format, reload.watch need a restart")
	_, metrics := r.get("/metrics")
	require.Contains(t, metrics, `mnsrelay_config_reloads_total{result="failure"} 2`)
	require.Contains(t, metrics, `mnsrelay_config_reloads_total{result="success"} 1`)
	require.Contains(t, metrics, "mnsrelay_config_generation 2\n")
	require.Contains(t, metrics, "mnsrelay_config_last_reload_successful 0\n", "the last one was refused")
	hash, err := strconv.ParseUint(before.Digest[:12], 16, 64)
	require.NoError(t, err)
	shown, err := r.Metric(t.Context(), "mnsrelay_config_hash")
	require.NoError(t, err)
	require.InDelta(t, float64(hash), shown, 0)
	loaded, err := r.Metric(t.Context(), "mnsrelay_config_last_reload_success_timestamp_seconds")
	require.NoError(t, err)
	require.InDelta(t, float64(before.Loaded.UnixMilli())/1000, loaded, 0.001)
	require.Equal(t, http.StatusUnprocessableEntity, r.post("/api/v1/reload"))
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A reload that comes while the one before is still draining builds on its outcome.
func TestAReloadDuringAReload(t *testing.T) {
	t.Parallel()
	hook, asked, release := hangingHook(t)
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	before := strings.Replace(toWebhook(url, queue, hook, "    wait: 5s"), "timeout: 2s", "timeout: 30s", 1)
	file := newConfigFile(t, before)
	r := runRelay(t, file.path)
	send(t, server, queue, 5, 0)
	eventually(t, 10*time.Second, "all are in flight", func() bool { return asked.Load() == 5 })

	file.write(strings.Replace(before, "wait: 5s", "wait: 6s", 1))
	require.Equal(t, http.StatusOK, r.post("/api/v1/reload"))
	file.write(before)
	require.NoError(t, r.Signal(syscall.SIGHUP))
	<-time.After(500 * time.Millisecond)
	require.NotContains(t, r.log(), `"message":"reloaded"`, "what is in flight holds the first one up")
	close(release)
	eventually(t, 10*time.Second, "reloaded twice", func() bool { return strings.Count(r.log(), `"message":"reloaded"`) == 2 })
	send(t, server, queue, 5, 0)
	eventually(t, 10*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	eventually(t, 10*time.Second, "one poll waits", func() bool {
		stats, _ := server.QueueStats(queue)
		return stats.Waiting == 1
	})
	require.Equal(t, 3, r.status().Configuration.Generation)
	require.EqualValues(t, "running", r.source().State, "what the status shows is what runs")
	require.Zero(t, r.end(syscall.SIGTERM))
}

// Kubernetes swaps a link beside the file of a mounted ConfigMap.
func TestAChangedConfigMapIsReloaded(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	out := t.TempDir()
	mount := t.TempDir()
	generation := func(name, text string) {
		dir := filepath.Join(mount, "..gen_"+name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "mnsrelay.yaml"), []byte(text), 0o600))
		link := filepath.Join(mount, "..data_tmp")
		require.NoError(t, os.Symlink("..gen_"+name, link))
		require.NoError(t, os.Rename(link, filepath.Join(mount, "..data")))
	}
	text := func(path string) string {
		return fmt.Sprintf(`
server: {listen: 127.0.0.1:0}
reload: {watch: true}
sources:
  sms: {queue: %s, endpoint: %s, credentials: {endpoint: %s}, to: lines}
sinks:
  lines: {type: file, path: %s/%s}
`, queue, url, url, out, path)
	}
	generation("1", text("one"))
	require.NoError(t, os.Symlink(filepath.Join("..data", "mnsrelay.yaml"), filepath.Join(mount, "mnsrelay.yaml")))
	r := runRelay(t, filepath.Join(mount, "mnsrelay.yaml"))
	eventually(t, 10*time.Second, "ready", func() bool { code, _ := r.get("/readyz"); return code == http.StatusOK })
	generation("2", text("two"))
	eventually(t, 10*time.Second, "reloaded", func() bool { return r.status().Configuration.Generation == 2 })
	_, err := server.SendBase64(queue, []byte("x"))
	require.NoError(t, err)
	eventually(t, 10*time.Second, "delivered to the new file", func() bool {
		written, _ := os.ReadFile(filepath.Join(out, "two"))
		return len(written) > 0
	})
	generation("3", "sources: {}")
	eventually(t, 10*time.Second, "refused", func() bool { return r.status().Configuration.LastError != nil })
	require.Equal(t, 2, r.status().Configuration.Generation)
	require.Zero(t, r.end(syscall.SIGTERM))
}

func TestAPausedSourceStaysPausedOverAReload(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	out := t.TempDir()
	text := func(path string) string {
		return fmt.Sprintf(`
sources:
  sms: {queue: %s, endpoint: %s, credentials: {endpoint: %s}, to: lines}
sinks:
  lines: {type: file, path: %s/%s}
`, queue, url, url, out, path)
	}
	file := newConfigFile(t, text("one"))
	r := runRelay(t, file.path)
	eventually(t, 10*time.Second, "ready", func() bool { code, _ := r.get("/readyz"); return code == http.StatusOK })
	require.Equal(t, http.StatusNotFound, r.post("/api/v1/sources/smz/pause"))
	require.Equal(t, http.StatusOK, r.post("/api/v1/sources/sms/pause"))
	require.Equal(t, "paused", string(r.source().State))
	// A poll that had just begun may still be answered, for a quarter of a second.
	begun := time.NewTimer(time.Second)
	<-begun.C
	_, err := server.SendBase64(queue, []byte("x"))
	require.NoError(t, err)
	file.write(text("two"))
	require.Equal(t, http.StatusOK, r.post("/api/v1/reload"))
	eventually(t, 10*time.Second, "reloaded", func() bool { return strings.Contains(r.log(), `"message":"reloaded"`) })
	<-time.After(time.Second)
	require.Equal(t, "paused", string(r.source().State))
	require.Equal(t, 1, left(t, server, queue))
	require.Equal(t, http.StatusOK, r.post("/api/v1/sources/sms/resume"))
	eventually(t, 10*time.Second, "delivered", func() bool { return left(t, server, queue) == 0 })
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A webhook that says that it is gone is asked no more, and the status says why; a reload
// of the same configuration asks it again.
func TestAReloadAsksAWebhookThatWasGone(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	var mended atomic.Bool
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		if !mended.Load() {
			w.WriteHeader(http.StatusGone)
		}
	}))
	defer hook.Close()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 5 * time.Second})
	file := newConfigFile(t, toWebhook(url, queue, hook.URL, "    redelivery: {initial: 1s, max: 1s}"))
	r := runRelay(t, file.path)
	send(t, server, queue, 3, 0)
	eventually(t, 10*time.Second, "the status says so", func() bool {
		_, text := r.get("/api/v1/status")
		return strings.Contains(text, "stopped until a reload") && strings.Contains(text, "410")
	})
	before := asked.Load()
	require.LessOrEqual(t, before, int64(3), "those that were under way")
	mended.Store(true)
	<-time.After(2 * time.Second) // longer than the redelivery
	require.Equal(t, before, asked.Load())
	require.Equal(t, http.StatusOK, r.post("/api/v1/reload"))
	eventually(t, 20*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	require.Zero(t, r.end(syscall.SIGTERM))
}
