package main

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
)

// configuration is a relay whose queue nobody serves.
const configuration = `
sources:
  events:
    endpoint: http://127.0.0.1:9
    queue: events
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
    unmatched: retain
sinks:
  hook: {type: webhook, url: "https://127.0.0.1:1/", network: {allow: [127.0.0.0/8]}}
routes:
  - name: noon
    from: [events]
    when: enqueued_at.getHours("Asia/Shanghai") == 12
    to: [hook]
`

func TestImageRuns(t *testing.T) {
	t.Parallel()
	m := openMade(t)
	requireRuns(t, m.image(t, runtime.GOARCH), m.labels["org.opencontainers.image.version"])
}

// requireRuns runs an image with nothing but its own files, which it cannot write, as its
// user, without a privilege, as the first process, and with no network but loopback.
func requireRuns(t *testing.T, image v1.Image, version string) {
	t.Helper()
	c := newContainer(t, image, newNetwork(t), map[string]string{
		"etc/mnsrelay/mnsrelay.yaml": configuration,
		"etc/mnsrelay/wrong.yaml":    strings.Replace(configuration, "queue:", "queeu:", 1),
		"etc/mnsrelay/message.yaml":  "body: '{}'\nenqueued_at: 2026-01-01T04:00:00Z\n",
	})

	output, code := c.run("version")
	require.Zero(t, code, output)
	require.Contains(t, output, version)

	output, code = c.run("validate", "--config", "/etc/mnsrelay/mnsrelay.yaml")
	require.Zero(t, code, output)
	output, code = c.run("validate", "--config", "/etc/mnsrelay/wrong.yaml")
	require.Equal(t, 2, code, output)
	require.Contains(t, output, "queeu")

	output, code = c.run("explain", "--config", "/etc/mnsrelay/mnsrelay.yaml", "--message", "/etc/mnsrelay/message.yaml")
	require.Zero(t, code, output)
	require.Contains(t, output, "route noon takes it", "time zones are known")

	for _, shell := range []string{"/bin/sh", "/bin/bash", "/bin/busybox", "sh"} {
		output, code = c.end(c.exec(nil, shell, "-c", "exit 0"))
		require.Equal(t, 125, code, output)
		require.Contains(t, output, "no such file or directory")
	}

	healthy := func() bool {
		_, code := c.end(c.exec(nil, c.config.Healthcheck.Test[1:]...))
		return code == 0
	}
	require.False(t, healthy(), "nothing runs yet")
	relay := c.start(nil)
	relay.await("it is healthy", healthy)
	require.Zero(t, relay.stop(), "drained: %s", relay.text())
	require.False(t, healthy(), "nothing runs any more")
}

// An authority of one's own is trusted beside the image's, without another image: it is
// mounted as a file, or in a folder.
func TestImageTrustsMore(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	own := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	image := openMade(t).image(t, runtime.GOARCH)
	for name, test := range map[string]struct {
		file    string
		env     []string
		trusted bool
	}{
		"none":                       {file: "etc/unused.pem"},
		"a file":                     {file: "etc/ssl/certs/own.pem", trusted: true},
		"a folder":                   {file: "etc/pki/tls/certs/own.pem", trusted: true},
		"a folder that is named":     {file: "run/authorities/own.pem", env: []string{"SSL_CERT_DIR=/run/authorities"}, trusted: true},
		"a folder that is not named": {file: "run/authorities/own.pem"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newContainer(t, image, "", map[string]string{
				test.file:                    own,
				"etc/mnsrelay/mnsrelay.yaml": strings.Replace(configuration, "https://127.0.0.1:1/", server.URL, 1),
			})
			output, _ := c.end(c.start(test.env, "check", "--config", "/etc/mnsrelay/mnsrelay.yaml", "--timeout", "5s"))
			var sink string
			for line := range strings.Lines(output) {
				if strings.Contains(line, server.URL) {
					sink = line
				}
			}
			if test.trusted {
				require.Contains(t, sink, "ok", output)
			} else {
				require.Contains(t, sink, "unknown authority", output)
			}
			bundle, err := os.ReadFile(c.root + "/" + bundlePath)
			require.NoError(t, err)
			requireAuthorities(t, bundle)
		})
	}
}
