package amqp10_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/test/amqppeer"
	"mnsrelay/test/certs"
)

// FuzzMessages sends messages whose content goes into every part of a message that takes
// text. Each arrives as it is or is rejected, and the one beside it arrives, over the same
// connection.
func FuzzMessages(f *testing.F) {
	for _, seed := range [][]byte{
		nil, []byte("plain"), []byte("短信 \U0001f600"), []byte("a\x00b\r\n\t\x7f"),
		{0xff, 0xfe},
		[]byte("\xed\xa0\x80"),
		[]byte("accept/\x00"), []byte(strings.Repeat("x", 255)), []byte(strings.Repeat("x", 256)), []byte(strings.Repeat("é", 35_000)),
		[]byte(`{"a": "b"}`), []byte("refuse"), []byte("\u2028\ufeff"),
	} {
		f.Add(seed)
	}
	p := amqppeer.Start(f, amqppeer.Proton)
	c := amqp10.Defaults()
	c.URL = setting.NewURL(p.URL())
	c.Address = "accept.{{ text }}"
	c.ApplicationProperties = values(map[string]any{"p": "{{ text }}", "b": "{{ bytes(text) }}"})
	c.MessageAnnotations = values(map[string]any{"x-opt-a": "{{ text }}", "x-opt-list": []any{"{{ text }}"}})
	c.Properties = amqp10.Properties{
		Subject: "{{ text }}", To: "{{ text }}", ReplyTo: "{{ text }}", CorrelationID: "{{ text }}", GroupID: "{{ text }}", UserID: "{{ text }}",
	}
	r := run(f, c)
	r.Await(relay.Up)
	f.Fuzz(func(t *testing.T, body []byte) {
		ms := relaytest.Messages("m", 2, 10)
		ms[0].Body = body
		results := relaytest.Deliver(t.Context(), t, r.Sink, ms)
		require.NoError(t, results[1].Err, "the message beside it")
		require.Equal(t, relay.Delivered, results[1].Outcome)
		if results[0].Outcome == relay.Rejected {
			require.Contains(t, []string{"invalid_property", "expression"}, relay.ReasonOf(results[0].Err))
		} else {
			require.NoError(t, results[0].Err)
			require.Equal(t, relay.Delivered, results[0].Outcome)
		}
		require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len(), "the connection stood: %s", r.Logged())
	})
}

// A message id that is no text, or is very long, is no reason to lose the connection.
func TestHostileIDs(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		r := run(t, config(p, "accept"))
		r.Await(relay.Up)
		for id, want := range map[string]relay.Outcome{
			"\xff\xfe": relay.Rejected, strings.Repeat("i", 70_000): relay.Delivered, "a\x00\r\nb": relay.Delivered, "": relay.Delivered,
		} {
			ms := relaytest.Messages("m", 3, 10)
			ms[1].ID = id
			results := relaytest.Deliver(t.Context(), t, r.Sink, ms)
			require.Equal(t, want, results[1].Outcome, "%.20q: %v", id, results[1].Err)
			require.Equal(t, relay.Delivered, results[0].Outcome)
			require.Equal(t, relay.Delivered, results[2].Outcome)
		}
		require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len(), "the connection stood: %s", r.Logged())
	})
}

// Old TLS is refused before anything of the protocol is said.
func TestTLS11IsRefused(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	pair, err := tls.LoadX509KeyPair(files.ServerCert, files.ServerKey)
	require.NoError(t, err)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var (
		work sync.WaitGroup
		mu   sync.Mutex
		said []string // inside of TLS
	)
	work.Go(func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			_ = raw.SetDeadline(time.Now().Add(5 * time.Second))
			conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
			text, _ := io.ReadAll(conn)
			mu.Lock()
			said = append(said, string(text))
			mu.Unlock()
			_ = conn.Close()
		}
	})
	defer work.Wait()
	defer func() { _ = listener.Close() }()
	c := amqp10.Defaults()
	c.URL = setting.NewURL(fmt.Sprintf("amqps://%s", listener.Addr()))
	c.TLS = setting.TLS{CAFile: files.CA}
	c.Username, c.Password = "relay", setting.NewSecret("hunter2")
	c.Address = "accept"
	r := run(t, c)
	r.AwaitReason(relay.Down, "protocol version")
	relaytest.RequireReason(t, "not_connected", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10))[0])
	r.End()
	mu.Lock()
	defer mu.Unlock()
	require.Empty(t, strings.Join(said, ""))
}
