package telemetry_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/telemetry"
	"mnsrelay/test/collector"
)

const (
	sampledParent   = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	unsampledParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
	headerSecret    = "hunter2-of-the-collector"
)

// tracing is one that runs, with what it counts and logs.
type tracing struct {
	*telemetry.Tracing
	relay.Tracer
	registry *prometheus.Registry
	logged   *observer.ObservedLogs
	stop     func()
}

func startTracing(t *testing.T, endpoint string, change func(c *telemetry.TracingConfig)) *tracing {
	t.Helper()
	u, err := url.Parse(endpoint)
	require.NoError(t, err)
	core, logged := observer.New(zap.DebugLevel)
	s := &tracing{registry: prometheus.NewRegistry(), logged: logged}
	c := telemetry.TracingConfig{
		Endpoint: u, Headers: map[string]string{"x-key": headerSecret}, SampleRatio: 1, Version: "1.2.3", Instance: "pod-0",
		TLS: func() (*tls.Config, error) { return &tls.Config{}, nil },
	}
	if change != nil {
		change(&c)
	}
	s.Tracing, err = telemetry.NewTracing(c, telemetry.TracingDeps{Registry: s.registry, Log: zap.New(core)})
	require.NoError(t, err)
	s.Tracer = s.Tracing.Tracer("sms", "queue", map[string]string{"events": "amqp091", "hook": "webhook"})
	s.Start()
	s.stop = sync.OnceFunc(func() { s.Stop(context.Background()) })
	t.Cleanup(s.stop)
	return s
}

// spans gives the count of spans with a result.
func (s *tracing) spans(t *testing.T, result string) int {
	t.Helper()
	families, err := s.registry.Gather()
	require.NoError(t, err)
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == result {
			return int(m.GetCounter().GetValue())
		}
	}
	return 0
}

// delivery makes the spans of one message that is delivered.
func (s *tracing) delivery() {
	b := s.Batch(time.Now(), []relay.Message{{ID: "1"}})
	b.Delivery(relay.TargetName{Route: "r", Sink: "events"}, &relay.Message{ID: "1"}).End(relay.Result{Outcome: relay.Delivered})
	b.End()
}

func TestSpans(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=relay-0,broken")
	t.Setenv("OTEL_SERVICE_NAME", "sms-relay")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-other=1")
	t.Setenv("OTEL_TRACES_SAMPLER", "always_off")
	c := collector.Start(t)
	s := startTracing(t, c.URL, nil)
	ms := []relay.Message{
		{ID: "1", Attempt: 1},
		{ID: "2", Attempt: 3, Trace: relay.ParseTraceContext(sampledParent, "congo=t61rcWkgMzE")},
		{ID: "3", Attempt: 1, Trace: relay.ParseTraceContext(unsampledParent, "")},
	}
	received := time.Now().Add(-time.Second)
	batch := s.Batch(received, ms)
	require.NotNil(t, ms[0].Trace)
	contexts := make([]*relay.TraceContext, len(ms))
	for i := range ms {
		d := batch.Delivery(relay.TargetName{Route: "r", Sink: "events"}, &ms[i])
		contexts[i] = d.Context()
		if i == 1 {
			d.Failed(relay.Result{Err: relay.Fail("timeout", errors.New("secret words"))})
			d.End(relay.Result{Outcome: relay.Rejected, Err: relay.Fail("refused", errors.New("secret words"))})
			continue
		}
		d.End(relay.Result{Outcome: relay.Delivered})
	}
	batch.Settled(2, 1, 0)
	batch.End()
	s.stop()

	spans := c.Spans()
	require.Len(t, spans, 3, "the third message's sender does not record its trace")
	first, second, process := spans[0], spans[1], spans[2]

	require.Equal(t, "process queue", process.Name)
	require.Equal(t, "SPAN_KIND_CONSUMER", process.Kind.String())
	require.Empty(t, process.Parent)
	require.WithinDuration(t, received, process.Start, time.Millisecond)
	require.Equal(t, map[string]any{
		"messaging.system": "smq", "messaging.operation.type": "process", "messaging.operation.name": "process",
		"messaging.destination.name": "queue", "messaging.batch.message_count": int64(3), "mnsrelay.source": "sms",
	}, process.Attributes)
	require.Equal(t, []collector.Link{
		{TraceID: ms[1].Trace.TraceID(), ID: ms[1].Trace.SpanID(), Attributes: map[string]any{"messaging.message.id": "2"}},
		{TraceID: ms[2].Trace.TraceID(), ID: ms[2].Trace.SpanID(), Attributes: map[string]any{"messaging.message.id": "3"}},
	}, process.Links)
	require.Equal(t, []collector.Event{{Name: "settled", Attributes: map[string]any{
		"mnsrelay.deleted": int64(2), "mnsrelay.returned": int64(1), "mnsrelay.lost_leases": int64(0),
	}}}, process.Events)
	for key, want := range map[string]string{"service.name": "sms-relay", "service.version": "1.2.3", "service.instance.id": "pod-0"} {
		require.Equal(t, want, process.Resource[key], key)
	}

	require.Equal(t, "send events", first.Name)
	require.Equal(t, "SPAN_KIND_PRODUCER", first.Kind.String())
	require.Equal(t, process.ID, first.Parent)
	require.Equal(t, process.TraceID, first.TraceID)
	require.Empty(t, first.Links)
	require.False(t, first.Failed)
	require.Equal(t, map[string]any{
		"messaging.system": "rabbitmq", "messaging.operation.type": "send", "messaging.operation.name": "send", "messaging.destination.name": "events",
		"messaging.message.id": "1", "mnsrelay.source": "sms", "mnsrelay.route": "r", "mnsrelay.attempt": int64(1), "mnsrelay.outcome": "delivered",
	}, first.Attributes)

	require.Equal(t, ms[1].Trace.TraceID(), second.TraceID)
	require.Equal(t, ms[1].Trace.SpanID(), second.Parent)
	require.Equal(t, "congo=t61rcWkgMzE", second.State)
	require.Equal(t, process.ID, second.Links[0].ID)
	require.Equal(t, "refused", second.Attributes["error.type"])
	require.Equal(t, "rejected", second.Attributes["mnsrelay.outcome"])
	require.True(t, second.Failed)
	require.Equal(t, "refused", second.Status)
	require.Equal(t, []collector.Event{{Name: "retry", Attributes: map[string]any{"error.type": "timeout"}}}, second.Events)

	require.Equal(t, "00-"+first.TraceID+"-"+first.ID+"-01", contexts[0].Parent)
	require.Equal(t, "00-"+second.TraceID+"-"+second.ID+"-01", contexts[1].Parent)
	require.Equal(t, "congo=t61rcWkgMzE", contexts[1].State)
	require.Equal(t, ms[2].Trace.TraceID(), contexts[2].TraceID(), "passed on, recorded or not")
	require.NotEqual(t, ms[2].Trace.SpanID(), contexts[2].SpanID())
	require.False(t, contexts[2].Sampled())

	require.NotContains(t, c.Raw(), "secret words")
	require.NotContains(t, c.Raw(), headerSecret)
	require.Equal(t, headerSecret, c.Headers()[0].Get("X-Key"))
	require.Empty(t, c.Headers()[0].Get("X-Other"), "the configuration is one file")
	require.Equal(t, 3, s.spans(t, "exported"))
}

// What is not recorded is passed on all the same.
func TestSampleRatio(t *testing.T) {
	c := collector.Start(t)
	s := startTracing(t, c.URL, func(c *telemetry.TracingConfig) { c.SampleRatio = 0 })
	ms := []relay.Message{{ID: "1"}, {ID: "2", Trace: relay.ParseTraceContext(sampledParent, "")}}
	b := s.Batch(time.Now(), ms)
	for i := range ms {
		d := b.Delivery(relay.TargetName{Sink: "hook"}, &ms[i])
		require.Equal(t, ms[i].Trace.TraceID(), d.Context().TraceID())
		require.Equal(t, i == 1, d.Context().Sampled())
		d.End(relay.Result{})
	}
	b.End()
	s.stop()
	require.Len(t, c.Spans(), 1)
	require.Equal(t, "webhook", c.Spans()[0].Attributes["messaging.system"])
}

// However the collector fails: one line says so, one that it is over, and nothing secret is in
// either.
func TestACollectorThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		answer collector.Answer
		says   string
	}{
		"refuses":    {collector.Answer{Status: 400, Body: headerSecret}, "the answer is 400"},
		"wrong key":  {collector.Answer{Status: 401, Body: headerSecret}, "check tracing.headers"},
		"wrong path": {collector.Answer{Status: 404, Body: headerSecret}, "check the path of tracing.otlp_endpoint"},
		"redirects":  {collector.Answer{Status: 302, Header: http.Header{"Location": {"/elsewhere"}}}, "check the path of tracing.otlp_endpoint"},
		"garbage":    {collector.Answer{Status: 200, Header: http.Header{"Content-Type": {"application/x-protobuf"}}, Body: headerSecret}, "not read as one of OTLP"},
		"endless":    {collector.Answer{Status: 200, Header: http.Header{"Content-Type": {"application/x-protobuf"}}, Body: strings.Repeat("x", 1<<20)}, "not read as one of OTLP"},
		"overloaded": {collector.Answer{Status: 503, Header: http.Header{"Retry-After": {"3600"}}, Body: headerSecret}, "the answer is 503"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := collector.Start(t)
			at.Set(c.answer)
			s := startTracing(t, at.URL, nil)
			const outages = 2 // in a row, which is one
			for n := range outages {
				s.delivery()
				require.Eventually(t, func() bool { return s.spans(t, "failed") == 2*(n+1) }, 20*time.Second, 10*time.Millisecond)
			}
			require.Len(t, s.logged.All(), 1)
			require.Contains(t, s.logged.All()[0].ContextMap()["error"], c.says)
			at.Set(collector.Answer{})
			s.delivery()
			s.stop()
			require.Equal(t, 2, s.spans(t, "exported"))
			require.Len(t, s.logged.All(), 2)
			require.EqualValues(t, 4, s.logged.All()[1].ContextMap()["spans_lost"])
			for _, entry := range s.logged.All() {
				said := fmt.Sprint(entry.ContextMap())
				require.NotContains(t, said, headerSecret)
				require.NotContains(t, said, at.URL, "its path may be a secret")
			}
		})
	}
}

// A collector that is gone or hangs holds up nobody, the queue has an end, what does not fit is
// counted, and a stop does not wait for long and leaves nothing running.
func TestACollectorThatIsGoneOrHangs(t *testing.T) {
	for name, set := range map[string]func(c *collector.Collector){
		"hangs": func(c *collector.Collector) { c.Set(collector.Answer{Hang: true}) },
		"gone":  func(c *collector.Collector) { c.Down() },
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			c := collector.Start(t)
			defer c.Down()
			set(c)
			s := startTracing(t, c.URL, nil)
			const deliveries = 4000 // of two spans each, more than fit
			begun := time.Now()
			for range 2 * deliveries {
				s.delivery()
			}
			// Waiting for a batch once would take half a minute, and there are dozens.
			require.Less(t, time.Since(begun), time.Minute)
			const most = 4096 // and one batch that is being given up
			kept := 2*2*deliveries - s.spans(t, "failed") - s.spans(t, "dropped")
			require.LessOrEqual(t, kept, most+512)
			stopping := time.Now()
			s.stop()
			require.Less(t, time.Since(stopping), 20*time.Second, "an export may take thirty, and several wait")
			exported, failed, dropped := s.spans(t, "exported"), s.spans(t, "failed"), s.spans(t, "dropped")
			require.Zero(t, exported)
			require.Positive(t, dropped)
			require.Equal(t, 2*2*deliveries, failed+dropped, "each is accounted for")
			require.Len(t, s.logged.FilterLevelExact(zap.WarnLevel).All(), 1)
		})
	}
}
