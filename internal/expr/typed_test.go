package expr_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

func TestTyped(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, time.March, 1, 9, 30, 0, 0, time.UTC)
	m := &relay.Message{
		ID: "m-1", Attempt: 2, EnqueuedAt: at,
		Body: []byte(`{"n": 5, "f": 1.10, "huge": 12345678901234567890, "yes": true, "nil": null, "s": "5", "list": [1, 2], "at": "2026-03-01T09:30:00Z"}`),
	}
	for name, c := range map[string]struct{ written, want any }{
		"text":                     {"sms", "sms"},
		"a number":                 {5, int64(5)},
		"a fraction":               {0.5, 0.5},
		"a bool":                   {false, false},
		"a timestamp":              {at, at},
		"one expression, a number": {"{{ body.n }}", int64(5)},
		"a fraction of the body":   {"{{ body.f }}", 1.1},
		"too large for an int":     {"{{ body.huge }}", "12345678901234567890"},
		"a bool of the body":       {"{{ body.yes }}", true},
		"a null":                   {"{{ body.nil }}", nil},
		"nothing":                  {"{{ body.?missing }}", nil},
		"text of the body":         {"{{ body.s }}", "5"},
		"a conversion":             {"{{ int(body.s) }}", int64(5)},
		"a time":                   {"{{ timestamp(body.at) }}", at},
		"a duration is text":       {`{{ duration("90s") }}`, "90s"},
		"a constant":               {"{{ 2 + 3 }}", int64(5)},
		"a list of the body":       {"{{ body.list }}", "[1,2]"},
		"text around it":           {"n{{ body.n }}", "n5"},
		"bytes":                    {`{{ bytes("\x01") }}`, []byte{1}},
		"a table": {
			map[string]any{"n": "{{ body.n }}", "gone": "{{ body.?missing }}", "deep": map[string]any{"id": "{{ id }}", "x": 1}},
			map[string]any{"n": int64(5), "deep": map[string]any{"id": "m-1", "x": int64(1)}},
		},
		"a list": {[]any{"a", "{{ attempt }}", true}, []any{"a", int64(2), true}},
		"empty":  {map[string]any{}, map[string]any{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			typed, err := expr.CompileTyped("headers.x", setting.NewValue(c.written))
			require.NoError(t, err)
			got, err := typed.Render(expr.Of(m))
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			if typed.Literal() {
				again, err := typed.Render(nil)
				require.NoError(t, err)
				require.Equal(t, got, again)
			}
		})
	}
}

// A misspelt expression is a problem at its own place, all at once.
func TestTypedProblems(t *testing.T) {
	t.Parallel()
	_, err := expr.CompileTyped("headers.x", setting.NewValue(map[string]any{
		"a": []any{"fine", "{{ bodi.n }}"}, "b": "{{",
	}))
	require.ErrorContains(t, err, "headers.x.a[1]: ")
	require.ErrorContains(t, err, "headers.x.b: ")
	typed, err := expr.CompileTyped("headers.x", setting.NewValue([]any{"{{ body.hunter2 }}"}))
	require.NoError(t, err)
	_, err = typed.Render(expr.Of(&relay.Message{Body: []byte(`{}`)}))
	require.Equal(t, expr.Reason, relay.ReasonOf(err))
}
