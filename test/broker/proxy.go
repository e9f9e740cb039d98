package broker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"

	"mnsrelay/test/process"
)

// Proxy stands before a broker that must not be stopped itself and behaves, for
// those who connect through it, as if that broker were.
type Proxy struct {
	upstream string
	url      url.URL
	address  string

	mu       sync.Mutex
	listener net.Listener // nil while stopped
	open     map[*link]struct{}
	gate     chan struct{} // closed: traffic passes
	flow     chan struct{} // closed: no alarm
	running  sync.WaitGroup
}

// link is one connection with its two ends.
type link struct {
	client, server net.Conn
	cut            chan struct{} // closed when the link is
	once           sync.Once

	opened atomic.Bool // the client's connection.open was answered
	write  sync.Mutex  // held for a whole frame to the client
}

func (l *link) close() {
	l.once.Do(func() {
		close(l.cut)
		// A reset, as from a broker that was killed.
		if c, ok := l.client.(*net.TCPConn); ok {
			_ = c.SetLinger(0)
		}
		_ = l.client.Close()
		_ = l.server.Close()
	})
}

// NewProxy listens on a free port of loopback for the broker at amqpURL, which must
// be of the scheme amqp.
func NewProxy(ctx context.Context, amqpURL string) (*Proxy, error) {
	u, err := url.Parse(amqpURL)
	if err != nil || u.Scheme != "amqp" || u.Hostname() == "" {
		return nil, errors.New("the broker's URL must be amqp://user:password@host:port/vhost")
	}
	p := &Proxy{url: *u, upstream: u.Host, open: map[*link]struct{}{}, gate: closed(), flow: closed()}
	if u.Port() == "" {
		p.upstream = net.JoinHostPort(u.Hostname(), "5672")
	}
	ports, err := process.FreePorts(ctx, 1)
	if err != nil {
		return nil, err
	}
	p.address = fmt.Sprintf("127.0.0.1:%d", ports[0])
	p.url.Host = p.address
	return p, p.Start(ctx)
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func isOpen(gate chan struct{}) bool {
	select {
	case <-gate:
		return true
	default:
		return false
	}
}

// URL is the broker's, with the proxy's address.
func (p *Proxy) URL() string { return p.url.String() }

// Start listens again.
func (p *Proxy) Start(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", p.address)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", p.address, err)
	}
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	p.running.Go(func() { p.accept(l) }) //nolint:contextcheck // It lives until Kill.
	return nil
}

// Stop refuses connections and resets those that are open.
func (p *Proxy) Stop(ctx context.Context) error { return p.Kill(ctx) }

// Kill refuses connections and resets those that are open.
func (p *Proxy) Kill(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener == nil {
		return nil
	}
	err := p.listener.Close()
	p.listener = nil
	for l := range p.open {
		l.close()
	}
	return err
}

// Pause passes nothing on, either way.
func (p *Proxy) Pause() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
	return nil
}

// Resume passes everything on again.
func (p *Proxy) Resume() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !isOpen(p.gate) {
		close(p.gate)
	}
	return nil
}

// Block tells every client, present and to come, that it is blocked, and passes
// nothing of theirs on.
func (p *Proxy) Block(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flow = make(chan struct{})
	for l := range p.open {
		if l.opened.Load() {
			l.tell(blockedFrame())
		}
	}
	return nil
}

// Unblock ends Block.
func (p *Proxy) Unblock(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if isOpen(p.flow) {
		return nil
	}
	close(p.flow)
	for l := range p.open {
		if l.opened.Load() {
			l.tell(unblockedFrame())
		}
	}
	return nil
}

// Close ends everything.
func (p *Proxy) Close() {
	_ = p.Kill(context.Background())
	_ = p.Resume()
	_ = p.Unblock(context.Background())
	p.running.Wait()
}

func (p *Proxy) accept(l net.Listener) {
	for {
		client, err := l.Accept()
		if err != nil {
			return
		}
		p.running.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	var dialer net.Dialer
	server, err := dialer.DialContext(context.Background(), "tcp", p.upstream)
	if err != nil {
		_ = client.Close()
		return
	}
	l := &link{client: client, server: server, cut: make(chan struct{})}
	p.mu.Lock()
	if p.listener == nil {
		p.mu.Unlock()
		l.close()
		return
	}
	p.open[l] = struct{}{}
	p.mu.Unlock()

	var both sync.WaitGroup
	both.Go(func() { p.requests(l); l.close() })
	both.Go(func() { p.answers(l); l.close() })
	both.Wait()
	p.mu.Lock()
	delete(p.open, l)
	p.mu.Unlock()
}

// pass waits until traffic may pass, and that of a client until there is no alarm.
func (p *Proxy) pass(l *link, request bool) bool {
	p.mu.Lock()
	gate, flow := p.gate, p.flow
	p.mu.Unlock()
	if !request || !l.opened.Load() {
		flow = gate
	}
	for _, c := range []chan struct{}{gate, flow} {
		select {
		case <-c:
		case <-l.cut:
			return false
		}
	}
	return true
}

func (p *Proxy) requests(l *link) {
	buf := make([]byte, 32<<10)
	for p.pass(l, true) {
		n, err := l.client.Read(buf)
		if err != nil || !p.pass(l, true) {
			return
		}
		if _, err := l.server.Write(buf[:n]); err != nil {
			return
		}
	}
}

// answers goes frame by frame, so that tell can put one between two.
func (p *Proxy) answers(l *link) {
	from := bufio.NewReader(l.server)
	for p.pass(l, false) {
		var header [7]byte // type, channel, size (AMQP 0-9-1: 4.2.3)
		if _, err := io.ReadFull(from, header[:]); err != nil {
			return
		}
		frame := make([]byte, 7+int(binary.BigEndian.Uint32(header[3:]))+1)
		copy(frame, header[:])
		if _, err := io.ReadFull(from, frame[7:]); err != nil || !p.pass(l, false) {
			return
		}
		if !l.tell(frame) {
			return
		}
		if bytes.HasPrefix(frame[7:], []byte{0, 10, 0, 41}) { // connection.open-ok
			p.opened(l)
		}
	}
}

// opened notes that l may be told of alarms, and tells it of the one there is.
func (p *Proxy) opened(l *link) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.opened.Store(true)
	if !isOpen(p.flow) {
		l.tell(blockedFrame())
	}
}

func (l *link) tell(frame []byte) bool {
	l.write.Lock()
	defer l.write.Unlock()
	_, err := l.client.Write(frame)
	return err == nil
}

// blockedFrame is connection.blocked, class 10, method 60, with its reason.
func blockedFrame() []byte {
	const reason = "low on memory"
	payload := append([]byte{0, 10, 0, 60, byte(len(reason))}, reason...)
	return frameOf(payload)
}

// unblockedFrame is connection.unblocked, class 10, method 61.
func unblockedFrame() []byte { return frameOf([]byte{0, 10, 0, 61}) }

func frameOf(payload []byte) []byte {
	frame := binary.BigEndian.AppendUint32([]byte{1, 0, 0}, uint32(len(payload))) //nolint:gosec // A few bytes.
	return append(append(frame, payload...), 0xCE)
}
