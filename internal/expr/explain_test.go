package expr_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

// Each part of a condition says what it came to; one that was not needed says nothing.
func TestExplain(t *testing.T) {
	t.Parallel()
	m := &relay.Message{
		ID: "1", Body: []byte(`{"a": {"b": "x"}, "n": 5, "list": [1, 2], "ok": false}`), Attempt: 2,
		Attributes: map[string]string{"topic": "t"},
	}
	for condition, want := range map[string][]string{
		`body.a.b == "y" && body.n > 3`:                    {`body.a.b == "y": false`, `  body.a.b: "x"`, `body.n > 3: `, `  body.n: `},
		`body.a.b == "x" && body.n + 1 > 3 || attempt > 5`: {`body.a.b == "x": true`, `  body.a.b: "x"`, `body.n + 1 > 3: true`, `  body.n: 5`, `attempt > 5: `, `  attempt: `},
		`body.ok`:    {`body.ok: false`},
		`body["ok"]`: {`body["ok"]: false`},
		`body.?ok == body["ok"] || body[?"ok"].hasValue()`: {`body.?ok == body["ok"]: false`, `  body.?ok: optional.of(false)`, `  body["ok"]: false`, `body[?"ok"].hasValue(): true`, `  body[?"ok"]: optional.of(false)`},
		`!body.ok`:                        {`!body.ok: true`, `  body.ok: false`},
		`body.missing == 1`:               {`body.missing == 1: an error: no such key: missing`, `  body.missing: an error: no such key: missing`},
		`body.?missing.orValue(3) == 3`:   {`body.?missing.orValue(3) == 3: true`, `  body.?missing: optional.none()`},
		`body.list.exists(x, x > 5)`:      {`body.list.exists(x, x > 5): false`, `  body.list: [1, 2]`},
		`attributes["topic"] in ["a"]`:    {`attributes["topic"] in ["a"]: false`, `  attributes["topic"]: "t"`},
		`has(body.a.c)`:                   {`has(body.a.c): false`},
		`text.contains("x") && id == "1"`: {`text.contains("x"): true`, `  text: "{\"a\": {\"b\": \"x\"}, \"n\": 5, \"list\": [1, 2], \"ok\": false}"`, `id == "1": true`, `  id: "1"`},
	} {
		t.Run(condition, func(t *testing.T) {
			t.Parallel()
			steps, err := expr.Explain(condition, expr.NewInput(m, "q"))
			require.NoError(t, err)
			var got []string
			for _, s := range steps {
				got = append(got, strings.Repeat("  ", s.Depth)+s.Text+": "+s.Value)
			}
			require.Equal(t, want, got)
		})
	}
	long := &relay.Message{Body: []byte(`"` + strings.Repeat("短", 10_000) + `"`)}
	steps, err := expr.Explain(`body == "x"`, expr.NewInput(long, "q"))
	require.NoError(t, err)
	require.Less(t, len(steps[1].Value), 1000)
	_, err = expr.Explain(`body ==`, expr.NewInput(long, "q"))
	require.ErrorContains(t, err, "compile the condition")
}
