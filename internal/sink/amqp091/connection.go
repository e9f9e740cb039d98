package amqp091

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

const (
	// writeTimeout is how long one write may wait for a broker that does not read.
	writeTimeout = 5 * time.Second
	// answerTimeout is how long a request may wait for its answer.
	answerTimeout = 5 * time.Second
	// maxChannels bounds the channels of a connection; a broker may allow fewer.
	maxChannels = 256
)

// conn gives every write a deadline. Without it a publish to a broker that has
// stopped reading blocks for ever, and the library's heartbeat with it.
type conn struct {
	net.Conn

	// failed is the first error of a read, of which the library keeps the text only.
	failed atomic.Pointer[error]
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.failed.CompareAndSwap(nil, &err)
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// brokerError is an error of the library's in words.
type brokerError struct{ cause *amqp.Error }

func (e brokerError) Error() string {
	if !e.cause.Server {
		return e.cause.Reason // what the network said; the code is the library's own
	}
	return fmt.Sprintf("%s (%d)", e.cause.Reason, e.cause.Code)
}

func (e brokerError) Unwrap() error { return e.cause }

// limits are what a connection lets messages be.
type limits struct {
	username string // whom a message may name as its user; empty: anybody, as far as is known here
	frame    int    // how many bytes a frame has; 0: as many as there are
}

// connection is one that stands, with its channels.
type connection struct {
	limits

	amqp      *amqp.Connection
	net       net.Conn
	lost      chan *amqp.Error
	blockings chan amqp.Blocking
	over      context.Context //nolint:containedctx // Not a caller's: it ends with the connection.
	end       context.CancelFunc

	// slots holds an entry for each channel in use.
	slots chan struct{}
	// blocked says that the broker blocks publishers: it answers nothing meanwhile.
	blocked atomic.Bool

	mu   sync.Mutex
	idle []*channel
}

// dial opens a connection within the timeouts of the configuration.
func dial(ctx context.Context, t target, settings *Config, deps relay.SinkDeps) (_ *connection, err error) {
	ctx, cancel := context.WithTimeout(ctx, settings.ConnectTimeout)
	defer cancel()
	raw, err := t.Dial(ctx, settings.DialTimeout, &settings.TLS)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = raw.Close()
		}
	}()
	// The library's handshake knows no context.
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	properties := amqp.Table{
		"connection_name": cmp.Or(settings.ConnectionName, deps.Instance+" "+deps.Name),
		"product":         "mnsrelay",
		"platform":        "Go",
	}
	watched := &conn{Conn: raw}
	opened, err := amqp.Open(watched, amqp.Config{
		Vhost:      t.vhost,
		Heartbeat:  t.heartbeat,
		Properties: properties,
		SASL:       []amqp.Authentication{&login{target: t, properties: properties}},
		Locale:     "en_US",
	})
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		if failed := watched.failed.Load(); failed != nil {
			if advised := setting.AdviseTLS(*failed); advised != *failed { //nolint:errorlint // Whether it was given back as it is.
				return nil, fmt.Errorf("log in: %w", advised)
			}
		}
		return nil, handshakeError(ctx, err, t, settings.ConnectTimeout)
	}
	c := &connection{
		limits: limits{username: t.Username, frame: opened.Config.FrameSize},
		amqp:   opened,
		net:    raw,
		// One error ends it.
		lost: opened.NotifyClose(make(chan *amqp.Error, 1)),
		// Room for an alarm that comes and goes while an exchange is declared.
		blockings: opened.NotifyBlocked(make(chan amqp.Blocking, 16)),
		// One channel is left for declaring.
		slots: make(chan struct{}, max(1, min(maxChannels, int(opened.Config.ChannelMax)-1))),
	}
	c.over, c.end = context.WithCancel(context.Background())
	over := opened.NotifyClose(make(chan *amqp.Error, 1))
	go func() {
		// Ends with the connection, whichever way: the library then closes it.
		for range over {
		}
		c.end()
	}()
	return c, nil
}

// close ends the connection, in order where the broker still answers.
func (c *connection) close() {
	// While it blocks publishers a broker does not read the close, and each heartbeat of its
	// own would move the library's deadline.
	cut := time.AfterFunc(closeTimeout, func() { _ = c.net.Close() })
	defer cut.Stop()
	_ = c.amqp.CloseDeadline(time.Now().Add(closeTimeout))
	_ = c.net.Close()
	<-c.over.Done()
}

// bounded calls a request that waits for the broker's answer without a limit of its
// own: where none comes the connection is of no use and is cut. A broker that blocks
// publishers does not answer on their connections, and is waited for: another connection
// would be blocked as well, after it has taken more messages.
func (c *connection) bounded(request func() error) error {
	return c.within(answerTimeout, request)
}

// within is bounded by another limit.
func (c *connection) within(limit time.Duration, request func() error) error {
	cut := time.AfterFunc(limit, func() {
		if !c.blocked.Load() {
			_ = c.net.Close()
		}
	})
	defer cut.Stop()
	return request()
}

// onChannel calls do with a channel of its own, since a refusal closes it.
func (c *connection) onChannel(do func(ch *amqp.Channel) error) error {
	return c.bounded(func() error {
		ch, err := c.amqp.Channel()
		if err != nil {
			return err
		}
		if err := do(ch); err != nil {
			return err // and the broker has closed the channel
		}
		return ch.Close()
	})
}

// mode is what a channel is for.
type mode uint8

// In the mode confirming the broker confirms every message, in transactional every
// commit, in plain nothing.
const (
	confirming mode = iota
	transactional
	plain
)

// channel is in the hands of one Deliver at a time.
type channel struct {
	amqp    *amqp.Channel
	mode    mode
	owner   *exchange // whose messages it carries: of plain ones what the broker says comes later; nil: it is idle, and not plain
	returns chan amqp.Return
	closed  chan *amqp.Error
	cause   *amqp.Error // why the broker closed it
	stall   *time.Timer
	headers amqp.Table // written anew for every message
	pending []pending
}

// reason is why the channel has ended, nil where that is not known. The library
// marks a channel as closed a moment before it says why.
func (ch *channel) reason() *amqp.Error {
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case err, ok := <-ch.closed:
		if ok {
			ch.cause = err
		}
	case <-late.C:
	}
	return ch.cause
}

// drain takes what the broker has given back, by message id with the reply code, and adds
// it to what it took before; nil: nothing.
func (ch *channel) drain(returned map[string]uint16) map[string]uint16 {
	for {
		select {
		case r, ok := <-ch.returns:
			if !ok {
				return returned
			}
			if returned == nil {
				returned = map[string]uint16{}
			}
			returned[r.MessageId] = r.ReplyCode
		default:
			return returned
		}
	}
}

// acquire waits for a channel of a mode whose window holds the given number of messages,
// or maxWindow. Plain ones carry the messages of one exchange. The others are shared by those
// that work: one that may not takes a channel of its own with it when the broker refuses a
// publish, and not one that others would have to open anew, at two round trips.
func (c *connection) acquire(ctx context.Context, mode mode, x *exchange, messages int) (*channel, error) {
	select {
	case c.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-c.over.Done():
		return nil, amqp.ErrClosed
	}
	window := min(maxWindow, max(minWindow, messages))
	c.mu.Lock()
	i := slices.IndexFunc(c.idle, func(ch *channel) bool {
		return ch.mode == mode && cap(ch.returns) >= window && (ch.owner == x || ch.owner == nil && x.proven.Load())
	})
	if i >= 0 {
		ch := c.idle[i]
		c.idle = slices.Delete(c.idle, i, i+1)
		c.mu.Unlock()
		ch.owner = x
		return ch, nil
	}
	var unfit *channel // gives its place to a new one
	if len(c.idle)+len(c.slots) > cap(c.slots) {
		unfit = c.idle[0]
		c.idle = slices.Delete(c.idle, 0, 1)
	}
	c.mu.Unlock()
	if unfit != nil {
		c.discard(unfit)
	}

	ch := &channel{mode: mode, owner: x, headers: amqp.Table{}}
	err := c.bounded(func() (err error) {
		if ch.amqp, err = c.amqp.Channel(); err != nil {
			return err
		}
		switch mode {
		case confirming:
			return ch.amqp.Confirm(false)
		case transactional:
			return ch.amqp.Tx()
		case plain:
		}
		return nil
	})
	if err != nil {
		<-c.slots
		return nil, err
	}
	// Room for a return of every message that can be unconfirmed: the library drops
	// what does not fit.
	ch.returns = ch.amqp.NotifyReturn(make(chan amqp.Return, window))
	ch.closed = ch.amqp.NotifyClose(make(chan *amqp.Error, 1))
	ch.stall = time.NewTimer(time.Hour)
	return ch, nil
}

// release gives a channel back. One that still owes confirms is closed: its late
// returns would be taken for those of the next batch. So is one of an exchange of which it is
// still not known that it works: no other may have it.
func (c *connection) release(ch *channel, reusable bool) {
	if ch.mode != plain {
		reusable = reusable && ch.owner.proven.Load()
		ch.owner = nil
	}
	if reusable && !ch.amqp.IsClosed() {
		c.mu.Lock()
		c.idle = append(c.idle, ch)
		c.mu.Unlock()
	} else {
		c.discard(ch)
	}
	<-c.slots
}

func (c *connection) discard(ch *channel) {
	ch.stall.Stop()
	_ = c.bounded(ch.amqp.Close)
}
