package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const explained = `
sources:
  sms:
    endpoint: http://127.0.0.1:8081
    queue: orders
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
    unmatched: retain
sinks:
  hook:
    type: webhook
    url: https://hooks.example.com/{{ body.to }}
    headers: {x-key: "${HOOK_KEY}"}
    body: "to {{ body.to }}, key ${file:KEYFILE}"
    signing: {secrets: [whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=]}
routes:
  - name: failures
    from: sms
    when: body.ok == false
    to: hook
`

// written writes files into a folder and gives their paths.
func written(t *testing.T, texts map[string]string) func(name string) string {
	t.Helper()
	folder := t.TempDir()
	for name, text := range texts {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600))
	}
	return func(name string) string { return filepath.Join(folder, name) }
}

func explainable(t *testing.T) func(name string) string {
	t.Helper()
	t.Setenv("HOOK_KEY", "the-key-of-the-hook")
	key := written(t, map[string]string{"key": "the-file-key"})("key")
	return written(t, map[string]string{
		"relay.yaml": strings.ReplaceAll(explained, "KEYFILE", key),
		"message":    `{"id": "m1", "body": {"ok": false, "to": "a/b"}}`,
		"body":       `{"ok": true}`,
		"wrong":      `{"ok": true}`,
	})
}

func TestExplain(t *testing.T) {
	file := explainable(t)
	got := command(t, "", "explain", "--config", file("relay.yaml"), "--message", file("message"))
	require.Zero(t, got.code, got.stderr)
	for _, want := range []string{
		"message m1 of source sms: 23 bytes, attempt 1",
		"route failures takes it: body.ok == false",
		"  body.ok == false  is  true\n    body.ok  is  false\n",
		"-> hook (webhook)",
		"url: https://hooks.example.com/a%2Fb\n",
		"headers.webhook-id: m1\n",
		"headers.webhook-signature: v1,",
		"headers.x-key: ***\n",
		"body, 24 bytes:\n       to a/b, key ***\n",
		"Deleted from the queue once hook has confirmed it.",
	} {
		require.Contains(t, got.stdout, want)
	}
	require.NotContains(t, got.stdout, "the-file-key")
	require.NotContains(t, got.stdout, "the-key-of-the-hook")

	got = command(t, "", "explain", "--config", file("relay.yaml"), "--body", file("body"), "--json")
	require.Zero(t, got.code, got.stderr)
	var e struct {
		Routes []struct {
			Matches bool
			Steps   []struct{ Text, Value string }
		}
		End string
	}
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &e))
	require.False(t, e.Routes[0].Matches)
	require.Equal(t, "false", e.Routes[0].Steps[0].Value)
	require.Contains(t, e.End, "stays in the queue")

	got = command(t, `{"body": "no JSON"}`, "explain", "--config", file("relay.yaml"), "--message", "-")
	require.Zero(t, got.code, got.stderr)
	require.Contains(t, got.stdout, "route failures cannot tell: body.ok == false")
	require.Contains(t, got.stdout, "rejected: route failures: ")

	got = command(t, "", "explain", "--config", file("relay.yaml"), "--message", file("wrong"))
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "there is no key ok")
	require.Contains(t, got.stderr, "the body alone is given by --body")
	got = command(t, "", "explain", "--config", file("relay.yaml"), "--message", file("message"), "--source", "smss")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, `there is no source "smss": there is sms`)
	require.Equal(t, exitUsage, command(t, "", "explain", "--config", file("relay.yaml")).code)
}

func TestTest(t *testing.T) {
	file := explainable(t)
	key := written(t, map[string]string{"key": "x"})("key")
	tests := written(t, map[string]string{
		"relay.yaml": strings.ReplaceAll(explained, "KEYFILE", "/nowhere/key"),
		"tests.yaml": `
config: relay.yaml
env: {HOOK_KEY: stand-in}
files: {/nowhere/key: stand-in-too}
tests:
  - name: failures
    message: {body: {ok: false, to: a}}
    deliveries:
      - {sink: hook, url: "https://hooks.example.com/a", body: "to a, key stand-in-too"}
  - name: others
    message: {body: {ok: true}}
    deliveries: []
`,
		"failing.yaml": `
config: relay.yaml
tests:
  - name: failures
    message: {body: {ok: false, to: a}}
    deliveries: [{sink: hook, body: other}]
`,
	})
	got := command(t, "", "test", tests("tests.yaml"))
	require.Zero(t, got.code, got.stderr)
	require.Equal(t, "ok    failures\nok    others\n2 tests, 0 failed\n", got.stdout)

	got = command(t, "", "test", "--config", file("relay.yaml"), tests("failing.yaml"), tests("tests.yaml"))
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stdout, "FAIL  failures ("+tests("failing.yaml")+":4)\n        delivery to hook by route failures:\n      - body: other\n      + body: to a, key ***\n")
	require.Contains(t, got.stdout, "3 tests, 2 failed\n")
	require.NotContains(t, got.stdout, "the-file-key")
	require.Empty(t, got.stderr)

	got = command(t, "", "test", tests("failing.yaml"))
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "/nowhere/key")
	require.Equal(t, exitUsage, command(t, "", "test").code)
	require.Equal(t, exitUsage, command(t, "", "test", key).code)
	// What cannot be run ends with another code than what fails, and the others run.
	got = command(t, "", "test", "/nowhere/tests.yaml", tests("failing.yaml"), tests("tests.yaml"), tests("relay.yaml"))
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "/nowhere/tests.yaml")
	require.Contains(t, got.stderr, "/nowhere/key")
	require.Contains(t, got.stderr, "there is no key sources")
	require.Contains(t, got.stdout, "ok    failures\nok    others\n2 tests, 0 failed\n")
	alone := written(t, map[string]string{"tests.yaml": "tests: [{name: x, message: {}}]"})("tests.yaml")
	got = command(t, "", "test", alone)
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "names no configuration")
}

// The id of a message cannot play tricks with a terminal.
func TestExplainShowsIDs(t *testing.T) {
	file := explainable(t)
	got := command(t, `{"id": "m\u001b[31m", "body": {"ok": true}}`, "explain", "--config", file("relay.yaml"), "--message", "-")
	require.Zero(t, got.code, got.stderr)
	require.NotContains(t, got.stdout, "\x1b")
	require.Contains(t, got.stdout, `message "m\u001b[31m" of source sms`)
}

const secretive = `
sources:
  sms:
    endpoint: http://127.0.0.1:8081
    queue: orders
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
    unmatched: retain
sinks:
  odd:
    type: webhook
    url: https://hooks.example.com/
    body: "key ${file:KEYFILE}"
  event:
    type: amqp091
    url: amqp://localhost
    exchange: e
    routing_key: "k.${file:KEYFILE}.${RELAY_TEST_TOKEN}.&"
    body: "key ${file:KEYFILE}"
    format: cloudevents
    headers: {x-token: "Bearer ${RELAY_TEST_TOKEN}", times: ["{{ enqueued_at }}", "a&b"]}
  word:
    type: webhook
    url: https://hooks.example.com/
    body: "${file:WORDFILE}"
  lines:
    type: webhook
    url: https://hooks.example.com/
    body: "${file:LINESFILE}"
routes:
  - {name: all, from: sms, to: [odd, event, word, lines], when: body.ok}
`

// What came from files is shown nowhere, also where it is written in another way, and JSON
// stays JSON.
func TestSecretsAreConcealed(t *testing.T) {
	const secret, escaped = `p"w<s>&crét`, `p\"w`
	t.Setenv("RELAY_TEST_TOKEN", "the-token")
	secrets := written(t, map[string]string{"key": secret, "word": "true", "lines": "-----BEGIN-----\nline\n-----END-----\n"})
	file := written(t, map[string]string{
		"relay.yaml": strings.NewReplacer("KEYFILE", secrets("key"), "WORDFILE", secrets("word"), "LINESFILE", secrets("lines")).Replace(secretive),
		"message":    `{"id": "m1", "body": {"ok": true}}`,
		"tests.yaml": `
tests:
  - name: leaks
    message: {body: {ok: true}}
    deliveries: [{sink: odd, body: other}, {sink: event, routing_key: other, body: {}}, {sink: word}, {sink: lines, body: other}]
`,
	})
	concealed := func(output string) {
		t.Helper()
		require.NotContains(t, output, secret)
		require.NotContains(t, output, escaped)
		require.NotContains(t, output, `w\u003cs`)
		require.NotContains(t, output, "BEGIN")
		require.NotContains(t, output, "the-token")
	}
	got := command(t, "", "explain", "--config", file("relay.yaml"), "--message", file("message"))
	require.Zero(t, got.code, got.stderr)
	concealed(got.stdout)
	require.Contains(t, got.stdout, "key ***")
	require.Contains(t, got.stdout, "routing_key: k.***.***.&")
	require.Contains(t, got.stdout, "properties.timestamp: 2026-01-02T03:04:05.000Z\n")
	require.Contains(t, got.stdout, `headers.times: ["2026-01-02T03:04:05.000Z","a&b"]`)

	got = command(t, "", "explain", "--config", file("relay.yaml"), "--message", file("message"), "--json")
	require.Zero(t, got.code, got.stderr)
	concealed(got.stdout)
	require.Contains(t, got.stdout, "***.&", "as a reader writes it")
	var e struct {
		Routes []struct {
			Matches bool
			Steps   []struct {
				Value string
				Depth *int
			}
			Deliveries []struct {
				Body   string
				Fields map[string]any
			}
		}
	}
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &e), got.stdout)
	require.True(t, e.Routes[0].Matches)
	require.Equal(t, 0, *e.Routes[0].Steps[0].Depth)
	made := e.Routes[0].Deliveries
	require.Equal(t, "key ***", made[0].Body)
	require.Equal(t, "k.***.***.&", made[1].Fields["routing_key"])
	require.Equal(t, "***", made[1].Fields["headers.x-token"])
	require.Equal(t, "2026-01-02T03:04:05.000Z", made[1].Fields["properties.timestamp"], "as test compares it")
	require.Equal(t, []any{"2026-01-02T03:04:05.000Z", "a&b"}, made[1].Fields["headers.times"])
	require.Contains(t, made[1].Body, `"data":"key ***"`)
	require.Equal(t, "***", made[2].Body)

	got = command(t, "", "test", "--config", file("relay.yaml"), file("tests.yaml"))
	require.Equal(t, exitFailed, got.code, got.stderr)
	concealed(got.stdout)
	require.Contains(t, got.stdout, `+ routing_key: "k.***.***.&"`)
	require.Contains(t, got.stdout, `"data":"key ***"`)
}

// The tests of the example configurations pass.
func TestExamplesAreTested(t *testing.T) {
	files, err := filepath.Glob("../../configs/tests/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	got := command(t, "", append([]string{"test"}, files...)...)
	require.Zero(t, got.code, got.stdout+got.stderr)
}
