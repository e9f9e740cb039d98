package e2e_test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
	"mnsrelay/test/collector"
	"mnsrelay/test/rig"
)

// arrivals are the trace contexts that came to far sides, by message.
type arrivals struct {
	mu       sync.Mutex
	contexts map[string][2]string // traceparent and tracestate, of the last try
}

func (a *arrivals) add(id, parent, state string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.contexts == nil {
		a.contexts = make(map[string][2]string)
	}
	a.contexts[id] = [2]string{parent, state}
}

func (a *arrivals) all() map[string][2]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.contexts)
}

// traceHook is a webhook that refuses each message once where asked to, and notes what arrives.
func traceHook(t *testing.T, failFirst bool) (url string, a *arrivals) {
	t.Helper()
	a = &arrivals{}
	var seen sync.Map
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		id := r.Header.Get("Webhook-Id")
		a.add(id, r.Header.Get("Traceparent"), r.Header.Get("Tracestate"))
		if _, again := seen.LoadOrStore(id, true); failFirst && !again {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(hook.Close)
	return hook.URL, a
}

// readTraces takes n messages out of the inbox's queue.
func readTraces(t *testing.T, b *inbox, n int) *arrivals {
	t.Helper()
	a := &arrivals{}
	b.with(func(ch *amqp.Channel) {
		for range n {
			d, ok, err := ch.Get(b.exchange, true)
			require.NoError(t, err)
			require.True(t, ok)
			parent, _ := d.Headers["traceparent"].(string)
			state, _ := d.Headers["tracestate"].(string)
			a.add(d.MessageId, parent, state)
		}
	})
	return a
}

func toBoth(endpoint, queue string, b *inbox, hook, more string) string {
	return more + fmt.Sprintf(`
sources:
  sms:
    queue: %s
    endpoint: %s
    credentials: {endpoint: %s}
    to: [events, hook]
sinks:
  events: {type: amqp091, url: %q, exchange: %s, routing_key: sms}
  hook: {type: webhook, url: %s, network: {allow: [127.0.0.0/8]}, retry: {initial: 1ms, max: 10ms}, headers: {authorization: Bearer %s}}
`, queue, endpoint, endpoint, b.url, b.exchange, hook, hookSecret)
}

const (
	hookSecret      = "secret-of-the-receiver-0123"
	collectorSecret = "secret-of-the-collector-0123"
)

// openMetrics scrapes as a Prometheus does that stores exemplars.
func openMetrics(t *testing.T, r *relay) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.URL()+"/metrics", http.NoBody)
	require.NoError(t, err)
	request.Header.Set("Accept", "application/openmetrics-text; version=1.0.0")
	response, err := new(http.Client).Do(request)
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	require.Contains(t, response.Header.Get("Content-Type"), "application/openmetrics-text")
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return string(text)
}

var exemplar = regexp.MustCompile(`(?m)^(mnsrelay_\w+)_bucket\{.* # \{trace_id="([0-9a-f]{32})"\}`)

// A message is followed from its sender through the relay to each receiver: one span for each
// batch, one for each delivery, and what the receiver gets is the context of the latter.
func TestTraces(t *testing.T) {
	t.Parallel()
	rig.Secret(hookSecret, collectorSecret)
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	c := collector.Start(t)
	b := newInbox(t, broker.URL(t))
	hook, hooked := traceHook(t, true)
	sent := make(map[string]string) // message id: traceparent
	const parent = "00-%032x-00f067aa0ba902b7-%s"
	var messages []emulator.Message
	for n := 1; n <= 24; n++ {
		m := emulator.Message{Body: fmt.Appendf(nil, `{"phone_number":"13900001234","n":%d}`, n)}
		switch n % 3 {
		case 0:
			m.SystemProperties = map[string]string{"traceparent": fmt.Sprintf(parent, n, "01"), "tracestate": "vendor=a b%c"}
		case 1:
			m.UserProperties = map[string]string{"traceparent": fmt.Sprintf(parent, n, "00")}
		}
		messages = append(messages, m)
	}
	ids, err := server.SendAll(queue, messages)
	require.NoError(t, err)
	for i, id := range ids {
		sent[id] = messages[i].SystemProperties["traceparent"] + messages[i].UserProperties["traceparent"]
	}
	r := startRelay(t, toBoth(url, queue, b, hook, fmt.Sprintf("tracing: {otlp_endpoint: %s, headers: {authorization: Bearer %s}}", c.URL, collectorSecret)))
	eventually(t, 30*time.Second, "all is delivered", func() bool { return left(t, server, queue) == 0 })
	exemplars := exemplar.FindAllStringSubmatch(openMetrics(t, r), -1)
	require.Zero(t, r.end(syscall.SIGTERM))

	spans := make(map[string]collector.Span) // by id
	batches, sends := 0, map[string]map[string]collector.Span{"events": {}, "hook": {}}
	for _, s := range c.Spans() {
		spans[s.ID] = s
		switch s.Kind.String() {
		case "SPAN_KIND_CONSUMER":
			batches++
			require.Equal(t, "process "+queue, s.Name)
			require.Equal(t, "settled", s.Events[0].Name)
		case "SPAN_KIND_PRODUCER":
			sink := strings.TrimPrefix(s.Name, "send ")
			require.Equal(t, sink, s.Attributes["messaging.destination.name"])
			sends[sink][s.Attributes["messaging.message.id"].(string)] = s
		default:
			t.Fatalf("a span of kind %s", s.Kind)
		}
	}
	require.Positive(t, batches)
	for sink, arrived := range map[string]map[string][2]string{"events": readTraces(t, b, len(ids)).all(), "hook": hooked.all()} {
		require.Len(t, arrived, len(ids))
		for id, of := range sent {
			got, state := arrived[id][0], arrived[id][1]
			require.Len(t, got, 55, "%s of %s", got, id)
			if strings.HasSuffix(of, "-00") { // its sender does not record it
				require.NotContains(t, sends[sink], id)
				require.Equal(t, of[:36], got[:36])
				require.NotEqual(t, of, got)
				require.True(t, strings.HasSuffix(got, "-00"))
				continue
			}
			s, found := sends[sink][id]
			require.True(t, found, "%s to %s", id, sink)
			require.Equal(t, "00-"+s.TraceID+"-"+s.ID+"-01", got)
			if of == "" {
				require.Equal(t, "process "+queue, spans[s.Parent].Name)
				require.Equal(t, spans[s.Parent].TraceID, s.TraceID)
			} else {
				require.Equal(t, of[3:35], s.TraceID)
				require.Equal(t, of[36:52], s.Parent)
				require.Equal(t, "vendor=a b%c", state)
				batch := spans[s.Links[0].ID]
				require.Equal(t, "process "+queue, batch.Name)
				require.True(t, slices.ContainsFunc(batch.Links, func(l collector.Link) bool { return l.TraceID == s.TraceID && l.ID == s.Parent }))
			}
			require.Equal(t, "delivered", s.Attributes["mnsrelay.outcome"])
			if sink == "hook" {
				require.Equal(t, "retry", s.Events[0].Name, "each was refused once")
			}
		}
	}

	measured := map[string]bool{}
	for _, e := range exemplars {
		measured[e[1]] = true
		require.True(t, slices.ContainsFunc(c.Spans(), func(s collector.Span) bool { return s.TraceID == e[2] }), "there is a span of the trace of %s", e[0])
	}
	require.True(t, measured["mnsrelay_delivery_duration_seconds"])
	require.True(t, measured["mnsrelay_end_to_end_duration_seconds"])

	require.NoError(t, rig.NoSecret("what went to the collector", c.Raw()))
	require.NotContains(t, c.Raw(), "13900001234")
	known := []string{
		"messaging.system", "messaging.operation.type", "messaging.operation.name", "messaging.destination.name", "messaging.batch.message_count",
		"messaging.message.id", "mnsrelay.source", "mnsrelay.route", "mnsrelay.attempt", "mnsrelay.outcome", "error.type",
	}
	for _, s := range c.Spans() {
		for key := range s.Attributes {
			require.Contains(t, known, key)
		}
		require.Equal(t, "mnsrelay", s.Resource["service.name"])
	}
	require.Equal(t, "Bearer "+collectorSecret, c.Headers()[0].Get("Authorization"))
}

// Where nothing is traced, what a message came with goes on with it.
func TestATraceContextIsPassedOnWithoutTracing(t *testing.T) {
	t.Parallel()
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	b := newInbox(t, broker.URL(t))
	hook, hooked := traceHook(t, false)
	ids, err := server.SendAll(queue, []emulator.Message{
		{Body: []byte("with"), SystemProperties: map[string]string{"traceparent": parent, "tracestate": "a=1"}},
		{Body: []byte("without")},
		{Body: []byte("hostile"), UserProperties: map[string]string{"traceparent": parent + "\r\nx-evil: 1", "tracestate": strings.Repeat("a", 4000)}},
	})
	require.NoError(t, err)
	r := startRelay(t, toBoth(url, queue, b, hook, ""))
	eventually(t, 20*time.Second, "all is delivered", func() bool { return left(t, server, queue) == 0 })
	want := map[string][2]string{ids[0]: {parent, "a=1"}, ids[1]: {}, ids[2]: {}}
	require.Equal(t, want, hooked.all())
	require.Equal(t, want, readTraces(t, b, len(ids)).all())
	require.Empty(t, exemplar.FindAllString(openMetrics(t, r), -1))
	require.NotContains(t, openMetrics(t, r), "mnsrelay_trace_spans")
}

// Whatever is wrong with the collector, messages go their way, the log says it once, and the
// stop does not wait for long.
func TestACollectorThatFailsHoldsUpNoMessage(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]collector.Answer{
		"hangs":  {Hang: true},
		"fails":  {Status: http.StatusInternalServerError, Body: "no " + collectorSecret},
		"is bad": {Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/x-protobuf"}}, Body: "\xff\xff\xff"},
		"gone":   {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rig.Secret(hookSecret, collectorSecret)
			const messages = 3000
			server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
			c := collector.Start(t)
			c.Set(answer)
			if name == "gone" {
				c.Down()
			}
			var asked atomic.Int64
			hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				asked.Add(1)
				w.WriteHeader(http.StatusNoContent)
			}))
			defer hook.Close()
			r := startRelay(t, fmt.Sprintf("tracing: {otlp_endpoint: %s, headers: {authorization: Bearer %s}}\n", c.URL, collectorSecret)+
				toWebhook(url, queue, hook.URL, ""))
			sent := send(t, server, queue, messages, 0)
			eventually(t, 60*time.Second, "all is delivered", func() bool { return left(t, server, queue) == 0 })
			require.GreaterOrEqual(t, int(asked.Load()), len(sent))
			require.True(t, r.source().Balance.Exact)
			stopping := time.Now()
			require.Zero(t, r.end(syscall.SIGTERM))
			require.Less(t, time.Since(stopping), 15*time.Second)
			require.Equal(t, 1, strings.Count(r.log(), "the collector does not take traces"), r.log())
			require.Empty(t, c.Spans())
		})
	}
}
