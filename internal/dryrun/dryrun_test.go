package dryrun_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/config"
	"mnsrelay/internal/dryrun"
	"mnsrelay/internal/relay"
)

const routes = `
sources:
  sms:
    endpoint: http://127.0.0.1:8081
    queue: orders
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
    unmatched: UNMATCHED
    dead_letter: lost
sinks:
  hook:
    type: webhook
    url: https://hooks.example.com/x?to={{ body.to }}
    headers: {x-key: "${KEY}", x-static: written}
    bearer_token: the-token
  other:
    type: webhook
    url: https://other.example.com/
    body: "{{ body.must }}"
  lost:
    type: webhook
    url: https://lost.example.com/
routes:
  - name: all
    from: sms
    when: body.ok
    to: hook
  - name: some
    from: sms
    when: body.n > 1
    to: [{sink: other, required: REQUIRED}, hook]
`

func prepare(t *testing.T, replace ...string) *dryrun.Relay {
	t.Helper()
	text := strings.NewReplacer(append(replace, "UNMATCHED", "retain", "REQUIRED", "true")...).Replace(routes)
	cfg, _, err := config.Parse("test", []byte(text), config.Environment{
		Lookup: func(name string) (string, bool) { return "the-key", name == "KEY" },
	})
	require.NoError(t, err)
	dry, err := dryrun.New(cfg, "test")
	require.NoError(t, err)
	return dry
}

func explain(t *testing.T, dry *dryrun.Relay, message string) *dryrun.Explanation {
	t.Helper()
	m, err := dryrun.ReadMessage([]byte(message))
	require.NoError(t, err)
	e, err := dry.Explain(m)
	require.NoError(t, err)
	return e
}

// fields gives what a delivery would send beside the body.
func fields(d dryrun.Delivery) map[string]any {
	all := make(map[string]any)
	for _, f := range d.Preview.Fields {
		all[f.Name] = f.Value
	}
	return all
}

func TestExplain(t *testing.T) {
	t.Parallel()
	e := explain(t, prepare(t), `{id: m1, body: {ok: true, n: 1, to: "a b"}}`)
	require.NoError(t, e.Rejected)
	require.Len(t, e.Routes, 2)
	require.True(t, e.Routes[0].Matches)
	require.False(t, e.Routes[1].Matches)
	require.Equal(t, "body.n > 1", e.Routes[1].Steps[0].Text)
	require.Equal(t, "false", e.Routes[1].Steps[0].Value)
	require.Equal(t, "1", e.Routes[1].Steps[1].Value)
	require.Empty(t, e.Routes[1].Deliveries)
	made := e.Deliveries()
	require.Len(t, made, 1)
	got := fields(made[0])
	require.Equal(t, "https://hooks.example.com/x?to=a+b", got["url"])
	require.Equal(t, "m1", got["headers.webhook-id"])
	require.Equal(t, relay.Masked, got["headers.x-key"], "it comes from the environment")
	require.Equal(t, "written", got["headers.x-static"])
	require.Equal(t, relay.Masked, got["headers.authorization"])
	require.Equal(t, []byte(`{"ok":true,"n":1,"to":"a b"}`), made[0].Preview.Body, "in the order in which it is written") //nolint:testifylint // To the letter.
	require.Equal(t, "Deleted from the queue once hook has confirmed it.", e.End)
}

func TestEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, message string
		replace       []string
		rejected      string
		deliveries    []string // sinks
		end           string
	}{
		{"both", `{body: {ok: true, n: 2, to: a, must: x}}`, nil, "", []string{"hook", "other", "hook"}, "once hook and other have confirmed it"},
		{"a sink refuses", `{body: {ok: true, n: 2, to: a}}`, nil, "expression", []string{"hook", "hook", "lost"}, "once the dead-letter sink lost has confirmed it"},
		{"a sink that is not required refuses", `{body: {ok: true, n: 2, to: a}}`, []string{"REQUIRED", "false"}, "expression", []string{"hook", "hook", "lost"}, "once hook has confirmed it"},
		{"a route cannot tell", `{body: {ok: true, to: a}}`, nil, "expression", []string{"lost"}, "once the dead-letter sink lost has confirmed it"},
		{"no route", `{body: {ok: false, n: 0}}`, nil, "", nil, "it stays in the queue"},
		{"no route, deleted", `{body: {ok: false, n: 0}}`, []string{"UNMATCHED", "delete"}, "", nil, "deleted from the queue (unmatched: delete)"},
		{"no route, buried", `{body: {ok: false, n: 0}}`, []string{"UNMATCHED", "dead_letter"}, "unmatched", []string{"lost"}, "once the dead-letter sink lost has confirmed it"},
		{"no route, and the dead-letter sink refuses", `{body: {ok: false, n: 0}}`, []string{"UNMATCHED", "dead_letter", "url: https://lost.example.com/", `url: "https://lost.example.com/{{ body.must }}"`}, "unmatched", nil, "lost refuses it, too: the message stays in the queue"},
		{"no dead letters", `{body: hello}`, []string{"    dead_letter: lost\n", ""}, "expression", nil, "stays in the queue and comes again"},
		{"at most once", `{body: {ok: true, n: 2, to: a}}`, []string{"unmatched:", "guarantee: at_most_once\n    unmatched:"}, "expression", []string{"hook", "hook"}, "before it is delivered"},
		{"not decoded", `{raw: "not base64!"}`, []string{"unmatched:", "body: base64\n    unmatched:"}, "decode", []string{"lost"}, "once the dead-letter sink lost has confirmed it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := explain(t, prepare(t, c.replace...), c.message)
			if c.rejected == "" {
				require.NoError(t, e.Rejected)
			} else {
				require.Equal(t, c.rejected, relay.ReasonOf(e.Rejected), "%v", e.Rejected)
			}
			var sinks []string
			for _, d := range e.Deliveries() {
				sinks = append(sinks, d.Sink)
			}
			require.Equal(t, c.deliveries, sinks)
			require.Contains(t, e.End, c.end)
		})
	}
	e := explain(t, prepare(t), `{body: {ok: true, n: 2, to: a}}`)
	got := fields(*e.DeadLetter)
	require.Equal(t, "expression", got["headers.x-mnsrelay-dead-reason"])
	require.Equal(t, "other", got["headers.x-mnsrelay-dead-sink"])
}

func TestMessages(t *testing.T) {
	t.Parallel()
	dry := prepare(t)
	for _, c := range []struct{ name, message, body string }{
		{"text", `body: "{\"a\": 1}"`, `{"a": 1}`},
		{"mapping", "body: {z: 1, a: 1.50, t: 2026-01-02, n: ~, h: 0x10, s: \"5\", l: [yes, true], q: '<\"'}", `{"z":1,"a":1.50,"t":"2026-01-02","n":null,"h":16,"s":"5","l":["yes",true],"q":"<\""}`},
		{"base64", "body_base64: /wA=", "\xff\x00"},
		{"raw", "raw: eyJhIjogMX0=", `{"a": 1}`},
		{"JSON with what YAML has not", `{"id":"1","body":"a\u0085\ud83d\ude00\ufffe` + "\u0085" + `"}`, "a\u0085😀\ufffe\u0085"},
		{"JSON", `{"body": {"z": 1.50, "<<": {"a": [ null ]}}}`, `{"z":1.50,"<<":{"a":[null]}}`},
		{"nothing in JSON", `{"body": null}`, ""},
		{"nothing", `body: ~`, ""},
		{"the word", `body: "null"`, "null"},
		{"a number", `{"body": 5}`, "5"},
		{"an empty text", `{"body": ""}`, ""},
		{"a line of queue peek", `{"id":"1","attempt":2,"enqueued_at":"2026-03-10T08:00:00.123Z","attributes":{"body":"base64","tag":"x"},"body":"hi"}`, "hi"},
		{"a line of the file sink", `{"id":"1","source":"sms","attempt":2,"enqueued_at":"2026-03-10T08:00:00.123Z","attributes":{},"dead":{"reason":"x"},"body":"hi"}`, "hi"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := explain(t, dry, c.message)
			require.Equal(t, c.body, string(e.Message.Body))
			if strings.Contains(c.message, "attempt") {
				require.Equal(t, 2, e.Message.Attempt)
				require.Equal(t, "2026-03-10T08:00:00.123Z", e.Message.EnqueuedAtText())
			}
		})
	}
	for _, c := range []struct{ name, message, want string }{
		{"another key", "bodi: x", `there is no key bodi; the keys of a message are source`},
		{"another key of JSON", `{"bodi": "x"}`, `there is no key bodi; the keys of a message are source`},
		{"two bodies in JSON", `{"body": "x", "raw": "y"}`, "has body and raw; keep one"},
		{"nothing at all", "", "it is empty"},
		{"a text", "hello", "line 1: `hello` is a text, and a mapping belongs there"},
		{"a list", "[hello]", "line 1: is a list, and a mapping belongs there"},
		{"two lines of queue peek", `{"id": "1"}` + "\n" + `{"id": "2"}`, "there is more after the message, and this is about one: queue peek --max 1"},
		{"an attempt in quotes", `attempt: "3"`, "line 1: `3` is a text, and a whole number belongs there"},
		{"an attempt in quotes in JSON", `{"attempt": "3"}`, "attempt is a text, and a whole number belongs there"},
		{"a merge", "{body: {a: &a {b: 1}, c: {<<: *a}}}", "line 1: << does not work here"},
		{"two bodies", "{body: x, raw: y}", "has body and raw; keep one"},
		{"no base64", "body_base64: '!'", "body_base64 is no base64"},
		{"another source", "{source: smss, body: x}", `there is no source "smss": there is sms`},
		{"raw with attributes", "{raw: x, attributes: {a: b}}", "raw and attributes"},
		{"a number that JSON lacks", "{body: {a: .inf}}", "line 1: JSON has no .inf"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, err := dryrun.ReadMessage([]byte(c.message))
			if err == nil {
				_, err = dry.Explain(m)
			}
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func fixtures(t *testing.T, text string) (*dryrun.Fixtures, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tests.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return dryrun.ReadFixtures(path)
}

func TestFixtures(t *testing.T) {
	t.Parallel()
	dry := prepare(t)
	const message = "message: {id: m1, body: {ok: true, n: 1, to: a}}, "
	for _, c := range []struct {
		name, test string
		want       []string // lines of the diff, or what they contain
	}{
		{"as expected", message + `deliveries: [{sink: hook, route: all, method: POST, headers: {X-Static: written, x-mnsrelay-attempt: "1", x-none: null}, body: {n: 1, to: a, ok: true}}]`, nil},
		{"the body to the letter", message + `deliveries: [{sink: hook, body: '{"ok":true,"n":1,"to":"a"}'}]`, nil},
		{"another value", message + `deliveries: [{sink: hook, method: PUT, headers: {x-static: other}}]`, []string{"  delivery to hook by route all:", `- method: "PUT"`, `+ method: "POST"`, `- headers.x-static: "other"`, `+ headers.x-static: "written"`}},
		{"another type", message + `deliveries: [{sink: hook, headers: {x-mnsrelay-attempt: 1}}]`, []string{"  delivery", "- headers.x-mnsrelay-attempt: 1", `+ headers.x-mnsrelay-attempt: "1"`}},
		{"a name that is not there", message + `deliveries: [{sink: hook, headers: {x-statik: written}}]`, []string{"  delivery", `- headers.x-statik: "written"   (there is headers.x-static)`}},
		{"what must not be there", message + `deliveries: [{sink: hook, headers: {x-static: null}}]`, []string{"  delivery", "- headers.x-static is not sent", `+ headers.x-static: "written"`}},
		{"another body", message + `deliveries: [{sink: hook, body: {n: 2}}]`, []string{"  delivery", `- body: {"n":2}`, `+ body: {"ok":true,"n":1,"to":"a"}`}},
		{"a text that is the same JSON", message + `deliveries: [{sink: hook, body: '{"n":1,"ok":true,"to":"a"}'}]`, []string{"  delivery", "- body", "+ body"}},
		{"one too many", message + `deliveries: []`, []string{"+ delivery to hook by route all"}},
		{"one too few", message + `deliveries: [{sink: hook}, {sink: other, route: some}]`, []string{"- delivery to other by route some"}},
		{"of another route", message + `deliveries: [{sink: hook, route: some}]`, []string{"- delivery to hook by route some", "+ delivery to hook by route all"}},
		{"in another order", `message: {body: {ok: true, n: 2, to: a, must: x}}, deliveries: [{sink: other, body: x}, {sink: hook, route: some}, {sink: hook, route: all}]`, nil},
		{"no fields", message + `deliveries: [{sink: hook, headers: {}}]`, nil},
		{"a group that is misspelt", message + `deliveries: [{sink: hook, hedders: {x-a: null}}]`, []string{"  delivery", "- hedders.x-a is not sent   (there is headers)"}},
		{"a key that is misspelt", message + `deliveries: [{sink: hook, routr: all}]`, []string{"  delivery", `- routr: "all"   (there is route)`}},
		{"another sink", message + `deliveries: [{sink: hok}, {sink: hook}]`, []string{"- delivery to hok   (there is no such sink: there is hook, other, lost)"}},
		{"no such route", message + `deliveries: [{sink: hook, route: al}]`, []string{"- delivery to hook by route al   (there is no such route: there is all, some)", "+ delivery"}},
		{"deleted", message + `deliveries: [{sink: hook}], end: deleted`, nil},
		{"not retained", message + `deliveries: [{sink: hook}], end: retained`, []string{"- end: retained", "+ end: deleted (Deleted from the queue once hook has confirmed it.)"}},
		{"retained", `message: {body: {ok: false, n: 0}}, deliveries: [], end: retained`, nil},
		{"not rejected", message + `rejected: expression, deliveries: [{sink: hook}]`, []string{"- rejected: expression"}},
		{"rejected", `message: {body: hello}, deliveries: [{sink: lost, headers: {x-mnsrelay-dead-reason: expression}}]`, []string{"+ rejected: expression (route all: "}},
		{"rejected as expected", `message: {body: hello}, rejected: expression, deliveries: [{sink: lost}]`, nil},
		{"refused by its sink", `message: {body: {ok: false, n: 2, to: a}}, rejected: expression, deliveries: [{sink: other}, {sink: hook}, {sink: lost}]`, []string{"- delivery to other", "  it is rejected: work out the body"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f, err := fixtures(t, "tests: [{name: x, "+c.test+"}]")
			require.NoError(t, err)
			diff, err := dry.Run(&f.Tests[0])
			require.NoError(t, err)
			require.Len(t, diff, len(c.want), "%q", diff)
			for i := range c.want {
				require.Contains(t, diff[i], c.want[i])
			}
		})
	}
}

func TestFixtureFiles(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text, want string }{
		{"none", "config: x", "has no tests"},
		{"no name", "tests:\n  - message: {body: x}", ":2: tests[0] has no name"},
		{"no message", "tests: [{name: x, deliveries: []}]", "tests[0] has no message"},
		{"another end", "tests: [{name: x, message: {}, end: gone}]", "tests[0] has end: gone; write deleted or retained"},
		{"no list", "tests: [{name: x, message: {}, deliveries: {sink: a}}]", "is a mapping, and a list belongs there"},
		{"several routes", "tests: [{name: x, message: {}, deliveries: [{sink: a, route: [b]}]}]", "line 1: route is a name"},
		{"what holds itself", "tests: [{name: x, message: {}, deliveries: [{sink: a, headers: &a {x: *a}}]}]", "line 1: nests too deep"},
		{"what holds itself twice", "tests: [{name: x, message: {}, deliveries: [{sink: a, headers: &a {x: *a, y: *a}}]}]", "line 1: nests too deep"},
		{"a merge", "tests: [{name: x, message: {}, deliveries: [{sink: a, headers: {a: &a {b: c}, <<: *a}}]}]", "line 1: << does not work here"},
		{"no sink", "tests: [{name: x, deliveries: [{route: a}]}]", "the delivery has no sink"},
		{"no mapping", "tests: [{name: x, deliveries: [hook]}]", "line 1: a delivery is a mapping"},
		{"another key", "tests: [{name: x, delivery: []}]", "there is no key delivery"},
		{"no YAML", "tests: [", "tests.yaml: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := fixtures(t, c.text)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "dryrun.")
		})
	}

	// Stand-ins are there for the configuration alone.
	folder := t.TempDir()
	cfg := strings.NewReplacer("UNMATCHED", "retain", "REQUIRED", "true", `"${KEY}"`, `"${KEY}"`, "the-token", "${file:/nowhere/token}").Replace(routes)
	require.NoError(t, os.WriteFile(filepath.Join(folder, "relay.yaml"), []byte(cfg), 0o600))
	path := filepath.Join(folder, "tests.yaml")
	require.NoError(t, os.WriteFile(path, []byte("config: relay.yaml\nenv: {KEY: k}\nfiles: {/nowhere/token: abc}\ntests: [{name: x, message: {body: x}}]"), 0o600))
	f, err := dryrun.ReadFixtures(path)
	require.NoError(t, err)
	loaded, _, err := f.Load("")
	require.NoError(t, err)
	_, err = dryrun.New(loaded, "test")
	require.NoError(t, err)
	f.Files = nil
	_, _, err = f.Load("")
	require.ErrorContains(t, err, "/nowhere/token")
	f.Config = ""
	_, _, err = f.Load("")
	require.ErrorContains(t, err, "names no configuration")
}
