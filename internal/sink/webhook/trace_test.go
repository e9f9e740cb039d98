package webhook_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// A message takes its trace context along, unless the configuration has a header of that name.
func TestTraceContext(t *testing.T) {
	const parent, state = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=b c%d"
	m := relaytest.Messages("m", 1, 0)[0]
	m.Trace = relay.ParseTraceContext(parent, state)
	shown := func(own map[string]any) map[string]any {
		c := webhook.Defaults()
		c.URL, c.Headers = setting.NewURL("https://localhost"), map[string]setting.Secret{}
		for name, value := range own {
			c.Headers[name] = setting.NewSecret(value.(string)).AsWritten()
		}
		endpoint, err := c.Open(relay.SinkDeps{Name: "hook", Log: zap.NewNop()})
		require.NoError(t, err)
		sink, err := endpoint.Bind(nil)
		require.NoError(t, err)
		preview, err := sink.(relay.Previewer).Preview(&m) //nolint:forcetypeassert // A panic tells.
		require.NoError(t, err)
		fields := map[string]any{}
		for _, f := range preview.Fields {
			fields[f.Name] = f.Value
		}
		return fields
	}
	require.Equal(t, parent, shown(nil)["headers.traceparent"])
	require.Equal(t, state, shown(nil)["headers.tracestate"])
	require.Equal(t, "mine", shown(map[string]any{"traceparent": "mine"})["headers.traceparent"])
	m.Trace = nil
	require.NotContains(t, shown(nil), "headers.traceparent")
}

// A request of several messages belongs to none of their traces.
func TestABatchHasNoTraceContext(t *testing.T) {
	far := capturing(t)
	sink := sinkWith(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Batch = webhook.Batch{MaxMessages: 2, MaxBytes: setting.MiB}
	})
	ms := numbered(1, 2)
	for i := range ms {
		ms[i].Trace = relay.ParseTraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "")
	}
	requireDelivered(t, deliver(t, sink, ms...))
	require.Empty(t, far.last().Header.Get("traceparent"))
	requireDelivered(t, deliver(t, sink, ms[0]))
	require.Equal(t, ms[0].Trace.Parent, far.last().Header.Get("traceparent"))
}
