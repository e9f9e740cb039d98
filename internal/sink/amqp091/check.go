package amqp091

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

var _ relay.Checker = (*Endpoint)(nil)

// Check is part of relay.Checker. Each URL is connected to, and the first that works is
// asked for exchanges and queues, of which none is made.
func (e *Endpoint) Check(ctx context.Context) []relay.Finding {
	config := e.config
	if deadline, limited := ctx.Deadline(); limited {
		// For errors to name the time that was waited.
		config.ConnectTimeout = min(config.ConnectTimeout, max(time.Until(deadline).Round(100*time.Millisecond), 100*time.Millisecond))
	}
	connections := make([]*connection, len(e.targets))
	findings := make([]relay.Finding, len(e.targets))
	var dialing sync.WaitGroup
	for i, t := range e.targets {
		dialing.Go(func() { connections[i], findings[i] = connectTo(ctx, t, &config, e.deps) })
	}
	dialing.Wait()
	for _, c := range connections {
		if c == nil {
			continue
		}
		defer c.close()
		// A request knows no context.
		defer context.AfterFunc(ctx, func() { _ = c.net.Close() })()
	}
	if i := slices.IndexFunc(connections, func(c *connection) bool { return c != nil }); i >= 0 {
		findings = append(findings, e.checkTopology(connections[i])...)
	}
	return findings
}

// connectTo gives the connection, nil where there is none.
func connectTo(ctx context.Context, t target, c *Config, deps relay.SinkDeps) (*connection, relay.Finding) {
	what := "connection to " + t.HostPort
	opened, err := dial(ctx, t, c, deps)
	if err != nil {
		if t.Secure && c.TLS.CertFile == "" && hungUp(err) {
			// What the broker said of it may be lost on the way.
			return nil, relay.Failing(what, fmt.Errorf("%w; if it asks for a client certificate, set tls.cert_file and tls.key_file", err))
		}
		return nil, relay.Failing(what, setting.AdviseNetwork(err))
	}
	how, who := "unencrypted", "as "+t.Username
	if secured, is := opened.net.(*tls.Conn); is {
		how = tls.VersionName(secured.ConnectionState().Version)
	}
	if t.sasl == SASLExternal {
		who = "by client certificate"
	}
	return opened, relay.Finding{What: what, Verdict: relay.OK, Text: fmt.Sprintf("%s, logged in %s, vhost %s", how, who, t.vhost)}
}

// hungUp tells whether the broker ended the connection without a word.
func hungUp(err error) bool {
	login, refused := errors.AsType[*broker.LoginError](err)
	closed, said := errors.AsType[*amqp.Error](err)
	return setting.HungUp(err) || refused && !login.Refused || said && !closed.Server
}

// checkTopology looks for exchanges and queues.
func (e *Endpoint) checkTopology(c *connection) (findings []relay.Finding) {
	e.mu.Lock()
	used := make(map[string]Exchange)
	for _, x := range e.exchanges {
		used[x.Name] = x.Exchange
	}
	e.mu.Unlock()
	if len(used) == 0 { // no route leads here
		used[e.config.Exchange.Name] = e.config.Exchange
	}
	names := slices.Sorted(maps.Keys(used))
	for _, name := range names {
		findings = append(findings, c.checkExchange(newExchange(used[name])))
	}
	for i := range e.config.Queues {
		findings = append(findings, c.checkQueue(&e.config.Queues[i]))
	}
	// Last: some brokers end the connection over what they do not know.
	for i, name := range names {
		if findings[i].Verdict == relay.Failed || name == DefaultExchange {
			continue
		}
		switch c.mayWrite(name) {
		case relay.Failed:
			findings[i].Verdict, findings[i].Text = relay.Failed, fmt.Sprintf("not permitted to publish to exchange %q: grant write", name)
		case relay.OK:
			findings[i].Text += "; the user may publish to it"
		case relay.Unknown:
			findings[i].Text += "; a message will tell whether the user may publish to it"
		}
	}
	return findings
}

// checkExchange looks whether the exchange is there.
func (c *connection) checkExchange(x *exchange) relay.Finding {
	f := relay.Finding{What: "exchange " + x.Name, Verdict: relay.Unknown}
	switch {
	case x.Name == DefaultExchange:
		f.Verdict, f.Text = relay.OK, "is always there"
		return f
	case x.Declare == DeclareNone:
		f.Text = "not looked for, as exchange.declare is none"
		return f
	}
	refusal, err := refusalOf(c.declare(&Exchange{Name: x.Name, Type: x.Type, Declare: DeclarePassive}))
	switch {
	case err != nil:
		return relay.Failing(f.What, lookError(err))
	case refusal == nil:
		f.Verdict, f.Text = relay.OK, "exists"
	case refusal.Code == amqp.NotFound && x.Declare == DeclareActive:
		f.Text = "does not exist yet: it is made at the start, which needs the permission to configure"
	case refusal.Code == amqp.AccessRefused:
		f.Text = "not allowed to look whether it exists, which is not needed to publish to it"
	default:
		_, advice := x.advice(refusal)
		return relay.Failing(f.What, fmt.Errorf("%s: %w", advice, brokerError{refusal}))
	}
	return f
}

// mayWrite tells whether the user has the permission to write to an exchange, without a
// message: to end a binding to it needs the same (RabbitMQ: access control, permissions;
// exchange.unbind). The binding is one from an exchange that cannot be there, so nothing
// ends.
func (c *connection) mayWrite(name string) relay.Verdict {
	from := "mnsrelay-check-" + rand.Text()
	refusal, err := refusalOf(c.onChannel(func(ch *amqp.Channel) error {
		return ch.ExchangeUnbind(name, "", from, false, nil)
	}))
	switch {
	case err != nil, c.amqp.IsClosed():
		return relay.Unknown // a broker that does not know the method
	case refusal == nil, refusal.Code == amqp.NotFound:
		return relay.OK
	case refusal.Code != amqp.AccessRefused:
		return relay.Unknown
	case strings.Contains(refusal.Reason, from):
		// Of the two exchanges this is about the other one, which is looked at later. The
		// code is the same; the name is one that was made up.
		return relay.OK
	}
	return relay.Failed
}

// checkQueue looks whether a queue that is made at the start is there already.
func (c *connection) checkQueue(q *Queue) relay.Finding {
	f := relay.Finding{What: "queue " + q.Name, Verdict: relay.Unknown}
	refusal, err := refusalOf(c.onChannel(func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclarePassive(q.Name, q.Durable, q.AutoDelete, false, false, nil)
		return err
	}))
	switch {
	case err != nil:
		return relay.Failing(f.What, lookError(err))
	case refusal == nil:
		f.Text = "exists; the start will tell whether it is as queues describes it"
	case refusal.Code == amqp.NotFound:
		f.Text = "does not exist yet: it is made at the start, which needs the permission to configure"
	case refusal.Code == amqp.AccessRefused:
		f.Text = "not allowed to look whether it exists"
	default:
		return relay.Failing(f.What, fmt.Errorf("%s: %w", q.advice(refusal), brokerError{refusal}))
	}
	return f
}

// refusalOf tells what a broker refuses from what went wrong otherwise.
func refusalOf(err error) (refusal *amqp.Error, other error) {
	if err == nil || errors.As(err, &refusal) && refusal.Server {
		return refusal, nil
	}
	return nil, err
}

// lookError is that of a look without an answer.
func lookError(err error) error {
	if lost, is := errors.AsType[*amqp.Error](err); is {
		err = brokerError{lost}
	}
	return fmt.Errorf("the connection ended before the answer: %w", err)
}
