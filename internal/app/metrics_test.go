package app_test

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/app"
	"mnsrelay/internal/config"
)

// Before a batch has come nothing is known of batches, and a ledger in Redis does not know
// how much it remembers: there are no such series.
func TestWhatIsNotKnownIsAbsent(t *testing.T) {
	t.Parallel()
	for ledger, counted := range map[string]bool{"{type: memory}": true, `{type: redis, url: "redis://127.0.0.1:1"}`: false} {
		cfg, _, err := config.Parse("relay.yaml", []byte("server: {listen: '127.0.0.1:0'}\nledger: "+ledger+`
sources: {sms: {endpoint: "http://127.0.0.1:1", queue: q, credentials: {type: static, access_key_id: a, access_key_secret: b}, to: out}}
sinks: {out: {type: file, path: "-"}}
`), config.Environment{})
		require.NoError(t, err)
		registry := prometheus.NewRegistry()
		a, err := app.New(cfg, app.Deps{Registry: registry, Log: zap.NewNop()})
		require.NoError(t, err)
		families, err := registry.Gather()
		require.NoError(t, err)
		var names []string
		for _, family := range families {
			names = append(names, family.GetName())
		}
		require.Contains(t, names, "mnsrelay_pollers")
		require.NotContains(t, names, "mnsrelay_batch_fill_ratio")
		require.NotContains(t, names, "mnsrelay_oldest_message_age_seconds")
		require.Equal(t, counted, slices.Contains(names, "mnsrelay_ledger_entries"), ledger)

		stopped, stop := context.WithCancel(t.Context())
		stop()
		require.NoError(t, a.Run(stopped, stopped))
	}
}

// The table of metrics has each that there is, with its labels, and no other.
func TestTheTableOfMetrics(t *testing.T) {
	t.Parallel()
	read := func(path string) string {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(text)
	}
	words := func(text, pattern string) string {
		var all []string
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			all = append(all, m[1])
		}
		return strings.Join(all, " ")
	}
	has := map[string]string{"mnsrelay_build_info": "version goversion"}
	source := read("metrics.go") + read("../telemetry/exporter.go")
	for _, m := range regexp.MustCompile(`desc\("([a-z_]+)", "[^"]*"((?:, "[a-z_]+")*)\)`).FindAllStringSubmatch(source, -1) {
		has["mnsrelay_"+m[1]] = words(m[2], `"([a-z_]+)"`)
	}
	for _, m := range regexp.MustCompile(`(?s)Name: +"(mnsrelay_[a-z_]+)".*?\}, \[\]string\{([^}]*)\}`).FindAllStringSubmatch(source, -1) {
		has[m[1]] = words(m[2], `"([a-z_]+)"`)
	}
	require.Greater(t, len(has), 30)
	told := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(mnsrelay_[a-z_]+)` \\| (?:counter|gauge|histogram) \\| ([^|]*)\\|").FindAllStringSubmatch(read("../../docs/metrics.md"), -1) {
		told[m[1]] = words(m[2], "`([a-z_]+)`")
	}
	require.Equal(t, has, told)
}
