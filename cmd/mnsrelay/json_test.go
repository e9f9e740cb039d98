package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// decoded is the one document that a command printed.
func decoded(t *testing.T, out string) map[string]any {
	t.Helper()
	var v map[string]any
	require.NoError(t, json.Unmarshal([]byte(out), &v), out)
	return v
}

func TestVersionJSON(t *testing.T) {
	v := decoded(t, command(t, "", "version", "--json").stdout)
	require.Equal(t, buildVersion(), v["version"])
	for _, key := range []string{"go", "os", "arch"} {
		require.NotEmpty(t, v[key])
	}
	require.Equal(t, command(t, "", "version"), command(t, "", "--version"))
}

func TestValidateJSON(t *testing.T) {
	file := written(t, map[string]string{"right.yaml": `
sources: {sms: {endpoint: "http://127.0.0.1:1", queue: q, credentials: {type: static, access_key_id: a, access_key_secret: secret}, to: out}}
sinks: {out: {type: file, path: "-"}, unused: {type: file, path: x}}
`, "wrong.yaml": "sources: {}\nsinks:\n  out: {type: fil}\n"})

	got := command(t, "", "validate", "--config", file("right.yaml"), "--json")
	require.Equal(t, exitDone, got.code, got.stdout)
	require.Empty(t, got.stderr)
	v := decoded(t, got.stdout)
	require.Equal(t, true, v["valid"])
	require.Empty(t, v["problems"])
	require.InDelta(t, 2, v["sinks"], 0)
	require.NotEmpty(t, v["warnings"], "a sink that no route uses")

	got = command(t, "", "validate", "--config", file("wrong.yaml"), "--json")
	require.Equal(t, exitUsage, got.code)
	require.Empty(t, got.stderr)
	v = decoded(t, got.stdout)
	require.Equal(t, false, v["valid"])
	require.Contains(t, v["problems"], map[string]any{
		"file": file("wrong.yaml"), "line": 3.0, "column": 15.0, "path": "sinks.out.type",
		"message": `must be amqp091, amqp10, file, mns or webhook, not "fil"; did you mean "file"?`,
	})
	got = command(t, "", "validate", "--config", "/nowhere", "--json")
	require.Equal(t, exitUsage, got.code)
	require.Len(t, decoded(t, got.stdout)["problems"], 1)
}

// oneOfTwoFails writes a file of two tests, the second of which fails, and gives its path.
func oneOfTwoFails(t *testing.T) string {
	t.Helper()
	return written(t, map[string]string{"tests.yaml": `
config: mnsrelay.yaml
tests:
  - {name: goes, message: {source: sms, body: x}, deliveries: [{sink: out}]}
  - {name: does not, message: {source: sms, body: x}, deliveries: []}
`, "mnsrelay.yaml": `
sources: {sms: {endpoint: "http://127.0.0.1:1", queue: q, credentials: {type: static, access_key_id: a, access_key_secret: secret}, to: out}}
sinks: {out: {type: file, path: "-"}}
`})("tests.yaml")
}

func TestTestJSON(t *testing.T) {
	path := oneOfTwoFails(t)
	got := command(t, "", "test", "--json", path)
	require.Equal(t, exitFailed, got.code)
	v := decoded(t, got.stdout)
	require.InDelta(t, 1, v["failed"], 0)
	tests := v["tests"].([]any)
	require.Equal(t, map[string]any{"name": "goes", "file": path, "line": 4.0, "ok": true}, tests[0])
	require.Equal(t, false, tests[1].(map[string]any)["ok"])
	require.NotEmpty(t, tests[1].(map[string]any)["differences"])

	got = command(t, "", "test", "/nowhere.yaml")
	require.Equal(t, exitUsage, got.code)
	require.Empty(t, got.stdout, "nothing was tested, so there is no result")
	require.Contains(t, got.stderr, "/nowhere.yaml")
}

func TestRedriveJSON(t *testing.T) {
	r := newDeadRig(t, emulator.QueueConfig{})
	r.fill(t, 3)
	got := command(t, "", r.args("--dry-run", "--json")...)
	require.Equal(t, exitDone, got.code, got.stderr)
	v := decoded(t, got.stdout)
	require.InDelta(t, 3, v["about"], 0)
	letters := v["messages"].([]any)
	require.Len(t, letters, 3)
	require.Equal(t, "original-0", letters[0].(map[string]any)["original_id"])
	require.Equal(t, "max_receives", letters[0].(map[string]any)["reason"])

	got = command(t, "", r.args("--json")...)
	require.Equal(t, exitDone, got.code, got.stderr)
	v = decoded(t, got.stdout)
	require.InDelta(t, 3, v["moved"], 0)
	require.InDelta(t, 3, v["unwrapped"], 0)
	require.Equal(t, "orders", v["to"])
	require.Positive(t, v["seconds"])
}
