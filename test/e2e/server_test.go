package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/certs"
	"mnsrelay/test/rig"
)

// A relay with a certificate and an address of its own for the operator: who asks has to know
// the authority, the certificate is renewed while it runs, what changes something is done at
// the operator's address alone, a reload changes none of it, and a health check finds it.
func TestTLSAndTheOperatorsAddress(t *testing.T) {
	t.Parallel()
	_, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	const token = "token-of-the-operator-0123456789"
	rig.Secret(token)
	files := certs.New(t)
	configuration := fmt.Sprintf(`
server:
  listen: 127.0.0.1:0
  admin_listen: 127.0.0.1:0
  admin_token: %s
  tls: {cert_file: %s, key_file: %s}
sources:
  sms: {queue: %s, endpoint: %s, wait: 1s, credentials: {endpoint: %[5]s}, to: lines}
sinks:
  lines: {type: file, path: %s/lines}
`, token, files.ServerCert, files.ServerKey, queue, url, t.TempDir())
	path := filepath.Join(t.TempDir(), "mnsrelay.yaml")
	require.NoError(t, os.WriteFile(path, []byte(configuration), 0o600))
	r := runRelay(t, path)
	require.NotEmpty(t, r.Admin())

	trusting := func() *http.Client {
		text, err := os.ReadFile(files.CA)
		require.NoError(t, err)
		roots := x509.NewCertPool()
		require.True(t, roots.AppendCertsFromPEM(text))
		return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots}}}
	}
	send := func(client *http.Client, method, url string) (code int, body string, err error) {
		req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := client.Do(req)
		if err != nil {
			return 0, "", err
		}
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		return res.StatusCode, string(text), nil
	}
	eventually(t, 20*time.Second, "it is ready", func() bool {
		code, _, err := send(trusting(), http.MethodGet, r.URL()+"/readyz")
		require.NoError(t, err)
		return code == http.StatusOK
	})
	old := trusting()
	files.Renew(t)
	eventually(t, 20*time.Second, "the certificate is renewed", func() bool {
		_, _, err := send(trusting(), http.MethodGet, r.URL()+"/readyz")
		return err == nil
	})
	for _, at := range []string{r.URL(), r.Admin()} {
		_, _, err := send(old, http.MethodGet, at+"/readyz")
		require.ErrorContains(t, err, "certificate signed by unknown authority")
		code, body, err := send(trusting(), http.MethodGet, at+"/")
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, code)
		require.Contains(t, body, "<html")
	}

	code, body, err := send(trusting(), http.MethodPost, r.URL()+"/api/v1/sources/sms/pause")
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, code)
	require.Contains(t, body, "server.admin_listen")
	require.NotEqual(t, "paused", string(r.source().State))
	code, body, err = send(trusting(), http.MethodPost, r.Admin()+"/api/v1/sources/sms/pause")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, code, body)
	require.Equal(t, "paused", string(r.source().State))
	require.Contains(t, r.log(), `"message":"source paused by an operator","source":"sms"`)

	_, metrics := r.get("/metrics")
	for _, line := range []string{
		`mnsrelay_source_state{source="sms",state="paused"} 1`, `mnsrelay_source_state{source="sms",state="running"} 0`,
		`mnsrelay_sink_required{sink="lines"} 1`, `mnsrelay_ledger_evictions_total 0`,
	} {
		require.Contains(t, metrics, "\n"+line+"\n")
	}

	// A reload takes a certificate that was renewed for none of its changes, and refuses others.
	code, body, err = send(trusting(), http.MethodPost, r.Admin()+"/api/v1/reload")
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, code, body)
	for old, changed := range map[string]string{"admin_listen: 127.0.0.1:0": "admin_listen: 127.0.0.2:0", files.ServerKey: files.ServerKey + ".other"} {
		require.NoError(t, os.WriteFile(files.ServerKey+".other", read(t, files.ServerKey), 0o600))
		require.NoError(t, os.WriteFile(path, []byte(strings.Replace(configuration, old, changed, 1)), 0o600))
		code, body, err = send(trusting(), http.MethodPost, r.Admin()+"/api/v1/reload")
		require.NoError(t, err)
		require.Equal(t, http.StatusUnprocessableEntity, code)
		require.Contains(t, body, "changes of server need a restart")
	}
	// So is one whose files are gone: it would not start again.
	require.NoError(t, os.WriteFile(path, []byte(configuration), 0o600))
	require.NoError(t, os.Rename(files.ServerKey, files.ServerKey+".other"))
	code, body, err = send(trusting(), http.MethodPost, r.Admin()+"/api/v1/reload")
	require.NoError(t, err)
	require.Equal(t, http.StatusUnprocessableEntity, code)
	require.Contains(t, body, "server.tls.key_file")
	require.NoError(t, os.Rename(files.ServerKey+".other", files.ServerKey))

	healthcheck := func(args ...string) string {
		out, err := exec.CommandContext(t.Context(), binary, append([]string{"healthcheck"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return string(out)
	}
	require.Contains(t, healthcheck("--insecure", "--url", r.URL()+"/readyz"), "ok: ")
	fixed := strings.Replace(configuration, "listen: 127.0.0.1:0", "listen: "+strings.TrimPrefix(r.URL(), "https://"), 1)
	require.NoError(t, os.WriteFile(path, []byte(fixed), 0o600))
	require.Contains(t, healthcheck("--ready", "--config", path), "ok: ")
	require.Zero(t, r.end(syscall.SIGTERM))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return text
}
