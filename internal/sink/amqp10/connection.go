package amqp10

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/Azure/go-amqp"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

const (
	// writeTimeout is how long one write may wait for a broker that does not read.
	writeTimeout = 5 * time.Second
	// answerTimeout is how long a request may wait for its answer.
	answerTimeout = 5 * time.Second
	// maxLinks bounds the links of a connection, for addresses that messages decide: the
	// least recently used one makes place for another.
	maxLinks = 64
)

// conn notes how far the client has come in opening the connection, since the library's
// errors of SASL have no type.
type conn struct {
	net.Conn

	last []byte // the protocol header that was written last
}

// saslHeader and amqpHeader begin the layers of a connection (AMQP 1.0: 5.3.1, 2.2).
func saslHeader() []byte { return []byte("AMQP\x03\x01\x00\x00") }
func amqpHeader() []byte { return []byte("AMQP\x00\x01\x00\x00") }

func (c *conn) Write(p []byte) (int, error) {
	if len(p) == len(amqpHeader()) && bytes.HasPrefix(p, []byte("AMQP")) {
		c.last = bytes.Clone(p)
	}
	return c.Conn.Write(p)
}

// loginError says that the broker ended the connection over the login; refused: that it
// refused us, and did not only hang up.
func loginError(t target, refused bool) error {
	who := "an anonymous user"
	switch t.sasl {
	case SASLPlain:
		who = fmt.Sprintf("the user %q", t.Username)
	case SASLExternal:
		who = "the user of the client certificate"
	case SASLAnonymous:
	}
	message := fmt.Sprintf("the broker hung up during the login of %s: it is going down, or username and password are wrong", who)
	if refused {
		message = fmt.Sprintf("the broker refuses %s, or does not offer SASL %s: check username, password and sasl", who, t.sasl)
	}
	return &broker.LoginError{Message: message, Refused: refused}
}

// dial opens a connection within the timeouts of the configuration.
func dial(ctx context.Context, t target, c *Config, deps relay.SinkDeps, workers *sync.WaitGroup) (_ *connection, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.ConnectTimeout)
	defer cancel()
	raw, err := t.Dial(ctx, c.DialTimeout, &c.TLS)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = raw.Close()
		}
	}()
	options := &amqp.ConnOptions{
		ContainerID:  cmp.Or(c.ContainerID, deps.Instance+" "+deps.Name),
		HostName:     cmp.Or(c.Hostname, t.Host),
		IdleTimeout:  c.IdleTimeout,
		WriteTimeout: writeTimeout,
		Properties:   map[string]any{"product": "mnsrelay", "platform": "Go"},
	}
	switch t.sasl {
	case SASLPlain:
		options.SASLType = amqp.SASLTypePlain(t.Username, t.Password.Current())
	case SASLExternal:
		options.SASLType = amqp.SASLTypeExternal("")
	case SASLAnonymous:
		options.SASLType = amqp.SASLTypeAnonymous()
	}
	watched := &conn{Conn: raw}
	opened, err := amqp.NewConn(ctx, watched, options)
	if err != nil {
		return nil, openError(ctx, err, watched.last, t, c)
	}
	parting := context.WithoutCancel(ctx)
	return &connection{
		amqp: opened, net: raw, links: map[string]*link{}, freed: make(chan struct{}),
		endSession: func(session *amqp.Session) {
			workers.Go(func() {
				ctx, cancel := context.WithTimeout(parting, closeTimeout)
				defer cancel()
				_ = session.Close(ctx)
			})
		},
	}, nil
}

// openError says why the connection was not opened, after the header that was written last.
func openError(ctx context.Context, err error, last []byte, t target, c *Config) error {
	var network net.Error
	cut := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network)
	switch {
	case ctx.Err() != nil, errors.As(err, &network) && network.Timeout():
		return fmt.Errorf("log in: no answer within %v", c.ConnectTimeout)
	case bytes.Equal(last, saslHeader()) && cut:
		if advised := setting.AdviseTLS(err); advised != err { //nolint:errorlint // Whether it was given back as it is.
			return fmt.Errorf("log in: %w", advised)
		}
		if t.Secure && c.TLS.CertFile == "" { // whose refusal may be lost on the way
			return fmt.Errorf("%w; if it asks for a client certificate, set tls.cert_file and tls.key_file", loginError(t, false))
		}
		return loginError(t, false)
	case bytes.Equal(last, saslHeader()):
		return loginError(t, true)
	}
	return fmt.Errorf("open the connection: %w", err)
}

// connection is one that stands, with its links.
type connection struct {
	amqp *amqp.Conn
	net  net.Conn

	mu    sync.Mutex
	links map[string]*link // by address
	// freed is closed, and made anew, when a link is no longer in use.
	freed chan struct{}
	// endSession ends a session without waiting for it; Run waits.
	endSession func(session *amqp.Session)
}

// lost tells whether the connection has ended.
func (c *connection) lost() bool {
	select {
	case <-c.amqp.Done():
		return true
	default:
		return false
	}
}

// cause says why the connection has ended; the library has no word for an end in order.
func (c *connection) cause() error {
	if err := c.amqp.Err(); err != nil {
		return bounded(err)
	}
	return errors.New("the connection was closed")
}

// close ends the connection. The library writes a close and does not wait for its answer.
func (c *connection) close() {
	cut := time.AfterFunc(closeTimeout, func() { _ = c.net.Close() })
	defer cut.Stop()
	_ = c.amqp.Close()
	<-c.amqp.Done()
}

// link leads to one address, in a session of its own: some brokers end the session over
// what is wrong with a link.
type link struct {
	address string
	// turn is held by whoever is sending: without credit a send waits in the library,
	// which knows no way to wait beside it. Size 1.
	turn chan struct{}
	// attached is closed when sender and session, or err, are there.
	attached chan struct{}
	session  *amqp.Session
	sender   *amqp.Sender
	err      error

	// Guarded by connection.mu.
	users   int
	used    time.Time
	retired bool // nobody is to use it any more
}

// acquire gives the link to an address, attaching it where there is none, and waits where
// all links are in use. The caller releases it.
func (c *connection) acquire(ctx context.Context, address string) (*link, error) {
	for {
		l, mine, freed := c.take(address)
		if l == nil {
			select {
			case <-freed:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-c.amqp.Done():
				return nil, c.cause()
			}
		}
		if mine {
			l.session, l.sender, l.err = c.attach(ctx, address)
			close(l.attached)
		}
		attached := true
		select {
		case <-l.attached:
		case <-ctx.Done():
			attached = mine
		}
		switch {
		case attached && l.err != nil:
			c.release(l, false)
			return nil, l.err
		case ctx.Err() != nil:
			c.release(l, true) // it says nothing of the link
			return nil, ctx.Err()
		}
		return l, nil
	}
}

// take gives the link to an address with one user more; mine says that it is to be
// attached. nil: there is no place for another until freed is closed.
func (c *connection) take(address string) (l *link, mine bool, freed <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, found := c.links[address]
	if !found {
		if len(c.links) >= maxLinks && !c.evict() {
			return nil, false, c.freed
		}
		l = &link{address: address, turn: make(chan struct{}, 1), attached: make(chan struct{})}
		c.links[address] = l
	}
	l.users++
	l.used = time.Now()
	return l, !found, nil
}

// evict closes the least recently used link that nobody uses. It is called with mu held.
func (c *connection) evict() bool {
	var oldest *link
	for _, l := range c.links {
		if l.users == 0 && (oldest == nil || l.used.Before(oldest.used)) {
			oldest = l
		}
	}
	if oldest == nil {
		return false
	}
	delete(c.links, oldest.address)
	c.end(oldest)
	return true
}

// release gives the link back; one that is not reusable is closed when its last user has
// released it, and nobody else gets it.
func (c *connection) release(l *link, reusable bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l.users--
	if !reusable && !l.retired {
		l.retired = true
		if c.links[l.address] == l {
			delete(c.links, l.address)
		}
	}
	if l.users == 0 && l.retired {
		c.end(l)
	}
	if l.users == 0 || l.retired {
		close(c.freed)
		c.freed = make(chan struct{})
	}
}

// end closes a link.
func (c *connection) end(l *link) {
	if l.session != nil {
		c.endSession(l.session)
	}
}

// attach opens a session with a link to the address. It goes on when ctx ends: others may
// be waiting for it.
func (c *connection) attach(ctx context.Context, address string) (*amqp.Session, *amqp.Sender, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
	defer cancel()
	session, err := c.amqp.NewSession(ctx, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("begin a session: %w", err)
	}
	sender, err := session.NewSender(ctx, address, nil)
	if err != nil {
		c.endSession(session)
		return nil, nil, fmt.Errorf("attach a link: %w", err)
	}
	return session, sender, nil
}

// untilBegun is a context that ends only what has not begun. The library asks for Err and
// Deadline when it writes a frame, and for Done where it waits for credit and between two
// frames of a message. A message of which some frames are missing, or that has its number and
// no frame, would make the broker end the connection over the next one; and the library takes
// a deadline for the time in which a frame has to be written, and ends the connection itself.
type untilBegun struct {
	context.Context //nolint:containedctx // It is a context.

	begun atomic.Bool
}

func (c *untilBegun) Deadline() (time.Time, bool) { return time.Time{}, false }

func (c *untilBegun) Err() error {
	c.begun.Store(true)
	return nil
}

func (c *untilBegun) Done() <-chan struct{} {
	if c.begun.Load() {
		return nil
	}
	return c.Context.Done()
}

// send writes a message as soon as there is credit. When ctx ends before, nothing is
// written; otherwise it goes on to the end of the message, as long as the link stands. Begun
// tells whether any of it may have been written.
func (l *link) send(ctx context.Context, m *amqp.Message, settled bool) (receipt amqp.SendReceipt, begun bool, err error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return amqp.SendReceipt{}, false, ctx.Err()
	}
	defer func() { <-l.turn }()
	if ctx.Err() != nil { // Both may have been so, and the message has its result by now.
		return amqp.SendReceipt{}, false, ctx.Err()
	}
	waiting := &untilBegun{Context: ctx}
	if settled {
		err = l.sender.Send(waiting, m, &amqp.SendOptions{Settled: true}) //nolint:contextcheck // It is ctx, in part.
	} else {
		receipt, err = l.sender.SendWithReceipt(waiting, m, nil) //nolint:contextcheck // It is ctx, in part.
	}
	return receipt, waiting.begun.Load(), err
}

// send writes a message to an address, and gives the link, which the caller releases, and
// whether it is still of use. A link that had ended before the message was begun, as brokers
// end one that has been idle, is replaced, once. An error of acquire comes without a link.
func (c *connection) send(ctx context.Context, address string, m *amqp.Message, settled bool) (l *link, usable bool, receipt amqp.SendReceipt, err error) {
	for again := true; ; again = false {
		if l, err = c.acquire(ctx, address); err != nil {
			return nil, false, amqp.SendReceipt{}, err
		}
		var begun bool
		receipt, begun, err = l.send(ctx, m, settled)
		switch {
		case err == nil, !begun && !ended(err):
			return l, true, receipt, err
		case begun || !again || c.lost():
			return l, false, receipt, err
		}
		c.release(l, false)
	}
}

// ended tells whether an error is that of a link or session that is no more.
func ended(err error) bool {
	var (
		link    *amqp.LinkError
		session *amqp.SessionError
	)
	return errors.As(err, &link) || errors.As(err, &session)
}
