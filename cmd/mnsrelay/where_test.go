package main

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/test/certs"
)

const auditLine = `{"time":"2026-03-10T10:31:02.123Z","audit":"delivered","message_id":"id-1","source":"sms","route":"r","sink":"events","target":"sms.events","attempt":2,"duration":0.0032,"key":"900^0"}` + "\n"

func TestWhereReadsAnAuditAndAsksTheRelay(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.EscapedPath() {
		case "/api/v1/messages/id-1":
			_, _ = w.Write([]byte(`{"instance":"pod-1","id":"id-1","confirmed":[{"source":"sms","route":"r","sink":"events"}],"in_flight":[{"source":"sms","attempt":3}],
				"failures":[{"time":"2026-03-10T10:31:02Z","source":"sms","route":"r","sink":"hook","message_id":"id-1","attempt":2,"outcome":"retry","reason":"status","text":"503\u001b[2J"}]}`))
		case "/api/v1/messages/id-3":
			_, _ = w.Write([]byte(`{"instance":"pod-1","id":"id-3","confirmed":[],"failures":[],"previews":[{"source":"sms","preview":{
				"time":"2026-03-10T10:31:02Z","message_id":"id-3","attempt":1,"enqueued_at":"2026-03-10T10:31:00Z","end":"Deleted from the queue once all have it.",
				"deliveries":[{"route":"r","sink":"events","target":"sms.events"},{"route":"r","sink":"hook","reason":"template","text":"no value"}]}}]}`))
		case "/api/v1/messages/..%2Fbroken":
			w.WriteHeader(http.StatusInternalServerError)
		default:
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer api.Close()
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(auditLine), 0o600))

	got := command(t, "", "where", "900^0", "--file", file, "--url", api.URL+"/")
	require.Zero(t, got.code, got.stderr)
	lines := strings.Split(got.stdout, "\n")
	require.Regexp(t, `^TIME +MESSAGE +WHAT +SOURCE +ROUTE +SINK +TARGET +ATTEMPT +TOOK +REASON$`, lines[0])
	require.Regexp(t, `^2026-03-10T10:31:02.123Z  id-1 +delivered  sms +r +events  sms.events  2 +3.2ms  -$`, lines[1])
	require.Contains(t, got.stdout, "pod-1 knows of id-1:\n  in flight, from source sms, attempt 3\n  confirmed by sink events of route r")
	require.Contains(t, got.stdout, `retry at sink hook, attempt 2: "503\x1b[2J"`)

	got = command(t, "", "where", "id-3", "--url", api.URL)
	require.Zero(t, got.code, got.stderr)
	require.Contains(t, got.stdout, "pod-1 knows of id-3:\n  seen by source sms in shadow mode, which takes nothing: sink events would get it; sink hook would reject it: no value. Deleted from the queue once all have it.\n")

	got = command(t, auditLine, "where", "id-2", "--file", "-", "--url", api.URL)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, `nothing is known of "id-2". What was read of the audit is from 2026-03-10T10:31:02.123Z`)
	require.Contains(t, got.stderr, "The relay that was asked, one process, has no message of this id")

	got = command(t, "", "where", "id-2", "--url", api.URL)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "neither in flight nor in its ledger")
	require.Contains(t, got.stderr, "It knows ids, and no keys.")
	require.NotContains(t, got.stderr, "No line of an audit")

	got = command(t, auditLine, "where", "../broken", "--file", "-", "--url", api.URL)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "answers 500")
	require.NotContains(t, got.stderr, "nothing is known")

	// An audit of nothing yet takes nothing from what the relay says.
	config := filepath.Join(t.TempDir(), "mnsrelay.yaml")
	audit := filepath.Join(t.TempDir(), "audit.jsonl")
	require.NoError(t, os.WriteFile(config, []byte(`audit: {to: audit}
sources: {sms: {queue: q, endpoint: "http://127.0.0.1:1", credentials: {type: static, access_key_id: LTAI-example, access_key_secret: secret}}}
sinks: {audit: {type: file, path: `+audit+`}, hook: {type: webhook, url: "https://example.com/"}}
routes: [{name: all, from: sms, to: hook}]
`), 0o600))
	got = command(t, "", "where", "id-1", "--config", config, "--url", api.URL)
	require.Zero(t, got.code, got.stderr)
	require.Contains(t, got.stdout, "pod-1 knows of id-1:")
	require.Contains(t, got.stderr, "note: look for the audit: there is no file "+audit+" yet\n")
	got = command(t, "", "where", "id-1", "--config", config)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "there is no file "+audit+" yet\n")

	// What was found is printed, also where the relay does not answer.
	api.Close()
	got = command(t, auditLine, "where", "id-1", "--file", "-", "--url", api.URL)
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stdout, "sms.events")
	require.Contains(t, got.stderr, "ask the relay: ")
	require.Contains(t, got.stderr, "nothing listens there: check host and port")

	got = command(t, auditLine[:60], "where", "id-1", "--file", "-")
	require.Equal(t, exitFailed, got.code)
	require.Contains(t, got.stderr, "No line of an audit was read")
	require.NotContains(t, got.stderr, "The relay that was asked")
}

// A relay with a certificate of one's own authority can be asked, and no other is trusted.
func TestWhereAsksARelayWithTLS(t *testing.T) {
	files := certs.New(t)
	pair, err := tls.LoadX509KeyPair(files.ServerCert, files.ServerKey)
	require.NoError(t, err)
	relay := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"instance":"pod-1","id":"id-1","in_flight":[{"source":"sms","attempt":3}]}`))
	}))
	relay.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	relay.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	relay.StartTLS()
	defer relay.Close()
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"its authority":        {[]string{"--url", relay.URL, "--ca-file", files.CA}, exitDone, "pod-1 knows of id-1"},
		"the system's":         {[]string{"--url", relay.URL}, exitFailed, "write --ca-file with the authority"},
		"without TLS":          {[]string{"--url", "http" + strings.TrimPrefix(relay.URL, "https")}, exitFailed, "with server.tls write https://"},
		"no certificate in it": {[]string{"--url", relay.URL, "--ca-file", files.ServerKey}, exitFailed, "holds no certificate"},
		"http":                 {[]string{"--url", "http://127.0.0.1:1", "--ca-file", files.CA}, exitUsage, "write https:// in --url"},
		"no URL":               {[]string{"--ca-file", files.CA}, exitUsage, "write --url https://... too"},
	} {
		t.Run(name, func(t *testing.T) {
			got := command(t, "", append([]string{"where", "id-1"}, test.args...)...)
			require.Equal(t, test.code, got.code, got.stderr)
			require.Contains(t, got.stdout+got.stderr, test.want)
		})
	}
}

func TestWhereSaysWhereToLook(t *testing.T) {
	const rest = `
sources:
  s: {queue: q, endpoint: "http://127.0.0.1:1", credentials: {type: static, access_key_id: i, access_key_secret: s}, to: out}
sinks:
  out: {type: file, path: out}
`
	folder := t.TempDir()
	for name, text := range map[string]string{
		"off.yaml": rest, "log.yaml": "audit: {to: log}" + rest,
		"file.yaml": "audit: {to: lines}" + rest + "  lines: {type: file, path: " + filepath.Join(folder, "not-yet.jsonl") + "}\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600))
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{}, exitUsage, "which message?"},
		{[]string{"x"}, exitUsage, "where to look?"},
		{[]string{"x", "--config", filepath.Join(folder, "off.yaml")}, exitFailed, "has no audit: write audit:"},
		{[]string{"x", "--config", filepath.Join(folder, "log.yaml")}, exitUsage, "goes to the log: write --file LOG"},
		{[]string{"x", "--config", filepath.Join(folder, "file.yaml")}, exitFailed, "there is no file"},
		{[]string{"x", "--file", filepath.Join(folder, "none")}, exitFailed, "no such file or directory: correct the name, or write --file -"},
		{[]string{"x", "--url", "127.0.0.1:18080"}, exitUsage, "write http://127.0.0.1:18080\n"},
		{[]string{"x", "--url", "localhost:18080"}, exitUsage, "write http://localhost:18080\n"},
		{[]string{"x", "--url", "ftp://relay"}, exitUsage, "write http://127.0.0.1:8080\n"},
	} {
		got := command(t, "", append([]string{"where"}, test.args...)...)
		require.Equal(t, test.code, got.code, got.stderr)
		require.Contains(t, got.stderr, test.want)
	}
}

func TestExplainPeeksIntoTheQueue(t *testing.T) {
	url, _ := startEmulator(t, "--queue", "orders")
	setKeys(t, "emulator", "emulator-secret")
	config := filepath.Join(t.TempDir(), "c.yaml")
	require.NoError(t, os.WriteFile(config, []byte(`
sources:
  s: {queue: orders, endpoint: "`+url+`", credentials: {type: default}, to: out}
sinks:
  out: {type: file, path: out}
`), 0o600))
	got := command(t, "", "explain", "-c", config, "--peek", "5")
	require.Zero(t, got.code, got.stderr)
	require.Contains(t, got.stderr, "there is no visible message")
	for _, body := range []string{`{"n":1}`, `{"n":2}`} {
		got = command(t, "", "queue", "send", "--endpoint", url, "--queue", "orders", body)
		require.Zero(t, got.code, got.stderr)
	}
	got = command(t, "", "explain", "-c", config, "--source", "s", "--peek", "5")
	require.Zero(t, got.code, got.stderr)
	require.Equal(t, 2, strings.Count(got.stdout, "of source s: 7 bytes, attempt 1"), got.stdout)
	require.Regexp(t, `"n.*:2`, got.stdout)
	got = command(t, "", "explain", "-c", config, "--peek", "1", "--json")
	require.Equal(t, 1, strings.Count(got.stdout, `"retained": false`))
	for _, args := range [][]string{{"--peek", "0"}, {"--peek", "17"}, {"--peek", "1", "--message", "-"}, {}} {
		require.Equal(t, exitUsage, command(t, "", append([]string{"explain", "-c", config}, args...)...).code)
	}
}

// A file that cannot be read to its end takes nothing from what the others say.
func TestWhereGoesOnAfterABadFile(t *testing.T) {
	folder := t.TempDir()
	torn, whole := filepath.Join(folder, "torn.gz"), filepath.Join(folder, "audit.jsonl")
	require.NoError(t, os.WriteFile(torn, []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"), 0o600))
	require.NoError(t, os.WriteFile(whole, []byte(auditLine), 0o600))
	got := command(t, "", "where", "id-1", "--file", torn, "--file", whole)
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stdout, "delivered")
	require.Equal(t, 1, strings.Count(got.stderr, "torn.gz"), got.stderr)
}
