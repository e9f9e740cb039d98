package amqp10

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	amqp "github.com/Azure/go-amqp"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
)

// window is how many messages of one Deliver may be without an outcome.
const window = 256

// lateness is how long Deliver waits, once its time is over, for those who find that out
// too.
const lateness = 100 * time.Millisecond

// The reasons of failures.
const (
	reasonNotConnected    = "not_connected"
	reasonConnectionLost  = "connection_lost"
	reasonAddress         = "address_unavailable"
	reasonDetached        = "link_detached"
	reasonNoCredit        = "no_credit"
	reasonRejected        = "rejected"
	reasonReleased        = "released"
	reasonModified        = "modified"
	reasonUndeliverable   = "undeliverable_here"
	reasonNoOutcome       = "no_outcome"
	reasonTimeout         = "outcome_timeout"
	reasonTooLarge        = "message_too_large"
	reasonSend            = "send_failed"
	reasonCancelled       = "cancelled"
	reasonInvalidProperty = "invalid_property"
)

// Sink sends with the settings of one route.
type Sink struct {
	endpoint    *Endpoint
	settings    Settings
	address     *expr.Template
	format      *format.Formatter
	fixed       *address // nil: each message has its own
	properties  []property
	values      []value
	annotations []value
	// varies says that something is decided by each message.
	varies bool
}

// newSink binds settings that are valid.
func newSink(e *Endpoint, s Settings) (*Sink, error) {
	sink := &Sink{endpoint: e, settings: s}
	var err error
	if sink.address, err = expr.CompileSetting("address", s.Address); err != nil {
		return nil, err
	}
	if sink.properties, err = s.Properties.compile(); err != nil {
		return nil, err
	}
	if sink.format, err = s.Formatter(); err != nil {
		return nil, err
	}
	if sink.values, err = s.compileProperties(); err != nil {
		return nil, err
	}
	if sink.annotations, err = compileValues(annotations, s.MessageAnnotations); err != nil {
		return nil, err
	}
	sink.varies = !sink.address.Literal()
	for _, p := range sink.properties {
		sink.varies = sink.varies || !p.value.Literal()
	}
	for _, values := range [][]value{sink.values, sink.annotations} {
		for _, v := range values {
			sink.varies = sink.varies || !v.typed.Literal()
		}
	}
	if sink.address.Literal() {
		sink.fixed = e.use(sink.address.Sample(""))
	} else {
		e.mu.Lock()
		e.varying++
		e.mu.Unlock()
	}
	return sink, nil
}

// Unbind is part of relay.Unbinder.
func (s *Sink) Unbind() { s.endpoint.leave(s.fixed) }

// Deliver sends the messages in order and calls done for each as its outcome comes.
// Without a connection it sends nothing and returns at once.
func (s *Sink) Deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	if len(ms) == 0 {
		return
	}
	b := relay.NewAnswers(len(ms), done)
	if ctx.Err() != nil {
		b.Finish(s.late(ctx))
		return
	}
	c, err := s.endpoint.begin(s.fixed)
	if err != nil {
		b.Finish(relay.Result{Err: err})
		return
	}
	timed, cancel := context.WithTimeout(ctx, s.settings.Timeout)
	defer cancel()
	// A write to a broker that does not read ends with its own deadline, not with the
	// context, so it is left behind where the context ends first. Run waits for it.
	finished := make(chan struct{})
	go func() {
		defer s.endpoint.workers.Done()
		defer close(finished)
		s.send(timed, ctx, c, ms, b)
	}()
	select {
	case <-finished:
	case <-timed.Done():
		if ctx.Err() == nil {
			// Whoever waited for credit knows more of why it is late.
			moment := time.NewTimer(lateness)
			defer moment.Stop()
			select {
			case <-finished:
			case <-moment.C:
			case <-ctx.Done():
			}
		}
	}
	// Otherwise every message has its result.
	if timed.Err() != nil {
		b.Finish(s.late(ctx))
	}
}

// late is the result of a message whose outcome did not come before its time was over.
func (s *Sink) late(ctx context.Context) relay.Result {
	if ctx.Err() != nil {
		return relay.Result{Err: relay.Fail(reasonCancelled, fmt.Errorf("send to %q: %w", s.settings.Address, context.Cause(ctx)))}
	}
	return relay.Result{Err: s.timedOut()}
}

func (s *Sink) timedOut() error {
	return relay.Fail(reasonTimeout, fmt.Errorf("send to %q: no outcome within %v", s.settings.Address, s.settings.Timeout))
}

// send sends the messages, each without waiting for the outcome of those before it, and
// waits for all outcomes. Those to one address go in order; an address that takes nothing
// holds up no other.
func (s *Sink) send(ctx, caller context.Context, c *connection, ms []relay.Message, b *relay.Answers) {
	type outgoing struct {
		index   int
		message *amqp.Message
	}
	byAddress := map[string][]outgoing{}
	for i := range ms {
		address, message, err := s.prepare(&ms[i])
		if err != nil {
			b.Give(i, relay.Result{Outcome: relay.Rejected, Err: err})
			continue
		}
		byAddress[address] = append(byAddress[address], outgoing{i, message})
	}
	var sending, outcomes sync.WaitGroup
	room := make(chan struct{}, window)
	sendAll := func(address string, all []outgoing) {
		for _, o := range all {
			select {
			case room <- struct{}{}:
			case <-ctx.Done():
				return
			}
			s.sendOne(ctx, caller, c, address, o.message, func(r relay.Result) { b.Give(o.index, r) }, func(wait func()) {
				if wait == nil {
					<-room
					return
				}
				outcomes.Go(func() {
					wait()
					<-room
				})
			})
		}
	}
	for address, all := range byAddress {
		if len(byAddress) == 1 {
			sendAll(address, all)
			break
		}
		sending.Go(func() { sendAll(address, all) })
	}
	sending.Wait()
	outcomes.Wait()
}

// sendOne sends a message and gives its result, at once or in what it hands to later, which
// is called in any case; nil: there is nothing to wait for.
func (s *Sink) sendOne(ctx, caller context.Context, c *connection, address string, message *amqp.Message, give func(relay.Result), later func(wait func())) {
	settled := s.settings.Settle == SettleSettled
	l, usable, receipt, err := c.send(ctx, address, message, settled)
	switch {
	case l == nil:
		give(relay.Result{Err: s.noLink(ctx, c, address, err)})
	case err != nil:
		give(s.notSent(ctx, caller, c, err))
		c.release(l, usable)
	case settled:
		s.endpoint.works(s.fixed)
		give(relay.Result{Outcome: relay.Delivered})
		c.release(l, usable)
	default:
		later(func() {
			state, err := receipt.Wait(ctx)
			// An outcome that is still owed would be kept for as long as the link is: the
			// messages to come get another one.
			c.release(l, err == nil)
			if err != nil {
				give(relay.Result{Err: s.lost(ctx, c, err)})
				return
			}
			give(s.outcome(state))
		})
		return
	}
	later(nil)
}

// errTooLarge is the cause of a message that is larger than the link allows.
var errTooLarge = errors.New("the message is larger than the broker allows")

// outcome is the result of a message that the broker has settled.
func (s *Sink) outcome(state amqp.DeliveryState) relay.Result {
	s.endpoint.works(s.fixed)
	fail := func(outcome relay.Outcome, reason, text string, args ...any) relay.Result {
		cause := fmt.Errorf("send to %q: %s", s.settings.Address, fmt.Sprintf(text, args...))
		return relay.Result{Outcome: outcome, Err: relay.Fail(reason, cause)}
	}
	switch state := state.(type) {
	case *amqp.StateAccepted:
		return relay.Result{Outcome: relay.Delivered}
	case *amqp.StateRejected:
		if state.Error == nil {
			return fail(relay.Rejected, reasonRejected, "the broker rejected the message, without a reason")
		}
		return fail(relay.Rejected, reasonRejected, "the broker rejected the message: %s", condition(state.Error))
	case *amqp.StateReleased:
		return fail(relay.Retry, reasonReleased, "the broker released the message: no queue takes it at present")
	case *amqp.StateModified:
		if state.UndeliverableHere {
			return fail(relay.Rejected, reasonUndeliverable, "the broker calls the message undeliverable here")
		}
		return fail(relay.Retry, reasonModified, "the broker gave the message back")
	}
	return fail(relay.Retry, reasonNoOutcome, "the broker settled the message without an outcome")
}

// condition shows an error of the broker's, bounded and on one line.
func condition(err *amqp.Error) string {
	const most = 200
	text := strings.Join(strings.Fields(string(err.Condition)+" "+err.Description), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// noLink says why there is no link to an address.
func (s *Sink) noLink(ctx context.Context, c *connection, address string, err error) error {
	if c.lost() || ctx.Err() != nil {
		return s.lost(ctx, c, err)
	}
	shown := address
	if s.fixed == nil {
		shown = s.settings.Address // what it became may hold what the message says
	}
	failure := addressError(shown, err)
	s.endpoint.fails(s.fixed, reasonAddress, failure, false)
	return relay.Fail(reasonAddress, failure)
}

// notSent is the result of a message that could not be written.
func (s *Sink) notSent(ctx, caller context.Context, c *connection, err error) relay.Result {
	var remote *amqp.Error
	switch {
	case c.lost():
		return relay.Result{Err: s.lost(ctx, c, err)}
	case caller.Err() != nil:
		return s.late(caller)
	case ctx.Err() != nil:
		// Its turn did not come, or there was no credit: the broker takes nothing.
		failure := fmt.Errorf("send to %q: %w: the broker granted no credit within %v", s.settings.Address, relay.ErrSinkDown, s.settings.Timeout)
		s.endpoint.fails(s.fixed, reasonNoCredit, failure, true)
		return relay.Result{Err: relay.Fail(reasonNoCredit, failure)}
	case !ended(err) && errors.As(err, &remote) && remote.Condition == amqp.ErrCondMessageSizeExceeded:
		return relay.Result{Outcome: relay.Rejected, Err: relay.Fail(reasonTooLarge, fmt.Errorf("send to %q: %w", s.settings.Address, errTooLarge))}
	}
	return relay.Result{Err: s.lost(ctx, c, err)}
}

// lost says why a message has no outcome.
func (s *Sink) lost(ctx context.Context, c *connection, err error) error {
	switch {
	case c.lost():
		// Run may not have noticed yet, or have another connection already: what follows
		// are the results of a sink that was down, not failed tries.
		s.endpoint.gone(c)
		return relay.Fail(reasonConnectionLost, fmt.Errorf("send to %q: %w: %w", s.settings.Address, relay.ErrSinkDown, c.cause()))
	case ctx.Err() != nil:
		return s.timedOut()
	case ended(err):
		failure := fmt.Errorf("send to %q: the broker has ended the link: %w", s.settings.Address, bounded(err))
		s.endpoint.fails(s.fixed, reasonDetached, failure, false)
		return relay.Fail(reasonDetached, failure)
	}
	return relay.Fail(reasonSend, fmt.Errorf("send to %q: %w", s.settings.Address, bounded(err)))
}

// bounded shows what the broker said of itself.
func bounded(err error) error {
	if remote, is := errors.AsType[*amqp.Error](err); is {
		return errors.New(condition(remote))
	}
	return err
}
