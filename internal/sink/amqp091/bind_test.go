package amqp091_test

import (
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/sink/amqp091"
)

func unbind(t *testing.T, s relay.Sink) {
	t.Helper()
	bound, ok := s.(relay.Unbinder)
	require.True(t, ok)
	bound.Unbind()
}

// A connection goes on over many reloads that bind its targets anew: what the ones before held
// is given back, the channels of answers too.
func TestUnbindGivesTheChannelBack(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL())
	in.consumer(func(amqp.Delivery) []byte { return []byte("ok") })
	r := run(t, replying(in))
	r.Await(relay.Up)
	for range 20 {
		s, err := r.Endpoint.Bind(nil)
		require.NoError(t, err)
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, s, relaytest.Messages("m", 1, 10)))
		unbind(t, s)
	}
	require.Eventually(t, func() bool {
		channels, err := b.Ctl(bounded(t), "list_channels", "--quiet", "--no-table-headers", "pid")
		require.NoError(t, err)
		return len(strings.Fields(channels)) <= 4
	}, relaytest.Patience, 100*time.Millisecond, "the consumer's, the pooled one, and what is being closed")
}

// An exchange is declared, and tells of the health, as long as something is bound to it.
func TestUnbindForgetsTheExchange(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.Exchange.Name = "nobody-made-this"
	r := run(t, c)
	r.AwaitReason(relay.Down, `exchange "nobody-made-this" does not exist`)
	other, err := r.Endpoint.Bind(func(settings any) error {
		s, ok := settings.(*amqp091.Settings)
		require.True(t, ok)
		s.Exchange.Name = "removed-later"
		s.Exchange.Declare = amqp091.DeclareActive
		return nil
	})
	require.NoError(t, err)
	r.Await(relay.Up)
	unbind(t, other)
	r.AwaitReason(relay.Down, `exchange "nobody-made-this" does not exist`)

	in.with(func(ch *amqp.Channel) { require.NoError(t, ch.ExchangeDelete("removed-later", false, false)) })
	connected := func() int { return strings.Count(r.Logged(), "connected to the broker") }
	before := connected()
	_, err = b.Ctl(bounded(t), "close_all_connections", "test")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return connected() > before }, relaytest.Patience, 10*time.Millisecond)
	r.AwaitReason(relay.Down, `exchange "nobody-made-this" does not exist`)
	exchanges, err := b.Ctl(bounded(t), "list_exchanges", "name")
	require.NoError(t, err)
	require.NotContains(t, exchanges, "removed-later")

	unbind(t, r.Sink)
	r.AwaitReason(relay.Down, `exchange "nobody-made-this" does not exist`)
}
