package amqp091_test

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/test/broker"
)

// writeDeadline is how long a write to a broker that does not read may take.
const writeDeadline = 5 * time.Second

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Whatever was said to be delivered is in the queue after the broker is back, and
// the rest is delivered then.
func TestBrokerGoes(t *testing.T) {
	ways := map[string]func(broker.Broker, context.Context) error{
		"stopped": broker.Broker.Stop,
		"killed":  broker.Broker.Kill,
	}
	for name, end := range ways {
		t.Run(name, func(t *testing.T) {
			b := nodes.Private(t)
			in := newInbox(t, b.URL())
			r := run(t, in.config())
			r.Await(relay.Up)

			var (
				mu        sync.Mutex
				delivered = map[string]bool{}
				wanted    = map[string]bool{}
				work      sync.WaitGroup
				stop      = make(chan struct{})
				under     = make(chan struct{}, 1)
			)
			for sender := range 8 {
				work.Go(func() {
					for round := 0; ; round++ {
						select {
						case <-stop:
							return
						default:
						}
						ms := relaytest.Messages(string(rune('a'+sender))+"-"+time.Now().Format("150405.000000000"), 64, 1000)
						mu.Lock()
						for _, m := range ms {
							wanted[m.ID] = true
						}
						mu.Unlock()
						for len(ms) > 0 { // as the queue does: again, until it is delivered
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
						if round == 3 {
							select {
							case under <- struct{}{}:
							default:
							}
						}
					}
				})
			}
			<-under
			require.NoError(t, end(b, bounded(t)))
			r.Await(relay.Down)
			require.NoError(t, b.Start(bounded(t)))
			accepting := time.Now()
			r.Await(relay.Up)
			require.Less(t, time.Since(accepting), time.Second, "from accepting to connected")
			close(stop)
			work.Wait()

			require.Equal(t, wanted, delivered)
			arrived := in.ids()
			for id := range maps.Keys(delivered) {
				require.Positive(t, arrived[id], "%s is said to be delivered", id)
			}
			require.Len(t, arrived, len(wanted))
		})
	}
}

func TestStartsBeforeTheBroker(t *testing.T) {
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	require.NoError(t, b.Stop(bounded(t)))
	r := run(t, in.config())
	r.AwaitReason(relay.Down, "connection refused")
	relaytest.RequireReason(t, "not_connected", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("early", 1, 10))[0])

	require.NoError(t, b.Start(bounded(t)))
	accepting := time.Now()
	r.Await(relay.Up)
	require.Less(t, time.Since(accepting), time.Second, "from accepting to connected")
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
}

// A broker that stops reading, with the TCP window full. The library alone blocks
// for ever, and so does a connection of it that stands beside ours.
func TestStalledBroker(t *testing.T) {
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.Timeout = time.Minute // so that it is not what ends Deliver
	r := run(t, c)
	r.Await(relay.Up)

	// A channel whose window holds all, so that the first publish finds it open.
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("warm", 1000, 10)))

	bare, err := amqp.DialConfig(in.url, amqp.Config{Heartbeat: 2 * time.Second})
	require.NoError(t, err)
	channel, err := bare.Channel()
	require.NoError(t, err)
	require.NoError(t, b.Pause())

	body := make([]byte, 64<<10)
	bareEnded := make(chan struct{})
	go func() {
		defer close(bareEnded)
		for channel.PublishWithContext(context.Background(), in.exchange, routingKey, false, false, amqp.Publishing{Body: body}) == nil { //nolint:revive // Until it fails.
		}
	}()

	began := time.Now()
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1000, len(body))) {
		relaytest.RequireReason(t, "connection_lost", result)
	}
	require.Less(t, time.Since(began), writeDeadline+time.Second)
	r.Await(relay.Down)
	select {
	case <-bareEnded:
		require.Fail(t, "the library alone does not block any more: the write deadline can go")
	default:
	}

	require.NoError(t, b.Resume())
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
	require.NoError(t, b.Kill(bounded(t)))
	<-bareEnded
	_ = bare.CloseDeadline(time.Now().Add(time.Second))
}

// warm opens a channel whose window holds n messages: they are delivered, all at once, and on a
// machine that is too busy for that tried again.
func warm(t *testing.T, r *relaytest.Running, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("warm", n, 10)) {
			if result.Outcome != relay.Delivered {
				relaytest.RequireReason(t, "confirm_timeout", result)
				return false
			}
		}
		return true
	}, patience, 10*time.Millisecond)
}

// The same with a timeout shorter than the write deadline.
func TestStalledBrokerTimeout(t *testing.T) {
	t.Parallel()
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.Timeout = time.Second
	r := run(t, c)
	r.Await(relay.Up)
	warm(t, r, 1000)
	require.NoError(t, b.Pause())
	began := time.Now()
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1000, 64<<10)) {
		relaytest.RequireReason(t, "confirm_timeout", result)
	}
	require.Less(t, time.Since(began), c.Timeout+500*time.Millisecond)
	began = time.Now()
	r.End()
	require.Less(t, time.Since(began), writeDeadline+time.Second, "the end of Run")
	require.NoError(t, b.Resume())
}

// A broker that stops before a channel is open.
func TestStalledBrokerAtFirst(t *testing.T) {
	t.Parallel()
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.Timeout = time.Minute
	r := run(t, c)
	r.Await(relay.Up)
	require.NoError(t, b.Pause())
	began := time.Now()
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)) {
		relaytest.RequireReason(t, "connection_lost", result)
		require.ErrorIs(t, result.Err, relay.ErrSinkDown)
	}
	require.Less(t, time.Since(began), writeDeadline+time.Second)
	require.NoError(t, b.Resume())
	r.Await(relay.Up)
}

// A broker that goes silent while nothing is sent is found by the heartbeat.
func TestStalledIdle(t *testing.T) {
	t.Parallel()
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.URL = setting.NewURL(in.url + "?heartbeat=2")
	r := run(t, c)
	r.Await(relay.Up)
	require.NoError(t, b.Pause())
	began := time.Now()
	r.Await(relay.Down)
	require.Less(t, time.Since(began), 4*time.Second, "1.5 heartbeats and a margin")
	require.NoError(t, b.Resume())
	r.Await(relay.Up)
}

func TestBlocked(t *testing.T) {
	t.Parallel()
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.Timeout = 2 * time.Second
	r := run(t, c)
	r.Await(relay.Up)

	require.NoError(t, b.Block(bounded(t)))
	// RabbitMQ tells a connection when it publishes.
	sent := relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 4, 10))
	r.AwaitReason(relay.Down, "the broker blocks publishers: low on memory")
	for _, result := range sent {
		require.Equal(t, relay.Retry, result.Outcome)
	}
	relaytest.RequireReason(t, "blocked", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 4, 10))[0])

	// The broker answers nothing while it blocks, not even the end of a channel. The
	// connection is kept all the same: another one would take more messages before it is
	// blocked as well.
	deadline := time.Now().Add(8 * time.Second)
	for time.Now().Before(deadline) {
		health, changed := r.Endpoint.Health()
		require.Equal(t, relay.Down, health.State)
		require.Contains(t, health.Reason, "the broker blocks publishers")
		select {
		case <-changed:
		case <-time.After(time.Until(deadline)):
		}
	}

	require.NoError(t, b.Unblock(bounded(t)))
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
	require.Len(t, in.ids(), 16)
}

// A broker that blocks publishers does not read the close either, and its heartbeats go on:
// the end does not wait for it.
func TestTheEndWhileTheBrokerBlocks(t *testing.T) {
	t.Parallel()
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	c := in.config()
	c.Heartbeat = time.Second
	r := run(t, c)
	r.Await(relay.Up)
	require.NoError(t, b.Block(bounded(t)))
	relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 4, 10))
	r.AwaitReason(relay.Down, "the broker blocks publishers")
	began := time.Now()
	r.End()
	require.Less(t, time.Since(began), 4*time.Second)
	require.NoError(t, b.Unblock(bounded(t)))
}

// A source that ends gives back its channel of answers, and does not wait for a broker that
// answers nothing.
func TestUnbindWhileTheBrokerBlocks(t *testing.T) {
	t.Parallel()
	b := nodes.Private(t)
	in := newInbox(t, b.URL())
	in.consumer(func(amqp.Delivery) []byte { return []byte("ok") })
	c := replying(in)
	c.Reply.Timeout = 2 * time.Second
	r := run(t, c)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10)))
	require.NoError(t, b.Block(bounded(t)))
	relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10))
	r.AwaitReason(relay.Down, "the broker blocks publishers")
	began := time.Now()
	unbind(t, r.Sink)
	require.Less(t, time.Since(began), time.Second)
	r.End()
	require.Less(t, time.Since(began), 4*time.Second)
	require.NoError(t, b.Unblock(bounded(t)))
}

// A connection that ends again and again leaves nothing behind; goleak looks.
func TestFlapping(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	proxy, err := broker.NewProxy(bounded(t), in.url)
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	c := in.config()
	c.URL = setting.NewURL(proxy.URL())
	r := run(t, c)
	for range 10 {
		r.Await(relay.Up)
		relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10))
		require.NoError(t, proxy.Kill(t.Context()))
		r.Await(relay.Down)
		require.NoError(t, proxy.Start(t.Context()))
	}
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
}

// The URLs are tried in turn, from any of them on.
func TestSeveralURLs(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.URL = setting.URL{}
	nodes := map[string]*broker.Proxy{}
	for range 3 {
		proxy, err := broker.NewProxy(bounded(t), in.url)
		require.NoError(t, err)
		t.Cleanup(proxy.Close)
		nodes[address(t, proxy.URL())] = proxy
		c.URLs = append(c.URLs, setting.NewURL(proxy.URL()))
	}
	r := run(t, c)
	for len(nodes) > 0 {
		r.Await(relay.Up)
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
		connected := r.Log.FilterMessage("connected to the broker").All()
		at, _ := connected[len(connected)-1].ContextMap()["address"].(string)
		require.Contains(t, nodes, at, "one that is up")
		require.NoError(t, nodes[at].Kill(t.Context()))
		delete(nodes, at)
		r.Await(relay.Down)
	}
}
