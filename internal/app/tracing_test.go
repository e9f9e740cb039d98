package app

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

// Without tracing an observation costs what it did, also of a message that came with a trace
// context, and has no exemplar: nobody has recorded a span of it here.
func TestObservationsWithoutTracingAreFree(t *testing.T) {
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0"
	registry := prometheus.NewRegistry()
	m := newMetrics(registry)
	traced := &relay.Message{Trace: relay.ParseTraceContext(parent+"1", "")}
	off := newHistogram(m.endToEnd.WithLabelValues("sms"), false)
	require.Zero(t, testing.AllocsPerRun(1000, func() { off.observe(1, traced) }))
	require.Empty(t, exemplars(t, registry))

	on := newHistogram(m.endToEnd.WithLabelValues("sms"), true)
	on.observe(1, &relay.Message{})
	on.observe(1, &relay.Message{Trace: relay.ParseTraceContext(parent+"0", "")})
	require.Empty(t, exemplars(t, registry), "of no trace, and of one that is not recorded")
	on.observe(1, traced)
	require.Contains(t, exemplars(t, registry), traced.Trace.TraceID())
}

// exemplars gives the trace ids that the buckets of end_to_end_duration_seconds have.
func exemplars(t *testing.T, registry *prometheus.Registry) (ids []string) {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, b := range m.GetHistogram().GetBucket() {
				for _, label := range b.GetExemplar().GetLabel() {
					ids = append(ids, label.GetValue())
				}
			}
		}
	}
	return ids
}
