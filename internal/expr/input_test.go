package expr_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

// A message that is on no way has nowhere to keep an Input; it is seen all the same.
func TestOfSeesTheMessageAndItsQueue(t *testing.T) {
	t.Parallel()
	condition, err := expr.CompileCondition(`queue == "orders" && source == "o" && body.n == 5`)
	require.NoError(t, err)
	for body, want := range map[string]bool{`{"n": 5}`: true, `{"n": 6}`: false} {
		m := &relay.Message{Source: "o", Queue: "orders", Body: []byte(body)}
		got, err := condition.Match(expr.Of(m))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// The place of a problem is for those who know in which file the expression stands.
func TestProblemsHaveAPlace(t *testing.T) {
	t.Parallel()
	_, err := expr.CompileCondition("id == \"é\" &&\n  bdy.x == 1")
	problem, is := errors.AsType[*expr.Problem](err)
	require.True(t, is)
	require.Equal(t, 15, problem.Offset)
	require.Equal(t, `there is no variable "bdy": did you mean "body"?`, problem.Message)
	require.EqualError(t, problem, `at line 2, character 3: `+problem.Message)

	_, err = expr.CompileTemplate("a.{{ id + 1 }}.{{ bdy }}")
	joined, is := err.(interface{ Unwrap() []error })
	require.True(t, is)
	var offsets []int
	for _, err := range joined.Unwrap() {
		problem, is := errors.AsType[*expr.Problem](err)
		require.True(t, is)
		offsets = append(offsets, problem.Offset)
	}
	require.Equal(t, []int{8, 18}, offsets)
}
