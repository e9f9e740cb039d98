package faults_test

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
)

// An exchange that one route publishes to and that does not exist: that route fails and says
// why, the other keeps its throughput. Only a publish finds out, and the broker closes the
// channel over it. The broker is far, so that what limits the throughput is the room of the
// source by the time to a confirm, which is the same in each window, and not the machine. Not
// parallel, since it measures.
func TestExchangeMissingForOneRoute(t *testing.T) {
	const (
		window   = 3 * time.Second // long beside the 48 messages that may be deleted together
		pairs    = 6               // of windows
		kept     = .95             // of the throughput
		reserve  = 3000
		troubled = 20
	)
	good := newInbox(t, broker.URL(t), nil, "good")
	missing := newInbox(t, broker.URL(t), nil, "missing")
	missing.with(func(ch *amqp.Channel) { require.NoError(t, ch.ExchangeDelete(missing.name, false, false)) })
	w := newWorld(t, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, "sms", "other")
	upstream, err := url.Parse(good.url)
	require.NoError(t, err)
	far := newProxy(t, upstream.Host)
	_, err = far.Toxics.AddToxicJson(strings.NewReader(`{"type": "latency", "stream": "downstream", "attributes": {"latency": 60}}`))
	require.NoError(t, err)
	upstream.Host = far.Listen
	way := newWire(t, w.notary, upstream.String())
	w.start(w.source("sms", "events", "in_flight: {messages: 48}", "pollers: {max: 1}")+
		w.source("other", `[{sink: events, with: {exchange: {name: `+missing.name+`, declare: none}}}]`, "paused: true"),
		sink("events", good, "url: "+way.url))
	w.await("up", "")
	w.send("other", troubled, 300, 0)

	throughput := func() float64 {
		if left := w.stats("sms"); left.Active < reserve {
			w.send("sms", reserve, 300, 0)
		}
		before, begun := w.deleted(), time.Now()
		pause(t, window)
		return float64(w.deleted()-before) / time.Since(begun).Seconds()
	}
	toggle := func(what string) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, w.relay.URL()+"/api/v1/sources/other/"+what, http.NoBody)
		require.NoError(t, err)
		request.Header.Set("Authorization", "Bearer token")
		response, err := (&http.Client{Timeout: 10 * time.Second}).Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, http.StatusOK, response.StatusCode/100*100)
	}
	w.send("sms", 2*reserve, 300, 0)
	w.awaitDeleted(1000)
	var calm, trouble []float64
	median := func(of []float64) float64 {
		sorted := slices.Sorted(slices.Values(of))
		return sorted[len(sorted)/2]
	}
	for range pairs {
		calm = append(calm, throughput())
		before := w.sinkStatus().Failed["exchange_missing"]
		toggle("resume")
		trouble = append(trouble, throughput())
		require.Greater(t, w.sinkStatus().Failed["exchange_missing"], before, "the other route was in trouble meanwhile")
		toggle("pause")
	}
	t.Logf("messages a second: %.0f without the route that fails, %.0f beside it", calm, trouble)
	require.GreaterOrEqual(t, median(trouble), kept*median(calm), "of %.0f messages a second", median(calm))
	toggle("resume")
	w.awaitFailed("exchange_missing", troubled)
	require.Equal(t, api.SinkStateUp, w.sinkStatus().State, "the other route works")
	require.Contains(t, w.relay.Log(), fmt.Sprintf(`exchange \"%s\" does not exist`, missing.name))
	require.Zero(t, w.stats("other").Deleted)
	require.Equal(t, 1, w.lines("connected to the broker"), "the connection that the routes share is left alone")

	missing.make()
	w.finish(good, missing)
}

// Many messages at once that no queue would get: each is given back before it is confirmed,
// and none of the confirms counts.
func TestUnroutableBurst(t *testing.T) {
	t.Parallel()
	const messages = 10_000
	in := newInbox(t, broker.URL(t), nil)
	in.unbind()
	w, _ := single(t, in, emulator.QueueConfig{VisibilityTimeout: 30 * time.Second}, nil, nil)
	atRest := w.needs()
	w.send("sms", messages, 300, 0)
	w.awaitFailed("unroutable", messages)
	require.GreaterOrEqual(t, w.stats("sms").Received, int64(messages))
	require.Zero(t, w.deleted())
	require.Equal(t, api.SinkStateUp, w.sinkStatus().State)
	require.Contains(t, w.relay.Log(), "no queue is bound for it")
	require.Less(t, w.needs().memory, 200, "MiB at the most")

	in.make()
	require.Zero(t, w.finishRested(atRest, in), "what was given back is not in the queue")
}

// A queue that takes no more: what it refuses stays in MNS and is tried later and later.
func TestQueueFullRejectPublish(t *testing.T) {
	t.Parallel()
	const room, messages = 50, 500
	for name, arguments := range map[string]amqp.Table{
		"classic": {"x-max-length": room, "x-overflow": "reject-publish"},
		"quorum":  {"x-max-length": room, "x-overflow": "reject-publish", "x-queue-type": "quorum"},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInbox(t, broker.URL(t), arguments)
			w, _ := single(t, in, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, nil, nil)
			// Full before the rest comes: a quorum queue takes more for a while.
			eventually(t, patience, "the queue is full", func() (bool, string) {
				w.send("sms", 16, 300, 0)
				pause(t, 100*time.Millisecond)
				return w.sinkStatus().Failed["nack"] > 0, fmt.Sprintf("%d are in it", w.deleted())
			})
			w.send("sms", messages, 300, 0)
			w.awaitFailed("nack", messages-room)
			require.Less(t, w.deleted(), messages, "no more is deleted than fits, and a little")
			published, begun := w.notary.publishes(), time.Now()
			w.requireNoDeletes(2 * time.Second)
			rate := float64(w.notary.publishes()-published) / time.Since(begun).Seconds()
			require.Less(t, rate, float64(messages), "tries a second: each message waits for a second at least, and longer each time")
			require.Equal(t, api.SinkStateUp, w.sinkStatus().State)

			// Room is made now and then.
			eventually(t, patience, "every message has arrived", func() (bool, string) {
				in.read()
				s := w.stats("sms")
				return s.Active+s.Inactive == 0, fmt.Sprintf("%+v, %d have", s, len(in.copies))
			})
			require.Zero(t, w.finish(in), "what was refused is not in the queue")
		})
	}
}

// The binding goes while messages flow, and comes back.
func TestBindingRemovedAndMadeAgain(t *testing.T) {
	t.Parallel()
	const messages = 3000
	in := newInbox(t, broker.URL(t), nil)
	w, _ := single(t, in, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, nil, nil)
	sent := w.sending(messages, 300, 1000)
	w.awaitDeleted(500)
	in.unbind()
	w.awaitFailed("unroutable", 200)
	w.requireNoDeletes(time.Second)
	require.Contains(t, w.relay.Log(), "no queue is bound for it")
	in.make()
	sent()
	require.Zero(t, w.finish(in))
}

// The queue goes with what is in it while messages flow, and is made again. What it held is
// lost, by whoever deleted it; but nothing else is.
func TestQueueDeletedAndMadeAgain(t *testing.T) {
	t.Parallel()
	const messages = 3000
	in := newInbox(t, broker.URL(t), nil)
	w, _ := single(t, in, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, nil, nil)
	sent := w.sending(messages, 300, 1000)
	w.awaitDeleted(500)
	in.with(func(ch *amqp.Channel) {
		_, err := ch.QueueDelete(in.name, false, false, false)
		require.NoError(t, err)
	})
	w.awaitFailed("unroutable", 200)
	w.requireNoDeletes(time.Second)
	held := make(map[string]bool) // what the broker had confirmed before it has another queue
	for id := range w.sentSoFar() {
		held[id] = w.notary.isConfirmed(id)
	}
	in.make()
	sent()
	eventually(t, patience, "every message is deleted", func() (bool, string) {
		s := w.stats("sms")
		return s.Active+s.Inactive == 0, fmt.Sprintf("%+v", s)
	})
	in.read()
	gone := 0
	for id := range w.sentSoFar() {
		if in.copies[id] > 0 {
			require.False(t, held[id], "message %s was sent again though it was confirmed", id)
			continue
		}
		require.True(t, held[id], "message %s is lost, and the queue that was deleted never had it", id)
		gone++
		w.forget(id)
	}
	t.Logf("%d of %d messages were in the queue that was deleted", gone, messages)
	require.Zero(t, w.finish(in))
}

// sentSoFar is a copy of what was sent.
func (w *world) sentSoFar() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.sent)
}

// forget takes a message for not sent.
func (w *world) forget(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.sent, id)
}
