package amqp10_test

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/test/amqppeer"
	"mnsrelay/test/certs"
)

// checked gives what a check finds of a sink that one route leads to.
func checked(t *testing.T, c *amqp10.Config) []relay.Finding {
	t.Helper()
	endpoint, err := c.Open(deps())
	require.NoError(t, err)
	_, err = endpoint.Bind(nil)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return endpoint.(relay.Checker).Check(ctx)
}

// requireFinding demands one about a thing, with the verdict and the text, and none that
// failed beside it.
func requireFinding(t *testing.T, fs []relay.Finding, what string, verdict relay.Verdict, text string) {
	t.Helper()
	found := false
	for _, f := range fs {
		if f.What == what {
			found = true
			require.Equal(t, verdict, f.Verdict, "%+v", fs)
			require.Contains(t, f.Text, text)
		} else {
			require.NotEqual(t, relay.Failed, f.Verdict, "%+v", fs)
		}
	}
	require.True(t, found, "%+v", fs)
}

func TestCheck(t *testing.T) {
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		connection := "connection to " + p.Address()
		fs := checked(t, config(p, "accept"))
		requireFinding(t, fs, connection, relay.OK, "unencrypted, logged in anonymously")
		requireFinding(t, fs, "address accept", relay.OK, "the broker takes messages for it")
		requireFinding(t, checked(t, config(p, "refuse")), "address refuse", relay.Failed, `address "refuse" does not exist: create it, or correct address`)
		requireFinding(t, checked(t, config(p, "accept.{{ body.to }}")), "address", relay.Unknown, "each message decides it")

		listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, listener.Close())
		c := config(p, "accept")
		c.URL = setting.NewURL("amqp://" + listener.Addr().String())
		requireFinding(t, checked(t, c), "connection to "+listener.Addr().String(), relay.Failed, "nothing listens there")
		require.Empty(t, p.Messages())
	})
}

func TestCheckOfRabbitMQ(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	files := b.Certificates()
	for name, tt := range map[string]struct {
		change  func(c *amqp10.Config)
		what    string // of the connection where it is empty
		verdict relay.Verdict
		want    string
	}{
		"a queue":                    {func(*amqp10.Config) {}, "address /amq/queue/reports", relay.OK, ""},
		"a queue that is not there":  {func(c *amqp10.Config) { c.Address = "/exchange/missing/a" }, "address /exchange/missing/a", relay.Failed, "create it, or correct address"},
		"a queue that it would make": {func(c *amqp10.Config) { c.Address = "/queue/made" }, "address /queue/made", relay.Unknown, "makes the queue where there is none"},
		"another that it would make": {func(c *amqp10.Config) { c.Address = "made" }, "address made", relay.Unknown, "makes the queue where there is none"},
		"a wrong password": {func(c *amqp10.Config) {
			withoutUser(c)
			c.Username, c.Password = "guest", setting.NewSecret("wrong-one")
		}, "", relay.Failed, "check username, password and sasl"},
		"an authority that is unknown": {func(c *amqp10.Config) { secured(c, b, files); c.TLS.CAFile = "" }, "", relay.Failed, "set tls.ca_file"},
		"no client certificate":        {func(c *amqp10.Config) { secured(c, b, files); c.TLS.CertFile, c.TLS.KeyFile = "", "" }, "", relay.Failed, "set tls.cert_file and tls.key_file"},
		"TLS":                          {func(c *amqp10.Config) { secured(c, b, files) }, "", relay.OK, "TLS 1.3, logged in as guest"},
	} {
		t.Run(name, func(t *testing.T) {
			c := b.config()
			tt.change(c)
			if tt.what == "" {
				_, at, _ := strings.Cut(c.URL.Reveal(), "://")
				tt.what = "connection to " + at[strings.LastIndex(at, "@")+1:]
			}
			fs := checked(t, c)
			requireFinding(t, fs, strings.TrimSuffix(tt.what, "/"), tt.verdict, tt.want)
			for _, f := range fs {
				require.NotContains(t, f.Text, "wrong-one")
			}
		})
	}
	require.Zero(t, b.count(b.queue))
	listed, err := b.Ctl(bounded(t), "list_queues", "name")
	require.NoError(t, err)
	require.NotContains(t, strings.Fields(listed), "made")
}

func withoutUser(c *amqp10.Config) {
	scheme, rest, _ := strings.Cut(c.URL.Reveal(), "://")
	c.URL = setting.NewURL(scheme + "://" + rest[strings.LastIndex(rest, "@")+1:])
}

func secured(c *amqp10.Config, b *rabbit, files *certs.Files) {
	c.URL = setting.NewURL(b.TLSURL())
	withoutUser(c)
	c.Username, c.Password = "guest", setting.NewSecret("guest")
	c.TLS = setting.TLS{CAFile: files.CA, CertFile: files.ClientCert, KeyFile: files.ClientKey}
}
