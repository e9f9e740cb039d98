package amqp091_test

import (
	"context"
	"fmt"
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

// Every way of acknowledging brings the same messages with the same properties.
func TestAcknowledge(t *testing.T) {
	for _, acknowledge := range []amqp091.Acknowledge{
		amqp091.AcknowledgeConfirm, amqp091.AcknowledgeTransaction, amqp091.AcknowledgeNone,
	} {
		t.Run(string(acknowledge), func(t *testing.T) {
			in := newInbox(t, broker.URL(t))
			c := in.config()
			c.Acknowledge = acknowledge
			c.Headers = headers(map[string]any{"n": "{{ body.n }}"})
			r := run(t, c)
			r.Await(relay.Up)
			var work sync.WaitGroup
			for sender := range 8 {
				work.Go(func() {
					for round := range 5 {
						ms := relaytest.Messages(fmt.Sprintf("%d-%d", sender, round), 40, 0)
						for i := range ms {
							ms[i].Body = fmt.Appendf(nil, `{"n": %d}`, i)
						}
						relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, ms))
					}
				})
			}
			work.Wait()
			r.End() // what was only written is read by the broker
			require.Eventually(t, func() bool { return in.count() == 8*5*40 }, patience, 20*time.Millisecond)
			taken := in.take()
			require.Len(t, taken, 8*5*40)
			for _, d := range taken {
				require.JSONEq(t, fmt.Sprintf(`{"n": %d}`, d.Headers["n"]), string(d.Body))
				require.Equal(t, amqp.Persistent, d.DeliveryMode)
			}
		})
	}
}

// A commit says nothing of routing: a message that the broker gave back is decided on its
// own, in the middle of a transaction that succeeds.
func TestTransactionWithUnroutable(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.QueueUnbind(in.queue, "#", in.exchange, nil))
		require.NoError(t, ch.QueueBind(in.queue, "sms.ok", in.exchange, false, nil))
	})
	c := in.config()
	c.Acknowledge = amqp091.AcknowledgeTransaction
	c.RoutingKey = "sms.{{ body.to }}"
	r := run(t, c)
	r.Await(relay.Up)
	ms := relaytest.Messages("m", 2500, 0) // more than a window
	for i := range ms {
		ms[i].Body = []byte([]string{`{"to": "ok"}`, `{"to": "nobody"}`, `{}`}[i%3])
	}
	for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
		switch i % 3 {
		case 0:
			require.NoError(t, result.Err)
			require.Equal(t, relay.Delivered, result.Outcome)
		case 1:
			relaytest.RequireReason(t, "unroutable", result)
		default:
			require.Equal(t, relay.Rejected, result.Outcome)
			require.Equal(t, "expression", relay.ReasonOf(result.Err))
		}
	}
	require.Len(t, in.ids(), 834)
}

// A queue that refuses makes the whole commit fail: nothing of it counts as delivered,
// whatever has arrived.
func TestTransactionThatTheQueueRefuses(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.limit(4)
	c := in.config()
	c.Acknowledge = amqp091.AcknowledgeTransaction
	r := run(t, c)
	r.Await(relay.Up)
	delivered := 0
	for range 3 {
		for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)) {
			if result.Outcome == relay.Delivered {
				delivered++
				continue
			}
			relaytest.RequireReason(t, "transaction_failed", result)
		}
	}
	require.LessOrEqual(t, delivered, 5)
	require.Equal(t, relay.Up, r.Await(relay.Up).State, "a full queue is no outage of the broker")
	require.GreaterOrEqual(t, len(in.take()), delivered)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("later", 2, 10)))
}

// A stalled broker keeps a commit from its answer: it ends with the timeout, and the
// connection is given up.
func TestTransactionOnAStalledBroker(t *testing.T) {
	t.Parallel()
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.Acknowledge = amqp091.AcknowledgeTransaction
	c.Timeout = time.Second
	r := run(t, c)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("warm", 16, 10)))
	require.NoError(t, b.Pause())
	began := time.Now()
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)) {
		relaytest.RequireReason(t, "confirm_timeout", result)
	}
	require.Less(t, time.Since(began), c.Timeout+500*time.Millisecond)
	r.Await(relay.Down)
	require.NoError(t, b.Resume())
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
}

// consumer answers what comes to the queue of an inbox until the test ends. Answer gives
// the body of the answer; nil: none is sent.
func (in *inbox) consumer(answer func(d amqp.Delivery) []byte) {
	in.t.Helper()
	conn, err := amqp.Dial(in.url)
	require.NoError(in.t, err)
	ch, err := conn.Channel()
	require.NoError(in.t, err)
	deliveries, err := ch.Consume(in.queue, "", true, false, false, false, nil)
	require.NoError(in.t, err)
	var consuming sync.WaitGroup
	consuming.Go(func() {
		for d := range deliveries {
			if body := answer(d); body != nil {
				_ = ch.Publish("", d.ReplyTo, false, false, amqp.Publishing{CorrelationId: d.CorrelationId, Body: body})
			}
		}
	})
	in.t.Cleanup(func() {
		_ = conn.CloseDeadline(time.Now().Add(time.Second))
		consuming.Wait()
	})
}

// replying is a sink that waits for its consumer.
func replying(in *inbox) *amqp091.Config {
	c := in.config()
	c.Acknowledge = amqp091.AcknowledgeReply
	return c
}

// The consumer's answer decides what becomes of a message.
func TestReply(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.consumer(func(d amqp.Delivery) []byte { return d.Body })
	r := run(t, replying(in))
	r.Await(relay.Up)
	cases := []struct {
		answer  string
		outcome relay.Outcome
		reason  string
		after   time.Duration
	}{
		{"", relay.Delivered, "", 0},
		{"ok", relay.Delivered, "", 0},
		{"OK\n", relay.Delivered, "", 0},
		{`{"ok": true}`, relay.Delivered, "", 0},
		{"the database is away", relay.Retry, "consumer_failed", 0},
		{`{"error": "the database is away", "retry_after": 1.5}`, relay.Retry, "consumer_failed", 1500 * time.Millisecond},
		{`{"error": "later", "retry_after": 1e300}`, relay.Retry, "consumer_failed", 12 * time.Hour},
		{`{"error": "later", "retry_after": -1}`, relay.Retry, "consumer_failed", 0},
		{`{"ok": false}`, relay.Retry, "consumer_failed", 0},
		{`{}`, relay.Retry, "consumer_failed", 0},
		{`{"ok": true, "error": "not quite"}`, relay.Retry, "consumer_failed", 0},
		{`{"error": "no such account", "reject": true}`, relay.Rejected, "consumer_rejected", 0},
		{`{"ok": "yes"}`, relay.Retry, "consumer_failed", 0},
		{strings.Repeat("long\n", 1000), relay.Retry, "consumer_failed", 0},
	}
	ms := relaytest.Messages("m", len(cases), 0)
	for i, c := range cases {
		ms[i].Body = []byte(c.answer)
	}
	for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
		c := cases[i]
		require.Equal(t, c.outcome, result.Outcome, "answer %.40q: %v", c.answer, result.Err)
		require.Equal(t, c.after, result.RetryAfter, c.answer)
		if c.reason != "" {
			require.Equal(t, c.reason, relay.ReasonOf(result.Err), c.answer)
			require.Less(t, len(result.Err.Error()), 300)
			require.NotContains(t, result.Err.Error(), "\n")
		}
	}
}

// A consumer that does not answer holds up its own messages only: not those of another
// route on the same connection, nor other messages of its own that are answered.
func TestReplyOfASlowConsumer(t *testing.T) {
	t.Parallel()
	in, other := newInbox(t, broker.URL(t)), newInbox(t, broker.URL(t))
	var held sync.WaitGroup
	in.consumer(func(d amqp.Delivery) []byte {
		if strings.HasPrefix(d.MessageId, "slow") {
			return nil
		}
		return []byte("ok")
	})
	c := replying(in)
	c.Reply.Timeout = 2 * time.Second
	c.Reply.InFlight = 100
	r := run(t, c)
	r.Await(relay.Up)
	fast, err := r.Endpoint.Bind(func(settings any) error {
		s, ok := settings.(*amqp091.Settings)
		require.True(t, ok)
		s.Exchange.Name = other.exchange
		s.Acknowledge = amqp091.AcknowledgeConfirm
		return nil
	})
	require.NoError(t, err)

	for n := range 6 { // 96 of the 100
		held.Go(func() {
			began := time.Now()
			for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages(fmt.Sprintf("slow-%d", n), 16, 10)) {
				relaytest.RequireReason(t, "reply_timeout", result)
			}
			require.GreaterOrEqual(t, time.Since(began), c.Reply.Timeout)
		})
	}
	began := time.Now()
	for relay.ReasonOf(relaytest.Deliver(t.Context(), t, fast, relaytest.Messages("first", 1, 10))[0].Err) == "exchange_unavailable" { //nolint:revive // Until it was looked for.
	}
	for range 20 {
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, fast, relaytest.Messages("fast", 16, 10)))
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("answered", 4, 10)))
	}
	require.Less(t, time.Since(began), c.Reply.Timeout, "none of them waited for the slow ones")
	held.Wait()
}

// The room for messages without an answer is bounded: what does not fit waits, and is not
// sent.
func TestReplyRoom(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := replying(in)
	c.Reply.InFlight = 5
	r := run(t, c)
	r.Await(relay.Up)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var results []relay.Result
	var waiting sync.WaitGroup
	waiting.Go(func() { results = relaytest.Deliver(ctx, t, r.Sink, relaytest.Messages("m", 16, 10)) })
	require.Eventually(t, func() bool { return in.count() == 5 }, patience, 20*time.Millisecond)
	// None but the five, however long one waits.
	pause := time.NewTimer(300 * time.Millisecond)
	<-pause.C
	require.Equal(t, 5, in.count())
	began := time.Now()
	cancel()
	waiting.Wait()
	require.Less(t, time.Since(began), time.Second)
	for _, result := range results {
		relaytest.RequireReason(t, "cancelled", result)
	}
}

// A message that no queue gets has nobody to answer: that shows at once.
func TestReplyOfNobody(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.with(func(ch *amqp.Channel) { require.NoError(t, ch.QueueUnbind(in.queue, "#", in.exchange, nil)) })
	r := run(t, replying(in))
	r.Await(relay.Up)
	began := time.Now()
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1000, 10)) {
		relaytest.RequireReason(t, "unroutable", result)
	}
	require.Less(t, time.Since(began), 20*time.Second)
}

// A connection that is lost takes the answers with it: the messages are sent again, which
// costs no failed try.
func TestReplyOverALostConnection(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	proxy, err := broker.NewProxy(bounded(t), in.url)
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	var mute sync.Map
	in.consumer(func(d amqp.Delivery) []byte {
		if _, again := mute.LoadOrStore(d.MessageId, true); !again {
			return nil
		}
		return []byte("ok")
	})
	c := replying(in)
	c.URL = setting.NewURL(proxy.URL())
	r := run(t, c)
	for range 5 {
		r.Await(relay.Up)
		ms := relaytest.Messages(time.Now().String(), 16, 10)
		var results []relay.Result
		var waiting sync.WaitGroup
		waiting.Go(func() { results = relaytest.Deliver(t.Context(), t, r.Sink, ms) })
		require.Eventually(t, func() bool {
			_, seen := mute.Load(ms[15].ID)
			return seen
		}, patience, 5*time.Millisecond)
		require.NoError(t, proxy.Kill(t.Context()))
		waiting.Wait()
		for _, result := range results {
			relaytest.RequireReason(t, "connection_lost", result)
			require.ErrorIs(t, result.Err, relay.ErrSinkDown)
		}
		require.NoError(t, proxy.Start(t.Context()))
		r.Await(relay.Up)
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, ms))
	}
}

// An exchange that is missing is told of on a channel for answers too.
func TestReplyToAMissingExchange(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := replying(in)
	c.Exchange.Name += ".missing"
	c.Exchange.Declare = amqp091.DeclareNone
	r := run(t, c)
	r.Await(relay.Up)
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)) {
		relaytest.RequireReason(t, "exchange_missing", result)
	}
	r.AwaitReason(relay.Down, "does not exist")
}

// Nobody tells of a message that was only written: an exchange that was missing is found
// out about by one that is confirmed, and then used as before.
func TestNoneFindsOutWhetherTheExchangeWorks(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.with(func(ch *amqp.Channel) { require.NoError(t, ch.ExchangeDelete(in.exchange, false, false)) })
	c := in.config()
	c.Acknowledge = amqp091.AcknowledgeNone
	c.Exchange.Declare = amqp091.DeclareNone
	r := run(t, c)
	r.Await(relay.Up)
	require.Eventually(t, func() bool {
		relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("lost", 1, 10))
		health, _ := r.Endpoint.Health()
		return health.State == relay.Down
	}, patience, 10*time.Millisecond)
	r.AwaitReason(relay.Probe, "does not exist")
	relaytest.RequireReason(t, "exchange_missing", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("probe", 1, 10))[0])
	in.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.ExchangeDeclare(in.exchange, amqp.ExchangeTopic, true, false, false, false, nil))
		require.NoError(t, ch.QueueBind(in.queue, "#", in.exchange, false, nil))
	})
	r.Await(relay.Probe)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("probe", 1, 10)))
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
	require.Eventually(t, func() bool { return in.count() == 17 }, patience, 20*time.Millisecond)
}
