package webhook_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
	"mnsrelay/test/certs"
)

// checked gives what a check finds of a URL.
func checked(t *testing.T, url string, change ...func(*webhook.Config)) relay.Finding {
	t.Helper()
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(url)
		for _, f := range change {
			f(c)
		}
	})
	findings := endpoint.(relay.Checker).Check(t.Context())
	require.Len(t, findings, 1)
	require.NotContains(t, findings[0].Text, "key=1")
	return findings[0]
}

func serveTLS(t *testing.T, config *tls.Config) string {
	t.Helper()
	far := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request") }))
	far.TLS = config
	far.EnableHTTP2 = true
	far.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	far.StartTLS()
	t.Cleanup(far.Close)
	return far.URL
}

func TestCheckOfAReceiverThatWorks(t *testing.T) {
	far := start(t, accept)
	f := checked(t, far.url+"/{{ body.to }}?key=1")
	require.Equal(t, relay.OK, f.Verdict, f.Text)
	require.Equal(t, "connection to "+far.url, f.What)
	require.Zero(t, far.count())

	f = checked(t, serveTLS(t, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{trusted}}))
	require.Equal(t, relay.OK, f.Verdict, f.Text)
	require.Contains(t, f.Text, "TLS 1.3, the certificate is good until "+time.Now().UTC().Format("2006-"))

	p := newProxy(t, strings.TrimPrefix(far.url, "http://"))
	t.Setenv("HTTP_PROXY", p.URL)
	f = checked(t, "http://[2001:db8::7]:8080/hook", func(c *webhook.Config) { c.Network.Allow = append(c.Network.Allow, "2001:db8::/32") })
	require.Equal(t, relay.OK, f.Verdict, f.Text)
	require.Equal(t, []string{"CONNECT [2001:db8::7]:8080"}, p.asked)
	require.Zero(t, far.count())
}

func TestCheckOfWhatIsWrong(t *testing.T) {
	dns := serveNames(t)
	plain := start(t, accept)
	closed, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	silent := listen(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1<<10)); <-t.Context().Done() })
	rude := listen(t, func(c net.Conn) { _ = c.Close() })
	secure := func(c tls.Certificate) string {
		return serveTLS(t, &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{c}})
	}
	for name, c := range map[string]struct {
		url, addr string // addr is what hook.test resolves to
		want      string
	}{
		"an address that is not allowed": {"https://hook.test/?key=1", "10.1.2.3", `add its network to network.allow, as in ["10.1.2.3/32"]`},
		"a cloud's metadata":             {"http://hook.test/?key=1", "100.100.100.200", "100.100.100.200 is not an address of the public internet"},
		"no such name":                   {"https://hook.test/?key=1", "", "correct the host's name"},
		"nothing listens":                {"https://" + closed.Addr().String(), "", "nothing listens there"},
		"nobody answers":                 {"http://" + fullListener(t), "", "no firewall lies between"},
		"a receiver that is silent":      {"https://" + silent, "", "agree on TLS: no answer in time"},
		"a receiver that hangs up":       {"http://" + rude, "", "ends the connection at once"},
		"a certificate that has expired": {secure(expired), "", "have the server's certificate renewed"},
		"a certificate of nobody known":  {secure(selfSigned()), "", "set tls.ca_file"},
		"another name":                   {strings.Replace(secure(trusted), "127.0.0.1", "hook.test", 1), "127.0.0.1", "set tls.server_name"},
		"plain HTTP":                     {strings.Replace(plain.url, "http:", "https:", 1), "", "does not speak TLS: check scheme and port"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.addr != "" {
				dns.set(c.addr)
			} else {
				dns.set()
			}
			began := time.Now()
			f := checked(t, c.url, func(c *webhook.Config) { c.Timeout = time.Second })
			require.Less(t, time.Since(began), timeout+time.Second)
			require.Equal(t, relay.Failed, f.Verdict, f.Text)
			require.Contains(t, f.Text, c.want)
		})
	}
	require.Zero(t, plain.count())
}

// With TLS 1.3 a receiver refuses a client's certificate, or that there is none, after the
// handshake.
func TestCheckOfAClientCertificate(t *testing.T) {
	files := certs.New(t)
	pair, err := tls.LoadX509KeyPair(files.ServerCert, files.ServerKey)
	require.NoError(t, err)
	ca, err := os.ReadFile(files.CA)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(ca))
	url := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS13})
	own := func(c *webhook.Config) {
		c.TLS = setting.TLS{CAFile: files.CA, CertFile: files.ClientCert, KeyFile: files.ClientKey}
	}
	f := checked(t, url, own)
	require.Equal(t, relay.OK, f.Verdict, f.Text)
	f = checked(t, url, own, func(c *webhook.Config) { c.TLS.CertFile, c.TLS.KeyFile = "", "" })
	require.Equal(t, relay.Failed, f.Verdict, f.Text)
	require.Contains(t, f.Text, "set or check tls.cert_file and tls.key_file")
	f = checked(t, url, own, func(c *webhook.Config) { c.TLS.CAFile = "/nowhere/ca.pem" })
	require.Equal(t, relay.Failed, f.Verdict, f.Text)
	require.Contains(t, f.Text, "read tls.ca_file: open /nowhere/ca.pem")
}
