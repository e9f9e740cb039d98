package e2e_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
	"mnsrelay/test/redisserver"
)

// take gives what is in the queue of the inbox, by routing key, when there is as much.
func (b *inbox) take(n int) map[string][]amqp.Delivery {
	b.t.Helper()
	taken := make(map[string][]amqp.Delivery)
	b.with(func(ch *amqp.Channel) {
		for range n {
			var d amqp.Delivery
			eventually(b.t, 10*time.Second, fmt.Sprintf("%d messages, not %v", n, taken), func() (ok bool) {
				var err error
				d, ok, err = ch.Get(b.exchange, true)
				require.NoError(b.t, err)
				return ok
			})
			taken[d.RoutingKey] = append(taken[d.RoutingKey], d)
		}
		_, more, err := ch.Get(b.exchange, true)
		require.NoError(b.t, err)
		require.False(b.t, more)
	})
	return taken
}

// Several routes of a source lead to the same sink with other settings, over the one
// connection that it has.
func TestRoutesOverrideSettingsAndShareTheConnection(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	node := nodes.Borrow(t)
	b := newInbox(t, node.URL())
	r := startRelay(t, strings.Replace(toRabbitMQ(url, queue, b, "    unmatched: delete"), "    to: events\n", "", 1)+`
routes:
  - {name: failed, from: sms, when: body.success == false, to: {sink: events, with: {routing_key: "sms.failed.{{ body.err_code }}", headers: {priority: high}}}}
  - {name: fine, from: sms, when: body.success, to: {sink: events, with: {timeout: 5s}}}
  - {name: audit, from: sms, when: 'has(body.success)', to: {sink: events, with: {routing_key: sms.audit}}}
`)
	for _, body := range []string{`{"success":true}`, `{"success":false,"err_code":"MOBILE_NOT_ON_SERVICE"}`, `{"success":false,"err_code":"SP_UNKNOWN_ERROR"}`, `{"other":1,"success":true}`} {
		_, err := server.SendBase64(queue, []byte(body))
		require.NoError(t, err)
	}
	eventually(t, 20*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	connections, err := node.Ctl(ctx, "list_connections", "--no-table-headers", "pid")
	require.NoError(t, err)
	require.Len(t, strings.Fields(connections), 1, "three routes share it")
	taken := b.take(8)
	require.Len(t, taken["sms.failed.MOBILE_NOT_ON_SERVICE"], 1)
	require.Equal(t, "high", taken["sms.failed.MOBILE_NOT_ON_SERVICE"][0].Headers["priority"])
	require.Len(t, taken["sms.failed.SP_UNKNOWN_ERROR"], 1)
	require.Len(t, taken["sms.report"], 2)
	require.NotContains(t, taken["sms.report"][0].Headers, "priority")
	require.Len(t, taken["sms.audit"], 4)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// What a receiver will not take goes to the dead letters as it was received, with all
// there is to know of it; too much of it pauses the source until somebody has looked.
func TestDeadLettersTellAllAndTooManyPauseTheSource(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	var mended atomic.Bool
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		got, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if strings.Contains(string(got), "poison") && !mended.Load() {
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer hook.Close()
	b := newInbox(t, broker.URL(t))
	file := newConfigFile(t, toWebhook(url, queue, hook.URL, "    dead_letter: dead\n    dead_letter_limit: {count: 3, per: 1h}")+
		fmt.Sprintf("  dead: {type: amqp091, url: %q, exchange: %s, routing_key: dead}\n", b.url, b.exchange))
	r := runRelay(t, file.path)
	eventually(t, 10*time.Second, "the dead-letter sink is connected", func() bool {
		return !slices.ContainsFunc(r.status().Sinks, func(s api.Sink) bool { return s.State != api.SinkStateUp })
	})
	before := time.Now().Add(-time.Second).UTC()
	const poison = "{\"poison\":\"\u00e9\u4e16\"}"
	ids := make(map[string]bool)
	for n := range 10 {
		id, err := server.SendBase64(queue, []byte(poison))
		require.NoError(t, err)
		ids[id] = true
		_, err = server.SendBase64(queue, fmt.Appendf(nil, "fine %d", n))
		require.NoError(t, err)
	}
	eventually(t, 20*time.Second, "the source is paused", func() bool { return r.source().State == "paused" })
	require.Contains(t, r.source().Reason, "more than 3 dead letters in 1h0m0s, the last for status_4xx")
	eventually(t, 10*time.Second, "what is in flight ends", func() bool { return r.source().Balance.InFlight == 0 })
	for _, d := range b.take(3)["dead"] {
		require.True(t, ids[d.MessageId])
		require.Equal(t, base64.StdEncoding.EncodeToString([]byte(poison)), string(d.Body), "byte for byte as it was received")
		require.Equal(t, "status_4xx", d.Headers["x-mnsrelay-dead-reason"])
		require.Contains(t, d.Headers["x-mnsrelay-dead-error"], "422")
		require.Equal(t, "hook", d.Headers["x-mnsrelay-dead-sink"])
		require.Equal(t, "sms", d.Headers["x-mnsrelay-source"])
		require.Equal(t, "1", fmt.Sprint(d.Headers["x-mnsrelay-attempt"]))
		for _, name := range []string{"x-mnsrelay-dead-first", "x-mnsrelay-dead-last"} {
			at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(d.Headers[name]))
			require.NoError(t, err)
			require.WithinRange(t, at, before, time.Now().Add(time.Second))
		}
	}
	require.EqualValues(t, map[string]uint64{"status_4xx": 3}, r.source().DeadLettered)
	require.GreaterOrEqual(t, left(t, server, queue), 7, "the bad deploy has not drained the queue")

	mended.Store(true)
	require.Equal(t, http.StatusOK, r.post("/api/v1/sources/sms/resume"))
	eventually(t, 30*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	require.EqualValues(t, map[string]uint64{"status_4xx": 3}, r.source().DeadLettered)
	require.True(t, r.source().Balance.Exact)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A source that delivers at most once sends nothing twice, whatever fails and whoever is
// killed, and counts what it gave up.
func TestAtMostOnceSendsNothingTwice(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 2 * time.Second})
	var asked sync.Map
	var twice, refused, failing atomic.Int64
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, again := asked.LoadOrStore(req.Header.Get("webhook-id"), true); again {
			twice.Add(1)
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		if failing.Add(1)%3 == 0 { // never as often in a row as opens the circuit
			refused.Add(1)
			w.WriteHeader(http.StatusUnprocessableEntity)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer hook.Close()
	configuration := strings.Replace(toWebhook(url, queue, hook.URL, "    guarantee: at_most_once\n    in_flight: {messages: 64}"), "timeout: 2s", "timeout: 2s, retry: {max_attempts: 1}", 1)
	var sending sync.WaitGroup
	sending.Go(func() { send(t, server, queue, 2000, 1000) })
	for range 5 {
		r := startRelay(t, configuration)
		eventually(t, 20*time.Second, "messages flow", func() bool { return r.source().Balance.Deleted > 50 })
		require.Equal(t, -1, r.end(syscall.SIGKILL))
	}
	sending.Wait()
	before := refused.Load()
	r := startRelay(t, configuration)
	send(t, server, queue, 100, 0)
	eventually(t, 30*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 && r.source().Balance.InFlight == 0 })
	require.Zero(t, twice.Load())
	require.Positive(t, refused.Load()-before)
	// A request that a relay sent before it was killed may be counted late.
	require.LessOrEqual(t, r.source().GivenUp["status_4xx"], uint64(refused.Load()-before))
	require.Positive(t, r.source().GivenUp["status_4xx"])
	require.True(t, r.source().Balance.Exact)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A ledger that is gone holds up nothing: messages flow, and that it is gone is counted
// and said once.
func TestALedgerThatIsGoneHoldsUpNothing(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(*redisserver.Server){
		"killed":  (*redisserver.Server).Kill,
		"stopped": (*redisserver.Server).Pause,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
			kept := redisserver.Start(t, redisserver.Config{})
			b := newInbox(t, broker.URL(t))
			b.start()
			r := startRelay(t, toRabbitMQ(url, queue, b, "")+fmt.Sprintf("ledger: {type: redis, url: %q}\n", kept.URL()))
			sent := send(t, server, queue, 500, 0)
			eventually(t, 20*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
			failures, err := r.Metric(t.Context(), "mnsrelay_ledger_failures_total")
			require.NoError(t, err)
			require.Zero(t, failures)

			breakIt(kept)
			maps.Copy(sent, send(t, server, queue, 2000, 0))
			eventually(t, 20*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
			eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
			b.requireAll(sent)
			_, duplicates := b.counts()
			require.Zero(t, duplicates, "nothing else failed")
			failures, err = r.Metric(t.Context(), "mnsrelay_ledger_failures_total")
			require.NoError(t, err)
			require.Positive(t, failures)
			require.Equal(t, 1, strings.Count(r.log(), `"message":"the ledger fails`))
			if name == "stopped" {
				kept.Resume()
			}
			require.Zero(t, r.end(syscall.SIGTERM))
		})
	}
}
