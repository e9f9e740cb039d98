package httpapi_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/setting"
	"mnsrelay/test/certs"
)

func pool(t *testing.T, path string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(text))
	return roots
}

// Both addresses have TLS, of 1.2 at least, and nothing is answered without.
func TestTLS(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	base, admin := serveBoth(t, httpapi.Config{
		AdminListen: "127.0.0.1:0", AdminToken: setting.NewSecret(adminToken),
		TLS: setting.ServerTLS{CertFile: files.ServerCert, KeyFile: files.ServerKey},
	}, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	ask := func(url string, config *tls.Config) (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
		require.NoError(t, err)
		config.RootCAs = pool(t, files.CA)
		transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true, ForceAttemptHTTP2: true}
		return transport.RoundTrip(req)
	}
	for _, at := range []string{base, admin} {
		for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
			t.Run(at+" "+name, func(t *testing.T) {
				res, err := ask(at+"/readyz", &tls.Config{MaxVersion: version})
				require.NoError(t, err)
				require.NoError(t, res.Body.Close())
				require.Equal(t, 200, res.StatusCode)
				require.Equal(t, version, res.TLS.Version)
				require.Equal(t, 1, res.ProtoMajor, "of HTTP/2 only the streams would be bounded")
			})
		}
		t.Run(at+" 1.1", func(t *testing.T) {
			_, err := ask(at+"/readyz", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}) //nolint:bodyclose // there is none
			require.ErrorContains(t, err, "protocol version")
		})
		t.Run(at+" none", func(t *testing.T) {
			got := askWith(t, http.MethodGet, strings.Replace(at, "https", "http", 1)+"/readyz", nil)
			require.Equal(t, 400, got.code)
			require.Contains(t, string(got.body), "Client sent an HTTP request to an HTTPS server")
		})
	}
}

func TestACertificateThatIsNoneFailsTheStart(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	locked := filepath.Join(t.TempDir(), "locked.pem")
	require.NoError(t, os.WriteFile(locked, []byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n"), 0o600))
	for name, test := range map[string]struct {
		files setting.ServerTLS
		want  string
	}{
		"no certificate":   {setting.ServerTLS{CertFile: "/none", KeyFile: files.ServerKey}, "read server.tls.cert_file: open /none: no such file"},
		"no key":           {setting.ServerTLS{CertFile: files.ServerCert, KeyFile: "/none"}, "read server.tls.key_file: open /none: no such file"},
		"another's key":    {setting.ServerTLS{CertFile: files.ServerCert, KeyFile: files.ClientKey}, "private key does not match public key: write a certificate and the key that belongs to it"},
		"empty":            {setting.ServerTLS{CertFile: empty, KeyFile: files.ServerKey}, "failed to find any PEM data in certificate input"},
		"an encrypted key": {setting.ServerTLS{CertFile: files.ServerCert, KeyFile: locked}, "the key is encrypted"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := httpapi.New(httpapi.Config{TLS: test.files}, httpapi.Deps{Log: zap.NewNop(), Relay: &fakeRelay{}, Metrics: prometheus.NewRegistry()})
			require.ErrorContains(t, err, test.want)
		})
	}
}

// mount is a Secret as Kubernetes mounts it: files that are links through ..data, which is
// swapped as a whole.
type mount struct {
	t   *testing.T
	dir string
	n   int
}

func (m *mount) file(name string) string { return filepath.Join(m.dir, name) }

func (m *mount) swap(cert, key string) {
	m.t.Helper()
	m.n++
	version := filepath.Join(m.dir, ".."+strings.Repeat("v", m.n))
	require.NoError(m.t, os.Mkdir(version, 0o700))
	for name, from := range map[string]string{"tls.crt": cert, "tls.key": key} {
		if from != "" {
			text, err := os.ReadFile(from)
			require.NoError(m.t, err)
			require.NoError(m.t, os.WriteFile(filepath.Join(version, name), text, 0o600))
		}
		if m.n == 1 {
			require.NoError(m.t, os.Symlink(filepath.Join("..data", name), m.file(name)))
		}
	}
	require.NoError(m.t, os.Symlink(filepath.Base(version), m.file("..next")))
	require.NoError(m.t, os.Rename(m.file("..next"), m.file("..data")))
}

// A Secret that is swapped is shown without a restart; one that is broken is said once, and
// the last that was good stays in use.
func TestACertificateIsRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second, third := certs.New(t), certs.New(t), certs.New(t)
		secret := &mount{t: t, dir: t.TempDir()}
		secret.swap(first.ServerCert, first.ServerKey)
		core, logs := observer.New(zap.InfoLevel)
		s, err := httpapi.New(httpapi.Config{TLS: setting.ServerTLS{CertFile: secret.file("tls.crt"), KeyFile: secret.file("tls.key")}}, httpapi.Deps{
			Instance: "relay-0", Relay: &fakeRelay{status: full}, Metrics: prometheus.NewRegistry(), Log: zap.New(core),
		})
		require.NoError(t, err)
		listener := &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})}
		s.On(listener)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		shows := func(want *certs.Files) {
			t.Helper()
			conn, ended := listener.dial()
			client := tls.Client(conn, &tls.Config{RootCAs: pool(t, want.CA), ServerName: "localhost"})
			require.NoError(t, client.HandshakeContext(t.Context()))
			_, err := io.WriteString(client, "GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			require.NoError(t, err)
			res, err := http.ReadResponse(bufio.NewReader(client), nil)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			require.Equal(t, 200, res.StatusCode)
			require.NoError(t, conn.Close())
			<-ended
		}
		ticks := func(n int) { <-time.After(time.Duration(n)*5*time.Second + time.Millisecond) }
		said := func(want ...string) {
			t.Helper()
			var texts []string
			for _, entry := range logs.TakeAll() {
				text := entry.Message
				if err, is := entry.ContextMap()["error"].(string); is {
					text += ": " + err
				}
				texts = append(texts, text)
			}
			require.Len(t, texts, len(want), "%q", texts)
			for i := range want {
				require.Contains(t, texts[i], want[i])
			}
		}
		shows(first)
		ticks(2)
		said()
		secret.swap(second.ServerCert, second.ServerKey)
		ticks(1)
		shows(second)
		said("the certificate was renewed")
		secret.swap(third.ServerCert, second.ServerKey)
		ticks(10)
		shows(second)
		said("cannot be used; the previous certificate stays in use: read server.tls: tls: private key does not match")
		secret.swap(third.ServerCert, "")
		ticks(10)
		shows(second)
		said("cannot be used; the previous certificate stays in use: read server.tls.key_file: ")
		secret.swap(second.ServerCert, second.ServerKey)
		ticks(2)
		shows(second)
		said("match the certificate in use again")
		secret.swap(third.ServerCert, third.ServerKey)
		ticks(1)
		shows(third)
		said("the certificate was renewed")
		stop()
		require.NoError(t, <-done)
	})
}

// Files that hang when they are looked at again hold up no handshake, and not the end.
func TestACertificateThatHangsHoldsUpNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		files := certs.New(t)
		s, err := httpapi.New(httpapi.Config{TLS: setting.ServerTLS{CertFile: files.ServerCert, KeyFile: files.ServerKey}}, httpapi.Deps{
			Relay: &fakeRelay{status: full}, Metrics: prometheus.NewRegistry(), Log: zap.NewNop(),
		})
		require.NoError(t, err)
		mended := make(chan struct{})
		s.ReadCertificate(func(string) ([]byte, error) { <-mended; return nil, os.ErrNotExist })
		s.On(&pipes{accepted: make(chan net.Conn), closed: make(chan struct{})})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		<-time.After(time.Minute)
		stop()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(10 * time.Second):
			require.Fail(t, "the server does not end")
		}
		close(mended)
	})
}
