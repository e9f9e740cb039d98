package httpapi_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/setting"
	"mnsrelay/test/certs"
)

// pipes is a listener whose connections are pipes, so that their time is that of a bubble.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.accepted:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.closed)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// dial gives the client's end, and what is closed with the server's.
func (p *pipes) dial() (own net.Conn, ended <-chan struct{}) {
	own, theirs := net.Pipe()
	end := make(chan struct{})
	p.accepted <- &ending{Conn: theirs, ended: sync.OnceFunc(func() { close(end) })}
	return own, end
}

// ending tells when it is closed.
type ending struct {
	net.Conn
	ended func()
}

func (e *ending) Close() error {
	e.ended()
	return e.Conn.Close()
}

// Whatever a client does or leaves undone, its connection ends.
func TestEveryConnectionEnds(t *testing.T) {
	t.Parallel()
	files := certs.New(t)
	secured := setting.ServerTLS{CertFile: files.ServerCert, KeyFile: files.ServerKey}
	for name, test := range map[string]struct {
		tls   setting.ServerTLS
		sends string
		reads bool // what is answered
		after time.Duration
	}{
		"says nothing":                   {after: 5 * time.Second},
		"ends no header":                 {sends: "GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ", after: 5 * time.Second},
		"ends no body":                   {sends: "PUT /api/v1/log-level HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + adminToken + "\r\nContent-Length: 20\r\n\r\n{", reads: true, after: 10 * time.Second},
		"reads no answer":                {sends: "GET /openapi.yaml HTTP/1.1\r\nHost: x\r\n\r\n", after: 30 * time.Second},
		"asks nothing further":           {sends: "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", reads: true, after: 2 * time.Minute},
		"begins no handshake":            {tls: secured, after: 5 * time.Second},
		"ends no handshake":              {tls: secured, sends: "\x16\x03\x01\x02\x00\x01", after: 5 * time.Second},
		"begins TLS where there is none": {sends: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", reads: true, after: 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, err := httpapi.New(httpapi.Config{AdminToken: setting.NewSecret(adminToken), TLS: test.tls}, httpapi.Deps{
					Instance: "relay-0", Relay: &fakeRelay{status: full}, Metrics: prometheus.NewRegistry(), Log: zap.NewNop(), Level: zap.NewAtomicLevel(),
				})
				require.NoError(t, err)
				listener := &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})}
				s.On(listener)
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx) }()

				conn, ended := listener.dial()
				begun := time.Now()
				if test.sends != "" {
					_, err := io.WriteString(conn, test.sends)
					require.NoError(t, err)
				}
				if test.reads {
					_, err := io.Copy(io.Discard, conn)
					require.NoError(t, err)
				}
				<-ended
				require.InDelta(t, test.after.Seconds(), time.Since(begun).Seconds(), 1) // it lingers a little
				require.NoError(t, conn.Close())
				stop()
				require.NoError(t, <-done)
			})
		})
	}
}
