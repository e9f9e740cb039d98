// Package chaos_test runs the built program through a random schedule of faults, between
// an emulated MNS and a real RabbitMQ with a proxy on either way, and a webhook. It then
// asks whether every message came to every sink it was routed to, how many came twice,
// and whether anything was left behind.
//
// The schedule comes from a seed, which is printed; -seed replays it. Faults of one lane
// happen one at a time, those of different lanes overlap. Without -minutes each fault
// happens once, as briefly as makes sense.
package chaos_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"mnsrelay/test/rig"
)

// binary is the program under test, built once.
var binary string

var (
	seedFlag     = flag.String("seed", "", "replay the schedule of this seed; empty: a new one")
	minutesFlag  = flag.Float64("minutes", 0, "how long messages are sent and faults happen; 0: the short form")
	logsFlag     = flag.String("logs", "", "keep the log of every relay in this folder")
	messagesFlag = flag.Int("messages", 0, "how many messages are sent; 0: 10000 a minute, 5000 in the short form")
)

const (
	shortSpan     = 30 * time.Second
	shortMessages = 5000
	perMinute     = 10_000

	// quietWithin is how long after the last fault every message has arrived: leases of
	// relays that were killed run out, redeliveries come due, a webhook is probed.
	quietWithin = 60 * time.Second
	// restWithin is how long after that what is pooled may take to be closed.
	restWithin = 30 * time.Second
	// pooled is how many idle connections a relay may keep: to MNS, those that are used
	// again for receives and deletes, and to Redis.
	pooled = 8 + 16
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(rig.BuildAndRun(m, &binary))
}

func TestChaos(t *testing.T) {
	seed := seed(t)
	short := *minutesFlag == 0
	span, messages := shortSpan, shortMessages
	if !short {
		span = time.Duration(*minutesFlag * float64(time.Minute))
		messages = int(*minutesFlag * perMinute)
	}
	if *messagesFlag > 0 {
		messages = *messagesFlag
	}
	// Where the relays remember confirms: each for itself, or all of them in one place.
	shared := seed%2 == 0
	t.Logf("seed %d: %d messages over %v, ledger in Redis: %t", seed, messages, span, shared)

	w := newWorld(t, shared)
	require.NoError(t, w.start(t.Context(), first))
	atRest := w.rest(t)
	r := w.happen(t, messages, span, plan(seed, span, short, busy, lanes(shared)), nil)
	w.requireArrived(t, r, messages, atRest)
}

// seed is what the schedule is made of.
func seed(t *testing.T) uint64 {
	t.Helper()
	if *seedFlag == "" {
		return rand.Uint64N(1_000_000)
	}
	seed, err := strconv.ParseUint(*seedFlag, 10, 64)
	require.NoError(t, err, "-seed")
	return seed
}

// happen sends messages over span while the plans come about, and does aside, if there is
// any, beside it. It returns when the faults are over and the queue is empty.
func (w *world) happen(t *testing.T, messages int, span time.Duration, plans [][]*event, aside func(ctx context.Context) error) *report {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), span+5*time.Minute, errors.New("the schedule did not end"))
	defer cancel()
	flight := w.sample(t)
	begun := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return w.send(ctx, messages, span) })
	for _, events := range plans {
		group.Go(func() error { return run(ctx, w, begun, events) })
	}
	if aside != nil {
		group.Go(func() error { return aside(ctx) })
	}
	err := group.Wait()
	r := newReport(begun, plans)
	t.Cleanup(func() { t.Log("\n" + r.String()) })
	require.NoError(t, err)

	// The faults are over.
	over := time.Now()
	w.await(t, quietWithin, "the queue is empty", func() (bool, string) {
		left := w.left()
		return left == 0, fmt.Sprintf("%d messages are left", left)
	})
	t.Logf("quiet %v after the last fault", time.Since(over).Round(10*time.Millisecond))
	r.flight = flight()
	return r
}

// requireArrived checks that every message came to every sink it was routed to, that copies
// have a cause and are few, and that the relays, which it ends, left nothing behind.
func (w *world) requireArrived(t *testing.T, r *report, messages int, atRest rest) {
	t.Helper()
	stats, _ := w.emulator.QueueStats(w.queue)
	require.EqualValues(t, messages, stats.Deleted)
	require.Zero(t, stats.Expired)

	w.requireRest(t, atRest)
	for place, relay := range w.places() {
		if relay != nil {
			require.NoError(t, w.end(t.Context(), place, syscall.SIGTERM))
		}
	}
	w.await(t, restWithin, "no connection is left at the broker", func() (bool, string) {
		connections := w.connections(t)
		return connections == 1, fmt.Sprintf("%d connections, one of them the test's", connections)
	})

	copies, err := w.inbox.read(t.Context())
	require.NoError(t, err)
	all := func(int) bool { return true }
	r.sinks = []*sinkReport{
		newSinkReport("events", messages, all, copies, &w.inbox.arrivals),
		newSinkReport("hook", messages, toHook, w.hook.copies(), &w.hook.arrivals),
	}
	r.attribute()
	for _, s := range r.sinks {
		require.Empty(t, s.lost, "lost at %s", s.name)
		require.Empty(t, s.unexpected, "unexpected at %s", s.name)
		require.LessOrEqual(t, s.duplicates, r.bound(), "duplicates at %s", s.name)
		require.Empty(t, s.causeless, "duplicates at %s without a fault", s.name)
	}
}

// rest is what a relay needs when there is nothing to do.
type rest struct{ goroutines, files int }

// rest waits until the only relay is ready and gives what it needs then.
func (w *world) rest(t *testing.T) (least rest) {
	t.Helper()
	w.await(t, restWithin, "the relay is ready", func() (bool, string) {
		code, body, err := w.living()[first].Get(t.Context(), "/readyz")
		return err == nil && code == 200, body
	})
	r, err := needs(t.Context(), w.living()[first])
	require.NoError(t, err)
	return r
}

func needs(ctx context.Context, r *rig.Relay) (rest, error) {
	goroutines, err := r.Metric(ctx, "go_goroutines")
	if err != nil {
		return rest{}, err
	}
	files, err := r.Files()
	return rest{goroutines: int(goroutines), files: files}, err
}

// requireRest checks that each living relay has accounted for every message and needs no
// more than at its start, once its idle connections to the webhook are closed.
func (w *world) requireRest(t *testing.T, atStart rest) {
	t.Helper()
	living := w.living()
	w.await(t, restWithin, "one connection a relay at the broker", func() (bool, string) {
		connections := w.connections(t)
		return connections == len(living)+1, fmt.Sprintf("%d connections, one of them the test's", connections)
	})
	for _, r := range living {
		w.await(t, restWithin, "nothing is in flight and the balance is exact", func() (bool, string) {
			status, err := r.Status(t.Context())
			if err != nil {
				return false, err.Error()
			}
			b := status.Sources[0].Balance
			return b.Exact && b.InFlight == 0 && b.Received > 0, fmt.Sprintf("%+v", b)
		})
		requireBalance(t, r)
		w.await(t, restWithin, "goroutines and files are as few as at the start", func() (bool, string) {
			w.hook.server.CloseClientConnections()
			now, err := needs(t.Context(), r)
			return err == nil && now.goroutines <= atStart.goroutines && now.files <= atStart.files+pooled,
				fmt.Sprintf("%+v, at the start %+v, error %v", now, atStart, err)
		})
	}
}

// requireBalance checks that the metrics of a relay at rest account for every message.
func requireBalance(t *testing.T, r *rig.Relay) {
	t.Helper()
	balance := make(map[string]float64)
	for _, name := range []string{"messages_received_total", "messages_deleted_total", "messages_lost_leases_total", "in_flight_messages"} {
		var err error
		balance[name], err = r.Metric(t.Context(), "mnsrelay_"+name)
		require.NoError(t, err)
	}
	// One that was never returned has no reason to be counted under.
	returned, _ := r.Metric(t.Context(), "mnsrelay_messages_returned_total")
	require.InDelta(t, balance["messages_received_total"], balance["messages_deleted_total"]+returned+balance["messages_lost_leases_total"], 0, "%v, returned %v", balance, returned)
	require.Zero(t, balance["in_flight_messages"])
}

// connections counts those at the broker.
func (w *world) connections(t *testing.T) int {
	t.Helper()
	listed, err := w.node.Ctl(t.Context(), "list_connections", "--no-table-headers", "pid")
	require.NoError(t, err)
	return len(strings.Fields(listed))
}

// await waits until check is true; what it says otherwise explains the failure.
func (w *world) await(t *testing.T, within time.Duration, what string, check func() (bool, string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		ok, state := check()
		if ok {
			return
		}
		if pause(ctx, 50*time.Millisecond) != nil {
			require.Failf(t, what, "not within %v: %s\n%s", within, state, w.states(t))
		}
	}
}

// states is what the relays say of themselves.
func (w *world) states(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, r := range w.living() {
		_, body, err := r.Get(t.Context(), "/api/v1/status")
		fmt.Fprintln(&b, body, err)
	}
	return b.String()
}
