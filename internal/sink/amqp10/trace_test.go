package amqp10_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp10"
)

// A message takes its trace context along, unless the configuration has a property of that name.
func TestTraceContext(t *testing.T) {
	const parent, state = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=b c%d"
	m := relaytest.Messages("m", 1, 0)[0]
	m.Trace = relay.ParseTraceContext(parent, state)
	shown := func(own map[string]any) map[string]any {
		c := amqp10.Defaults()
		c.URL, c.Address, c.ApplicationProperties = setting.NewURL("amqp://localhost"), "a", values(own)
		endpoint, err := c.Open(deps())
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
	require.Equal(t, parent, shown(nil)["application_properties.traceparent"])
	require.Equal(t, state, shown(nil)["application_properties.tracestate"])
	require.Equal(t, "mine", shown(map[string]any{"traceparent": "mine"})["application_properties.traceparent"])
	m.Trace = nil
	require.NotContains(t, shown(nil), "application_properties.traceparent")
}
