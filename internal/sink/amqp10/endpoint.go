// Package amqp10 delivers to an AMQP 1.0 broker: ActiveMQ Artemis, Azure Service Bus, Qpid,
// RabbitMQ's plugin.
//
// An Endpoint holds one connection, and on it a link for each address, in a session of its
// own. The messages of one Deliver are sent one after the other without waiting, and each
// waits for its own outcome: only one that the broker has accepted is Delivered. Rejected,
// and modified as undeliverable here, mean that the message will never do; released,
// modified otherwise and settled without an outcome mean that it is tried again. The
// library's Send takes all but the first of these for success, so SendWithReceipt is used.
//
// A broker that grants no credit takes nothing at present: messages wait, within their
// time, and the address is then down until one message gets through.
//
// See docs/adr/0008-no-amqp10-transactions.md for what is not here.
package amqp10

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/Azure/go-amqp"
	"go.uber.org/zap"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/relay"
)

const (
	// closeTimeout bounds the orderly end of a connection or link.
	closeTimeout = 2 * time.Second
)

var (
	_ relay.Endpoint  = (*Endpoint)(nil)
	_ relay.Sink      = (*Sink)(nil)
	_ relay.Previewer = (*Sink)(nil)
)

// Endpoint is one broker, of whose hosts it uses one at a time. Its health is Down without
// a connection, and where none of the addresses in use can be sent to.
type Endpoint struct {
	config  Config
	targets []target
	deps    relay.SinkDeps
	log     *zap.Logger
	monitor *relay.Monitor

	// connection is nil while there is none.
	connection atomic.Pointer[connection]
	// recheck wakes the session when an address was added or failed; size 1.
	recheck chan struct{}
	// unroutable says that the broker was found to accept what it drops.
	unroutable sync.Once

	mu        sync.Mutex
	running   bool
	trouble   string // why there is no connection
	addresses map[string]*address
	// varying counts the sinks whose messages decide the address.
	varying int
	workers sync.WaitGroup
}

// address is one that is the same for all messages of a sink. Endpoint.mu guards it.
type address struct {
	name     string
	users    int // sinks that are bound to it
	state    relay.State
	cause    string // the name of what is wrong with it
	err      error  // the same in words
	failures int
	due      time.Time // when a Down address is tried again
	probe    bool      // only a message can tell whether it works again
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
		addresses: map[string]*address{},
	}
}

// Health tells the present health and gives a channel that is closed when it changes.
func (e *Endpoint) Health() (relay.Health, <-chan struct{}) { return e.monitor.Health() }

// Bind makes the Sink for one target of a route.
func (e *Endpoint) Bind(with relay.Overrides) (relay.Sink, error) {
	settings := e.config.clone()
	if with != nil {
		if err := with(&settings); err != nil {
			return nil, err
		}
	}
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	return newSink(e, settings)
}

// errUnchecked is what is wrong with an address until it was looked at.
var errUnchecked = errors.New("not checked yet")

// use finds or adds an address that is the same for all messages.
func (e *Endpoint) use(name string) *address {
	e.mu.Lock()
	defer e.mu.Unlock()
	found, ok := e.addresses[name]
	if !ok {
		found = &address{name: name, cause: reasonAddress, err: errUnchecked}
		e.addresses[name] = found
		e.wake()
	}
	found.users++
	return found
}

// leave forgets what the last sink of its kind was bound to: nil, addresses that messages
// decide.
func (e *Endpoint) leave(a *address) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if a == nil {
		e.varying--
	} else if a.users--; a.users == 0 && e.addresses[a.name] == a {
		delete(e.addresses, a.name)
	}
	e.report()
}

func (e *Endpoint) wake() {
	select {
	case e.recheck <- struct{}{}:
	default:
	}
}

// Run keeps a connection up until ctx ends, then closes it and returns nil. The URLs are
// tried in turn, from a random one on, so that replicas spread over the hosts.
func (e *Endpoint) Run(ctx context.Context) error {
	e.mu.Lock()
	e.running = true
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
	c, err := dial(ctx, t, &e.config, e.deps, &e.workers)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", t.HostPort, err)
	}
	defer func() {
		// Said before the connection is closed, which may take a while.
		e.drop(c, err)
		c.close()
	}()
	e.mu.Lock()
	for _, a := range e.addresses {
		// What was known of it belongs to the last connection.
		*a = address{name: a.name, users: a.users, cause: reasonAddress, err: errUnchecked}
	}
	e.mu.Unlock()
	e.check(ctx, c)
	if c.lost() {
		return fmt.Errorf("connect to %s: %w", t.HostPort, c.cause())
	}
	connected()
	e.warnOfUnroutable(c)
	e.mu.Lock()
	e.connection.Store(c)
	e.trouble = ""
	e.report()
	e.mu.Unlock()

	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Reset(e.nextCheck())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.amqp.Done():
			return fmt.Errorf("lost the connection to %s: %w", t.HostPort, c.cause())
		case <-e.recheck:
		case <-timer.C:
			e.check(ctx, c)
		}
	}
}

// oldRabbitMQ tells whether the broker is a RabbitMQ before version 4. It names itself when
// it opens the connection.
func (c *connection) oldRabbitMQ() (product, version string, old bool) {
	properties := c.amqp.Properties()
	product, _ = properties["product"].(string)
	version, _ = properties["version"].(string)
	major, _, _ := strings.Cut(version, ".")
	return product, version, strings.EqualFold(product, "RabbitMQ") && len(major) == 1 && major < "4"
}

// warnOfUnroutable says once that the broker accepts messages that no queue gets: RabbitMQ
// does before version 4.
func (e *Endpoint) warnOfUnroutable(c *connection) {
	product, version, old := c.oldRabbitMQ()
	if !old {
		return
	}
	e.unroutable.Do(func() {
		e.log.Warn("this broker accepts messages over AMQP 1.0 that no queue gets, and drops them: "+
			"use a sink of type amqp091, which finds out, or see to it that the queue stays", zap.String("product", product), zap.String("version", version))
	})
}

// gone reports a connection that has ended, if it is the present one.
func (e *Endpoint) gone(c *connection) {
	e.drop(c, fmt.Errorf("lost the connection: %w", c.cause()))
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
	if e.trouble != "" {
		e.monitor.Set(relay.Down, e.trouble)
		return
	}
	// One address that works keeps the endpoint up: the routes to the others get their
	// results message by message.
	best, reason := relay.Down, ""
	if e.varying > 0 || len(e.addresses) == 0 {
		best = relay.Up
	}
	for _, a := range e.addresses {
		if a.state > best || reason == "" {
			best = max(best, a.state)
			reason = ""
			if a.err != nil {
				reason = a.err.Error()
			}
		}
	}
	if best == relay.Up {
		reason = ""
	}
	e.monitor.Set(best, reason)
}

// nextCheck is how long until an address is to be tried again.
func (e *Endpoint) nextCheck() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := time.Hour
	for _, a := range e.addresses {
		if a.state == relay.Down {
			next = min(next, max(0, time.Until(a.due)))
		}
	}
	return next
}

// check tries the addresses that are due.
func (e *Endpoint) check(ctx context.Context, c *connection) {
	e.mu.Lock()
	var due []*address
	now := time.Now()
	for _, a := range e.addresses {
		switch {
		case a.state != relay.Down || now.Before(a.due):
		case a.probe:
			a.state = relay.Probe
		default:
			due = append(due, a)
		}
	}
	e.report()
	e.mu.Unlock()
	for _, a := range due {
		l, err := c.acquire(ctx, a.name)
		switch {
		case err == nil:
			c.release(l, true)
			e.works(a)
		case c.lost() || ctx.Err() != nil:
			return
		default:
			e.fails(a, reasonAddress, addressError(a.name, err), false)
		}
	}
}

// addressError says in words why there is no link to an address, and what to do.
func addressError(name string, err error) error {
	var remote *amqp.Error
	if !errors.As(err, &remote) {
		return fmt.Errorf("address %q cannot be used: %w", name, err)
	}
	switch remote.Condition {
	case amqp.ErrCondNotFound, amqp.ErrCondResourceDeleted:
		return fmt.Errorf("address %q does not exist: create it, or correct address: %s", name, condition(remote))
	case amqp.ErrCondUnauthorizedAccess, amqp.ErrCondNotAllowed:
		return fmt.Errorf("not permitted to send to address %q: grant it: %s", name, condition(remote))
	}
	return fmt.Errorf("address %q cannot be used: %s", name, condition(remote))
}

// works notes that the address can be sent to.
func (e *Endpoint) works(a *address) {
	if a == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if a.state == relay.Up {
		return
	}
	if a.failures > 0 {
		e.log.Info("address works again", zap.String("address", a.name))
	}
	*a = address{name: a.name, users: a.users, state: relay.Up}
	e.report()
}

// fails notes that the address cannot be sent to, and when to try again. With probe only
// a message can tell whether it works again.
func (e *Endpoint) fails(a *address, cause string, err error, probe bool) {
	if a == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if a.state == relay.Down && time.Now().Before(a.due) {
		return // another batch has said so
	}
	if a.err == nil || err.Error() != a.err.Error() {
		e.log.Warn("address cannot be used", zap.String("address", a.name), zap.Error(err))
	}
	a.due = broker.Again(&a.failures)
	a.state, a.cause, a.err, a.probe = relay.Down, cause, err, probe
	e.report()
	e.wake()
}

// begin takes part in the present connection; the caller ends it with workers.Done. The
// error says why there is none. The address is nil where each message has its own.
func (e *Endpoint) begin(a *address) (*connection, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.connection.Load()
	switch {
	case !e.running || c == nil:
		return nil, relay.Fail(reasonNotConnected, fmt.Errorf("%w: %s", relay.ErrSinkDown, e.trouble))
	case a != nil && a.state == relay.Down:
		return nil, relay.Fail(a.cause, a.err)
	}
	e.workers.Add(1)
	return c, nil
}
