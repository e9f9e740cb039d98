package amqp10_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
)

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// count is how many messages are in the queue.
func (r *rabbit) count(queue string) (n int) {
	r.t.Helper()
	r.with(func(ch *amqp.Channel) {
		q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		require.NoError(r.t, err)
		n = q.Messages
	})
	return n
}

// What the documentation says of the addresses of RabbitMQ before version 4, the loss of
// what no queue gets included.
func TestAddressesOfRabbitMQ(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	b.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.ExchangeDeclare("orders", "topic", true, false, false, false, nil))
		require.NoError(t, ch.QueueBind(b.queue, "a.b", "orders", false, nil))
		require.NoError(t, ch.QueueBind(b.queue, "a.b", "amq.topic", false, nil))
	})
	arrived := 0
	for _, c := range []struct {
		address string
		down    string // why it is refused
		arrives bool
	}{
		{"/amq/queue/reports", "", true},
		{"/exchange/orders/a.b", "", true},
		{"/topic/a.b", "", true},
		{"/amq/queue/missing", "", false},
		{"/exchange/orders/unbound", "", false},
		{"/topic/unbound", "", false},
		{"/exchange/missing/a.b", `address "/exchange/missing/a.b" does not exist: create it, or correct address: amqp:not-found`, false},
		{"/queue/reports", "amqp:precondition-failed", false},
		{"reports", "amqp:precondition-failed", false},
		{"/queues/reports", "amqp:invalid-field", false},
		{"/queue/made", "", false},
	} {
		t.Run(c.address, func(t *testing.T) {
			config := b.config()
			config.Address = c.address
			r := run(t, config)
			if c.down != "" {
				r.AwaitReason(relay.Down, c.down)
				relaytest.RequireReason(t, "address_unavailable", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10))[0])
				return
			}
			r.Await(relay.Up)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10)))
			if c.arrives {
				arrived++
			}
			require.Equal(t, arrived, b.count(b.queue))
		})
	}
	listed, err := b.Ctl(bounded(t), "list_queues", "name", "durable")
	require.NoError(t, err)
	require.Contains(t, strings.Fields(strings.ReplaceAll(listed, "\t", "=")), "made=false", "made by the plugin, and gone with a restart")
}

// A queue that refuses ends the connection of RabbitMQ's plugin. Nothing that it refused
// counts as delivered, and the sink works again when there is room.
func TestAQueueOfRabbitMQThatRefuses(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	b.with(func(ch *amqp.Channel) {
		_, err := ch.QueueDeclare("small", true, false, false, false, amqp.Table{"x-max-length": int32(10), "x-overflow": "reject-publish"})
		require.NoError(t, err)
	})
	c := b.config()
	c.Address = "/amq/queue/small"
	c.Timeout = 2 * time.Second
	r := run(t, c)
	delivered, refused := map[string]bool{}, 0
	for round := range 5 {
		r.Await(relay.Up)
		ms := relaytest.Messages(strconv.Itoa(round), 4, 10)
		for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
			if result.Outcome == relay.Delivered {
				delivered[ms[i].ID] = true
				continue
			}
			require.Equal(t, relay.Retry, result.Outcome, "message %d of round %d: %v", i, round, result.Err)
			refused++
		}
	}
	require.NotZero(t, refused)
	b.with(func(ch *amqp.Channel) {
		for {
			d, ok, err := ch.Get("small", true)
			require.NoError(t, err)
			if !ok {
				break
			}
			delete(delivered, d.MessageId)
		}
	})
	require.Empty(t, delivered, "said to be delivered, and not in the queue")
	requireDeliversAgain(t, r, relaytest.Messages("again", 4, 10))
	require.GreaterOrEqual(t, b.count("small"), 4)
}

// A password that was replaced in its file is used with the next connection.
func TestThePasswordIsReadAgain(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	for _, args := range [][]string{{"add_user", "relay", "first"}, {"set_permissions", "relay", ".*", ".*", ".*"}} {
		_, err := b.Ctl(bounded(t), args...)
		require.NoError(t, err)
	}
	path := filepath.Join(t.TempDir(), "password")
	require.NoError(t, os.WriteFile(path, []byte("first\n"), 0o600))
	address := strings.TrimSuffix(b.URL()[strings.Index(b.URL(), "@")+1:], "/")
	proxy := relaytest.NewProxy(t, address)
	c := b.config()
	c.URL = setting.NewURL("amqp://" + proxy.Addr())
	c.Username, c.Password = "relay", setting.FileSecret("first", path)
	r := run(t, c)
	r.Await(relay.Up)
	_, err := b.Ctl(bounded(t), "change_password", "relay", "second")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte("second\n"), 0o600))
	proxy.Refuse()
	r.Await(relay.Down)
	proxy.Mend()
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
	require.NotContains(t, r.Logged(), "refuses")
}
