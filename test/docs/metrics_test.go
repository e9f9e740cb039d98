package docs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	metric     = regexp.MustCompile(`\bmnsrelay_[a-z0-9_]+`)
	quotedName = regexp.MustCompile(`"(?:mnsrelay_)?([a-z0-9_]+)"`)
	// ofHistogram is what Prometheus puts behind the name of a histogram.
	ofHistogram = regexp.MustCompile(`_(bucket|sum|count)$`)
)

// metricNames are the names that the program gives metrics, and all others that it has between
// quotes: they stand in the source without their prefix in places.
var metricNames = sync.OnceValues(func() (map[string]bool, error) {
	names := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(root, "internal"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, match := range quotedName.FindAllStringSubmatch(string(text), -1) {
			names["mnsrelay_"+match[1]] = true
		}
		return err
	})
	return names, err
})

// checkMetrics looks whether the metrics that a text names are there.
func checkMetrics(text string) error {
	names, err := metricNames()
	if err != nil {
		return err
	}
	var problems []error
	for _, name := range metric.FindAllString(text, -1) {
		if !names[name] && !names[ofHistogram.ReplaceAllString(name, "")] {
			problems = append(problems, fmt.Errorf("there is no metric %s", name))
		}
	}
	return errors.Join(problems...)
}

// checkQuery looks at a query of Prometheus, of which only its metrics and brackets are read:
// its own parser is a module of hundreds.
func checkQuery(text string) error {
	var open []rune
	for _, r := range commentInCode.ReplaceAllString(text, "") {
		switch at := strings.IndexRune(")]}", r); {
		case strings.ContainsRune("([{", r):
			open = append(open, r)
		case at >= 0 && (len(open) == 0 || open[len(open)-1] != []rune("([{")[at]):
			return fmt.Errorf("%c ends what has not begun", r)
		case at >= 0:
			open = open[:len(open)-1]
		}
	}
	if len(open) > 0 {
		return fmt.Errorf("%c has no end", open[len(open)-1])
	}
	if !metric.MatchString(text) {
		return errors.New("a query without a metric of the relay")
	}
	return checkMetrics(text)
}

func TestQueries(t *testing.T) {
	t.Parallel()
	require.NoError(t, checkQuery(`histogram_quantile(0.9, rate(mnsrelay_delivery_duration_seconds_bucket{sink="a"}[5m])) > 1 # (`))
	require.ErrorContains(t, checkQuery(`rate(mnsrelay_sink_up[5m)`), "ends what has not begun")
	require.ErrorContains(t, checkQuery(`rate(mnsrelay_sink_up`), "has no end")
	require.ErrorContains(t, checkQuery(`mnsrelay_sink_pu == 0`), "no metric mnsrelay_sink_pu")
	require.ErrorContains(t, checkQuery(`up == 0`), "without a metric")
}
