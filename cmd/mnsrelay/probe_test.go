package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/httpapi"
	"mnsrelay/test/certs"
)

// relayServer answers as a relay does.
func relayServer(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(httpapi.HeaderInstance, "relay-0")
		switch r.URL.Path {
		case "/livez":
		case "/readyz":
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"detail":"not ready: sink events has not connected"}`))
		case "/elsewhere":
			http.Redirect(w, r, "/livez", http.StatusFound)
		case "/html":
			w.WriteHeader(http.StatusBadGateway)
			_, _ = w.Write([]byte("<html>"))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func configAt(t *testing.T, listen string, more ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mnsrelay.yaml")
	require.NoError(t, os.WriteFile(path, []byte(`
server: {listen: "`+listen+`"`+strings.Join(more, "")+`}
sources:
  orders:
    endpoint: http://127.0.0.1:1
    queue: orders
    credentials: {type: static, access_key_id: id, access_key_secret: hush-hush}
    to: out
sinks:
  out: {type: file, path: "-"}
`), 0o600))
	return path
}

func TestHealthcheck(t *testing.T) {
	s := relayServer(t)
	address := strings.TrimPrefix(s.URL, "http://")
	_, port, _ := strings.Cut(address, ":")
	tests := []struct {
		name           string
		args           []string
		code           int
		stdout, stderr string
	}{
		{"live", []string{"--url", s.URL + "/livez"}, exitDone, "ok: relay-0\n", ""},
		{"live by the configuration", []string{"--config", configAt(t, address)}, exitDone, "ok: relay-0\n", ""},
		{"live, listening everywhere", []string{"--config", configAt(t, ":"+port)}, exitDone, "ok: relay-0\n", ""},
		{"live, listening everywhere by number", []string{"--config", configAt(t, "0.0.0.0:"+port)}, exitDone, "ok: relay-0\n", ""},
		{"not ready", []string{"--ready", "--config", configAt(t, address)}, exitFailed, "", "not ready: sink events has not connected"},
		{"a redirect is no answer", []string{"--url", s.URL + "/elsewhere"}, exitFailed, "", "302"},
		{"not a relay", []string{"--url", s.URL + "/html"}, exitFailed, "", "the answer is 502"},
		{"nobody there", []string{"--url", "http://127.0.0.1:1/livez"}, exitFailed, "", "connection refused"},
		{"no time", []string{"--timeout", "1ns", "--url", s.URL + "/livez"}, exitFailed, "", "deadline exceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := command(t, "", append([]string{"healthcheck"}, tt.args...)...)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Equal(t, tt.stdout, got.stdout)
			require.Contains(t, got.stderr, tt.stderr)
		})
	}
}

// A relay with a certificate is asked by TLS. Here it is not checked, and elsewhere it is.
func TestHealthcheckOfTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(httpapi.HeaderInstance, "relay-0")
		if r.URL.Path == "/bad" {
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	s.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	s.StartTLS()
	defer s.Close()
	files := certs.New(t)
	address := strings.TrimPrefix(s.URL, "https://")
	configuration := configAt(t, address, ", tls: {cert_file: "+files.ServerCert+", key_file: "+files.ServerKey+"}")
	tests := map[string]struct {
		args   []string
		code   int
		stderr string
	}{
		"by the configuration":                {[]string{"--config", configuration}, exitDone, ""},
		"by the configuration, ready":         {[]string{"--ready", "--config", configuration}, exitDone, ""},
		"without TLS in the configuration":    {[]string{"--config", configAt(t, address)}, exitFailed, "400 Bad Request: no relay answers so"},
		"by its URL":                          {[]string{"--url", s.URL + "/livez"}, exitFailed, "certificate signed by unknown authority"},
		"by its URL, not checked":             {[]string{"--insecure", "--url", s.URL + "/livez"}, exitDone, ""},
		"by its URL, without TLS":             {[]string{"--url", "http://" + address + "/livez"}, exitFailed, "400 Bad Request: no relay answers so"},
		"an answer of the relay's is its own": {[]string{"--insecure", "--url", s.URL + "/bad"}, exitFailed, "the answer is 400"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := command(t, "", append([]string{"healthcheck"}, test.args...)...)
			require.Equal(t, test.code, got.code, got.stderr)
			require.Contains(t, got.stderr, test.stderr)
			if test.code == exitDone {
				require.Equal(t, "ok: relay-0\n", got.stdout)
			}
		})
	}
	// Without a flag nothing says whether it has TLS.
	var out strings.Builder
	require.NoError(t, prober{out: &out}.askHere(t.Context(), address+"/livez"))
	require.NoError(t, prober{out: &out}.askHere(t.Context(), strings.TrimPrefix(relayServer(t).URL, "http://")+"/livez"))
	require.Equal(t, "ok: relay-0\nok: relay-0\n", out.String())
	require.ErrorContains(t, prober{out: &out}.askHere(t.Context(), strings.TrimPrefix(relayServer(t).URL, "http://")+"/readyz"), "not ready")
}

func TestValidate(t *testing.T) {
	path := configAt(t, ":8080")
	got := command(t, "", "validate", "--config", path)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Equal(t, path+" is valid: 1 source, 1 sink, 1 route\n", got.stdout)

	got = command(t, "", "validate", "--print", "--config", path)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "queue: orders")
	require.Contains(t, got.stdout, "batch_size: 16")
	require.NotContains(t, got.stdout+got.stderr, "hush-hush")

	wrong := filepath.Join(t.TempDir(), "wrong.yaml")
	require.NoError(t, os.WriteFile(wrong, []byte("sorces: {}\nlog: {level: loud}\n"), 0o600))
	got = command(t, "", "validate", "--config", wrong)
	require.Equal(t, exitUsage, got.code)
	require.Empty(t, got.stdout)
	require.Contains(t, got.stderr, wrong+":1:1: sorces: ")
	require.Contains(t, got.stderr, wrong+":2:14: log.level: ")

	got = command(t, "", "validate", "--config", filepath.Join(t.TempDir(), "missing.yaml"))
	require.Equal(t, exitUsage, got.code)
	require.Contains(t, got.stderr, "missing.yaml: cannot be read")
}

// Without its certificate a relay does not start, and validate says so with the place; explain
// serves nothing, and warns.
func TestACertificateThatIsNotThere(t *testing.T) {
	files := certs.New(t)
	path := configAt(t, "127.0.0.1:9", ", tls: {cert_file: "+files.ServerCert+", key_file: /nowhere/tls.key}")
	const place = ":2:"
	for _, name := range []string{"validate", "run"} {
		got := command(t, "", name, "--config", path)
		require.Equal(t, exitUsage, got.code, name)
		require.Empty(t, got.stdout, name)
		require.Contains(t, got.stderr, path+place, name)
		require.Contains(t, got.stderr, `: server.tls.key_file: "/nowhere/tls.key": there is no such file`, name)
		require.NotContains(t, got.stderr, "warning", name)
	}
	got := command(t, "", "validate", "--config", path, "--json")
	require.Equal(t, exitUsage, got.code)
	require.Len(t, decoded(t, got.stdout)["problems"], 1)
	got = command(t, "body: x", "explain", "--config", path, "--source", "orders", "--message", "-")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stderr, "the relay does not start without it")
}

func TestVersion(t *testing.T) {
	got := command(t, "", "version")
	require.Equal(t, exitDone, got.code)
	require.Regexp(t, `^mnsrelay \S+ \(go1\.\S+, [a-z0-9]+/[a-z0-9]+\)\n$`, got.stdout)
}

func TestVersionOf(t *testing.T) {
	vcs := func(settings ...string) *debug.BuildInfo {
		info := &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}
		for i := 0; i < len(settings); i += 2 {
			info.Settings = append(info.Settings, debug.BuildSetting{Key: settings[i], Value: settings[i+1]})
		}
		return info
	}
	const revision = "0123456789abcdef0123456789abcdef01234567"
	tests := []struct {
		name string
		info *debug.BuildInfo
		want string
	}{
		{"installed by version", &debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "v1.2.3"},
		{"built in a checkout", vcs("vcs.revision", revision, "vcs.modified", "false"), "0123456789ab"},
		{"with changes", vcs("vcs.revision", revision, "vcs.modified", "true"), "0123456789ab-dirty"},
		{"from an archive", vcs(), "dev"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, versionOf(tt.info)) })
	}
}
