package expr_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

func template(t *testing.T, source string) *expr.Template {
	t.Helper()
	template, err := expr.CompileTemplate(source)
	require.NoError(t, err, source)
	return template
}

func TestTemplates(t *testing.T) {
	t.Parallel()
	const body = `{"success":true,"biz_id":"932^0","n":42,"huge":12345678901234567890,"price":1.10,"exp":1E3,"neg":-0,"nul":null,
		"o": {"k" : [1, 2.50, "a b"]}, "l": [ "x", {"huge": 98765432109876543210} ], "e":"\u4e2d\"", "odd key":"o"}`
	for source, want := range map[string]string{
		"":                           "",
		"sms.report":                 "sms.report",
		"{ } }} }":                   "{ } }} }",
		"{{ id }}":                   "8F2A6C0E-1",
		"{{id}}":                     "8F2A6C0E-1",
		"a{{ source }}b{{ queue }}c": "asmsbqc",
		`sms.{{ body.success ? "ok" : "failed" }}`:              "sms.ok",
		"https://h/{{ attributes.topic }}?id={{ body.biz_id }}": "https://h/reports?id=932^0",
		"{{ text.substring(0, 2) }}":                            `{"`,
		// A literal {{, and }} that does not end the expression.
		`{{ "{{" }} {{ "}}" }}`:         "{{ }}",
		`{{ '}}' + "}}" }}`:             "}}}}",
		`{{ """a"}}""" }}`:              `a"}}`,
		`{{ "\"}}" }}`:                  `"}}`,
		`{{ r"\" }}`:                    `\`,
		`{{ string(br'\') }}`:           `\`,
		`{{ body["odd key"] }}`:         "o",
		`{{ {"a": {"b": "c"}}.a.b }}`:   "c",
		`{{ {"a": {"b": "c"}}["a"].b}}`: "c",
		"{{ id // don't }}!":            "8F2A6C0E-1!",
		"{{\n  body\n    .n\n}}":        "42",
		// Types.
		"{{ attempt }} {{ 7u }} {{ 1.5 }} {{ true }} {{ null }}": "3 7 1.5 true ",
		"{{ enqueued_at }}":               "2024-05-20T17:17:05.12Z",
		`{{ duration("90s") }}`:           "90s",
		"{{ bytes(id) }}":                 "8F2A6C0E-1",
		"{{ body.success }} {{ body.e }}": `true 中"`,
		"[{{ body.nul }}][{{ body.?missing }}][{{ body.?n }}][{{ optional.of(body.nul) }}]": "[][][42][]",
		// Numbers of the body keep their digits.
		"{{ body.huge }} {{ body.?huge }} {{ body['huge'] }} {{ body[?'huge'] }} {{ body.l[1].huge }}": "12345678901234567890 12345678901234567890 12345678901234567890 12345678901234567890 98765432109876543210",
		"{{ body.price }} {{ body.exp }} {{ body.neg }}":                                               "1.10 1E3 -0",
		"{{ body.price * 2.0 }} {{ body.exp + 0.0 }} {{ body.neg + 1 }}":                               "2.2 1000 1",
		// Objects and arrays of the body are JSON.
		"{{ body.o }} {{ body.l[1] }} {{ body.o.k }}": `{"k":[1,2.50,"a b"]} {"huge":98765432109876543210} [1,2.50,"a b"]`,
		"{{ json.encode(body.o.k.map(x, x)) }}":       `[1,2.5,"a b"]`,
	} {
		got, err := template(t, source).Render(expr.NewInput(message(body), "q"))
		require.NoError(t, err, source)
		require.Equal(t, want, got, source)
	}
}

func TestLiteralTemplates(t *testing.T) { // not parallel: it counts allocations
	for _, source := range []string{"", "sms.report", "}}", `{{ "{{" }}`, `a{{ "b" }}c{{ 1 }}`} {
		literal := template(t, source)
		require.True(t, literal.Literal(), source)
		require.Zero(t, testing.AllocsPerRun(10, func() { _, _ = literal.Render(nil) }), source)
	}
	require.False(t, template(t, "a{{ id }}").Literal())
	got, err := template(t, `a{{ "b" }}c{{ 1 }}`).Render(nil)
	require.NoError(t, err)
	require.Equal(t, "abc1", got)
}

func TestTemplateFailures(t *testing.T) {
	t.Parallel()
	const body = `{"phone":"` + secret + `","l":["` + secret + `"]}`
	for source, want := range map[string]string{
		"a {{ body.missing }} b":             `expression: evaluate "body.missing": no such key: missing; select it with .?`,
		"{{ int(body.phone + 'x') }}":        `evaluate "int(body.phone + 'x')": int() does not take this value`,
		"{{ dyn(body.l.map(x, x)) }}":        `a value of type list has no text: pick a part of it, or write json.encode(...) around it`,
		"{{ dyn({'a': body.phone}) }}":       `a value of type map has no text: pick a part`,
		"{{ bytes(body.phone) + b'\\xff' }}": `these bytes are not text: write base64.encode(...) around them`,
		"{{ body.l.x }}":                     `does not take this value`,
	} {
		_, err := template(t, source).Render(expr.NewInput(message(body), "q"))
		requireFailure(t, err, want)
	}
	_, err := template(t, "{{ body.phone }}").Render(expr.NewInput(message("no JSON "+secret), "q"))
	requireFailure(t, err, "body is not JSON (byte 1)")
}

func TestTypedValues(t *testing.T) {
	t.Parallel()
	const body = `{"b":true,"n":42,"f":1.5,"s":"x","nul":null,"o":{"a": 1},"huge":12345678901234567890}`
	for source, want := range map[string]any{
		"{{ body.b }}":                    true,
		"{{ body.n }}":                    int64(42),
		"{{ attempt }}":                   int64(3),
		"{{ uint(attempt) }}":             uint64(3),
		"{{ body.f }}":                    1.5,
		"{{ body.s }}":                    "x",
		"{{ body.nul }}":                  nil,
		"{{ body.?n }}":                   int64(42),
		"{{ body.?missing }}":             nil,
		"{{ enqueued_at }}":               time.Date(2024, 5, 20, 17, 17, 5, 120e6, time.UTC),
		"{{ bytes(id) }}":                 []byte("8F2A6C0E-1"),
		`{{ enqueued_at - enqueued_at }}`: time.Duration(0),
		"{{ body.o }}":                    `{"a":1}`,
		"n={{ body.n }}":                  "n=42",
		"42":                              "42",
		"{{ 42 }}":                        int64(42),
		"":                                "",
	} {
		got, err := template(t, source).Value(expr.NewInput(message(body), "q"))
		require.NoError(t, err, source)
		require.Equal(t, want, got, source)
	}
	_, err := template(t, "{{ body.x }}").Value(expr.NewInput(message(body), "q"))
	requireFailure(t, err, "no such key: x")
	_, err = template(t, "{{ dyn([1]) }}").Value(expr.NewInput(message(body), "q"))
	requireFailure(t, err, "has no text")
}

func TestProblems(t *testing.T) {
	t.Parallel()
	conditions := map[string]string{
		"":                               `at character 1: the expression is empty`,
		" \n ":                           `at line 1, character 1: the expression is empty`,
		"bdy.success == false":           `at character 1: there is no variable "bdy": did you mean "body"?`,
		"body.success == False":          `at character 17: there is no variable "False": did you mean "false"?`,
		"zzzzzz == 1":                    `at character 1: there is no variable "zzzzzz": there are attempt, attributes, body, enqueued_at, id, queue, source, text`,
		"true &&\n  bdy.x":               `at line 2, character 3: there is no variable "bdy": did you mean "body"?`,
		`"é" == bdy.x`:                   `at character 8: there is no variable "bdy": did you mean "body"?`,
		"bdy.x || souce == 'a'":          "at character 1: there is no variable \"bdy\": did you mean \"body\"?\nat character 10: there is no variable \"souce\": did you mean \"source\"?",
		`text.containss("x")`:            `at character 15: there is no function "containss": did you mean "contains"?`,
		`text.frobnicate()`:              `at character 16: there is no function "frobnicate"`,
		`body.all(x)`:                    "at character 9: all() takes other arguments\nat character 10: there is no variable \"x\": there are attempt, attributes, body, enqueued_at, id, queue, source, text",
		`has(body)`:                      `at character 5: has() asks for a member, as in has(body.x)`,
		"body.success = false":           `at character 14: "=" is no operator: write "=="`,
		"body.a & body.b":                `at character 8: "&" is no operator: write "&&"`,
		"body.a | body.b":                `at character 8: "|" is no operator: write "||"`,
		"body.a AND body.b":              `at character 8: "AND" is no operator: write "&&"`,
		"body.a or body.b":               `at character 8: "or" is no operator: write "||"`,
		"not body.a":                     `at character 1: "not" is no operator: write "!"`,
		"body.a ==":                      `at character 10: the expression ends too early`,
		"(body.a == 1":                   `at character 13: the expression ends too early`,
		"body.a == 1)":                   `at character 12: ')' is not expected here`,
		"body.a == 1;":                   `at character 12: ';' is not expected here`,
		"body.a == 'x":                   `at character 11: a string does not end, or is not expected here`,
		"body.a b":                       `at character 8: "b" is not expected here`,
		"in == 1":                        `at character 1: "in" is not expected here`,
		"if == 1":                        `at character 1: reserved identifier: if`,
		"attempt":                        `at character 1: a condition must be true or false, and this is of type int: compare it with something`,
		"attributes":                     `at character 1: a condition must be true or false, and this is of type map(string, string): compare it with something`,
		"body.?x":                        `at character 1: a condition must be true or false, and this may be neither: write (body.?x).orValue(false)`,
		`attempt == "x"`:                 `at character 9: found no matching overload for == applied to '(int, string)'`,
		`attempt.contains("x")`:          `at character 17: found no matching overload for contains() applied to 'int.(string)'`,
		`!attempt`:                       `at character 1: found no matching overload for ! applied to '(int)'`,
		`enqueued_at > 5`:                `at character 13: found no matching overload for > applied to '(timestamp, int)'`,
		`timestamp("x") == enqueued_at`:  `at character 11: invalid timestamp argument`,
		`text.matches("(")`:              "at character 13: the pattern of matches(): error parsing regexp: missing closing ): `(`",
		`text.matches(r"a(?=b)")`:        "at character 13: the pattern of matches(): error parsing regexp: invalid or unsupported Perl syntax: `(?=`",
		`text.matches(id)`:               `at character 13: the pattern of matches() must be a literal, as in matches("^1[0-9]+$")`,
		`matches(text, body.re)`:         `at character 8: the pattern of matches() must be a literal, as in matches("^1[0-9]+$")`,
		`text.replace("a", id) == id`:    `at character 13: the replacement of replace() must be a literal, as in replace(".", "-")`,
		`text.split(",").join(id) == id`: `at character 21: the separator of join() must be a literal, as in join(",")`,
		strings.Repeat("(", 300) + "true" + strings.Repeat(")", 300): `at character 1: expression recursion limit exceeded: 250`,
		nested("1", 6): `at character 1: the expression costs`,
	}
	for source, want := range conditions {
		_, err := expr.CompileCondition(source)
		require.Error(t, err, source)
		require.True(t, strings.HasPrefix(err.Error(), want), "%s:\n%s", source, err)
	}
	templates := map[string]string{
		"{{":                    `at character 1: "{{" without its "}}"; a literal one is written {{ "{{" }}`,
		"é {{ id }":             `at character 3: "{{" without its "}}"; a literal one is written {{ "{{" }}`,
		"{{ 'a }}":              `at character 1: "{{" without its "}}"`,
		"{{ {'a': 1 }}":         `at character 1: "{{" without its "}}"`,
		"a {{ }}":               `at character 5: the expression is empty`,
		"{{ bdy }} {{ iid }}":   "at character 4: there is no variable \"bdy\": did you mean \"body\"?\nat character 14: there is no variable \"iid\": did you mean \"id\"?",
		"{{ id }}\né {{ bdy }}": `at line 2, character 6: there is no variable "bdy": did you mean "body"?`,
		"{{\n id +\n  bdy }}":   `at line 3, character 3: there is no variable "bdy": did you mean "body"?`,
		"{{{ id }}}":            `at character 8: '}' is not expected here`,
		"{{ attributes }}":      `at character 4: a value of type map(string, string) has no text: pick a part of it, or write json.encode(...) around it`,
		"x{{ [1] }}":            `at character 5: a value of type list(int) has no text: pick a part of it`,
		"{{ type(id) }}":        `at character 4: a value of type type(string) has no text`,
		"{{ b'\\xff' }}":        `at character 4: these bytes are not text: write base64.encode(...) around them`,
	}
	for source, want := range templates {
		_, err := expr.CompileTemplate(source)
		require.Error(t, err, source)
		require.True(t, strings.HasPrefix(err.Error(), want), "%s:\n%s", source, err)
	}
}

// nested is a loop in a loop in a loop over ten elements.
func nested(body string, depth int) string {
	for range depth {
		body = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(x, " + body + ")"
	}
	return body + ".size() == 10"
}

// FuzzTemplate holds that nothing panics, that what compiles renders or fails as it
// should, and that text without {{ is itself.
func FuzzTemplate(f *testing.F) {
	for _, source := range []string{
		"", "text", "{{ id }}", "{{", "}}", `{{ "{{" }}`, "{{ body.a[0].?b }}", `{{ {"a": 1}.a }}`, "{{ id // }}", `{{ r"\" }}`, `{{ """ }}`, "{{ json.encode(body) }}", "{{ body.map(x, x).join(',') }}",
		"{{ body.n + 1 }}", "{{ timestamp(body.s) }}", "{{ body.s.matches('a+') }}", "{{ '%s'.format([body]) }}", "{{ body == body }}", "{{ 1 in body }}", "{{ body + [1] }}", "a{{ b }}c{{ d }}", "{{ has(body.a) }}", "{{ math.abs(body.n) }}",
	} {
		for _, body := range []string{`{"a":[{"b":1}],"n":-9223372036854775808,"s":"x"}`, `[1,"a",null]`, "", "\xff", `"x"`, "1e999"} {
			f.Add(source, body)
		}
	}
	f.Fuzz(func(t *testing.T, source, body string) {
		in := expr.NewInput(message(body), "q")
		if c, err := expr.CompileCondition(source); err == nil {
			if _, err := c.Match(in); err != nil {
				requireFailure(t, err, "evaluate ")
			}
		}
		compiled, err := expr.CompileTemplate(source)
		if !strings.Contains(source, "{{") {
			require.NoError(t, err)
			require.True(t, compiled.Literal())
			got, err := compiled.Render(nil)
			require.NoError(t, err)
			require.Equal(t, source, got)
		}
		if err != nil {
			require.True(t, strings.HasPrefix(err.Error(), "at "), err)
			return
		}
		text, err := compiled.Render(in)
		if err != nil {
			requireFailure(t, err, "evaluate ")
		}
		value, valueErr := compiled.Value(in)
		if valueErr != nil {
			requireFailure(t, valueErr, "evaluate ")
			require.Error(t, err)
			require.Nil(t, value)
		}
		if s, is := value.(string); is && err == nil {
			require.Equal(t, text, s)
		}
	})
}

// Only what selects from the body is read from it: no other variable gets the body's
// numbers, whatever names they have there.
func TestOtherVariablesAreNotTakenFromTheBody(t *testing.T) {
	t.Parallel()
	const source = "{{ id }} {{ queue }} {{ source }} {{ attempt }} {{ attributes.topic }} {{ text.size() }}"
	for body, size := range map[string]string{
		"12345678901234567890": "20", "7": "1", `{"topic":7,"id":8}`: "18", `{"k":[1]}`: "9", `[1]`: "3",
	} {
		m := &relay.Message{
			ID: "the id", Queue: "the queue", Source: "the source", Attempt: 3, Body: []byte(body),
			Attributes: map[string]string{"topic": "the topic"},
		}
		got, err := template(t, source).Render(expr.Of(m))
		require.NoError(t, err)
		require.Equal(t, "the id the queue the source 3 the topic "+size, got, body)
	}
}
