package amqp091_test

import (
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

// topology is a sink that makes its exchange and its queues itself.
func topology(in *inbox) *amqp091.Config {
	c := in.config()
	c.Exchange.Name += ".own"
	c.Exchange.Declare = amqp091.DeclareActive
	reports := queue(in.queue + ".reports")
	reports.MessageTTL, reports.MaxLength, reports.Overflow = time.Hour, 1000, amqp091.OverflowRejectPublish
	reports.DeadLetterExchange, reports.DeliveryLimit = in.exchange, 5
	reports.Bindings = []amqp091.Binding{{RoutingKey: "sms.#"}, {Exchange: in.exchange, RoutingKey: "copy"}}
	old := amqp091.Queue{Name: in.queue + ".old", Type: amqp091.QueueClassic, AutoDelete: true, Arguments: headers(map[string]any{"x-max-priority": 5})}
	c.Queues = []amqp091.Queue{reports, old}
	return c
}

func (in *inbox) deleteQueue(name string) {
	in.t.Helper()
	in.with(func(ch *amqp.Channel) {
		_, err := ch.QueueDelete(name, false, false, false)
		require.NoError(in.t, err)
	})
}

// The exchange, the queues and the bindings are made on connect, and again after every
// reconnect.
func TestTopologyIsDeclared(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL())
	c := topology(in)
	r := run(t, c)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))

	reports := &inbox{t: t, url: in.url, exchange: c.Exchange.Name, queue: c.Queues[0].Name}
	require.Len(t, reports.ids(), 16)
	// The broker refuses to declare it otherwise, so it is as it should be.
	listed, err := b.Ctl(bounded(t), "list_queues", "name", "durable", "auto_delete", "type", "arguments")
	require.NoError(t, err)
	for _, want := range []string{
		`{"x-delivery-limit",5}`, `{"x-max-length",1000}`, `{"x-message-ttl",3600000}`, `{"x-overflow","reject-publish"}`,
		`{"x-dead-letter-exchange","` + in.exchange + `"}`, `{"x-queue-type","quorum"}`, `{"x-max-priority",5}`,
	} {
		require.Contains(t, listed, want)
	}

	// Deleted while the broker is away, from the relay's point of view: made again.
	in.deleteQueue(c.Queues[0].Name)
	in.with(func(ch *amqp.Channel) { require.NoError(t, ch.ExchangeDelete(c.Exchange.Name, false, false)) })
	_, err = b.Ctl(bounded(t), "close_all_connections", "test")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return r.Log.FilterMessage("connected to the broker").Len() == 2 }, patience, 10*time.Millisecond)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("again", 16, 10)))
	require.Len(t, reports.ids(), 16)
}

// A queue that somebody deletes is made again when a message comes back, and nothing
// counts as delivered meanwhile.
func TestTopologyIsDeclaredAgainForAnUnroutable(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := topology(in)
	t.Cleanup(func() {
		in.deleteQueue(c.Queues[0].Name)
		in.deleteQueue(c.Queues[1].Name)
		in.with(func(ch *amqp.Channel) { require.NoError(t, ch.ExchangeDelete(c.Exchange.Name, false, false)) })
	})
	r := run(t, c)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
	in.deleteQueue(c.Queues[0].Name)
	delivered := 0
	require.Eventually(t, func() bool {
		for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10)) {
			if result.Outcome == relay.Delivered {
				delivered++
			} else {
				relaytest.RequireReason(t, "unroutable", result)
			}
		}
		return delivered > 0
	}, patience, 50*time.Millisecond)
	reports := &inbox{t: t, url: in.url, exchange: c.Exchange.Name, queue: c.Queues[0].Name}
	require.Equal(t, delivered, reports.count())
}

// A queue that exists otherwise is left as it is; the sink is down, says so in words, and
// works when that is mended.
func TestTopologyMismatch(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	q := queue(in.queue) // there already, as a classic one
	c.Queues = []amqp091.Queue{q}
	r := run(t, c)
	r.AwaitReason(relay.Down, "exists otherwise, or does not allow these settings")
	result := relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10))[0]
	relaytest.RequireReason(t, "queue_unavailable", result)
	require.ErrorIs(t, result.Err, relay.ErrSinkDown)
	require.Zero(t, in.count())

	in.deleteQueue(in.queue)
	r.Await(relay.Up)
	require.Contains(t, r.Logged(), "as they should be again")
}

func TestTopologyOfAMissingExchange(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	q := amqp091.Queue{Name: in.queue, Type: amqp091.QueueClassic, Durable: true, Bindings: []amqp091.Binding{{Exchange: "nowhere"}}}
	c.Queues = []amqp091.Queue{q}
	run(t, c).AwaitReason(relay.Down, "does not exist: create it, or correct bindings")
}

// The kinds of exchange that there are, a plugin's among them, with arguments.
func TestExchangeTypes(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL())
	for kind, binding := range map[string]amqp091.Binding{
		"direct":            {RoutingKey: routingKey},
		"topic":             {RoutingKey: "sms.*"},
		"fanout":            {},
		"headers":           {Arguments: headers(map[string]any{"x-match": "all", "n": 7})},
		"x-consistent-hash": {RoutingKey: "1"},
	} {
		t.Run(kind, func(t *testing.T) {
			c := in.config()
			c.Exchange = amqp091.Exchange{
				Name: in.exchange + kind, Type: kind, AutoDelete: true, Declare: amqp091.DeclareActive,
				Arguments: headers(map[string]any{"alternate-exchange": in.exchange}),
			}
			c.Headers = headers(map[string]any{"n": 7})
			q := queue(in.queue + kind)
			q.Bindings = []amqp091.Binding{binding}
			c.Queues = []amqp091.Queue{q}
			r := run(t, c)
			r.Await(relay.Up)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
			require.Len(t, (&inbox{t: t, url: in.url, queue: q.Name}).ids(), 16)
			require.Zero(t, in.count(), "the alternate exchange was not needed")
		})
	}
}

// The exchange without a name leads straight to the queue that is named by the key.
func TestDefaultExchange(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.Exchange.Name = amqp091.DefaultExchange
	c.RoutingKey = in.queue
	r := run(t, c)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
	require.Len(t, in.ids(), 16)
}
