package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMain makes of this binary the receiver that a measurement starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == receiverArg {
		exit(receive(os.Stdin, os.Stdout))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The measurement works, at a size that says nothing of speed.
func TestMeasures(t *testing.T) {
	r, err := measure(t.Context(), options{of: []string{"amqp091", "webhook"}, messages: 500, size: 100, rounds: 1})
	require.NoError(t, err)
	var b strings.Builder
	require.NoError(t, r.table(&b))
	var of []string
	for _, results := range r.Results {
		of = append(of, results.Of)
		require.Len(t, results.Runs, 1)
		require.Positive(t, results.Ratio)
		require.Positive(t, results.CPURatio)
		require.Contains(t, b.String(), results.Name)
	}
	require.Equal(t, []string{"amqp091", "amqp091", "webhook", "webhook", "webhook"}, of)
}

// The bare client sends what the sink sends, or the one would be measured against less.
func TestPostsTheSame(t *testing.T) {
	r, err := startReceiver(t.Context())
	require.NoError(t, err)
	defer r.close()
	ms := messages(40, 100)
	require.NoError(t, r.postBare(t.Context(), ms))
	bare, err := r.arrived()
	require.NoError(t, err)
	require.EqualValues(t, len(ms), bare.Requests)
	require.NoError(t, r.empty())
	require.NoError(t, r.postSink(t.Context(), ms))
	sink, err := r.arrived()
	require.NoError(t, err)
	require.Equal(t, bare, sink)
}

func TestRefusesWhatItCannotMeasure(t *testing.T) {
	_, err := measure(t.Context(), options{of: []string{"amqp"}})
	require.ErrorContains(t, err, `"amqp"`)
}
