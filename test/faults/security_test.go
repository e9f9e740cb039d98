package faults_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/certs"
)

// What a relay is allowed to do, the vhost it works in and the certificate it is known by,
// each lost while it runs and given back.
func TestPermissionVhostCertificateLostAndGivenBack(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	files := b.Certificates()
	ctl := func(t *testing.T, args ...string) {
		t.Helper()
		_, err := b.Ctl(bounded(t), args...)
		require.NoError(t, err)
	}
	ctl(t, "add_user", "relay", password)
	ctl(t, "set_permissions", "relay", ".*", ".*", ".*")
	ctl(t, "add_user", certs.ClientName, "unused")
	ctl(t, "set_permissions", certs.ClientName, ".*", ".*", ".*")

	// lose does what is to be lost and ends the connections: what a connection was allowed
	// to do the broker remembers for a while.
	lose := func(t *testing.T, args ...string) {
		t.Helper()
		ctl(t, args...)
		ctl(t, "close_all_connections", "the test says so")
	}
	// requireQuiet checks that the relay neither floods the broker nor the log meanwhile.
	requireQuiet := func(t *testing.T, w *world, way *wire) {
		t.Helper()
		const during = 3 * time.Second
		published, lines := w.notary.publishes(), w.lines("\n")
		connects := 0
		if way != nil {
			connects = len(way.connects())
		}
		if w.blind {
			pause(t, during)
		} else {
			w.requireNoDeletes(during)
		}
		require.LessOrEqual(t, w.notary.publishes()-published, 200, "messages to an exchange that refuses them")
		require.LessOrEqual(t, w.lines("\n")-lines, 20, "lines of the log")
		if way != nil {
			require.LessOrEqual(t, len(way.connects())-connects, 20, "connections")
		}
		select {
		case <-w.relay.Done():
			require.Fail(t, "the relay has ended")
		default:
		}
	}

	t.Run("permission", func(t *testing.T) {
		in := newInbox(t, b.URL(), nil)
		w := newWorld(t, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second})
		way := newWire(t, w.notary, in.url)
		w.start(w.source("sms", "events"), sink("events", in, "url: amqp://"+way.address, "username: relay", `password: "`+password+`"`))
		w.await("up", "")
		w.send("sms", 100, 300, 0)
		w.awaitDeleted(100)

		lose(t, "set_permissions", "relay", ".*", "", ".*")
		w.send("sms", 100, 300, 0)
		w.awaitFailed("exchange_refused", 1)
		w.await("down", "not permitted to publish to exchange")
		requireQuiet(t, w, way)
		ctl(t, "set_permissions", "relay", ".*", ".*", ".*")
		w.awaitDeleted(200)

		lose(t, "clear_permissions", "relay")
		w.send("sms", 100, 300, 0)
		w.await("down", `open vhost "/"`)
		requireQuiet(t, w, way)
		ctl(t, "set_permissions", "relay", ".*", ".*", ".*")
		w.await("up", "")
		w.finish(in)
	})

	t.Run("vhost", func(t *testing.T) {
		vhost := func() {
			ctl(t, "add_vhost", "prod")
			ctl(t, "set_permissions", "-p", "prod", "guest", ".*", ".*", ".*")
		}
		vhost()
		in := newInbox(t, b.URL()+"prod", nil)
		w, way := single(t, in, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, nil, nil)
		w.send("sms", 100, 300, 0)
		w.awaitDeleted(100)
		require.Equal(t, 100, in.read(), "what is in a vhost goes with it")

		ctl(t, "delete_vhost", "prod")
		w.send("sms", 100, 300, 0)
		w.await("down", `open vhost "prod"`)
		requireQuiet(t, w, way)
		vhost()
		w.await("down", "does not exist") // the exchange, in the vhost that is new
		in.make()
		w.await("up", "")
		w.finish(in)
	})

	t.Run("certificate", func(t *testing.T) {
		in := newInbox(t, b.URL(), nil)
		w := newWorld(t, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second})
		w.blind = true
		w.start(w.source("sms", "events"), sink("events", in, "url: "+b.TLSURL(), "sasl: external",
			"tls: {ca_file: "+files.CA+", cert_file: "+files.ClientCert+", key_file: "+files.ClientKey+"}"))
		w.await("up", "")
		w.send("sms", 100, 300, 0)
		w.awaitDeleted(100)

		cert, key := contents(t, files.ClientCert), contents(t, files.ClientKey)
		foreign := certs.New(t)
		replace(t, files.ClientCert, contents(t, foreign.ClientCert))
		replace(t, files.ClientKey, contents(t, foreign.ClientKey))
		ctl(t, "close_all_connections", "the test says so")
		w.send("sms", 100, 300, 0)
		w.await("down", "check tls.cert_file and tls.key_file")
		requireQuiet(t, w, nil)
		require.Equal(t, 100, w.deleted())
		replace(t, files.ClientCert, cert)
		replace(t, files.ClientKey, key)
		w.await("up", "")
		w.finish(in)
	})
}

func contents(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return text
}

// replace writes a file as tools do that rotate certificates: it is there as a whole.
func replace(t *testing.T, path string, text []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".next", text, 0o600))
	require.NoError(t, os.Rename(path+".next", path))
}

// tap stands before a port and keeps what those say who connect to it.
type tap struct {
	address string
	mu      sync.Mutex
	heard   []*bytes.Buffer // for each connection
}

func newTap(t *testing.T, upstream string) *tap {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &tap{address: l.Addr().String()}
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
				defer context.AfterFunc(ctx, func() { _, _ = client.Close(), server.Close() })()
				running.Go(func() {
					_, _ = io.Copy(client, server)
					_ = client.Close()
				})
				heard := new(bytes.Buffer)
				p.mu.Lock()
				p.heard = append(p.heard, heard)
				p.mu.Unlock()
				buffer := make([]byte, 32<<10)
				for {
					n, err := client.Read(buffer)
					p.mu.Lock()
					heard.Write(buffer[:n])
					p.mu.Unlock()
					if _, failed := server.Write(buffer[:n]); err != nil || failed != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		running.Wait()
	})
	return p
}

// requireEncrypted checks that everybody spoke TLS and nothing else.
func (p *tap) requireEncrypted(t *testing.T, name string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	require.NotEmpty(t, p.heard, name)
	for _, heard := range p.heard {
		if heard.Len() == 0 {
			continue
		}
		require.Equal(t, []byte{22, 3}, heard.Bytes()[:2], "%s: it begins with a handshake of TLS", name)
		for _, text := range []string{"AMQP", password, "PLAIN", "relay-faults"} {
			require.NotContains(t, heard.String(), text, name)
		}
	}
}

// A far side that is not who it should be, or does not want us: refused, in words, and
// nothing goes there in the clear, not even the login.
func TestTLSRefused(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	files, foreign := b.Certificates(), certs.New(t)
	_, err := b.Ctl(bounded(t), "add_user", "relay-faults", password)
	require.NoError(t, err)
	_, err = b.Ctl(bounded(t), "set_permissions", "relay-faults", ".*", ".*", ".*")
	require.NoError(t, err)
	in := newInbox(t, b.URL(), nil)
	secured, err := url.Parse(b.TLSURL())
	require.NoError(t, err)
	plain, err := url.Parse(b.URL())
	require.NoError(t, err)
	client := "cert_file: " + files.ClientCert + ", key_file: " + files.ClientKey

	cases := []struct {
		name, upstream, tls, reason string // reason empty: it connects
	}{
		{"right", secured.Host, "ca_file: " + files.CA + ", " + client, ""},
		{"wrong-authority", secured.Host, "ca_file: " + foreign.CA + ", " + client, "set tls.ca_file"},
		{"wrong-name", secured.Host, "ca_file: " + files.CA + ", server_name: elsewhere, " + client, "set tls.server_name"},
		{"no-client-certificate", secured.Host, "ca_file: " + files.CA, "set tls.cert_file and tls.key_file"},
		{"foreign-client-certificate", secured.Host, "ca_file: " + files.CA + ", cert_file: " + foreign.ClientCert + ", key_file: " + foreign.ClientKey, "check tls.cert_file and tls.key_file"},
		{"old-tls", oldTLS(t, files, plain.Host), "ca_file: " + files.CA + ", " + client, "protocol version"},
		{"no-tls", plain.Host, "ca_file: " + files.CA + ", " + client, "agree on TLS"},
	}
	var names []string
	for _, c := range cases {
		names = append(names, c.name)
	}
	w := newWorld(t, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, names...)
	w.blind = true
	var sources, sinks strings.Builder
	taps := make([]*tap, len(cases))
	for i, c := range cases {
		taps[i] = newTap(t, c.upstream)
		sources.WriteString(w.source(c.name, "to-"+c.name))
		sinks.WriteString(sink("to-"+c.name, in, "url: amqps://"+taps[i].address, "username: relay-faults", `password: "`+password+`"`, "tls: {"+c.tls+"}"))
		w.send(c.name, 10, 300, 0)
	}
	w.start(sources.String(), sinks.String())
	for _, c := range cases {
		eventually(t, patience, c.name, func() (bool, string) {
			for _, s := range w.status().Sinks {
				if s.Name == "to-"+c.name {
					return (s.State == "up") == (c.reason == "") && strings.Contains(s.Reason, c.reason), string(s.State) + ": " + s.Reason
				}
			}
			return false, "there is no such sink"
		})
	}
	eventually(t, patience, "what may pass has passed", func() (bool, string) { return w.stats("right").Deleted == 10, w.states() })
	pause(t, 2*time.Second) // some more tries
	for i, c := range cases {
		taps[i].requireEncrypted(t, c.name)
		if c.reason != "" {
			s := w.stats(c.name)
			require.Zero(t, s.Received, "%s: nothing is received for a sink that never worked", c.name)
			require.Zero(t, s.Deleted, c.name)
		}
	}
	require.Equal(t, 10, in.read(), "only the right one got through")
}

// oldTLS is a server that speaks no more than TLS 1.1, before the broker; it gives its
// address.
func oldTLS(t *testing.T, files *certs.Files, upstream string) string {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.ServerCert, files.ServerKey)
	require.NoError(t, err)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	secured := tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := secured.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer client.Close() //nolint:errcheck // Nothing hangs on it.
				var dialer net.Dialer
				server, err := dialer.DialContext(context.Background(), "tcp", upstream)
				if err != nil {
					return
				}
				defer server.Close() //nolint:errcheck // Nothing hangs on it.
				_, _ = io.Copy(server, client)
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})

	// Those who accept it are served: it is the relay that refuses.
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(contents(t, files.CA)))
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10}}
	conn, err := dialer.DialContext(bounded(t), "tcp", l.Addr().String())
	require.NoError(t, err)
	require.Equal(t, uint16(tls.VersionTLS11), conn.(*tls.Conn).ConnectionState().Version)
	require.NoError(t, conn.Close())
	return l.Addr().String()
}
