package amqp10_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	amqp10client "github.com/Azure/go-amqp"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/test/amqppeer"
	"mnsrelay/test/broker"
	"mnsrelay/test/certs"
)

// rabbit is a RabbitMQ with its plugin for AMQP 1.0 and a queue.
type rabbit struct {
	*broker.Node

	t     *testing.T
	queue string
}

func newRabbit(t *testing.T) *rabbit {
	t.Helper()
	r := &rabbit{Node: rabbits.Borrow(t), t: t, queue: "reports"}
	r.with(func(ch *amqp.Channel) {
		_, err := ch.QueueDeclare(r.queue, true, false, false, false, nil)
		require.NoError(t, err)
	})
	return r
}

func (r *rabbit) with(do func(ch *amqp.Channel)) {
	r.t.Helper()
	conn, err := amqp.Dial(r.URL())
	require.NoError(r.t, err)
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	require.NoError(r.t, err)
	do(ch)
}

// take waits for n messages and empties the queue.
func (r *rabbit) take(n int) (taken []amqp.Delivery) {
	r.t.Helper()
	r.with(func(ch *amqp.Channel) {
		deliveries, err := ch.Consume(r.queue, "", true, false, false, false, nil)
		require.NoError(r.t, err)
		timeout := time.NewTimer(patience)
		defer timeout.Stop()
		for len(taken) < n {
			select {
			case d := <-deliveries:
				taken = append(taken, d)
			case <-timeout.C:
				require.FailNow(r.t, "messages are missing", "%d of %d", len(taken), n)
			}
		}
	})
	return taken
}

// config is a sink that sends to the queue as guest.
func (r *rabbit) config() *amqp10.Config {
	c := amqp10.Defaults()
	c.URL = setting.NewURL(r.URL())
	c.Address = "/amq/queue/" + r.queue
	return c
}

// receive takes n messages by AMQP 1.0: to others RabbitMQ's plugin shows the properties
// as they were encoded.
func (r *rabbit) receive(n int) (received []*amqp10client.Message) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	conn, err := amqp10client.Dial(ctx, r.URL(), nil)
	require.NoError(r.t, err)
	defer func() { _ = conn.Close() }()
	session, err := conn.NewSession(ctx, nil)
	require.NoError(r.t, err)
	receiver, err := session.NewReceiver(ctx, "/amq/queue/"+r.queue, &amqp10client.ReceiverOptions{Credit: 100})
	require.NoError(r.t, err)
	for range n {
		m, err := receiver.Receive(ctx, nil)
		require.NoError(r.t, err)
		require.NoError(r.t, receiver.AcceptMessage(ctx, m))
		received = append(received, m)
	}
	return received
}

// RabbitMQ's plugin keeps the same bytes and properties as any peer gets.
func TestRabbitMQ(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	c := b.config()
	c.ApplicationProperties = values(map[string]any{"text": "a", "n": "{{ body.?n }}", "yes": true})
	c.MessageAnnotations = values(map[string]any{"x-opt-a": "{{ id }}"})
	c.Properties = amqp10.Properties{Priority: "7", CorrelationID: "c", Subject: "s", ContentEncoding: "identity"}
	r := run(t, c)
	r.Await(relay.Up)
	ms := relaytest.Messages("m", 64, 0)
	for i := range ms {
		ms[i].Body = fmt.Appendf(nil, `{"n": %d, "text": "%s"}`, i, strings.Repeat("短", i*300))
	}
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, ms))
	for i, m := range b.receive(64) {
		require.Equal(t, string(ms[i].Body), string(m.GetData()))
		require.Equal(t, ms[i].ID, m.Properties.MessageID)
		require.Equal(t, "application/json", *m.Properties.ContentType)
		require.Equal(t, []any{"c", "s", "identity"}, []any{m.Properties.CorrelationID, *m.Properties.Subject, *m.Properties.ContentEncoding})
		require.Equal(t, ms[i].EnqueuedAt.Truncate(time.Millisecond), m.Properties.CreationTime.UTC())
		require.True(t, m.Header.Durable)
		require.Equal(t, uint8(7), m.Header.Priority)
		require.Equal(t, map[string]any{
			"text": "a", "n": int64(i), "yes": true,
			relay.HeaderSource: "sms", relay.HeaderAttempt: int64(1), relay.HeaderEnqueuedAt: "2026-03-01T09:30:00.045Z", relay.HeaderBody: "raw",
		}, m.ApplicationProperties)
		require.Equal(t, ms[i].ID, m.Annotations["x-opt-a"])
	}
}

// A broker that accepts what no queue gets is told of once, however often it connects.
func TestABrokerThatAcceptsTheUnroutableIsToldOf(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	r := run(t, b.config())
	r.Await(relay.Up)
	require.NoError(t, b.Kill(t.Context()))
	r.Await(relay.Down)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	require.NoError(t, b.Start(ctx))
	r.Await(relay.Up)
	require.Equal(t, 1, r.Log.FilterMessageSnippet("accepts messages over AMQP 1.0 that no queue gets").Len(), r.Logged())
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))

	p := amqppeer.Start(t, amqppeer.Proton)
	other := run(t, config(p, "accept"))
	other.Await(relay.Up)
	require.Zero(t, other.Log.FilterMessageSnippet("no queue gets").Len())
}

// Wrong credentials are said in words, without the password, and are not tried again at
// once: that would lock the account.
func TestRefusedCredentials(t *testing.T) {
	t.Parallel()
	const secret = `p/a#s:s@w?o%rd&"\ ü`
	b := newRabbit(t)
	u, err := url.Parse(b.URL())
	require.NoError(t, err)
	c := b.config()
	c.URL = setting.NewURL("amqp://" + u.Host)
	c.Username, c.Password = "nobody", setting.NewSecret(secret)
	r := run(t, c)
	health := r.AwaitReason(relay.Down, `the broker refuses the user "nobody"`)
	require.NotContains(t, health.Reason, secret)
	quiet := time.NewTimer(2 * time.Second)
	<-quiet.C
	require.NotContains(t, r.Logged(), secret)
	require.Equal(t, 1, r.Log.FilterMessage("no connection to the broker").Len())

	c.Username, c.Password = "guest", setting.NewSecret("guest")
	c.Hostname = "vhost:none"
	r = run(t, c)
	r.AwaitReason(relay.Down, "amqp:unauthorized-access")
}

// TLS with a client certificate, which is the login too; what is refused is said with what
// to do, and nothing goes in the clear.
func TestTLSAndSASLExternal(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	files := b.Certificates()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, args := range [][]string{{"add_user", certs.ClientName, "unused"}, {"set_permissions", certs.ClientName, ".*", ".*", ".*"}} {
		_, err := b.Ctl(ctx, args...)
		require.NoError(t, err)
	}
	whole := setting.TLS{CAFile: files.CA, CertFile: files.ClientCert, KeyFile: files.ClientKey}
	for name, c := range map[string]struct {
		tls  setting.TLS
		sasl amqp10.SASL
		down string
	}{
		"external":              {whole, amqp10.SASLExternal, ""},
		"plain":                 {whole, amqp10.SASLPlain, ""},
		"no authority":          {setting.TLS{CertFile: files.ClientCert, KeyFile: files.ClientKey}, amqp10.SASLPlain, "set tls.ca_file"},
		"another name":          {setting.TLS{CAFile: files.CA, CertFile: files.ClientCert, KeyFile: files.ClientKey, ServerName: "elsewhere"}, amqp10.SASLPlain, "set tls.server_name"},
		"no client certificate": {setting.TLS{CAFile: files.CA}, amqp10.SASLPlain, "set tls.cert_file and tls.key_file"},
	} {
		t.Run(name, func(t *testing.T) {
			config := b.config()
			config.URL, config.TLS, config.SASL = setting.NewURL(b.TLSURL()), c.tls, c.sasl
			if c.sasl == amqp10.SASLPlain {
				config.Username, config.Password = "guest", setting.NewSecret("guest")
			}
			r := run(t, config)
			if c.down != "" {
				r.AwaitReason(relay.Down, c.down)
				relaytest.RequireReason(t, "not_connected", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10))[0])
				return
			}
			r.Await(relay.Up)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 60_000)))
			require.Len(t, b.take(16), 16)
		})
	}
}

// The hosts are tried in turn, from any of them on; one that does not answer takes no
// longer than the time that is set for it.
func TestSeveralURLs(t *testing.T) {
	t.Parallel()
	peers := map[string]*amqppeer.Peer{}
	c := amqp10.Defaults()
	c.Address = "accept"
	c.ConnectTimeout = 500 * time.Millisecond
	hole, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0") // accepts, and never answers
	require.NoError(t, err)
	defer func() { _ = hole.Close() }()
	c.URLs = append(c.URLs, setting.NewURL("amqp://"+hole.Addr().String()))
	for _, kind := range kinds() {
		p := amqppeer.Start(t, kind)
		peers[p.Address()] = p
		c.URLs = append(c.URLs, setting.NewURL(p.URL()))
	}
	r := run(t, c)
	for len(peers) > 0 {
		r.Await(relay.Up)
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
		connected := r.Log.FilterMessage("connected to the broker").All()
		at, _ := connected[len(connected)-1].ContextMap()["address"].(string)
		require.Contains(t, peers, at, "one that is up")
		peers[at].Kill()
		delete(peers, at)
		r.Await(relay.Down)
	}
	r.AwaitReason(relay.Down, "no answer within 500ms")
}

// It runs without its broker, and delivers when that comes.
func TestStartsBeforeTheBroker(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		p.Kill()
		r := run(t, config(p, "accept"))
		r.AwaitReason(relay.Down, "connection refused")
		result := relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10))[0]
		relaytest.RequireReason(t, "not_connected", result)
		require.ErrorIs(t, result.Err, relay.ErrSinkDown)
		p.Start()
		r.Await(relay.Up)
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
	})
}

// Many at once, over a broker that is killed in the middle: what was said to be delivered
// is there, and the rest is delivered then.
func TestRabbitMQIsKilled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	b := newRabbit(t)
	require.NoError(t, b.Sync(ctx))
	r := run(t, b.config())
	r.Await(relay.Up)
	var (
		work      sync.WaitGroup
		mu        sync.Mutex
		delivered = map[string]bool{}
	)
	killed := make(chan struct{})
	for sender := range 4 {
		work.Go(func() {
			for round := range 40 {
				if sender == 0 && round == 10 {
					close(killed)
				}
				ms := relaytest.Messages(fmt.Sprintf("%d-%d", sender, round), 16, 100)
				for len(ms) > 0 {
					var left []relay.Message
					for i, result := range relaytest.Deliver(context.Background(), t, r.Sink, ms) {
						if result.Outcome != relay.Delivered {
							left = append(left, ms[i])
							continue
						}
						mu.Lock()
						delivered[ms[i].ID] = true
						mu.Unlock()
					}
					if ms = left; len(left) > 0 {
						r.Await(relay.Up)
					}
				}
			}
		})
	}
	<-killed
	require.NoError(t, b.Kill(ctx))
	require.NoError(t, b.Start(ctx))
	work.Wait()
	require.Len(t, delivered, 4*40*16)
	arrived := map[string]bool{}
	b.with(func(ch *amqp.Channel) {
		for {
			d, ok, err := ch.Get(b.queue, true)
			require.NoError(t, err)
			if !ok {
				break
			}
			arrived[d.MessageId] = true
		}
	})
	require.Equal(t, delivered, arrived)
}
