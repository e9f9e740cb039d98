package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const checkedConfig = `
sources:
  sms:
    endpoint: EMULATOR
    queue: orders
    credentials: {type: static, access_key_id: emulator, access_key_secret: "${file:KEYFILE}"}
    to: out
sinks:
  out:
    type: file
    path: FOLDER/out.jsonl
`

func TestCheck(t *testing.T) {
	url, _ := startEmulator(t, "--queue", "orders")
	file := written(t, map[string]string{"key": "emulator-secret", "wrong": "another-secret"})
	folder := strings.TrimSuffix(file("x"), "/x")
	configFile := func(key, folder string) string {
		text := strings.NewReplacer("EMULATOR", url, "KEYFILE", file(key), "FOLDER", folder).Replace(checkedConfig)
		return written(t, map[string]string{"relay.yaml": text})("relay.yaml")
	}

	right := configFile("key", folder)
	got := command(t, "", "check", "--config", right)
	require.Zero(t, got.code, got.stdout+got.stderr)
	lines := strings.Split(strings.TrimSuffix(got.stdout, "\n"), "\n")
	require.Equal(t, "ok         source sms: credential: static, account not known, access key emul***, without an end", lines[0])
	require.Contains(t, got.stdout, "\nok         source sms: queue orders: is there\n")
	require.Contains(t, got.stdout, "\nok         sink out: file "+folder+"/out.jsonl: is not there yet: it is made at the start\n")
	require.Equal(t, "9 ok, 0 failed, 1 not known", lines[len(lines)-1])

	got = command(t, "", "check", "--config", configFile("wrong", folder+"/missing"))
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stdout, "\nfailed     source sms: keys: the secret does not belong to the access key: check access_key_secret")
	require.Contains(t, got.stdout, "\nfailed     sink out: folder "+folder+"/missing: ")
	require.NotContains(t, got.stdout+got.stderr, "another-secret")
	require.Empty(t, got.stderr)

	got = command(t, "", "check", "--config", right, "--json", "--timeout", "20s")
	require.Zero(t, got.code, got.stdout+got.stderr)
	var report struct {
		OK    bool
		Lines []struct {
			Kind, Name, What, Verdict, Text string
			Details                         map[string]any
		}
	}
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &report))
	require.True(t, report.OK)
	require.Len(t, report.Lines, 10)
	require.Equal(t, "credential", report.Lines[0].What)
	require.Equal(t, "ok", report.Lines[0].Verdict)
	require.Equal(t, "static", report.Lines[0].Details["type"])
	require.Equal(t, "sink", report.Lines[8].Kind)

	for want, args := range map[string][]string{
		"which configuration?": {"check"},
		"--timeout must be":    {"check", "--config", right, "--timeout", "0s"},
		"--sts is not an":      {"check", "--config", right, "--sts", "sts"},
	} {
		got := command(t, "", args...)
		require.Equal(t, exitUsage, got.code)
		require.Contains(t, got.stderr, want)
	}
}
