package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

const hookSecret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"

// captured is a request as the sink sends it.
func captured(t *testing.T, compression string) string {
	t.Helper()
	dumps := make(chan []byte, 1)
	far := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		dump, err := httputil.DumpRequest(req, true)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		dumps <- dump
	}))
	t.Cleanup(far.Close)
	c := webhook.Defaults()
	c.URL, c.Compression = setting.NewURL(far.URL), compression
	c.Network.Allow = []string{"127.0.0.0/8"}
	c.Signing.Secrets = []setting.Secret{setting.NewSecret(hookSecret)}
	endpoint, err := c.Open(relay.SinkDeps{Instance: "test", Log: zap.NewNop()})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- endpoint.Run(ctx) }()
	sink, err := endpoint.Bind(nil)
	require.NoError(t, err)
	sink.Deliver(ctx, []relay.Message{{ID: "id-1", Body: []byte(`{"a": 1}`)}}, func(_ int, r relay.Result) { require.NoError(t, r.Err) })
	cancel()
	require.NoError(t, <-ended)
	return string(<-dumps)
}

func TestWebhookVerify(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	request := captured(t, "none")
	right := file("secret", hookSecret+"\n")
	wrong := file("wrong", "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI0")
	configuration := file("mnsrelay.yaml", `
sources: {orders: {endpoint: "http://127.0.0.1:8090", queue: orders, credentials: {type: static, access_key_id: a, access_key_secret: b}, to: [hook]}}
sinks:
  hook: {type: webhook, url: "https://hooks.example.com/", signing: {secrets: [`+hookSecret+`]}}
  plain: {type: webhook, url: "https://hooks.example.com/"}
`)
	for name, c := range map[string]struct {
		stdin string
		args  []string
		code  int
		want  string
	}{
		"as sent":            {request, []string{"--secret-file", right, "-"}, exitDone, "the signature is valid: message id-1, 8 bytes, signed at "},
		"compressed":         {captured(t, "gzip"), []string{"--secret-file", right, "-"}, exitDone, "the signature is valid: message id-1, 8 bytes"},
		"from a file":        {"", []string{"--secret-file", right, file("request", request)}, exitDone, "the signature is valid"},
		"with a line more":   {request + "\n", []string{"--secret-file", right, "-"}, exitDone, "the signature is valid"},
		"lines of an editor": {strings.ReplaceAll(request, "\r\n", "\n"), []string{"--secret-file", right, "-"}, exitDone, "the signature is valid"},
		"two secrets":        {request, []string{"--secret-file", wrong, "--secret-file", right, "-"}, exitDone, "the signature is valid"},
		"a sink's secret":    {request, []string{"--config", configuration, "--sink", "hook", "-"}, exitDone, "the signature is valid"},
		"another secret":     {request, []string{"--secret-file", wrong, "-"}, exitFailed, "the signature is not valid: no signature is by one of the secrets"},
		"another body":       {strings.Replace(request, `"a": 1`, `"a": 2`, 1), []string{"--secret-file", right, "-"}, exitFailed, "no signature is by one of the secrets"},
		"an old one":         {strings.Replace(request, "Webhook-Timestamp: 1", "Webhook-Timestamp: 0", 1), []string{"--secret-file", right, "-"}, exitFailed, "ago; 5m0s are tolerated"},
		"cut short":          {strings.Replace(request, "Content-Length: 8", "Content-Length: 80", 1), []string{"--secret-file", right, "-"}, exitFailed, "its body has 8 bytes of the 80"},
		"no request":         {"{}", []string{"--secret-file", right, "-"}, exitFailed, "its first line is not a request line"},
		"nothing":            {"", []string{"--secret-file", right, "-"}, exitFailed, "read the request: it is empty"},
		"no file":            {"", []string{"--secret-file", right, "/nowhere"}, exitFailed, "read the request: open /nowhere"},
		"no secret":          {request, []string{"-"}, exitUsage, "no secret is given"},
		"a secret that is none": {
			request, []string{"--secret-file", file("short", "whsec_aHVudGVyMg=="), "-"}, exitFailed, "has 7 bytes; a secret has 24 to 64",
		},
		"a sink that signs nothing": {request, []string{"--config", configuration, "--sink", "plain", "-"}, exitFailed, `the sink "plain" signs nothing`},
		"a sink that is not there":  {request, []string{"--config", configuration, "--sink", "x", "-"}, exitUsage, `has no sink "x"; it has: hook, plain`},
		"half a flag":               {request, []string{"--sink", "x", "-"}, exitUsage, "--config and --sink belong together"},
		"no argument":               {request, nil, exitUsage, "name one file"},
	} {
		t.Run(name, func(t *testing.T) {
			got := command(t, c.stdin, append([]string{"webhook", "verify"}, c.args...)...)
			require.Equal(t, c.code, got.code, got.stderr)
			require.Contains(t, got.stdout+got.stderr, c.want)
			require.NotContains(t, got.stderr, "whsec_M")
		})
	}
	t.Run("a secret of the environment", func(t *testing.T) {
		t.Setenv(secretVariable, hookSecret)
		require.Equal(t, exitDone, command(t, request, "webhook", "verify", "-").code)
	})
}
