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
	relaytest.TestTraceContext(t, "headers", func(own map[string]any) (relay.Endpoint, error) {
		c := webhook.Defaults()
		c.URL, c.Headers = setting.NewURL("https://localhost"), map[string]setting.Secret{}
		for name, value := range own {
			c.Headers[name] = setting.NewSecret(value.(string)).AsWritten()
		}
		return c.Open(relay.SinkDeps{Name: "hook", Log: zap.NewNop()})
	})
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
