package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The measurement works, at a size that says nothing of speed.
func TestMeasures(t *testing.T) {
	r, err := measure(t.Context(), options{messages: 1000, size: 100, rounds: 1})
	require.NoError(t, err)
	require.Len(t, r.Bare, 1)
	require.Len(t, r.Sink, 1)
	require.Positive(t, r.Ratio)
	require.Positive(t, r.CPURatio)
	var b strings.Builder
	require.NoError(t, r.table(&b))
	require.Contains(t, b.String(), "sink to bare")
}
