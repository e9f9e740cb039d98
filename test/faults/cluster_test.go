package faults_test

import (
	"flag"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
)

var (
	messagesFlag = flag.Int("messages", 5000, "TestCluster/RestartsInTurn: how many messages are sent")
	rateFlag     = flag.Int("rate", 1000, "TestCluster/RestartsInTurn: how many of them a second")
	everyFlag    = flag.Duration("every", 4*time.Second, "TestCluster/RestartsInTurn: how long after one restart of a node the next one begins")
)

// failover is the longest time that a cluster may confirm nothing when it loses one of three
// nodes, on a busy machine.
const failover = 25 * time.Second

// TestCluster is about a quorum queue on three nodes. Its parts have the nodes one after the
// other.
func TestCluster(t *testing.T) {
	t.Parallel()
	nodes := broker.PrivateCluster(t, broker.Config{}, 3)
	for name, part := range map[string]func(*testing.T, *broker.Cluster){
		"LeaderOfAQuorumQueueKilled": leaderKilled,
		"MinorityPartition":          minorityPartition,
		"RestartsInTurn":             restartsInTurn,
	} {
		t.Run(name, func(t *testing.T) {
			part(t, nodes)
			require.NoError(t, nodes.Await(bounded(t)))
		})
	}
}

// clustered is a world whose sink knows all nodes, each at the end of a wire, and has a
// quorum queue.
func clustered(t *testing.T, c *broker.Cluster) (*world, *inbox, []*wire) {
	t.Helper()
	in := newInbox(t, c.Nodes()[0].URL(), amqp.Table{"x-queue-type": "quorum"})
	w := newWorld(t, emulator.QueueConfig{VisibilityTimeout: 20 * time.Second})
	var ways []*wire
	var urls []string
	for _, n := range c.Nodes() {
		way := newWire(t, w.notary, n.URL())
		ways, urls = append(ways, way), append(urls, way.url)
	}
	w.start(w.source("sms", "events"), sink("events", in, "urls: ["+strings.Join(urls, ", ")+"]", "timeout: 5s", "connect_timeout: 3s"))
	w.await("up", "")
	return w, in, ways
}

// flow sends at a rate until it is told to stop.
func (w *world) flow(rate int) (stop func()) {
	done := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		ticker := time.NewTicker(100 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				w.send("sms", rate/10, 300, 0)
			case <-done:
				return
			}
		}
	})
	stop = sync.OnceFunc(func() { close(done); sending.Wait() })
	w.t.Cleanup(stop)
	return stop
}

// awaitConfirms waits until so many messages more are confirmed than now.
func (w *world) awaitConfirms(more int) {
	w.t.Helper()
	until := w.notary.confirms() + more
	eventually(w.t, patience, fmt.Sprintf("%d messages more are confirmed", more), func() (bool, string) {
		n := w.notary.confirms()
		return n >= until, fmt.Sprintf("%d are, of %d; the relay says %s", n, until, w.states())
	})
}

// The node that leads the queue dies, is there again, and the next leader goes.
func leaderKilled(t *testing.T, c *broker.Cluster) {
	t.Helper()
	w, in, _ := clustered(t, c)
	atRest := w.needs()
	stop := w.flow(400)
	for i, end := range []func(*broker.Node) error{
		func(n *broker.Node) error { return n.Kill(bounded(t)) },
		func(n *broker.Node) error { return n.Stop(bounded(t)) },
	} {
		w.awaitConfirms(500)
		w.notary.longestGap()
		leader, err := c.Leader(bounded(t), in.name, c.Nodes()[i])
		require.NoError(t, err)
		require.NotNil(t, leader)
		require.NoError(t, end(leader))
		w.awaitConfirms(1000)
		gap := w.notary.longestGap()
		t.Logf("nothing was confirmed for %v", gap.Round(time.Millisecond))
		require.Less(t, gap, failover)
		require.NoError(t, leader.Start(bounded(t)))
		require.NoError(t, c.Await(bounded(t)))
	}
	stop()
	t.Logf("%d duplicates of %d messages", w.finishRested(atRest, in), len(w.sent))
}

// The node that the relay is connected to is cut off the others: what it still takes it does
// not confirm. Then two of the three freeze, and nothing is confirmed at all.
func minorityPartition(t *testing.T, c *broker.Cluster) {
	t.Helper()
	w, in, ways := clustered(t, c)
	atRest := w.needs()
	connected := func() int {
		for i, way := range ways {
			if way.connected() {
				return i
			}
		}
		return -1
	}
	stop := w.flow(400)
	w.awaitConfirms(500)
	alone := connected()
	require.NotEqual(t, -1, alone)
	w.notary.longestGap()
	require.NoError(t, c.Cut(bounded(t), c.Nodes()[alone]))
	eventually(t, patience, "the relay goes to the majority", func() (bool, string) {
		at := connected()
		return at >= 0 && at != alone && w.sinkStatus().State == "up", fmt.Sprintf("connected to %d, was to %d", at, alone)
	})
	w.awaitConfirms(1000)
	gap := w.notary.longestGap()
	t.Logf("nothing was confirmed for %v", gap.Round(time.Millisecond))
	require.Less(t, gap, failover)
	require.NoError(t, c.Heal(bounded(t), c.Nodes()[alone]))
	require.NoError(t, c.Await(bounded(t)))

	w.awaitConfirms(500)
	present := connected()
	require.NotEqual(t, -1, present)
	for i, n := range c.Nodes() {
		if i != present {
			require.NoError(t, n.Pause())
		}
	}
	last, since := -1, time.Now()
	eventually(t, patience, "nothing is confirmed any more", func() (bool, string) {
		if n := w.notary.confirms(); n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > time.Second, fmt.Sprintf("%d are", last)
	})
	w.await("down", "") // its node has noticed
	w.requireNoDeletes(3 * time.Second)
	for i, n := range c.Nodes() {
		if i != present {
			require.NoError(t, n.Resume())
		}
	}
	w.await("up", "")
	stop()
	t.Logf("%d duplicates of %d messages", w.finishRested(atRest, in), len(w.sent))
}

// Messages at a rate while the nodes are restarted in turn, killed and stopped by turns. It
// is as long as its flags say; in make test it has one restart.
func restartsInTurn(t *testing.T, c *broker.Cluster) {
	t.Helper()
	w, in, _ := clustered(t, c)
	atRest := w.needs()
	begun := time.Now()
	sent := w.sending(*messagesFlag, 300, *rateFlag)
	w.awaitConfirms(*rateFlag / 2)
	w.notary.longestGap()
	span := time.Duration(*messagesFlag) * time.Second / time.Duration(*rateFlag)
	restarts := 0
	for at := *everyFlag / 2; at < span || restarts == 0; at += *everyFlag {
		pause(t, time.Until(begun.Add(at)))
		n := c.Nodes()[restarts%len(c.Nodes())]
		end := n.Kill
		if restarts%2 == 1 {
			end = n.Stop
		}
		require.NoError(t, end(bounded(t)))
		require.NoError(t, n.Start(bounded(t)))
		require.NoError(t, c.Await(bounded(t)), "one node at a time is away")
		restarts++
	}
	sent()
	eventually(t, patience, "every message is deleted", func() (bool, string) {
		s := w.stats("sms")
		return s.Active+s.Inactive == 0, fmt.Sprintf("%+v; the relay says %s", s, w.states())
	})
	took := time.Since(begun)
	gap := w.notary.longestGap()
	needs := w.needs()
	duplicates := w.finishRested(atRest, in)

	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"sent", fmt.Sprintf("%d, %d a second", len(w.sent), *rateFlag)},
		{"took", took.Round(100 * time.Millisecond).String()},
		{"restarts of a node", strconv.Itoa(restarts)},
		{"confirmed", strconv.Itoa(w.notary.confirms())},
		{"lost", "0"},
		{"duplicates", strconv.Itoa(duplicates)},
		{"longest time without a confirm", gap.Round(10 * time.Millisecond).String()},
		{"memory, goroutines, files", fmt.Sprintf("%d MiB, %d, %d", needs.memory, needs.goroutines, needs.files)},
	} {
		_, err := fmt.Fprintf(table, "%s\t%s\n", row[0], row[1])
		require.NoError(t, err)
	}
	require.NoError(t, table.Flush())
	t.Log("\n" + b.String())
	require.Equal(t, *messagesFlag, w.notary.confirms())
	require.Less(t, gap, failover)
	require.LessOrEqual(t, duplicates, restarts*2*512, "what was in flight at a restart, as the relay finds another node and comes back")
}
