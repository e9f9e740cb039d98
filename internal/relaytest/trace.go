package relaytest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

// TestTraceContext checks that a message takes its trace context along, unless the configuration
// has a header of that name. Open makes an endpoint whose configuration has the given headers
// of its own; a preview shows them under the prefix.
func TestTraceContext(t *testing.T, prefix string, open func(own map[string]any) (relay.Endpoint, error)) {
	t.Helper()
	const parent, state = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=b c%d"
	m := Messages("m", 1, 0)[0]
	m.Trace = relay.ParseTraceContext(parent, state)
	shown := func(own map[string]any) map[string]any {
		endpoint, err := open(own)
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
	require.Equal(t, parent, shown(nil)[prefix+".traceparent"])
	require.Equal(t, state, shown(nil)[prefix+".tracestate"])
	require.Equal(t, "mine", shown(map[string]any{"traceparent": "mine"})[prefix+".traceparent"])
	m.Trace = nil
	require.NotContains(t, shown(nil), prefix+".traceparent")
}
