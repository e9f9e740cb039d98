package chart_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"mnsrelay/test/k8s/chart"
	"mnsrelay/test/k8s/cluster"
)

// The alerts and KEDA's query, as they are rendered, say in Prometheus' own evaluation what
// they are there to say: prometheus.test.yaml.
func TestPrometheus(t *testing.T) {
	folder := t.TempDir()
	write := func(name string, content any) {
		text, err := yaml.Marshal(content)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), text, 0o600))
	}
	rendered := func(set string) string {
		text, err := chart.Render(t.Context(), chart.Versions()[0], release, namespace, []string{valueSets(t)[set]},
			"--set-string", `metricsSelector=job="mnsrelay"`)
		require.NoError(t, err)
		return text
	}
	type rules struct {
		Groups []any `json:"groups"`
	}
	write("alerts.yaml", find(t, rendered("monitoring"), "PrometheusRule", func(struct{ Spec rules }) bool { return true }).Spec)
	type trigger struct{ Metadata map[string]string }
	scaled := find(t, rendered("keda"), "ScaledObject", func(struct{ Spec struct{ Triggers []trigger } }) bool { return true })
	require.Len(t, scaled.Spec.Triggers, 1)
	write("scale.yaml", rules{[]any{map[string]any{"name": "scale", "rules": []any{
		map[string]string{"record": "scale", "expr": scaled.Spec.Triggers[0].Metadata["query"]},
	}}}})
	tests, err := os.ReadFile("prometheus.test.yaml")
	require.NoError(t, err)
	path := filepath.Join(folder, "test.yaml")
	require.NoError(t, os.WriteFile(path, tests, 0o600))
	out, err := cluster.Output(exec.CommandContext(t.Context(), "promtool", "test", "rules", path)) //nolint:gosec // Debian's, by test/setup.
	require.NoError(t, err, out)
}
