package relaytest

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Proxy stands between a client and a TCP server and breaks the way between them:
// Refuse and Hang work on the connections that are open and on those to come, Mend
// ends them. Make it with NewProxy.
type Proxy struct {
	target   string
	listener net.Listener
	work     sync.WaitGroup

	mu     sync.Mutex
	mode   mode
	open   map[net.Conn]struct{}
	mended chan struct{} // closed when what hangs may go on, or must end
}

type mode int

const (
	passing mode = iota
	refusing
	hanging
	closed
)

// NewProxy listens on a free port of loopback for a server at target. It and all its
// connections end with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &Proxy{target: target, listener: listener, open: map[net.Conn]struct{}{}, mended: make(chan struct{})}
	p.work.Go(p.accept)
	t.Cleanup(func() {
		p.set(closed)
		_ = listener.Close()
		p.work.Wait()
	})
	return p
}

// Addr is where the proxy listens, as host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Refuse resets every connection.
func (p *Proxy) Refuse() { p.set(refusing) }

// Hang accepts connections and passes nothing on, in either direction. It closes none:
// to a client it looks like a far side that has stopped.
func (p *Proxy) Hang() { p.set(hanging) }

// Mend passes everything on again. Connections that hung are reset: what was under
// way on them has been lost for good.
func (p *Proxy) Mend() { p.set(passing) }

func (p *Proxy) set(m mode) {
	p.mu.Lock()
	defer p.mu.Unlock()
	hung := p.mode == hanging
	p.mode = m
	if hung || m == refusing || m == closed {
		for conn := range p.open {
			reset(conn)
		}
		close(p.mended)
		p.mended = make(chan struct{})
	}
}

func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}

// state tells the mode and a channel that is closed when it may be another.
func (p *Proxy) state() (mode, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mode, p.mended
}

// keep remembers a connection, so that a change of mode reaches it.
func (p *Proxy) keep(conn net.Conn) (forget func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[conn] = struct{}{}
	if p.mode == refusing || p.mode == closed {
		reset(conn)
	}
	return func() {
		p.mu.Lock()
		delete(p.open, conn)
		p.mu.Unlock()
		_ = conn.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.work.Go(func() {
			defer p.keep(client)()
			if m, mended := p.state(); m == hanging {
				<-mended // by then it is reset
				return
			}
			server, err := net.Dial("tcp", p.target) //nolint:noctx // loopback; the proxy's end is the end of the connection
			if err != nil {
				reset(client)
				return
			}
			defer p.keep(server)()
			var back sync.WaitGroup
			back.Go(func() { p.pass(client, server) })
			p.pass(server, client)
			back.Wait()
		})
	}
}

// pass copies until either side ends; an orderly end is passed on as one.
func (p *Proxy) pass(to, from net.Conn) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if m, mended := p.state(); m == hanging {
			<-mended // by then both are reset
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				reset(from)
				return
			}
		}
		if errors.Is(err, io.EOF) {
			if err := to.(*net.TCPConn).CloseWrite(); err == nil {
				return
			}
		}
		if err != nil {
			reset(to)
			return
		}
	}
}
