package faults_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
)

// awayLong is how long a broker stays away.
const awayLong = 2 * time.Second

// requireAway checks what the API says while the broker is away, and that it says it at
// once; nothing is received or deleted meanwhile.
func (w *world) requireAway(reason string) {
	w.t.Helper()
	w.awaitWaiting(reason)
	w.awaitPollsEnded()
	received := w.requests(emulator.OpReceive)
	w.requireNoDeletes(awayLong)
	require.Equal(w.t, received, w.requests(emulator.OpReceive), "nothing is asked for while the sink is down")
	for _, path := range []string{"/livez", "/readyz"} {
		begun := time.Now()
		code, _, err := w.relay.Get(context.Background(), path)
		require.NoError(w.t, err)
		require.Equal(w.t, http.StatusOK, code, path)
		require.Less(w.t, time.Since(begun), time.Second, path)
	}
}

// awaitPollsEnded waits until no poll is under way: one that had just begun may still be
// answered.
func (w *world) awaitPollsEnded() {
	w.t.Helper()
	last, since := int64(-1), time.Now()
	eventually(w.t, patience, "no poll is under way", func() (bool, string) {
		if n := w.requests(emulator.OpReceive); n != last {
			last, since = n, time.Now()
		}
		waiting := w.stats("sms").Waiting
		return waiting == 0 && time.Since(since) > 400*time.Millisecond, fmt.Sprintf("%d polls, %d waiting", last, waiting)
	})
}

func TestBrokerKilledWithAWindowInFlight(t *testing.T) {
	t.Parallel()
	const messages, room = 3000, 256
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL(), nil)
	require.NoError(t, b.Sync(bounded(t)))
	w, way := single(t, in, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, nil, nil)
	atRest := w.needs()
	sent := w.sending(messages, 300, 1500)
	w.awaitDeleted(500)
	// A window that is published and not confirmed.
	way.hold()
	eventually(t, patience, "a window is in flight", func() (bool, string) {
		n := w.notary.inFlight()
		return n >= room/2, fmt.Sprintf("%d messages", n)
	})
	unconfirmed := w.notary.inFlight()
	require.NoError(t, b.Kill(bounded(t)))
	way.reset() // what was held is gone with the broker
	way.release()
	w.requireAway("connect")

	require.NoError(t, b.Start(bounded(t)))
	w.await("up", "")
	sent()
	duplicates := w.finishRested(atRest, in)
	require.LessOrEqual(t, duplicates, room, "at most what was in flight")
	t.Logf("%d messages in flight, %d duplicates", unconfirmed, duplicates)
}

func TestBrokerStoppedInOrder(t *testing.T) {
	t.Parallel()
	const messages = 3000
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL(), nil)
	w, _ := single(t, in, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, nil, nil)
	atRest := w.needs()
	sent := w.sending(messages, 300, 1500)
	w.awaitDeleted(500)
	require.NoError(t, b.Stop(bounded(t)))
	w.requireAway("")

	require.NoError(t, b.Start(bounded(t)))
	w.await("up", "")
	sent()
	// What the broker says last is read where nothing is written to it at that moment: the
	// kernel drops it otherwise.
	w.awaitDeleted(messages)
	require.NoError(t, b.Stop(bounded(t)))
	w.requireAway("")
	require.Contains(t, w.relay.Log(), "CONNECTION_FORCED", "the broker's own words")
	require.NoError(t, b.Start(bounded(t)))
	w.await("up", "")
	require.LessOrEqual(t, w.finishRested(atRest, in), 512, "at most what was in flight")
}

// writeDeadline is how long a write to a broker that does not read may take.
const writeDeadline = 5 * time.Second

// slack is what a loaded machine may add to a time.
const slack = 5 * time.Second

// A broker that no longer reads, with every buffer on the way full: the writes end, long
// before the heartbeat would have told, and what was in them is sent again.
func TestBrokerStalledWithAFullWindow(t *testing.T) {
	t.Parallel()
	const size, messages = 60 << 10, 700 // some 40 MiB: no kernel buffers as much
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL(), nil)
	w, way := single(t, in, emulator.QueueConfig{VisibilityTimeout: 20 * time.Second},
		[]string{"in_flight: {messages: 1024, bytes: 256MiB}"},
		[]string{"timeout: 60s", "heartbeat: 60s"}) // neither is what ends the writes
	// As many channels are open as will be needed: a channel that does not open would end
	// the connection as well.
	way.hold()
	w.send("sms", 2*messages, 300, 0)
	eventually(t, patience, "the room is full", func() (bool, string) {
		n := w.notary.inFlight()
		return n > messages+16, fmt.Sprintf("%d messages in flight", n)
	})
	way.release()
	w.awaitDeleted(2 * messages)
	atRest := w.needs()

	require.NoError(t, b.Pause())
	begun := time.Now()
	w.send("sms", messages, size, 0)
	w.awaitWaiting("")
	require.Less(t, time.Since(begun), writeDeadline+time.Second+slack, "a write to a broker that does not read ends with its deadline")
	eventually(t, patience, "what was on its way has failed", func() (bool, string) {
		failed := w.sinkStatus().Failed
		return failed["connection_lost"] > 0, fmt.Sprint(failed)
	})
	w.requireNoDeletes(time.Second)
	during := w.needs()
	require.Less(t, during.goroutines, atRest.goroutines+300, "goroutines")
	require.Less(t, during.memory, 400, "MiB at the most, of 256 MiB of room")

	require.NoError(t, b.Resume())
	w.await("up", "")
	w.finishRested(atRest, in)
}

func TestBrokerStalledWhileIdle(t *testing.T) {
	t.Parallel()
	const heartbeat = 2 * time.Second
	b := nodes.Borrow(t)
	in := newInbox(t, b.URL(), nil)
	w, _ := single(t, in, emulator.QueueConfig{}, nil, []string{"heartbeat: 2s", "connect_timeout: 2s"})
	w.send("sms", 16, 300, 0)
	w.awaitDeleted(16)
	require.NoError(t, b.Pause())
	begun := time.Now()
	w.awaitWaiting("")
	require.Less(t, time.Since(begun), heartbeat*3/2+slack, "a silent broker is found by the heartbeat")
	// A frozen broker takes connections, and says nothing on them.
	w.await("down", "no answer within 2s")
	w.send("sms", 100, 300, 0)
	w.requireNoDeletes(time.Second)
	require.EqualValues(t, 16, w.sourceStatus().Balance.Received, "nothing is received")
	require.NoError(t, b.Resume())
	w.await("up", "")
	require.Zero(t, w.finish(in))
}

func TestAlarmBlocksPublishers(t *testing.T) {
	t.Parallel()
	b := nodes.Borrow(t)
	ctl := func(args ...string) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			_, err := b.Ctl(bounded(t), args...)
			require.NoError(t, err)
		}
	}
	for name, alarm := range map[string]struct{ raise, clear func(*testing.T) }{
		"memory": {
			func(t *testing.T) { t.Helper(); require.NoError(t, b.Block(bounded(t))) },
			func(t *testing.T) { t.Helper(); require.NoError(t, b.Unblock(bounded(t))) },
		},
		"disk": {ctl("set_disk_free_limit", "100000GB"), ctl("set_disk_free_limit", "50MB")},
	} {
		t.Run(name, func(t *testing.T) {
			in := newInbox(t, b.URL(), nil)
			w, _ := single(t, in, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, nil, []string{"timeout: 3s"})
			w.send("sms", 100, 300, 0)
			w.awaitDeleted(100)
			alarm.raise(t)
			w.send("sms", 500, 300, 0) // the broker tells a connection when it publishes
			w.await("down", "the broker blocks publishers: low on "+name)
			w.requireAway("the broker blocks publishers: low on " + name)
			require.Less(t, w.sourceStatus().Balance.Received, uint64(100+256+1), "no more than there is room for was received")
			alarm.clear(t)
			w.await("up", "")
			w.finish(in)
		})
	}
}

// Confirms that are lost on the way while everything else passes: they time out, and the
// messages are sent again under their ids.
func TestConfirmsSwallowed(t *testing.T) {
	t.Parallel()
	const messages = 50
	in := newInbox(t, broker.URL(t), nil)
	w, way := single(t, in, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, nil, []string{"timeout: 1s"})
	w.send("sms", 16, 300, 0)
	w.awaitDeleted(16)
	atRest := w.needs()

	way.swallowConfirms(true)
	w.send("sms", messages, 300, 0)
	w.awaitFailed("confirm_timeout", 3*messages)
	w.requireNoDeletes(time.Second)
	require.Contains(t, w.relay.Log(), "not confirmed within 1s")
	require.NotContains(t, w.relay.Log(), "no connection to the broker", "the connection is left alone")
	published := w.notary.publishes() - 16
	require.LessOrEqual(t, published, 20*messages, "sent again no faster than confirms time out")

	way.swallowConfirms(false)
	duplicates := w.finishRested(atRest, in)
	require.Positive(t, duplicates, "the broker has what it confirmed in vain")
	require.LessOrEqual(t, duplicates, w.notary.publishes()-16-messages)
}

// finishRested is finish after the relay needs no more than before.
func (w *world) finishRested(before need, inboxes ...*inbox) (duplicates int) {
	w.t.Helper()
	eventually(w.t, patience, "every message is deleted", func() (bool, string) {
		s := w.stats("sms")
		return s.Active+s.Inactive+s.Delayed == 0, fmt.Sprintf("%+v; the relay says %s", s, w.states())
	})
	w.requireRest(before)
	now := w.needs()
	w.t.Logf("needs at rest: before %+v, after %+v", before, now)
	return w.finish(inboxes...)
}

// lines counts those of the relay's log that hold a text.
func (w *world) lines(text string) int { return strings.Count(w.relay.Log(), text) }
