// Package probes_test asks a relay that works as hard as it can whether it is ready.
package probes_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/setting"
	"mnsrelay/test/broker"
	"mnsrelay/test/process"
	"mnsrelay/test/rig"
)

const (
	// limit is what a probe may take.
	limit = 50 * time.Millisecond
	// A round is as long as the longest period of the relay's own work, its history's ten
	// seconds, and asks as often as forty kubelets would.
	round    = 12 * time.Second
	interval = 10 * time.Millisecond
	// rounds are tried until one is good.
	rounds = 8
)

// twin makes this program a bare server: what it takes to be answered by it is what this
// machine takes.
const twin = "MNSRELAY_TEST_TWIN"

func TestMain(m *testing.M) {
	if os.Getenv(twin) == "" {
		os.Exit(m.Run())
	}
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		os.Exit(1)
	}
	_, _ = fmt.Fprintln(os.Stdout, listener.Addr())
	server := http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), ReadHeaderTimeout: time.Second}
	_ = server.Serve(listener)
}

// startTwin gives the twin's URL.
func startTwin(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self) //nolint:noctx // It is ended by a signal.
	cmd.Env = append(os.Environ(), twin+"=1")
	read, write := io.Pipe()
	p, err := process.Start(cmd, write)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.End(context.Background(), syscall.SIGKILL)) })
	var address string
	_, err = fmt.Fscanln(read, &address)
	require.NoError(t, err)
	return "http://" + address + "/"
}

// A kubelet asks by a new connection each time, and waits for no longer than it is told. A
// relay that moves a backlog into a file, a webhook and a RabbitMQ as fast as it can, with
// 200 clients idle and 50 slow at its port, is ready within 50 ms every time.
//
// What else runs on the machine takes the processor away from prober and relay: with ten others
// on two cores a bare server's longest answer was measured at 55 to 275 ms. So one is asked in
// turn with the relay, and where it is kept waiting for more than half of the 50 ms, by no fault
// of anybody, the relay may take half of them more than it. Noise only ever lengthens an answer:
// one good round of some thousand probes shows what the relay can do, and what it does not do
// in eight rounds it cannot. A relay that holds probes up as part of its work does so in each.
func TestReadyWithin50msUnderFullLoad(t *testing.T) {
	relay := startLoad(t)
	bare := startTwin(t)
	var seen []string
	for range rounds {
		hold(t, strings.TrimPrefix(relay.URL(), "http://"))
		before, err := relay.Status(t.Context())
		require.NoError(t, err)
		var own, twins []time.Duration
		ticker := time.NewTicker(interval)
		for end := time.Now().Add(round); time.Now().Before(end); <-ticker.C {
			own = append(own, probe(t, relay.URL()+"/readyz"))
			twins = append(twins, probe(t, bare))
		}
		ticker.Stop()
		after, err := relay.Status(t.Context())
		require.NoError(t, err)
		moved := after.Sources[0].Balance.Deleted - before.Sources[0].Balance.Deleted
		require.Greater(t, moved, uint64(round.Seconds()*100), "it is under load")
		seen = append(seen, fmt.Sprintf("%d messages a second; %s; a bare server %s", moved/uint64(round.Seconds()), percentiles(own), percentiles(twins)))
		t.Log(seen[len(seen)-1])
		if slices.Max(own) <= max(limit, slices.Max(twins)+limit/2) {
			require.Zero(t, end(t, relay))
			return
		}
	}
	t.Fatalf("in no round was every probe answered within %v:\n%s", limit, strings.Join(seen, "\n"))
}

func percentiles(of []time.Duration) string {
	slices.Sort(of)
	at := func(part float64) time.Duration {
		return of[int(part*float64(len(of)-1))].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("%d probes: p50 %v, p99 %v, longest %v", len(of), at(.5), at(.99), at(1))
}

func probe(t *testing.T, url string) time.Duration {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	require.NoError(t, err)
	begun := time.Now()
	res, err := client.Do(req)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, res.Body)
	took := time.Since(begun)
	require.NoError(t, errors.Join(err, res.Body.Close()))
	require.Equal(t, http.StatusOK, res.StatusCode)
	return took
}

// hold opens connections that say nothing, and some that end no header.
func hold(t *testing.T, address string) {
	t.Helper()
	for i := range 250 {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		if i < 50 {
			_, err = io.WriteString(conn, "GET /api/v1/status HTTP/1.1\r\nHost: x\r\nX-Slow: ")
			require.NoError(t, err)
		}
	}
}

// startLoad runs a relay between a queue that never empties and three sinks.
func startLoad(t *testing.T) *rig.Relay {
	t.Helper()
	const keyID, keySecret = "LTAI-probes-test", "probes-secret-of-the-test"
	rig.Secret(keySecret)
	server, err := emulator.New(emulator.Config{
		AccessKeys: []emulator.AccessKey{{ID: keyID, Secret: setting.NewSecret(keySecret)}},
	})
	require.NoError(t, err)
	queue := server.AlicomQueue("SmsReport")
	require.NoError(t, server.CreateQueue(queue, emulator.QueueConfig{}))
	endpoint, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(hook.Close)
	feed(t, server, queue)

	url := broker.URL(t)
	exchange := bound(t, url)
	folder := t.TempDir()
	path := filepath.Join(folder, "mnsrelay.yaml")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `
server: {listen: 127.0.0.1:0}
sources:
  sms: {queue: %s, endpoint: %s, credentials: {endpoint: %[2]s}, pollers: {max: 8}, in_flight: {messages: 1024}, to: [lines, hook, events]}
sinks:
  lines: {type: file, path: %q}
  hook: {type: webhook, url: %s, network: {allow: [127.0.0.0/8]}, concurrency: 64}
  events: {type: amqp091, url: %q, exchange: %s, routing_key: sms.report}
`, queue, endpoint, filepath.Join(folder, "lines"), hook.URL, url, exchange), 0o600))
	binary, err := rig.Build(t.TempDir())
	require.NoError(t, err)
	starting, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	relay, err := rig.Start(starting, binary, path, "ALIBABA_CLOUD_ACCESS_KEY_ID="+keyID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET="+keySecret)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = relay.End(context.Background(), syscall.SIGKILL) })
	require.Eventually(t, func() bool {
		status, err := relay.Status(t.Context())
		return err == nil && status.State == "running" && status.Sources[0].Balance.Deleted > 1000
	}, time.Minute, 50*time.Millisecond)
	return relay
}

func end(t *testing.T, relay *rig.Relay) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code, err := relay.End(ctx, syscall.SIGTERM)
	require.NoError(t, err)
	return code
}

// feed keeps a backlog in the queue.
func feed(t *testing.T, server *emulator.Server, queue string) {
	t.Helper()
	body := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"success":true,"text":%q}`, strings.Repeat("x", 500)))
	batch := slices.Repeat([]emulator.Message{{Body: []byte(body)}}, 1000)
	ctx, stop := context.WithCancel(t.Context())
	var feeding sync.WaitGroup
	feeding.Go(func() {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			if stats, _ := server.QueueStats(queue); stats.Active < 3*len(batch) {
				if _, err := server.SendAll(queue, batch); err != nil {
					t.Errorf("feed the queue: %v", err)
					return
				}
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() {
		stop()
		feeding.Wait()
	})
}

// bound gives an exchange with a queue that keeps the last messages only.
func bound(t *testing.T, url string) string {
	t.Helper()
	const name = "probes"
	with := func(do func(ch *amqp.Channel) error) {
		conn, err := amqp.Dial(url)
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		ch, err := conn.Channel()
		require.NoError(t, err)
		require.NoError(t, do(ch))
	}
	with(func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{"x-max-length": 1000})
		return errors.Join(err, ch.ExchangeDeclare(name, amqp.ExchangeTopic, true, false, false, false, nil), ch.QueueBind(name, "#", name, false, nil))
	})
	t.Cleanup(func() {
		with(func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(name, false, false, false)
			return errors.Join(err, ch.ExchangeDelete(name, false, false))
		})
	})
	return name
}
