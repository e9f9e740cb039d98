package chart_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
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
	write("dashboard.yaml", rules{[]any{map[string]any{"name": "dashboard", "rules": queries(t, rendered("monitoring"))}}})
	_, err := cluster.Output(exec.CommandContext(t.Context(), "promtool", "check", "rules", filepath.Join(folder, "dashboard.yaml")))
	require.NoError(t, err)
	tests, err := os.ReadFile("prometheus.test.yaml")
	require.NoError(t, err)
	path := filepath.Join(folder, "test.yaml")
	require.NoError(t, os.WriteFile(path, tests, 0o600))
	out, err := cluster.Output(exec.CommandContext(t.Context(), "promtool", "test", "rules", path))
	require.NoError(t, err, out)
}

// queries are those of the dashboard's panels, as rules.
func queries(t *testing.T, text string) (rules []any) {
	t.Helper()
	dashboard := find(t, text, "ConfigMap", func(m corev1.ConfigMap) bool { return m.Data["mnsrelay.json"] != "" }).Data["mnsrelay.json"]
	var model struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, W int }
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(dashboard), &model))
	seen := map[int]bool{}
	for _, panel := range model.Panels {
		require.False(t, seen[panel.ID], "two panels are number %d", panel.ID)
		seen[panel.ID] = true
		require.LessOrEqual(t, panel.GridPos.X+panel.GridPos.W, 24, panel.Title)
		require.NotEmpty(t, panel.Targets, panel.Title)
		for _, target := range panel.Targets {
			rules = append(rules, map[string]string{
				"record": fmt.Sprintf("panel:%d:%d", panel.ID, len(rules)), "expr": strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"),
			})
		}
	}
	require.GreaterOrEqual(t, len(rules), 10)
	return rules
}
