package expr_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

func TestCompileSetting(t *testing.T) {
	_, err := expr.CompileSetting("headers.x-a", "{{ bdy.x }} {{ id }} {{ sorce }} {{")
	var all []string
	for _, err := range flat(err) {
		var problem *setting.Problem
		require.ErrorAs(t, err, &problem)
		require.Equal(t, "headers.x-a", problem.Path)
		all = append(all, problem.Message)
	}
	require.Equal(t, []string{
		`at character 4: there is no variable "bdy": did you mean "body"?`,
		`at character 25: there is no variable "sorce": did you mean "source"?`,
		`at character 34: "{{" without its "}}"; a literal one is written {{ "{{" }}`,
	}, all)

	compiled, err := expr.CompileSetting("headers.x-a", "a literal")
	require.NoError(t, err)
	require.True(t, compiled.Literal())
}

func flat(err error) (all []error) {
	joined, is := err.(interface{ Unwrap() []error })
	if !is {
		return []error{err}
	}
	for _, err := range joined.Unwrap() {
		all = append(all, flat(err)...)
	}
	return all
}

func TestSample(t *testing.T) {
	for source, want := range map[string]string{
		"":                                 "",
		"literal":                          "literal",
		`{{ "{{" }}`:                       "{{",
		"{{ id }}":                         "x",
		"a/{{ id }}{{ body.b }}?c={{ 1 }}": "a/xx?c=1",
	} {
		compiled, err := expr.CompileTemplate(source)
		require.NoError(t, err)
		require.Equal(t, want, compiled.Sample("x"))
	}
}

func TestRenderEscaped(t *testing.T) {
	in := expr.NewInput(&relay.Message{ID: "1", Body: []byte(`{"s": "x", "n": 1.10}`)}, "q")
	for source, want := range map[string]string{
		"literal":                           "literal",
		"{{ body.s }}":                      "[,x]",
		"a{{ body.s }}b{{ body.n }}{{ 2 }}": "a[a,x]b[a[a,x]b,1.10]2",
	} {
		compiled, err := expr.CompileTemplate(source)
		require.NoError(t, err)
		got, err := compiled.RenderEscaped(in, func(before []byte, value string) string {
			return "[" + string(before) + "," + value + "]"
		})
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	compiled, err := expr.CompileTemplate("a{{ body.missing }}")
	require.NoError(t, err)
	_, err = compiled.RenderEscaped(in, func([]byte, string) string { return "" })
	require.ErrorAs(t, err, new(*relay.Failure))
}
