package webhook_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
	"mnsrelay/test/certs"
)

// A receiver that asks for a client certificate; all certificates are replaced while the
// relay runs, and the next connection uses the new ones.
func TestClientCertificate(t *testing.T) {
	files := certs.New(t)
	serve := func() *httptest.Server {
		pair, err := tls.LoadX509KeyPair(files.ServerCert, files.ServerKey)
		require.NoError(t, err)
		ca, err := os.ReadFile(files.CA)
		require.NoError(t, err)
		pool := x509.NewCertPool()
		require.True(t, pool.AppendCertsFromPEM(ca))
		far := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("x-proto", req.Proto)
			if req.TLS.PeerCertificates[0].Subject.CommonName != certs.ClientName {
				w.WriteHeader(http.StatusForbidden)
			}
		}))
		far.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
		far.EnableHTTP2 = true
		far.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
		far.StartTLS()
		t.Cleanup(far.Close)
		return far
	}
	far := serve()
	config := func(c *webhook.Config) {
		c.URL = setting.NewURL(far.URL)
		c.TLS = setting.TLS{CAFile: files.CA, CertFile: files.ClientCert, KeyFile: files.ClientKey}
	}
	sink := sinkWith(t, config)
	requireDelivered(t, deliver(t, sink, message("1")))

	none := sinkWith(t, func(c *webhook.Config) { config(c); c.TLS.CertFile, c.TLS.KeyFile = "", "" })
	result := deliver(t, none, message("1"))[0]
	require.Equal(t, relay.Retry, result.Outcome)
	require.ErrorContains(t, result.Err, "set or check tls.cert_file and tls.key_file")

	missing := sinkWith(t, func(c *webhook.Config) { config(c); c.TLS.CAFile = "/nowhere/ca.pem" })
	result = deliver(t, missing, message("1"))[0]
	requireFailure(t, relay.Retry, "tls", result)
	require.ErrorContains(t, result.Err, "read tls.ca_file: open /nowhere/ca.pem")

	files.Renew(t)
	renewed := serve()
	moved := sinkWith(t, func(c *webhook.Config) { config(c); c.URL = setting.NewURL(renewed.URL) })
	requireDelivered(t, deliver(t, moved, message("1")))
	// The same sink as before, whose connection is closed: the old receiver has the old
	// certificates.
	far.CloseClientConnections()
	require.Eventually(t, func() bool {
		result = deliver(t, sink, message("2"))[0]
		return result.Err != nil && strings.Contains(result.Err.Error(), "set tls.ca_file to the authority")
	}, timeout, 10*time.Millisecond)
}

// HTTP/2 is used where it is offered.
func TestHTTP2(t *testing.T) {
	var proto atomic.Value
	for _, offered := range []bool{true, false} {
		far := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { proto.Store(req.Proto) }))
		far.TLS = &tls.Config{Certificates: []tls.Certificate{trusted}, MinVersion: tls.VersionTLS12}
		far.EnableHTTP2 = offered
		far.StartTLS()
		t.Cleanup(far.Close)
		requireDelivered(t, deliver(t, sinkTo(t, far.URL), message("1")))
		require.Equal(t, map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[offered], proto.Load())
	}
}

// A connection that was kept alive may be closed by the receiver just when a request is
// written: it is sent again at once, and is no failed try.
func TestKeptConnectionThatIsReset(t *testing.T) {
	var connections atomic.Int32
	far := listen(t, func(c net.Conn) {
		first := connections.Add(1) == 1
		reader := bufio.NewReader(c)
		for i := 0; ; i++ {
			req, err := http.ReadRequest(reader)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			if first && i == 1 {
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
		}
	})
	sink := sinkTo(t, "http://"+far)
	requireDelivered(t, deliver(t, sink, message("1")))
	requireDelivered(t, deliver(t, sink, message("2")))
	require.Equal(t, int32(2), connections.Load())
}

// proxy is an HTTP proxy that opens tunnels to one address, whatever it is asked for.
type proxy struct {
	*httptest.Server

	to string
	// swallow is an address that there is no way to, and no answer about.
	swallow string

	mu     sync.Mutex
	asked  []string
	auth   string
	status int
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	p := &proxy{to: to, status: http.StatusOK}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, req.Method+" "+req.RequestURI)
	p.auth = req.Header.Get("Proxy-Authorization")
	status := p.status
	p.mu.Unlock()
	if req.RequestURI == p.swallow {
		<-req.Context().Done()
		return
	}
	if status != http.StatusOK {
		w.WriteHeader(status)
		return
	}
	target, err := new(net.Dialer).DialContext(req.Context(), "tcp", p.to)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		_ = target.Close()
		return
	}
	_, _ = io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		_, _ = io.Copy(target, client)
		_ = target.Close()
	}()
	_, _ = io.Copy(client, target)
	_ = client.Close()
}

// What goes through a proxy is checked as what does not: the proxy is asked for an address
// that was checked, and never for a name.
func TestProxy(t *testing.T) {
	far := start(t, accept)
	p := newProxy(t, strings.TrimPrefix(far.url, "http://"))
	through := func(t *testing.T, url string) relay.Result {
		t.Helper()
		t.Setenv("HTTP_PROXY", strings.Replace(p.URL, "http://", "http://user:hunter2@", 1))
		t.Setenv("HTTPS_PROXY", p.URL)
		t.Setenv("NO_PROXY", "203.0.113.9")
		c := webhook.Defaults()
		c.URL = setting.NewURL(url)
		c.Timeout = timeout
		c.Network.Allow = []string{"192.0.2.0/24"}
		// Not validated: that would refuse the addresses before anything is dialled.
		endpoint, err := c.Open(relay.SinkDeps{Instance: "mnsrelay/test", Log: zap.NewNop()})
		require.NoError(t, err)
		run(t, endpoint)
		return deliver(t, bind(t, endpoint), message("1"))[0]
	}
	t.Run("an address", func(t *testing.T) {
		requireDelivered(t, []relay.Result{through(t, "http://192.0.2.1:8080/x")})
		require.Equal(t, []string{"CONNECT 192.0.2.1:8080"}, p.asked)
		require.Equal(t, "Basic dXNlcjpodW50ZXIy", p.auth)
		require.Equal(t, "/x", far.last().RequestURI)
		require.Equal(t, "192.0.2.1:8080", far.last().Host)
		require.Empty(t, far.last().Header.Get("Proxy-Authorization"))
	})
	p.asked = nil
	t.Run("a status", func(t *testing.T) {
		p.status = http.StatusForbidden
		result := through(t, "http://192.0.2.1:8080/x")
		requireFailure(t, relay.Retry, "proxy", result)
		require.ErrorContains(t, result.Err, "the proxy answered status 403 to CONNECT")
		require.NotContains(t, result.Err.Error(), "hunter2")
	})
	p.asked = nil
	for _, metadata := range []string{"100.100.100.200", "169.254.169.254", "[::ffff:10.0.0.1]", "[64:ff9b::a9fe:a9fe]"} {
		t.Run(metadata, func(t *testing.T) {
			requireFailure(t, relay.Retry, "address_refused", through(t, "http://"+metadata+"/latest"))
			require.Empty(t, p.asked)
		})
	}
	t.Run("a name without an address", func(t *testing.T) {
		requireFailure(t, relay.Retry, "dns", through(t, "https://hooks.invalid/"))
		require.Empty(t, p.asked)
	})
	t.Run("no proxy", func(t *testing.T) {
		t.Setenv("HTTP_PROXY", "http://127.0.0.1:1/")
		result := deliver(t, sinkTo(t, far.url), message("1"))[0] // loopback is never asked of a proxy
		requireDelivered(t, []relay.Result{result})
	})
	t.Run("a proxy that cannot be read", func(t *testing.T) {
		t.Setenv("HTTP_PROXY", "http://user:hunter2%zz@proxy.example.com:3128")
		result := deliver(t, sinkWith(t, func(c *webhook.Config) {
			c.URL = setting.NewURL("http://192.0.2.1/")
			c.Network.Allow = []string{"192.0.2.0/24"}
		}), message("1"))[0]
		requireFailure(t, relay.Retry, "proxy", result)
		require.ErrorContains(t, result.Err, "HTTP_PROXY cannot be read as a URL")
		require.NotContains(t, result.Err.Error(), "hunter2")
	})
	t.Run("a proxy that is not there", func(t *testing.T) {
		p.Close()
		requireFailure(t, relay.Retry, "proxy", through(t, "http://192.0.2.1/"))
	})
}

// A proxy that does not answer CONNECT takes up no place for longer than the timeout.
func TestProxyThatIsSilent(t *testing.T) {
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			var asked atomic.Int32
			silent := listen(t, func(c net.Conn) {
				asked.Add(1)
				_, _ = io.Copy(io.Discard, c)
			})
			t.Setenv(strings.ToUpper(scheme)+"_PROXY", "http://"+silent)
			sink := sinkWith(t, func(c *webhook.Config) {
				c.URL, c.Concurrency = setting.NewURL(scheme+"://192.0.2.1/"), 1
				c.Network.Allow = []string{"192.0.2.0/24"}
			})
			for range 3 {
				result := deliver(t, sink, message("1"))[0]
				// The dial and the request have the same time, and either ends first.
				require.Contains(t, []string{"timeout", "proxy"}, relay.ReasonOf(result.Err))
				require.ErrorContains(t, result.Err, "no complete answer in time")
			}
			require.GreaterOrEqual(t, asked.Load(), int32(2), "later requests dial too")
		})
	}
}
