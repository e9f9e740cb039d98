package amqp091_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

// secret has what breaks a URL, and a parser's error.
const secret = `p/a#s:s@w?o%rd&"\ ü`

func peerConfig(p *peer) *amqp091.Config {
	c := amqp091.Defaults()
	c.URL = setting.NewURL("amqp://" + p.address() + "/vhost")
	c.Exchange.Name = "x"
	return c
}

func TestCredentials(t *testing.T) {
	for name, set := range map[string]func(c *amqp091.Config, address string){
		"as settings": func(c *amqp091.Config, _ string) {
			c.Username, c.Password = "relay:@/", setting.NewSecret(secret)
		},
		"in the URL": func(c *amqp091.Config, address string) {
			u := url.URL{Scheme: "amqp", Host: address, User: url.UserPassword("relay:@/", secret)}
			c.URL = setting.NewURL(u.String())
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t)
			c := peerConfig(p)
			set(c, p.address())
			r := run(t, c)
			r.Await(relay.Up)
			require.Equal(t, []string{"\x00relay:@/\x00" + secret}, p.attempts())
			require.NotContains(t, r.Logged(), secret)
		})
	}
}

// Refused credentials are said in words, and are not tried again at once: that would
// lock the account. The broker's own words may hold them and are not repeated.
func TestRefusedByPeer(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	p.login = func(string) verdict { return refused }
	c := peerConfig(p)
	c.Username, c.Password = "relay", setting.NewSecret(secret)
	r := run(t, c)
	health := r.AwaitReason(relay.Down, `the broker refuses the user "relay": check username and password`)
	require.NotContains(t, health.Reason, secret)
	require.NotContains(t, r.Logged(), secret)
	require.Contains(t, r.Logged(), "check username and password")

	quiet := time.NewTimer(2 * time.Second) // a connection that is down is tried again within 0.8 s
	defer quiet.Stop()
	<-quiet.C
	require.Len(t, p.attempts(), 1)
}

// A broker that hangs up during the login may as well be going down: it is tried
// again soon.
func TestHungUpByPeer(t *testing.T) {
	p := newPeer(t)
	var mu sync.Mutex
	logins := 0
	p.login = func(string) verdict {
		mu.Lock()
		defer mu.Unlock()
		if logins++; logins <= 3 {
			return hungUp
		}
		return accepted
	}
	r := run(t, peerConfig(p))
	began := time.Now()
	r.Await(relay.Up)
	require.Less(t, time.Since(began), 5*time.Second)
	require.Contains(t, r.Logged(), "hung up during the login")
}

func TestWrongPassword(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	u, err := url.Parse(in.url)
	require.NoError(t, err)
	u.User = url.UserPassword("nobody", secret)
	c.URL = setting.NewURL(u.String())
	r := run(t, c)
	began := time.Now()
	health := r.AwaitReason(relay.Down, `the broker refuses the user "nobody"`)
	require.Less(t, time.Since(began), 3*time.Second, "the broker is asked to say so, and not to hang up after a while")
	require.NotContains(t, health.Reason, secret)
	require.NotContains(t, r.Logged(), secret)
	relaytest.RequireReason(t, "not_connected", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 1))[0])
}

func TestNoSuchVhost(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	u, err := url.Parse(in.url)
	require.NoError(t, err)
	u.Path = "/no/such"
	c.URL = setting.NewURL(u.String())
	run(t, c).AwaitReason(relay.Down, `open vhost "no/such"`)
}

// A confirm that does not come holds up its own message only.
func TestHungConfirm(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	var mended atomic.Bool
	p.acknowledge = func(tag uint64) bool { return mended.Load() || tag != 1 && tag != 7 }
	c := peerConfig(p)
	c.Timeout = 2 * time.Second
	r := run(t, c)
	r.Await(relay.Up)

	began := time.Now()
	ms := relaytest.Messages("m", 40, 10) // and more than the window of a small batch
	took := make([]time.Duration, len(ms))
	results := make([]relay.Result, len(ms))
	r.Sink.Deliver(t.Context(), ms, func(i int, result relay.Result) {
		took[i] = time.Since(began)
		results[i] = result
	})
	for i := range ms {
		if i == 0 || i == 6 {
			relaytest.RequireReason(t, "confirm_timeout", results[i])
			require.Greater(t, took[i], c.Timeout-100*time.Millisecond)
			continue
		}
		require.Equal(t, relay.Delivered, results[i].Outcome, "message %d: %v", i, results[i].Err)
		require.Less(t, took[i], c.Timeout/2)
	}

	// The channel that owes confirms is not used again.
	mended.Store(true)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("again", 40, 10)))
}

// All confirms swallowed while everything else passes.
func TestNoConfirms(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	p.acknowledge = func(uint64) bool { return false }
	c := peerConfig(p)
	c.Timeout = 200 * time.Millisecond
	r := run(t, c)
	r.Await(relay.Up)
	for range 20 {
		for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)) {
			relaytest.RequireReason(t, "confirm_timeout", result)
		}
	}
}

func TestTLS(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	ca, other := newAuthority(t), newAuthority(t)
	files := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(files, name)
		require.NoError(t, os.WriteFile(path, content, 0o600))
		return path
	}
	caFile := write("ca.pem", ca.pem)
	cert, key := ca.issue(t, "relay-client", "")
	certFile, keyFile := write("client.pem", cert), write("client.key", key)
	pool := x509.NewCertPool()
	pool.AddCert(ca.certificate)

	for name, c := range map[string]struct {
		server func(*tls.Config)
		client setting.TLS
		down   string // empty: it connects
	}{
		"the right authority":   {client: setting.TLS{CAFile: caFile}},
		"the name of a setting": {client: setting.TLS{CAFile: caFile, ServerName: "rabbitmq.mq"}},
		"a client certificate": {
			server: func(s *tls.Config) { s.ClientAuth, s.ClientCAs = tls.RequireAndVerifyClientCert, pool },
			client: setting.TLS{CAFile: caFile, CertFile: certFile, KeyFile: keyFile},
		},
		"no client certificate": {
			server: func(s *tls.Config) { s.ClientAuth, s.ClientCAs = tls.RequireAndVerifyClientCert, pool },
			client: setting.TLS{CAFile: caFile},
			down:   "certificate",
		},
		"the system's authorities": {down: "certificate signed by unknown authority"},
		"another authority":        {client: setting.TLS{CAFile: write("other.pem", other.pem)}, down: "certificate signed by unknown authority"},
		"another name":             {client: setting.TLS{CAFile: caFile, ServerName: "elsewhere"}, down: "not elsewhere"},
		"TLS 1.1":                  {server: func(s *tls.Config) { s.MaxVersion = tls.VersionTLS11 }, client: setting.TLS{CAFile: caFile}, down: "protocol version"},
		"a missing file":           {client: setting.TLS{CAFile: filepath.Join(files, "none")}, down: "read tls.ca_file"},
		"an empty file":            {client: setting.TLS{CAFile: write("empty.pem", nil)}, down: "holds no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			config := ca.server(t)
			if c.server != nil {
				c.server(config)
			}
			settings := in.config()
			u, err := url.Parse(in.url)
			require.NoError(t, err)
			u.Scheme, u.Host = "amqps", terminate(t, config, address(t, in.url))
			settings.URL = setting.NewURL(u.String())
			settings.TLS = c.client
			r := run(t, settings)
			if c.down != "" {
				r.AwaitReason(relay.Down, c.down)
				return
			}
			r.Await(relay.Up)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 64<<10)))
		})
	}
}

// The files are read on each connect: a mended one is used without a restart.
func TestTLSFilesAreReadAgain(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	ca := newAuthority(t)
	c := in.config()
	u, err := url.Parse(in.url)
	require.NoError(t, err)
	u.Scheme, u.Host = "amqps", terminate(t, ca.server(t), address(t, in.url))
	c.URL = setting.NewURL(u.String())
	c.TLS.CAFile = filepath.Join(t.TempDir(), "ca.pem")
	r := run(t, c)
	r.AwaitReason(relay.Down, "read tls.ca_file")
	require.NoError(t, os.WriteFile(c.TLS.CAFile, ca.pem, 0o600))
	r.Await(relay.Up)
}

// A port that speaks no TLS, or nothing at all, is an error in bounded time.
func TestNotTLS(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.URL = setting.NewURL("amqps://" + address(t, in.url))
	run(t, c).AwaitReason(relay.Down, "agree on TLS")
}

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t *testing.T, name, host string) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if host != "" {
		template.IPAddresses = []net.IP{net.ParseIP(host)}
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, private.Public(), a.key)
	require.NoError(t, err)
	encoded, err := x509.MarshalECPrivateKey(private)
	require.NoError(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: encoded})
}

func (a *authority) server(t *testing.T) *tls.Config {
	t.Helper()
	cert, key := a.issue(t, "rabbitmq.mq", "127.0.0.1")
	pair, err := tls.X509KeyPair(cert, key)
	require.NoError(t, err)
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS10}
}

// terminate is a TLS listener before a broker that has none; it gives its address.
func terminate(t *testing.T, config *tls.Config, upstream string) string {
	t.Helper()
	var lc net.ListenConfig
	plain, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := tls.NewListener(plain, config)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer client.Close() //nolint:errcheck // Nothing hangs on it.
				var dialer net.Dialer
				server, err := dialer.DialContext(ctx, "tcp", upstream)
				if err != nil {
					return
				}
				defer server.Close() //nolint:errcheck // Nothing hangs on it.
				stop := context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })
				defer stop()
				running.Go(func() {
					_, _ = io.Copy(client, server)
					_ = client.Close()
				})
				_, _ = io.Copy(server, client)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		running.Wait()
	})
	return plain.Addr().String()
}
