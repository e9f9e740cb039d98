package amqp10

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

var _ relay.Checker = (*Endpoint)(nil)

// Check is part of relay.Checker. Each URL is connected to, and on the first that works
// a link is attached to each address that no message decides.
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
		dialing.Go(func() { connections[i], findings[i] = e.connectTo(ctx, t, &config) })
	}
	dialing.Wait()
	defer e.workers.Wait()
	for _, c := range connections {
		if c == nil {
			continue
		}
		defer c.close()
		// To attach a link knows no context: see connection.attach.
		defer context.AfterFunc(ctx, func() { _ = c.net.Close() })()
	}
	if i := slices.IndexFunc(connections, func(c *connection) bool { return c != nil }); i >= 0 {
		findings = append(findings, e.checkAddresses(ctx, connections[i])...)
	}
	return findings
}

// connectTo gives the connection, nil where there is none.
func (e *Endpoint) connectTo(ctx context.Context, t target, c *Config) (*connection, relay.Finding) {
	what := "connection to " + t.HostPort
	opened, err := dial(ctx, t, c, e.deps, &e.workers)
	if err != nil {
		return nil, relay.Failing(what, setting.AdviseNetwork(err))
	}
	how, who := "unencrypted", "anonymously"
	if secured, is := opened.net.(*tls.Conn); is {
		how = tls.VersionName(secured.ConnectionState().Version)
	}
	switch t.sasl {
	case SASLPlain:
		who = "as " + t.Username
	case SASLExternal:
		who = "by client certificate"
	case SASLAnonymous:
	}
	return opened, relay.Finding{What: what, Verdict: relay.OK, Text: fmt.Sprintf("%s, logged in %s", how, who)}
}

// checkAddresses tries the addresses in use; without a route that of the sink.
func (e *Endpoint) checkAddresses(ctx context.Context, c *connection) (findings []relay.Finding) {
	e.mu.Lock()
	names := slices.Sorted(maps.Keys(e.addresses))
	varying := e.varying > 0
	e.mu.Unlock()
	if len(names) == 0 && !varying {
		if address, err := expr.CompileSetting("address", e.config.Address); err == nil && address.Literal() {
			names = append(names, address.Sample(""))
		} else {
			varying = true
		}
	}
	for _, name := range names {
		findings = append(findings, c.checkAddress(ctx, name))
	}
	if varying {
		findings = append(findings, relay.Finding{What: "address", Verdict: relay.Unknown, Text: "each message decides it"})
	}
	return findings
}

func (c *connection) checkAddress(ctx context.Context, name string) relay.Finding {
	f := relay.Finding{What: "address " + name, Verdict: relay.OK, Text: "the broker takes messages for it"}
	if _, _, old := c.oldRabbitMQ(); old && makesQueue(name) {
		f.Verdict, f.Text = relay.Unknown, "not tried, since this broker makes the queue where there is none; /amq/queue/NAME does not"
		return f
	}
	l, err := c.acquire(ctx, name)
	if err != nil {
		return relay.Failing(f.What, setting.AdviseNetwork(addressError(name, err)))
	}
	c.release(l, true)
	return f
}

// makesQueue tells whether RabbitMQ before version 4 makes a queue of an address that is
// sent to (RabbitMQ: AMQP 1.0 plugin, routing and addressing).
func makesQueue(address string) bool {
	return strings.HasPrefix(address, "/queue/") || !strings.HasPrefix(address, "/")
}
