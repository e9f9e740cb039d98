package amqp10_test

import (
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/test/amqppeer"
)

// A message whose time ends while it is written is written to its end: half of one would
// make the broker end the connection over the next one, with all that is under way on it.
func TestAMessageThatRunsOutOfTimeHarmsNoOther(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "accept")
		c.Timeout = 300 * time.Millisecond
		r := run(t, c)
		r.Await(relay.Up)
		for round := range 4 {
			p.Pause() // what fits into the buffers of TCP is written, and no more
			large := relaytest.Messages(fmt.Sprint("large", round), 1, 12_000_000)
			require.Equal(t, relay.Retry, relaytest.Deliver(t.Context(), t, r.Sink, large)[0].Outcome)
			p.Resume()
			requireDeliversAgain(t, r, relaytest.Messages(fmt.Sprint("small", round), 16, 1000))
			require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len(), "the connection stood: %s", r.Logged())
		}
	})
}

// requireDeliversAgain delivers messages again, as the queue would, until all have arrived.
func requireDeliversAgain(t *testing.T, r *relaytest.Running, ms []relay.Message) {
	t.Helper()
	require.Eventually(t, func() bool {
		var left []relay.Message
		for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
			if result.Outcome != relay.Delivered {
				require.Equal(t, relay.Retry, result.Outcome, "%v", result.Err)
				left = append(left, ms[i])
			}
		}
		ms = left
		return len(ms) == 0
	}, patience, 20*time.Millisecond)
}

// Some brokers end a link that has been idle. The next message finds that out before it is
// written, and goes over a new one: that is no failed try.
func TestALinkThatTheBrokerEndedWhileIdle(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		r := run(t, config(p, "idle"))
		r.Await(relay.Up)
		for round := range 10 {
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages(strconv.Itoa(round), 1, 10)))
			require.Eventually(t, func() bool { return p.Detached("idle") > round }, patience, time.Millisecond)
			health, _ := r.Endpoint.Health()
			require.Equal(t, relay.Up, health.State, health.Reason)
		}
		require.Len(t, p.Messages(), 10, "each was sent once")
		require.NotContains(t, r.Logged(), "cannot be used")
	})
}

// A broker gets no more messages than it has granted credit for. The others wait for their
// time, and what waits for them does not pile up.
func TestCreditIsKept(t *testing.T) {
	eachAlone(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "credit.40")
		c.Timeout = 4 * time.Second // plenty for 40 messages on a busy machine
		r := run(t, c)
		r.Await(relay.Up)
		before := runtime.NumGoroutine()
		var (
			work      sync.WaitGroup
			delivered atomic.Int32
			mu        sync.Mutex
			others    = map[string]int{} // results by reason
		)
		for n := range 16 {
			work.Go(func() {
				began := time.Now()
				for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages(strconv.Itoa(n), 16, 100)) {
					if result.Outcome == relay.Delivered {
						delivered.Add(1)
						continue
					}
					reason := relay.ReasonOf(result.Err)
					if reason != "no_credit" && reason != "outcome_timeout" {
						t.Errorf("%v: %v", result.Outcome, result.Err)
					}
					mu.Lock()
					others[reason]++
					mu.Unlock()
				}
				if took := time.Since(began); took > 2*c.Timeout {
					t.Errorf("Deliver took %v", took)
				}
			})
		}
		most := 0
		for range 20 { // while they wait
			most = max(most, runtime.NumGoroutine()-before)
			pause := time.NewTimer(10 * time.Millisecond)
			<-pause.C
		}
		work.Wait()
		require.EqualValues(t, 40, delivered.Load(), "and %v; the peer saw %d over %d links", others, len(p.Messages()), p.Attached("credit.40"))
		require.Len(t, p.Messages(), 40, "one for each credit")
		require.Equal(t, 1, p.Attached("credit.40"), "what runs out of time takes no link from the others")
		require.Less(t, most, 16*4+40, "a few for each Deliver, one for each message under way, and none for what waits")
		require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+3 }, patience, 10*time.Millisecond, "goroutines that are left")
	})
}
