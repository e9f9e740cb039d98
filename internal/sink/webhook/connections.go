package webhook

import (
	"context"
	"net"
	"sync"
)

// connections knows what is open: http.Transport closes only those that it finds
// idle, and one whose last request was just cancelled is not.
type connections struct {
	dialer *dialer

	mu     sync.Mutex
	open   map[*connection]struct{}
	closed bool
}

func newConnections(dialer *dialer) *connections {
	return &connections{dialer: dialer, open: make(map[*connection]struct{})}
}

// dial is for http, dialTLS for https.
func (c *connections) dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialed, err := c.dialer.connect(ctx, "http", network, address)
	if err != nil {
		return nil, err
	}
	return c.keep(dialed)
}

func (c *connections) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	return c.dialer.dialTLS(ctx, network, address, c.keep)
}

// keep knows the connection until it is closed.
func (c *connections) keep(dialed net.Conn) (net.Conn, error) {
	conn := &connection{Conn: dialed, owner: c}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = dialed.Close()
		return nil, errStopped
	}
	c.open[conn] = struct{}{}
	return conn, nil
}

// close closes what is open, now and for good.
func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for conn := range c.open {
		_ = conn.Conn.Close()
	}
	clear(c.open)
}

type connection struct {
	net.Conn
	owner *connections
}

func (c *connection) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open, c)
	c.owner.mu.Unlock()
	return c.Conn.Close()
}
