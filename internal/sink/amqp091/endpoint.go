// Package amqp091 delivers to an AMQP 0-9-1 broker, RabbitMQ above all.
//
// An Endpoint holds one connection. The messages of one Deliver are published on
// one channel, up to a window of them unconfirmed, and no other Deliver uses that
// channel meanwhile: a broker that refuses a publish closes the channel, and with
// it every confirm in flight on it. A message is Delivered when its own publisher
// confirm has come and the broker has not given it back before (basic.return
// precedes basic.ack). Everything else is Retry, with the same message id: a
// confirm that never came may stand for a message that did arrive.
//
// Three traps of the client library shape the code. A broker that stops reading
// makes a publish block in the socket's write, holding the lock that the heartbeat
// needs to end the connection: so every write has a deadline (conn), and Deliver
// does not wait for a write when its time is over. The library drops a
// basic.return that finds no room in our channel, and still confirms the message:
// so that channel holds as many as can be unconfirmed, and it is emptied after a
// confirm and before the confirm counts. Its own recovery never resolves the
// confirms of the old connection: so a lost connection is thrown away and dialled
// anew.
package amqp091

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/relay"
)

const (
	// closeTimeout bounds the orderly end of a connection.
	closeTimeout = 2 * time.Second
)

var (
	_ relay.Endpoint  = (*Endpoint)(nil)
	_ relay.Sink      = (*Sink)(nil)
	_ relay.Previewer = (*Sink)(nil)
)

// Endpoint is one broker, or the nodes of one cluster, of which it uses one at a
// time. Its health is Down without a connection, while the broker blocks
// publishers, and where none of the exchanges in use can be published to.
type Endpoint struct {
	config  Config
	targets []target
	deps    relay.SinkDeps
	log     *zap.Logger
	monitor *relay.Monitor

	// connection is nil while there is none.
	connection atomic.Pointer[connection]
	// recheck wakes the session when an exchange was added or failed.
	recheck chan struct{}

	mu        sync.Mutex
	running   bool
	trouble   string               // why there is no connection
	blocked   string               // the broker's reason, while it blocks
	exchanges map[string]*exchange // by key
	topology  topology
	workers   sync.WaitGroup
}

func newEndpoint(c *Config, targets []target, deps relay.SinkDeps) *Endpoint {
	return &Endpoint{
		config:    *c,
		targets:   targets,
		deps:      deps,
		log:       deps.Log,
		monitor:   relay.NewMonitor(relay.Down, "not connected yet"),
		recheck:   make(chan struct{}, 1),
		trouble:   "not connected yet",
		exchanges: map[string]*exchange{},
	}
}

// Health tells the present health and gives a channel that is closed when it
// changes.
func (e *Endpoint) Health() (relay.Health, <-chan struct{}) { return e.monitor.Health() }

// Bind makes the Sink for one target of a route.
func (e *Endpoint) Bind(with relay.Overrides) (relay.Sink, error) {
	settings := e.config.clone()
	if with != nil {
		if err := with(&settings); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(settings.Validate(), e.config.checkTransaction(&settings)); err != nil {
		return nil, err
	}
	s, err := newSink(e, settings)
	if err != nil {
		return nil, err
	}
	s.exchange = e.use(settings.Exchange)
	return s, nil
}

func (e *Endpoint) wake() {
	select {
	case e.recheck <- struct{}{}:
	default:
	}
}

// Run keeps a connection up until ctx ends, then closes it and returns nil. The
// URLs are tried in turn.
func (e *Endpoint) Run(ctx context.Context) error {
	e.mu.Lock()
	e.running = true
	if len(e.exchanges) == 0 {
		// Nothing is bound: report on the sink's own.
		e.exchanges[e.config.Exchange.key()] = newExchange(e.config.Exchange)
	}
	e.mu.Unlock()
	defer e.finish()

	addresses := make([]string, len(e.targets))
	for i := range e.targets {
		addresses[i] = e.targets[i].HostPort
	}
	(&broker.Keeper{
		Addresses: addresses,
		Session: func(ctx context.Context, i int, connected func()) error {
			return e.session(ctx, e.targets[i], connected)
		},
		Disconnected: e.disconnected,
		Log:          e.log,
	}).Run(ctx)
	return nil
}

// finish waits for the Delivers that are not done with the last connection.
func (e *Endpoint) finish() {
	e.mu.Lock()
	e.running = false
	e.trouble = "stopped"
	e.report()
	e.mu.Unlock()
	e.workers.Wait()
}

// session is one connection, from dial to end; its error says why it ended.
// Connected is called when it stands.
func (e *Endpoint) session(ctx context.Context, t target, connected func()) (err error) {
	c, err := dial(ctx, t, &e.config, e.deps)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", t.HostPort, err)
	}
	// A request to a broker that has stalled ends with the connection only, so the
	// end does not wait for this goroutine.
	var closing sync.WaitGroup
	closing.Add(1)
	stop := context.AfterFunc(ctx, func() {
		defer closing.Done()
		c.close()
	})
	defer func() {
		// Said before the connection is closed, which may take a while.
		e.drop(c, err)
		if stop() {
			closing.Done()
			c.close()
		}
		closing.Wait()
	}()

	e.mu.Lock()
	for _, x := range e.exchanges {
		// What was known of it belongs to the last connection.
		x.set(relay.Down, reasonExchange, "not checked yet")
		x.due = time.Time{}
		x.failures = 0
		x.probe = false
	}
	e.topology = topology{}
	e.mu.Unlock()
	if err := e.check(c); err != nil {
		return err
	}
	connected()
	e.mu.Lock()
	e.connection.Store(c)
	e.trouble, e.blocked = "", ""
	e.report()
	e.mu.Unlock()

	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(e.nextCheck())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-c.lost:
			if err == nil {
				return errors.New("the connection was closed")
			}
			return fmt.Errorf("lost the connection to %s: %w", t.HostPort, brokerError{err})
		case b, ok := <-c.blockings:
			if ok {
				c.blocked.Store(b.Active)
				e.setBlocked(b)
			}
		case <-e.recheck:
		case <-timer.C:
			if err := e.check(c); err != nil {
				return err
			}
		}
	}
}

func (e *Endpoint) setBlocked(b amqp.Blocking) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.blocked = ""
	if b.Active {
		e.blocked = "the broker blocks publishers: " + b.Reason
		e.log.Warn("the broker blocks publishers", zap.String("reason", b.Reason))
	} else {
		e.log.Info("the broker no longer blocks publishers")
	}
	e.report()
}

// gone reports a connection that has ended, if it is the present one.
func (e *Endpoint) gone(c *connection, err error) {
	e.drop(c, fmt.Errorf("lost the connection: %w", err))
}

// drop takes a connection out of use, if it is the present one, and says why: in one step,
// or what is said of it would be taken for the next one.
func (e *Endpoint) drop(c *connection, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.connection.CompareAndSwap(c, nil) {
		e.trouble = err.Error()
		e.report()
	}
}

func (e *Endpoint) disconnected(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.trouble = err.Error()
	e.report()
}

// report works out the health. Call it with mu held.
func (e *Endpoint) report() {
	switch {
	case e.trouble != "":
		e.monitor.Set(relay.Down, e.trouble)
		return
	case e.blocked != "":
		e.monitor.Set(relay.Down, e.blocked)
		return
	case e.topology.reason != "":
		e.monitor.Set(relay.Down, e.topology.reason)
		return
	}
	// One exchange that works keeps the endpoint up: the routes to the others get
	// their results message by message.
	best, reason := relay.Down, ""
	for _, x := range e.exchanges {
		if x.state > best || reason == "" {
			best = max(best, x.state)
			reason = x.reason
		}
	}
	if best == relay.Up {
		reason = ""
	}
	e.monitor.Set(best, reason)
}

// nextCheck is how long until something is to be tried again.
func (e *Endpoint) nextCheck() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := time.Hour
	if len(e.config.Queues) > 0 && e.topology.declared.IsZero() {
		next = max(0, time.Until(e.topology.due))
	}
	for _, x := range e.exchanges {
		if x.state == relay.Down {
			next = min(next, max(0, time.Until(x.due)))
		}
	}
	return next
}

// check tries what is due of the exchanges and queues. An error means that the connection
// has ended over it.
func (e *Endpoint) check(c *connection) error {
	if err := e.checkExchanges(c); err != nil {
		return err
	}
	return e.checkQueues(c)
}

// begin takes part in the present connection; the caller ends it with
// workers.Done. The error says why there is none.
func (e *Endpoint) begin(x *exchange) (*connection, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch c := e.connection.Load(); {
	case !e.running || c == nil:
		return nil, relay.Fail(reasonNotConnected, fmt.Errorf("%w: %s", relay.ErrSinkDown, e.trouble))
	case e.blocked != "":
		return nil, relay.Fail(reasonBlocked, fmt.Errorf("%w: %s", relay.ErrSinkDown, e.blocked))
	case e.topology.reason != "":
		return nil, relay.Fail(reasonQueue, fmt.Errorf("%w: %s", relay.ErrSinkDown, e.topology.reason))
	case x.state == relay.Down:
		return nil, relay.Fail(x.cause, errors.New(x.reason))
	default:
		e.workers.Add(1)
		return c, nil
	}
}
