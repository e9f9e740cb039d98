package amqp091_test

import (
	"fmt"
	"net/url"
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

// limit lets the queue hold n messages and refuse more.
func (in *inbox) limit(n int) {
	in.t.Helper()
	in.with(func(ch *amqp.Channel) {
		_, err := ch.QueueDelete(in.queue, false, false, false)
		require.NoError(in.t, err)
		_, err = ch.QueueDeclare(in.queue, true, false, false, false, amqp.Table{"x-max-length": int64(n), "x-overflow": "reject-publish"})
		require.NoError(in.t, err)
		require.NoError(in.t, ch.QueueBind(in.queue, "#", in.exchange, false, nil))
	})
}

// count is how many messages the queue holds.
func (in *inbox) count() (n int) {
	in.t.Helper()
	in.with(func(ch *amqp.Channel) {
		q, err := ch.QueueDeclarePassive(in.queue, true, false, false, false, nil)
		require.NoError(in.t, err)
		n = q.Messages
	})
	return n
}

// Headers arrive with the type they were written with, or that a message gives them.
func TestTypedHeadersAndProperties(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	at := time.Date(2026, time.March, 1, 9, 30, 0, 0, time.UTC)
	c := in.config()
	u, err := url.Parse(in.url)
	require.NoError(t, err)
	c.Headers = headers(map[string]any{
		"text": "a", "number": 5, "fraction": 0.5, "yes": true, "at": at,
		"table": map[string]any{"n": "{{ body.n }}", "deep": map[string]any{"list": []any{1, "{{ id }}", false}}},
		"from":  "{{ body.n }}", "when": "{{ timestamp(body.at) }}", "none": "{{ body.?none }}", "huge": "{{ body.huge }}",
		"CC": []any{"copy.{{ body.n }}"},
	})
	c.Properties = amqp091.Properties{
		ContentType: "application/vnd.sms+json", ContentEncoding: "identity", Priority: "{{ body.n }}", Expiration: "{{ body.ttl }}",
		Type: "sms.{{ source }}", AppID: "mnsrelay", UserID: u.User.Username(), CorrelationID: "{{ body.biz_id }}",
	}
	r := run(t, c)
	r.Await(relay.Up)
	m := relaytest.Messages("m", 1, 0)[0]
	m.Body = []byte(`{"n": 7, "at": "2026-03-01T09:30:00Z", "ttl": "10m", "biz_id": "b^1", "huge": 12345678901234567890}`)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, []relay.Message{m}))
	d := in.take()[0]
	for name := range d.Headers {
		if strings.HasPrefix(name, "x-mnsrelay-") {
			delete(d.Headers, name)
		}
	}
	utc := func(v any) time.Time { return v.(time.Time).UTC() } //nolint:forcetypeassert // A panic tells.
	require.Equal(t, at, utc(d.Headers["at"]))
	require.Equal(t, at, utc(d.Headers["when"]))
	delete(d.Headers, "at")
	delete(d.Headers, "when")
	require.Equal(t, amqp.Table{
		"text": "a", "number": int64(5), "fraction": 0.5, "yes": true, "from": int64(7), "huge": "12345678901234567890",
		"table": amqp.Table{"n": int64(7), "deep": amqp.Table{"list": []any{int64(1), "m-0", false}}},
		"CC":    []any{"copy.7"},
	}, d.Headers)
	require.Equal(t, []any{"application/vnd.sms+json", "identity", uint8(7), "600000", "sms.sms", "mnsrelay", u.User.Username(), "b^1"},
		[]any{d.ContentType, d.ContentEncoding, d.Priority, d.Expiration, d.Type, d.AppId, d.UserId, d.CorrelationId})
}

// What the broker would end the channel or the connection over is found before it is
// written: the message is rejected, its neighbours arrive, and so do those of other
// batches under way on the connection.
func TestInvalidPropertiesRejectTheirMessage(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	long := strings.Repeat("l", 256)
	for name, set := range map[string]func(c *amqp091.Config){
		"routing key":    func(c *amqp091.Config) { c.RoutingKey = `{{ body.bad ? text : "k" }}` },
		"type":           func(c *amqp091.Config) { c.Properties.Type = `{{ body.bad ? text : "k" }}` },
		"correlation id": func(c *amqp091.Config) { c.Properties.CorrelationID = `{{ body.bad ? text : "k" }}` },
		"content type":   func(c *amqp091.Config) { c.Properties.ContentType = `{{ body.bad ? text : "k" }}` },
		"foreign user":   func(c *amqp091.Config) { c.Properties.UserID = `{{ body.bad ? "somebody" : "" }}` },
		"expiration":     func(c *amqp091.Config) { c.Properties.Expiration = `{{ body.bad ? "soon" : "1h" }}` },
		"negative":       func(c *amqp091.Config) { c.Properties.Expiration = `{{ body.bad ? "-1" : "1" }}` },
		"priority":       func(c *amqp091.Config) { c.Properties.Priority = `{{ body.bad ? 256 : 9 }}` },
		"no list of keys": func(c *amqp091.Config) {
			c.Headers = headers(map[string]any{"CC": []any{`{{ body.bad ? dyn(5) : "k" }}`}})
		},
		"long further key": func(c *amqp091.Config) {
			c.Headers = headers(map[string]any{"BCC": []any{`{{ body.bad ? text : "k" }}`}})
		},
		"infinite": func(c *amqp091.Config) { c.Headers = headers(map[string]any{"h": `{{ body.bad ? 1.0 / 0.0 : 1.0 }}`}) },
		"infinite in a table": func(c *amqp091.Config) {
			c.Headers = headers(map[string]any{"h": map[string]any{"l": []any{`{{ body.bad ? body.huge : 1.0 }}`}}})
		},
		"no number": func(c *amqp091.Config) { c.Headers = headers(map[string]any{"h": `{{ body.bad ? 0.0 / 0.0 : 1.0 }}`}) },
		"headers":   func(c *amqp091.Config) { c.Headers = headers(map[string]any{"h": `{{ body.bad ? text : "k" }}`}) },
	} {
		t.Run(name, func(t *testing.T) {
			c := in.config()
			set(c)
			r := run(t, c)
			r.Await(relay.Up)
			other, err := r.Endpoint.Bind(nil)
			require.NoError(t, err)
			filler := long
			if name == "headers" {
				filler = strings.Repeat("l", 64<<10)
			}
			var work sync.WaitGroup
			for n := range 4 {
				work.Go(func() {
					sink := []relay.Sink{r.Sink, other}[n%2]
					ms := relaytest.Messages(fmt.Sprintf("%s-%d", name, n), 64, 0)
					for i := range ms {
						ms[i].Body = fmt.Appendf(nil, `{"bad": %t, "huge": 1e400, "filler": "%s"}`, i%8 == 3, filler)
					}
					for i, result := range relaytest.Deliver(t.Context(), t, sink, ms) {
						if i%8 != 3 {
							require.NoError(t, result.Err, "message %d", i)
							require.Equal(t, relay.Delivered, result.Outcome)
							continue
						}
						require.Equal(t, relay.Rejected, result.Outcome, "message %d: %v", i, result.Err)
						require.Equal(t, "invalid_property", relay.ReasonOf(result.Err))
						require.NotContains(t, result.Err.Error(), "somebody")
						require.NotContains(t, result.Err.Error(), "llll")
					}
				})
			}
			work.Wait()
			require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len(), "the connection stood: %s", r.Logged())
		})
	}
}

// A message that is larger than the broker allows makes it close the channel, and
// everything in flight on it falls with it. The one is found and rejected by its reason;
// its neighbours arrive.
func TestMessageTooLargeForTheBroker(t *testing.T) {
	t.Parallel()
	b := strict.Borrow(t)
	for _, acknowledge := range []amqp091.Acknowledge{amqp091.AcknowledgeConfirm, amqp091.AcknowledgeTransaction, amqp091.AcknowledgeReply} {
		t.Run(string(acknowledge), func(t *testing.T) {
			in := newInbox(t, b.URL())
			c := in.config()
			c.Acknowledge = acknowledge
			got := map[string]int{}
			var mu sync.Mutex
			if acknowledge == amqp091.AcknowledgeReply {
				in.consumer(func(d amqp.Delivery) []byte {
					mu.Lock()
					defer mu.Unlock()
					got[d.MessageId]++
					return []byte("ok")
				})
			}
			r := run(t, c)
			r.Await(relay.Up)
			for _, at := range []int{0, 7, 15} {
				ms := relaytest.Messages(fmt.Sprintf("m-%d", at), 16, 100)
				ms[at].Body = make([]byte, 10_001)
				for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
					if i != at {
						require.NoError(t, result.Err, "message %d beside %d", i, at)
						require.Equal(t, relay.Delivered, result.Outcome)
						continue
					}
					require.Equal(t, relay.Rejected, result.Outcome, "%v", result.Err)
					require.Equal(t, "message_refused", relay.ReasonOf(result.Err))
					require.ErrorContains(t, result.Err, "10001")
				}
			}
			if acknowledge != amqp091.AcknowledgeReply {
				got = in.ids()
			}
			require.Len(t, got, 45)
			require.Equal(t, relay.Up, r.Await(relay.Up).State)
			require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len())
		})
	}
}

// A broker that allows only small frames gets no headers that do not fit one: it would end
// the connection over them.
func TestHeadersThatDoNotFitAFrame(t *testing.T) {
	t.Parallel()
	b := strict.Borrow(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.Headers = headers(map[string]any{"h": "{{ text }}"})
	r := run(t, c)
	r.Await(relay.Up)
	ms := relaytest.Messages("m", 16, 100)
	ms[5].Body = []byte(strings.Repeat("h", 8192))
	for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
		if i == 5 {
			require.Equal(t, relay.Rejected, result.Outcome)
			require.Equal(t, "invalid_property", relay.ReasonOf(result.Err))
			continue
		}
		require.Equal(t, relay.Delivered, result.Outcome, "%v", result.Err)
	}
	require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len())
}

// Each refusal has a reason of its own, and no neighbour falls with it.
func TestQueueFullIsANack(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	in.limit(4)
	r := run(t, in.config())
	r.Await(relay.Up)
	delivered := 0
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 64, 10)) {
		if result.Outcome == relay.Delivered {
			delivered++
			continue
		}
		relaytest.RequireReason(t, "nack", result)
	}
	require.Positive(t, delivered)
	require.Len(t, in.ids(), delivered, "what was refused is not there, and what was taken is")
	require.Equal(t, relay.Up, r.Await(relay.Up).State)
}

func TestExchangeRefusedAndMismatch(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL())
	_, err := b.Ctl(bounded(t), "add_user", "reader", "reader")
	require.NoError(t, err)
	_, err = b.Ctl(bounded(t), "set_permissions", "reader", "", "", ".*")
	require.NoError(t, err)

	reader := in.config()
	u, err := url.Parse(in.url)
	require.NoError(t, err)
	u.User = url.UserPassword("reader", "reader")
	reader.URL = setting.NewURL(u.String())
	r := run(t, reader)
	r.Await(relay.Up)
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)) {
		relaytest.RequireReason(t, "exchange_refused", result)
	}
	r.AwaitReason(relay.Down, "not permitted to publish to exchange")

	other := in.config()
	other.Exchange.Declare, other.Exchange.Type = amqp091.DeclareActive, amqp.ExchangeDirect
	o := run(t, other)
	o.AwaitReason(relay.Down, "exists with another type")
	relaytest.RequireReason(t, "exchange_mismatch", relaytest.Deliver(t.Context(), t, o.Sink, relaytest.Messages("m", 1, 10))[0])

	// A permission that is given back is used without a restart.
	_, err = b.Ctl(bounded(t), "set_permissions", "reader", ".*", ".*", ".*")
	require.NoError(t, err)
	r.Await(relay.Probe)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
	r.Await(relay.Up)
}

// A routing key that the user may not publish to is refused for its own message, and the
// exchange stays as it is for the others.
func TestARoutingKeyThatIsRefused(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL())
	for _, args := range [][]string{
		{"add_user", "writer", "writer"},
		{"set_permissions", "writer", ".*", ".*", ".*"},
		{"set_topic_permissions", "writer", in.exchange, "^allowed", ".*"},
	} {
		_, err := b.Ctl(bounded(t), args...)
		require.NoError(t, err)
	}
	c := in.config()
	u, err := url.Parse(in.url)
	require.NoError(t, err)
	u.User = url.UserPassword("writer", "writer")
	c.URL = setting.NewURL(u.String())
	c.RoutingKey = "{{ body.key }}"
	r := run(t, c)
	r.Await(relay.Up)
	for _, at := range []int{0, 7, 15} {
		ms := relaytest.Messages(fmt.Sprintf("m-%d", at), 16, 0)
		for i := range ms {
			ms[i].Body = []byte(`{"key": "allowed"}`)
		}
		ms[at].Body = []byte(`{"key": "hunter2"}`)
		for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
			if i == at {
				relaytest.RequireReason(t, "exchange_refused", result)
				require.ErrorContains(t, result.Err, "with this routing key")
				continue
			}
			require.NoError(t, result.Err, "message %d beside %d", i, at)
		}
		health, _ := r.Endpoint.Health()
		require.Equal(t, relay.Up, health.State)
	}
	require.Len(t, in.ids(), 45)
}
