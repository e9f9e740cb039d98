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
	require.Equal(t, exitFailed, command(t, "", "test", key).code)
}

// The tests of the example configurations pass.
func TestExamplesAreTested(t *testing.T) {
	files, err := filepath.Glob("../../configs/tests/*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	got := command(t, "", append([]string{"test"}, files...)...)
	require.Zero(t, got.code, got.stdout+got.stderr)
}
