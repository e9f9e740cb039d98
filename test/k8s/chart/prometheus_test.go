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
// they are there to say: alerts.test.yaml, prometheus.test.yaml.
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
	type alerting struct {
		Groups []struct{ Rules []struct{ Alert string } }
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
	require.NoError(t, os.WriteFile(filepath.Join(folder, "scale.test.yaml"), tests, 0o600))
	var alerts []string
	for _, group := range find(t, rendered("monitoring"), "PrometheusRule", func(struct{ Spec alerting }) bool { return true }).Spec.Groups {
		for _, rule := range group.Rules {
			alerts = append(alerts, rule.Alert)
		}
	}
	write("alerts.test.yaml", alertTests(t, alerts))
	for _, name := range []string{"scale", "alerts"} {
		out, err := cluster.Output(exec.CommandContext(t.Context(), "promtool", "test", "rules", filepath.Join(folder, name+".test.yaml")))
		require.NoError(t, err, out)
	}
}

// runbooks is prometheusRule.runbooks of ci/monitoring-values.yaml.
const runbooks = "https://git.example.com/mq/mnsrelay/blob/v0.1.0/"

// firing is an alert that fires.
type firing struct {
	Alert                string
	Labels               map[string]string
	Summary, Description string
}

// alertTests makes promtool's tests of alerts.test.yaml: at each time of each fault every
// alert is asked for, and those that the fault does not name must not fire. Each fires of
// some fault.
func alertTests(t *testing.T, alerts []string) any {
	t.Helper()
	var world struct {
		Well   map[string]string
		Faults []struct {
			Fault  string
			Gone   bool // nothing is there, not even what is well
			Series map[string]string
			Fires  map[string][]firing // by the time
		}
	}
	text, err := os.ReadFile("alerts.test.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.UnmarshalStrict(text, &world))
	const minutes = 120
	fired := map[string]bool{}
	var tests []any
	for _, fault := range world.Faults {
		series := []any{}
		add := func(name, values string) {
			if !strings.Contains(values, "x") {
				values += fmt.Sprintf("x%d", minutes)
			}
			series = append(series, map[string]string{"series": strings.Replace(name, "{", `{job="mnsrelay",namespace="m",`, 1), "values": values})
		}
		for name, values := range world.Well {
			if other, ok := fault.Series[name]; !fault.Gone && !ok {
				add(name, values)
			} else if ok {
				require.NotEqual(t, values, other, fault.Fault)
			}
		}
		for name, values := range fault.Series {
			add(name, values)
		}
		var asked []any
		require.NotEmpty(t, fault.Fires, fault.Fault)
		for at, firing := range fault.Fires {
			expected := map[string][]any{}
			for _, alert := range alerts {
				expected[alert] = []any{}
			}
			for _, f := range firing {
				require.Contains(t, expected, f.Alert, fault.Fault)
				fired[f.Alert] = true
				expected[f.Alert] = append(expected[f.Alert], map[string]any{
					"exp_labels": f.Labels, "exp_annotations": map[string]string{
						"summary": f.Summary, "description": f.Description, "runbook_url": runbooks + "docs/operations.md#" + strings.ToLower(f.Alert),
					},
				})
			}
			for alert, expected := range expected {
				asked = append(asked, map[string]any{"eval_time": at, "alertname": alert, "exp_alerts": expected})
			}
		}
		tests = append(tests, map[string]any{"name": fault.Fault, "interval": "1m", "input_series": series, "alert_rule_test": asked})
	}
	for _, alert := range alerts {
		require.True(t, fired[alert], "no fault of alerts.test.yaml makes %s fire", alert)
	}
	return map[string]any{"rule_files": []string{"alerts.yaml"}, "evaluation_interval": "1m", "tests": tests}
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
