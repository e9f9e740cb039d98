package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
)

// TestMain makes of this binary what a measurement starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && part(os.Args[1]) != nil {
		exit(part(os.Args[1])(os.Stdin, os.Stdout))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// small is a size that says nothing of speed.
func small(t *testing.T, scenarios ...string) options {
	t.Helper()
	return options{scenarios: scenarios, rounds: 1, scale: 0.001, pollers: 2, rest: 500 * time.Millisecond, log: t.Logf}
}

// Every scenario can be measured: each message arrives once, and each contender is measured
// and compared. The times are not judged.
func TestMeasures(t *testing.T) {
	t.Parallel()
	outcomes, err := measure(t.Context(), small(t, append(standard(), "sinks")...))
	require.NoError(t, err)
	seen := map[string]bool{}
	for _, out := range outcomes {
		scenario, _, _ := strings.Cut(out.Scenario, ":")
		seen[scenario] = true
		for _, r := range out.Results {
			require.Len(t, r.Runs, 1, r.Name)
			for q, v := range r.Runs[0] {
				require.False(t, math.IsNaN(v) || math.IsInf(v, 0) || v < 0, "%s of %s: %v", q, r.Name, v)
			}
			for _, to := range out.against {
				if to != r.Name {
					require.Positive(t, r.Ratios[to][cpu].Median, "%s to %s", r.Name, to)
				}
			}
		}
		require.Len(t, out.Judged, len(out.targets))
	}
	require.Len(t, seen, len(standard())+1)
	for _, r := range outcomes[0].Results { // of the backlog
		run := r.Runs[0]
		for _, q := range []quantity{perSecond, cpu, emulatorCPU, brokerCPU, allocations, allocated, peakRSS, requests} {
			require.Positive(t, run[q], "%s of %s", q, r.Name)
		}
	}

	var text strings.Builder
	require.NoError(t, writeTables(&text, outcomes))
	require.Contains(t, text.String(), "relay / floor")
	_, err = json.Marshal(outcomes)
	require.NoError(t, err)
}

// What grows is measured too, and becomes a table and a chart.
func TestGrows(t *testing.T) {
	t.Parallel()
	w := &world{options: small(t)}
	defer func() { require.NoError(t, w.close()) }()
	all, err := w.contests(t.Context(), "growth")
	require.NoError(t, err)
	var outcomes []*outcome
	for _, c := range all {
		switch c.What {
		case "2 pollers", "65536 bytes", "2 sinks", "10 sources", "2 processes":
			out, err := c.play(t.Context(), w.options)
			require.NoError(t, err, c.What)
			outcomes = append(outcomes, out)
		}
	}
	require.Len(t, outcomes, len(grown()))
	dir := t.TempDir()
	page := filepath.Join(dir, "performance.md")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "images"), 0o700))
	require.NoError(t, os.WriteFile(page, []byte("before\n<!-- bench growth -->\nold\n<!-- end of bench growth -->\nafter\n"), 0o600))
	require.NoError(t, writeDocs(dir, outcomes))
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Regexp(t, `(?s)^before\n.*\| pollers \| floor, messages/s \| relay, messages/s \|.*\nafter\n$`, string(text))
	require.NotContains(t, string(text), "old")
	drawing, err := os.ReadFile(filepath.Join(dir, "images", "growth.svg"))
	require.NoError(t, err)
	require.Equal(t, len(grown()), strings.Count(string(drawing), "<g "))
	require.NotContains(t, string(drawing), "NaN")
}

// A target is judged by the median of the rounds' ratios, or of what is more.
func TestJudges(t *testing.T) {
	out := &outcome{Results: []result{
		{Name: floor, Runs: []run{{cpu: 10}, {cpu: 20}, {cpu: 40}}},
		{Name: theRelay, Runs: []run{{cpu: 12}, {cpu: 30}, {cpu: 44}}},
	}}
	for name, c := range map[string]struct {
		target
		value spread
		holds bool
	}{
		"ratio holds":        {target{of: theRelay, to: floor, how: ratio, quantity: cpu, bound: 1.2}, spread{1.2, 1.1, 1.5}, true},
		"ratio does not":     {target{of: theRelay, to: floor, how: ratio, quantity: cpu, bound: 1.19}, spread{1.2, 1.1, 1.5}, false},
		"at least":           {target{of: theRelay, to: floor, how: ratio, quantity: cpu, bound: 1.21, atLeast: true}, spread{1.2, 1.1, 1.5}, false},
		"difference":         {target{of: theRelay, to: floor, how: difference, quantity: cpu, bound: 4}, spread{4, 2, 10}, true},
		"the value itself":   {target{of: theRelay, quantity: cpu, bound: 29}, spread{30, 12, 44}, false},
		"the value at least": {target{of: theRelay, quantity: cpu, bound: 30, atLeast: true}, spread{30, 12, 44}, true},
	} {
		t.Run(name, func(t *testing.T) {
			j, err := c.judge(out)
			require.NoError(t, err)
			require.Equal(t, c.holds, j.Holds, j)
			require.InDelta(t, c.value.Median, j.Value.Median, 1e-9)
			require.InDelta(t, c.value.Min, j.Value.Min, 1e-9)
			require.InDelta(t, c.value.Max, j.Value.Max, 1e-9)
			require.Equal(t, c.holds, failedTargets([]*outcome{{Judged: []judged{j}}}) == nil)
		})
	}
	_, err := target{of: theRelay, quantity: requests}.judge(out)
	require.ErrorContains(t, err, "not measured")
}

// The bare client sends what the sink sends, or the one would be measured against less.
func TestPostsTheSame(t *testing.T) {
	r, err := startReceiver(t.Context())
	require.NoError(t, err)
	defer func() { require.NoError(t, r.end()) }()
	ms := messages(40, 100)
	require.NoError(t, r.postBare(t.Context(), ms))
	bare, err := r.arrived(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, len(ms), bare.Requests)
	require.NoError(t, r.empty(t.Context()))
	require.NoError(t, r.postSink(t.Context(), ms))
	sink, err := r.arrived(t.Context())
	require.NoError(t, err)
	require.Equal(t, bare, sink)
}

// A message that is missing, or that came again, fails the run.
func TestVerifies(t *testing.T) {
	t.Parallel()
	w := &world{options: small(t)}
	defer func() { require.NoError(t, w.close()) }()
	require.NoError(t, w.open(t.Context()))
	const exchange = name
	for name, c := range map[string]struct {
		arrived []int
		err     string
	}{
		"all":     {[]int{1, 0}, ""},
		"missing": {[]int{1}, "1 of 2 messages have arrived"},
		"again":   {[]int{1, 1}, "not sent, or again"},
		"foreign": {[]int{1, 7}, "not sent, or again"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, w.makeKept(1))
			require.NoError(t, w.channel.Confirm(false))
			for _, n := range c.arrived {
				confirm, err := w.channel.PublishWithDeferredConfirm(exchange, sinkName(0), true, false, amqp.Publishing{Body: bodyOf(n, time.Now(), 200)})
				require.NoError(t, err)
				require.True(t, confirm.Wait())
			}
			err := w.verifyKept(t.Context(), kept(0), 2)
			if c.err == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.err)
		})
	}
	require.NoError(t, w.makeQueues(t.Context(), 1))
	require.ErrorContains(t, w.verify(t.Context(), load{messages: 1, sources: 1, sinks: 1}), "0 of 1 messages were deleted")
}

func TestRefusesWhatItCannotMeasure(t *testing.T) {
	_, err := measure(t.Context(), options{scenarios: []string{"backlog", "amqp"}})
	require.ErrorContains(t, err, `"amqp"`)
}
