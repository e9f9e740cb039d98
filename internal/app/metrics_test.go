package app_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

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
