package amqp091_test

import (
	"strconv"
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

// What the client library alone does wrong, each beside the sink, which has the same done to
// it. That a broker which stops reading blocks the library for ever is in TestStalledBroker.

// bare is a channel of the library's in confirm mode, and its connection.
func bare(t *testing.T, url string, config amqp.Config) (*amqp.Connection, *amqp.Channel) {
	t.Helper()
	conn, err := amqp.DialConfig(url, config)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) })
	ch, err := conn.Channel()
	require.NoError(t, err)
	require.NoError(t, ch.Confirm(false))
	return conn, ch
}

func publish(t *testing.T, ch *amqp.Channel, exchange, id string) *amqp.DeferredConfirmation {
	t.Helper()
	confirm, err := ch.PublishWithDeferredConfirm(exchange, routingKey, true, false, amqp.Publishing{MessageId: id, Body: []byte("x")})
	require.NoError(t, err)
	return confirm
}

// unbound is an inbox whose exchange leads nowhere.
func unbound(t *testing.T) *inbox {
	t.Helper()
	in := newInbox(t, broker.URL(t))
	in.with(func(ch *amqp.Channel) { require.NoError(t, ch.QueueUnbind(in.queue, "#", in.exchange, nil)) })
	return in
}

// Returns that a goroutine takes from their channel are not there yet when the confirm is:
// the library alone takes unroutable messages for delivered.
func TestReturnsReadInAGoroutineComeTooLate(t *testing.T) {
	const messages, window = 10_000, 256
	in := unbound(t)
	conn, ch := bare(t, in.url, amqp.Config{})
	var (
		mu       sync.Mutex
		returned = map[string]bool{}
		reading  sync.WaitGroup
	)
	returns := ch.NotifyReturn(make(chan amqp.Return, window))
	reading.Go(func() {
		for r := range returns {
			mu.Lock()
			returned[r.MessageId] = true
			mu.Unlock()
		}
	})
	looksDelivered := 0
	for at := 0; at < messages; at += window {
		var confirms []*amqp.DeferredConfirmation
		for i := range window {
			confirms = append(confirms, publish(t, ch, in.exchange, strconv.Itoa(at+i)))
		}
		for i, confirm := range confirms {
			require.True(t, confirm.Wait(), "the broker confirms what it gave back")
			mu.Lock()
			if !returned[strconv.Itoa(at+i)] {
				looksDelivered++
			}
			mu.Unlock()
		}
	}
	require.NoError(t, conn.Close())
	reading.Wait()
	t.Logf("the library alone: %d of %d unroutable messages looked delivered", looksDelivered, messages)
	require.Positive(t, looksDelivered, "a goroutine would do")

	r := run(t, in.config())
	r.Await(relay.Up)
	for range messages / 1000 {
		for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1000, 1)) {
			relaytest.RequireReason(t, "unroutable", result)
		}
	}
}

// The library drops a return that finds no room in our channel within five seconds; the
// confirm comes all the same.
func TestReturnsWithoutRoomAreDropped(t *testing.T) {
	t.Parallel()
	in := unbound(t)
	_, ch := bare(t, in.url, amqp.Config{})
	returns := ch.NotifyReturn(make(chan amqp.Return, 1))
	first, second := publish(t, ch, in.exchange, "first"), publish(t, ch, in.exchange, "second")
	require.True(t, first.Wait())
	require.True(t, second.Wait())
	require.Equal(t, "first", (<-returns).MessageId)
	select {
	case r := <-returns:
		require.Fail(t, "the return was not dropped", r.MessageId)
	default:
	}

	// Of more messages than any channel of the sink has room for, on one connection.
	r := run(t, in.config())
	r.Await(relay.Up)
	for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 3000, 1)) {
		relaytest.RequireReason(t, "unroutable", result)
	}
}

// The library's own recovery keeps the confirms of a broken connection waiting for as long
// as the broker is away, and never tells those who listen for confirms of them.
func TestRecoveryLosesConfirms(t *testing.T) {
	const messages = 256
	in := newInbox(t, broker.URL(t))
	proxy, err := broker.NewProxy(bounded(t), in.url)
	require.NoError(t, err)
	t.Cleanup(proxy.Close)
	conn, ch := bare(t, proxy.URL(), amqp.Config{Recovery: &amqp.Recovery{
		ReconnectionConfig: &amqp.ReconnectionConfig{MaxRetryCount: 1000, RetryInterval: 50 * time.Millisecond},
	}})
	states := make(chan *amqp.StateChanged, 16)
	conn.NotifyStateChange(states)
	told := ch.NotifyPublish(make(chan amqp.Confirmation, 2*messages))
	c := in.config()
	c.URL, c.Timeout = setting.NewURL(proxy.URL()), time.Minute
	r := run(t, c)
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("warm", messages, 1)))

	require.NoError(t, proxy.Pause())
	var confirms []*amqp.DeferredConfirmation
	for i := range messages {
		confirms = append(confirms, publish(t, ch, in.exchange, strconv.Itoa(i)))
	}
	results := make(chan []relay.Result, 1)
	go func() { results <- relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", messages, 1)) }()
	written := time.NewTimer(200 * time.Millisecond)
	<-written.C
	require.NoError(t, proxy.Kill(t.Context()))
	require.NoError(t, proxy.Resume())

	// The sink says at once of each message that nobody knows.
	answered := time.NewTimer(patience)
	defer answered.Stop()
	select {
	case all := <-results:
		for _, result := range all {
			relaytest.RequireReason(t, "connection_lost", result)
		}
	case <-answered.C:
		require.Fail(t, "the sink does not answer")
	}
	away := time.NewTimer(2 * time.Second) // forty tries
	<-away.C
	for i, confirm := range confirms {
		select {
		case <-confirm.Done():
			require.Fail(t, "the library's recovery resolves confirms while there is no connection", "message %d", i)
		default:
		}
	}

	// Back again, the sink has delivered them all, and the library has told nothing of those
	// that it had written.
	require.NoError(t, proxy.Start(t.Context()))
	r.Await(relay.Up)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", messages, 1)))
	recovered := time.NewTimer(patience)
	defer recovered.Stop()
	for open := false; !open; {
		select {
		case state := <-states:
			open = state.To == amqp.StateOpen
		case <-recovered.C:
			require.Fail(t, "the library does not recover")
		}
	}
	require.Empty(t, told, "of %d messages the library said nothing", messages)
}
