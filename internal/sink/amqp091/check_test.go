package amqp091_test

import (
	"context"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

// checked gives what a check finds of a sink that one route leads to.
func checked(t *testing.T, c *amqp091.Config) []relay.Finding {
	t.Helper()
	endpoint, err := c.Open(deps(t))
	require.NoError(t, err)
	_, err = endpoint.Bind(nil)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return endpoint.(relay.Checker).Check(ctx)
}

// requireFinding demands one about a thing, with the verdict and the text.
func requireFinding(t *testing.T, fs []relay.Finding, what string, verdict relay.Verdict, text string) {
	t.Helper()
	for _, f := range fs {
		if strings.HasPrefix(f.What, what) {
			require.Equal(t, verdict, f.Verdict, "%+v", fs)
			require.Contains(t, f.Text, text)
			return
		}
	}
	require.Fail(t, "nothing was found of "+what, "%+v", fs)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	b, in, files, c := secured(t)
	exchanges := func() string {
		listed, err := b.Ctl(bounded(t), "list_exchanges", "name")
		require.NoError(t, err)
		queues, err := b.Ctl(bounded(t), "list_queues", "name")
		require.NoError(t, err)
		return listed + queues
	}
	before := exchanges()
	ctl := func(args ...string) {
		_, err := b.Ctl(bounded(t), args...)
		require.NoError(t, err)
	}
	user := func(name, configure, write, read string) {
		ctl("add_user", name, secret)
		ctl("set_permissions", name, configure, write, read)
	}
	user("writer", "^$", "^"+in.exchange+"$", "^$")
	user("reader", "^$", "^$", ".*")
	user("both", "^$", ".*", ".*")
	ctl("add_user", "stranger", secret)
	as := func(c *amqp091.Config, name string) {
		u, err := url.Parse(in.url)
		require.NoError(t, err)
		u.User = nil
		c.URL, c.Username, c.Password, c.TLS = setting.NewURL(u.String()), name, setting.NewSecret(secret), setting.TLS{}
	}
	exchange := "exchange " + in.exchange

	for name, tt := range map[string]struct {
		change  func(c *amqp091.Config)
		what    string
		verdict relay.Verdict
		want    string
	}{
		"by TLS":                     {func(*amqp091.Config) {}, "connection", relay.OK, "TLS 1.3, logged in as guest, vhost /"},
		"all is well":                {func(c *amqp091.Config) { as(c, "both") }, exchange, relay.OK, "exists; the user may publish to it"},
		"a user who may write only":  {func(c *amqp091.Config) { as(c, "writer") }, exchange, relay.OK, "exists; the user may publish to it"},
		"a user who may read only":   {func(c *amqp091.Config) { as(c, "reader") }, exchange, relay.Failed, "not permitted to publish to exchange \"" + in.exchange + "\": grant write"},
		"a user without permissions": {func(c *amqp091.Config) { as(c, "stranger") }, "connection", relay.Failed, "give the user permissions in it"},
		"a wrong password": {
			func(c *amqp091.Config) { as(c, "both"); c.Password = setting.NewSecret(secret + "x") },
			"connection", relay.Failed, `the broker refuses the user "both": check username and password`,
		},
		"a vhost that is not there": {
			func(c *amqp091.Config) {
				as(c, "both")
				c.Vhost = "elsewhere"
				c.URL = setting.NewURL("amqp://" + address(t, in.url))
			},
			"connection", relay.Failed, `open vhost "elsewhere"`,
		},
		"an exchange that is not there": {
			func(c *amqp091.Config) { as(c, "both"); c.Exchange.Name = "nowhere" },
			"exchange nowhere", relay.Failed, `exchange "nowhere" does not exist: create it, or set exchange.declare to active`,
		},
		"an exchange that is made": {func(c *amqp091.Config) {
			as(c, "both")
			c.Exchange.Name, c.Exchange.Declare = "made", amqp091.DeclareActive
		}, "exchange made", relay.Unknown, "does not exist yet: it is made at the start"},
		"an exchange that is not looked for": {
			func(c *amqp091.Config) { as(c, "both"); c.Exchange.Declare = amqp091.DeclareNone },
			exchange, relay.Unknown, "not looked for, as exchange.declare is none; the user may publish to it",
		},
		"the exchange without a name": {
			func(c *amqp091.Config) { as(c, "both"); c.Exchange.Name = amqp091.DefaultExchange },
			"exchange " + amqp091.DefaultExchange, relay.OK, "is always there",
		},
		"a queue that is made": {
			func(c *amqp091.Config) { as(c, "both"); c.Queues = []amqp091.Queue{queue("made")} },
			"queue made", relay.Unknown, "does not exist yet: it is made at the start",
		},
		"a queue that is there": {
			func(c *amqp091.Config) { as(c, "both"); c.Queues = []amqp091.Queue{queue(in.queue)} },
			"queue " + in.queue, relay.Unknown, "exists; the start will tell",
		},
		"an authority that is not trusted": {func(c *amqp091.Config) { c.TLS.CAFile = "" }, "connection", relay.Failed, "set tls.ca_file"},
		"no client certificate":            {func(c *amqp091.Config) { c.TLS = setting.TLS{CAFile: files.CA} }, "connection", relay.Failed, "set tls.cert_file and tls.key_file"},
		"TLS where there is none": {
			func(c *amqp091.Config) { c.URL = setting.NewURL(strings.Replace(in.url, "amqp:", "amqps:", 1)) },
			"connection", relay.Failed, "does not speak TLS",
		},
		"a host where nothing listens": {
			func(c *amqp091.Config) { as(c, "both"); c.URL = setting.NewURL("amqp://" + closed(t)) },
			"connection", relay.Failed, "nothing listens there",
		},
	} {
		t.Run(name, func(t *testing.T) {
			changed := *c
			tt.change(&changed)
			fs := checked(t, &changed)
			requireFinding(t, fs, tt.what, tt.verdict, tt.want)
			for _, f := range fs {
				require.NotContains(t, f.Text, secret)
				if f.Verdict == relay.Failed {
					require.Equal(t, relay.Failed, tt.verdict, "%+v", fs)
				}
			}
		})
	}
	require.Zero(t, in.count())
	require.Equal(t, before, exchanges(), "nothing was made")
}

func closed(t *testing.T) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	return listener.Addr().String()
}

// Each node of a cluster is looked at, the exchanges on one that works; and those that
// routes name, not the sink's own.
func TestCheckOfSeveralURLs(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.ExchangeDeclare(in.exchange+".2", "topic", false, true, false, false, nil))
	})
	t.Cleanup(func() { in.with(func(ch *amqp.Channel) { _ = ch.ExchangeDelete(in.exchange+".2", false, false) }) })
	c := in.config()
	gone := closed(t)
	c.URL, c.URLs = setting.URL{}, []setting.URL{setting.NewURL("amqp://" + gone), setting.NewURL(in.url)}
	c.Exchange.Name = "unused"
	endpoint, err := c.Open(deps(t))
	require.NoError(t, err)
	for _, name := range []string{in.exchange, in.exchange + ".2", in.exchange} {
		_, err := endpoint.Bind(func(settings any) error {
			settings.(*amqp091.Settings).Exchange.Name = name
			return nil
		})
		require.NoError(t, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	fs := endpoint.(relay.Checker).Check(ctx)
	require.Len(t, fs, 4, "%+v", fs)
	requireFinding(t, fs, "connection to "+gone, relay.Failed, "nothing listens there")
	requireFinding(t, fs, "connection to "+address(t, in.url), relay.OK, "logged in as")
	requireFinding(t, fs, "exchange "+in.exchange, relay.OK, "exists")
	requireFinding(t, fs, "exchange "+in.exchange+".2", relay.OK, "exists")
}

// A broker that does not answer what it does not know is none the worse for it.
func TestCheckOfABrokerThatIsNotRabbitMQ(t *testing.T) {
	t.Parallel()
	p := newPeer(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	endpoint, err := peerConfig(p).Open(deps(t))
	require.NoError(t, err)
	_, err = endpoint.Bind(nil)
	require.NoError(t, err)
	fs := endpoint.(relay.Checker).Check(ctx)
	requireFinding(t, fs, "connection", relay.OK, "vhost vhost")
	requireFinding(t, fs, "exchange x", relay.OK, "exists; a message will tell whether the user may publish to it")
}
