package amqp091_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

func TestProperties(t *testing.T) {
	for name, persistent := range map[string]bool{"persistent": true, "transient": false} {
		t.Run(name, func(t *testing.T) {
			in := newInbox(t, broker.URL(t))
			c := in.config()
			c.Persistent = persistent
			c.Headers = map[string]setting.Value{"x-team": setting.NewValue("billing"), "x-empty": setting.NewValue("")}
			r := run(t, c)
			r.Await(relay.Up)

			m := relaytest.Messages("m", 1, 0)[0]
			m.Body = []byte(`{"success": true}`)
			m.Attempt = 3
			m.Attributes = map[string]string{relay.AttributeBody: relay.BodyBase64}
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, []relay.Message{m}))

			taken := in.take()
			require.Len(t, taken, 1)
			d := taken[0]
			mode := amqp.Transient
			if persistent {
				mode = amqp.Persistent
			}
			require.Equal(t, in.exchange, d.Exchange)
			require.Equal(t, routingKey, d.RoutingKey)
			require.Equal(t, "m-0", d.MessageId)
			require.Equal(t, "application/json", d.ContentType)
			require.Equal(t, mode, d.DeliveryMode)
			require.Equal(t, m.EnqueuedAt.Truncate(time.Second), d.Timestamp.UTC())
			require.JSONEq(t, `{"success": true}`, string(d.Body))
			require.Empty(t, d.AppId)
			require.Empty(t, d.UserId)
			require.Empty(t, d.Expiration)
			require.Empty(t, d.ContentEncoding)
			require.Equal(t, amqp.Table{
				"x-team":               "billing",
				"x-empty":              "",
				relay.HeaderSource:     "sms",
				relay.HeaderAttempt:    int64(3),
				relay.HeaderEnqueuedAt: "2026-03-01T09:30:00.045Z",
				relay.HeaderBody:       "base64",
			}, d.Headers)
		})
	}
}

// A message that no queue gets is confirmed by the broker all the same; only the
// return before the confirm tells.
func TestUnroutableBurst(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.QueueUnbind(in.queue, "#", in.exchange, nil))
	})
	c := in.config()
	c.Timeout = patience
	r := run(t, c)
	r.Await(relay.Up)

	for _, size := range []int{16, 10_000} {
		for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("lost", size, 10)) {
			require.NotEqual(t, relay.Delivered, result.Outcome, "message %d of %d", i, size)
			relaytest.RequireReason(t, "unroutable", result)
		}
	}
	require.Equal(t, relay.Up, r.Await(relay.Up).State, "the endpoint's health is not the route's")

	in.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.QueueBind(in.queue, "#", in.exchange, false, nil))
	})
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("lost", 16, 10)))
	require.Len(t, in.ids(), 16)
}

func TestUnroutableOnlyItsOwn(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	r := run(t, in.config())
	r.Await(relay.Up)
	lost, err := r.Endpoint.Bind(func(settings any) error {
		s, ok := settings.(*amqp091.Settings)
		require.True(t, ok)
		s.RoutingKey = "nobody"
		return nil
	})
	require.NoError(t, err)
	in.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.QueueUnbind(in.queue, "#", in.exchange, nil))
		require.NoError(t, ch.QueueBind(in.queue, routingKey, in.exchange, false, nil))
	})

	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for _, result := range relaytest.Deliver(t.Context(), t, lost, relaytest.Messages("lost", 100, 10)) {
				if result.Outcome != relay.Retry {
					t.Errorf("%v of an unroutable message", result.Outcome)
				}
			}
		})
		work.Go(func() {
			for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("kept", 100, 10)) {
				if result.Outcome != relay.Delivered {
					t.Errorf("%v of a routable message: %v", result.Outcome, result.Err)
				}
			}
		})
	}
	work.Wait()
	require.Len(t, in.ids(), 100)
}

func TestNotMandatory(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.QueueUnbind(in.queue, "#", in.exchange, nil))
	})
	c := in.config()
	c.Mandatory = false
	r := run(t, c)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("gone", 16, 10)))
}

// A full queue with reject-publish refuses messages one by one.
func TestNack(t *testing.T) {
	const room, sent = 5, 32
	in := newInbox(t, broker.URL(t))
	full := in.queue + ".full"
	in.with(func(ch *amqp.Channel) {
		_, err := ch.QueueDeclare(full, true, false, false, false, amqp.Table{"x-max-length": room, "x-overflow": "reject-publish"})
		require.NoError(t, err)
		require.NoError(t, ch.QueueUnbind(in.queue, "#", in.exchange, nil))
		require.NoError(t, ch.QueueBind(full, "#", in.exchange, false, nil))
	})
	t.Cleanup(func() {
		in.with(func(ch *amqp.Channel) {
			_, err := ch.QueueDelete(full, false, false, false)
			require.NoError(t, err)
		})
	})
	r := run(t, in.config())
	r.Await(relay.Up)

	results := relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", sent, 10))
	accepted := map[string]int{}
	for i, result := range results {
		if result.Outcome == relay.Delivered {
			accepted[relaytest.Messages("m", sent, 0)[i].ID] = 1
			continue
		}
		relaytest.RequireReason(t, "nack", result)
	}
	require.Less(t, len(accepted), sent)
	require.GreaterOrEqual(t, len(accepted), room)
	require.Equal(t, relay.Up, r.Await(relay.Up).State)

	stored := *in
	stored.queue = full
	require.Equal(t, accepted, stored.ids(), "what was said to be delivered is what the queue holds")
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("again", room, 10)))
}

// What the broker would end the connection over is found before it is written.
func TestInvalidProperty(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	r := run(t, in.config())
	r.Await(relay.Up)
	ms := relaytest.Messages("m", 16, 10)
	ms[3].ID = strings.Repeat("i", 256)
	ms[4].ID = strings.Repeat("i", 255)
	for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
		if i != 3 {
			require.Equal(t, relay.Delivered, result.Outcome, "message %d: %v", i, result.Err)
			continue
		}
		require.Equal(t, relay.Rejected, result.Outcome)
		var failure *relay.Failure
		require.ErrorAs(t, result.Err, &failure)
		require.Equal(t, "invalid_property", failure.Reason)
	}
	require.Len(t, in.ids(), 15)
	require.NotContains(t, r.Logged(), "no connection")
}

func TestMissingExchange(t *testing.T) {
	for _, declare := range []amqp091.Declare{amqp091.DeclareNone, amqp091.DeclarePassive} {
		t.Run(string(declare), func(t *testing.T) {
			in := newInbox(t, broker.URL(t))
			in.with(func(ch *amqp.Channel) { require.NoError(t, ch.ExchangeDelete(in.exchange, false, false)) })
			c := in.config()
			c.Exchange.Declare = declare
			r := run(t, c)

			words := "exchange \"" + in.exchange + "\" does not exist: create it"
			if declare == amqp091.DeclareNone {
				// Nobody looks before the first message.
				r.Await(relay.Up)
				results := relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("early", 16, 10))
				for _, result := range results {
					relaytest.RequireReason(t, "exchange_missing", result)
				}
			}
			r.AwaitReason(relay.Down, words)
			if declare == amqp091.DeclareNone {
				// Only a message can tell.
				r.AwaitReason(relay.Probe, words)
				relaytest.RequireReason(t, "exchange_missing", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("probe", 1, 10))[0])
				r.AwaitReason(relay.Down, words)
			}

			in.with(func(ch *amqp.Channel) {
				require.NoError(t, ch.ExchangeDeclare(in.exchange, amqp.ExchangeTopic, true, false, false, false, nil))
				require.NoError(t, ch.QueueBind(in.queue, "#", in.exchange, false, nil))
			})
			if declare == amqp091.DeclareNone {
				r.Await(relay.Probe)
				relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("probe", 1, 10)))
			}
			r.Await(relay.Up)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("late", 16, 10)))
			require.Equal(t, 1, strings.Count(r.Logged(), "exchange cannot be used"), "said once: %s", r.Logged())
		})
	}
}

// An exchange that is taken away while it is in use is an outage of the sink, and
// passes when it is back.
func TestExchangeDeleted(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	r := run(t, in.config())
	r.Await(relay.Up)
	in.with(func(ch *amqp.Channel) { require.NoError(t, ch.ExchangeDelete(in.exchange, false, false)) })
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)) {
		relaytest.RequireReason(t, "exchange_missing", result)
	}
	r.AwaitReason(relay.Down, "does not exist")
	in.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.ExchangeDeclare(in.exchange, amqp.ExchangeTopic, true, false, false, false, nil))
		require.NoError(t, ch.QueueBind(in.queue, "#", in.exchange, false, nil))
	})
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
}

func TestActiveDeclare(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.with(func(ch *amqp.Channel) { require.NoError(t, ch.ExchangeDelete(in.exchange, false, false)) })
	c := in.config()
	c.Exchange.Declare = amqp091.DeclareActive
	c.Exchange.Type = amqp.ExchangeFanout
	r := run(t, c)
	r.Await(relay.Up)
	in.with(func(ch *amqp.Channel) {
		// It is there, as it should be.
		require.NoError(t, ch.ExchangeDeclare(in.exchange, amqp.ExchangeFanout, true, false, false, false, nil))
		require.NoError(t, ch.QueueBind(in.queue, "", in.exchange, false, nil))
	})
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))

	other := in.config()
	other.Exchange.Declare = amqp091.DeclareActive
	other.Exchange.Type = amqp.ExchangeDirect
	run(t, other).AwaitReason(relay.Down, "exists with another type, durability or arguments")
}

// RabbitMQ ends the connection over a type that it does not know.
func TestUnknownExchangeType(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.Exchange.Name += ".new"
	c.Exchange.Declare = amqp091.DeclareActive
	c.Exchange.Type = "topical"
	run(t, c).AwaitReason(relay.Down, `of type "topical"`)
}

// One exchange that is missing does not hold up the routes to the others.
func TestOneExchangeOfSeveral(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	r := run(t, in.config())
	r.Await(relay.Up)
	missing, err := r.Endpoint.Bind(func(settings any) error {
		s, ok := settings.(*amqp091.Settings)
		require.True(t, ok)
		s.Exchange.Name += ".missing"
		return nil
	})
	require.NoError(t, err)
	// It is looked for in a moment.
	for relay.ReasonOf(relaytest.Deliver(t.Context(), t, missing, relaytest.Messages("m", 1, 10))[0].Err) == "exchange_unavailable" { //nolint:revive // Until it was.
	}
	for range 10 {
		for _, result := range relaytest.Deliver(t.Context(), t, missing, relaytest.Messages("m", 4, 10)) {
			relaytest.RequireReason(t, "exchange_missing", result)
		}
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 4, 10)))
	}
	require.Equal(t, relay.Up, r.Await(relay.Up).State)
}

// An exchange that is tried now and then, since only a publish can tell, takes no channel from
// those that work: to open another would cost them two round trips each time.
func TestAnExchangeThatIsTriedHasItsOwnChannel(t *testing.T) {
	p := newPeer(t)
	p.missing = "missing"
	r := run(t, peerConfig(p))
	r.Await(relay.Up)
	missing, err := r.Endpoint.Bind(func(settings any) error {
		s, ok := settings.(*amqp091.Settings)
		require.True(t, ok)
		s.Exchange.Name, s.Exchange.Declare = p.missing, amqp091.DeclareNone
		return nil
	})
	require.NoError(t, err)
	one := func(to relay.Sink) relay.Result {
		return relaytest.Deliver(t.Context(), t, to, relaytest.Messages("m", 1, 10))[0]
	}
	tried := func(times int) {
		t.Helper()
		require.Eventually(t, func() bool {
			_ = one(missing) // sent where it is due
			_, _, refused := p.counts()
			return refused == times
		}, patience, 5*time.Millisecond)
	}
	tried(1) // nothing was known of it then
	for again := range 3 {
		require.Equal(t, relay.Delivered, one(r.Sink).Outcome)
		tried(2 + again)
		before, _, _ := p.counts()
		require.Equal(t, relay.Delivered, one(r.Sink).Outcome)
		after, _, _ := p.counts()
		require.Equal(t, before, after, "no channel had to be opened")
	}

	// A message that is not even published tells nothing of the exchange, and leaves no channel.
	unfit := relaytest.Messages("m", 1, 10)
	unfit[0].ID = strings.Repeat("x", 256)
	for range 3 {
		opened, live, _ := p.counts()
		require.Eventually(t, func() bool {
			_ = relaytest.Deliver(t.Context(), t, missing, unfit)
			now, _, _ := p.counts()
			return now > opened
		}, patience, 5*time.Millisecond)
		_, now, _ := p.counts()
		require.Equal(t, live, now)
	}
}

// Overrides of a route leave the sink's own settings alone.
func TestBindCopies(t *testing.T) {
	c := amqp091.Defaults()
	c.URL = setting.NewURL("amqp://127.0.0.1")
	c.Exchange.Name = "x"
	c.Headers = headers(map[string]any{"a": "1"})
	endpoint, err := c.Open(deps(t))
	require.NoError(t, err)
	_, err = endpoint.Bind(func(settings any) error {
		s, ok := settings.(*amqp091.Settings)
		require.True(t, ok)
		s.Headers["a"] = setting.NewValue("2")
		s.Headers["b"] = setting.NewValue("3")
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, headers(map[string]any{"a": "1"}), c.Headers)

	_, err = endpoint.Bind(func(settings any) error {
		s, ok := settings.(*amqp091.Settings)
		require.True(t, ok)
		s.Timeout = 0
		return nil
	})
	require.ErrorContains(t, err, "timeout")
}
