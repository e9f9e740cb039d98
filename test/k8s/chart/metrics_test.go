package chart_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/test/k8s/chart"
	"mnsrelay/test/k8s/cluster"
)

// metrics reads from the relay's source which metrics it has, and their labels.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	root, err := cluster.Root()
	require.NoError(t, err)
	read := func(path ...string) string {
		text, err := os.ReadFile(filepath.Join(append([]string{root, "internal"}, path...)...))
		require.NoError(t, err)
		return string(text)
	}
	out := map[string][]string{}
	words := func(text string) (labels []string) {
		for _, m := range regexp.MustCompile(`"([a-z_]+)"`).FindAllStringSubmatch(text, -1) {
			labels = append(labels, m[1])
		}
		return labels
	}
	app := read("app", "metrics.go") + read("telemetry", "exporter.go")
	for _, m := range regexp.MustCompile(`desc\("([a-z_]+)", "[^"]*"((?:, "[a-z_]+")*)\)`).FindAllStringSubmatch(app, -1) {
		out["mnsrelay_"+m[1]] = words(m[2])
	}
	for _, m := range regexp.MustCompile(`(?s)Name: +"(mnsrelay_[a-z_]+)".*?\}, \[\]string\{([^}]*)\}`).FindAllStringSubmatch(app, -1) {
		for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
			out[m[1]+suffix] = append(words(m[2]), "le")
		}
	}
	require.Contains(t, read("telemetry", "registry.go"), `"mnsrelay_build_info"`)
	out["mnsrelay_build_info"] = []string{"version", "goversion"}
	require.GreaterOrEqual(t, len(out), 30)
	return out
}

// Alerts, dashboard and KEDA's query ask for metrics that the relay has, by labels that
// these have or that Prometheus adds.
func TestMetricsExist(t *testing.T) {
	has := metrics(t)
	var text strings.Builder
	for _, set := range []string{"monitoring", "keda"} {
		text.WriteString(strings.ReplaceAll(render(t, chart.Versions()[0], valueSets(t)[set]), `\"`, `"`))
	}
	added := []string{"namespace", "job", "pod", "instance"}
	found := map[string]bool{}
	for _, m := range regexp.MustCompile(`\b(mnsrelay_[a-z_]+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(text.String(), -1) {
		require.Contains(t, has, m[1])
		found[m[1]] = true
		for _, label := range regexp.MustCompile(`([a-z_]+)(?:=|!=|=~|!~)"`).FindAllStringSubmatch(m[2], -1) {
			require.Contains(t, append(added, has[m[1]]...), label[1], m[0])
		}
	}
	require.GreaterOrEqual(t, len(found), 20)
	for _, m := range regexp.MustCompile(`\b(?:by|without|on) \(([^)]*)\)`).FindAllStringSubmatch(text.String(), -1) {
		for label := range strings.SplitSeq(m[1], ",") {
			require.Regexp(t, `^(namespace|job|source|sink|reason|route|op|code|state|operation|result|le)$`, strings.TrimSpace(label), m[0])
		}
	}
}

// KEDA's query looks at the sinks that a delete waits for, and at no other.
func TestScalingLooksAtRequiredSinks(t *testing.T) {
	text := render(t, chart.Versions()[0], valueSets(t)["keda"])
	require.Contains(t, text, `sink=~"audit-log|events"`)
	require.NotContains(t, text, `hook|`)
	// Text is what it says.
	text, err := with(t, chart.Versions()[0], "keda", `
config: {sources: {returns: {to: [{sink: events, required: "true"}, {sink: audit-log, required: "False"}]}}}`)
	require.NoError(t, err)
	require.Contains(t, text, `sink=~"events"`)
}
