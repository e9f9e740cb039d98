package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
	"mnsrelay/test/redisserver"
)

// A relay that is killed a hundred times, at any moment of its life, loses nothing: what
// was not deleted comes again.
func TestKilledAtAHundredRandomMomentsNothingIsLost(t *testing.T) {
	t.Parallel()
	const kills, room = 100, 64
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 2 * time.Second})
	b := newInbox(t, broker.URL(t))
	b.start()
	path := filepath.Join(t.TempDir(), "mnsrelay.yaml")
	configuration := toRabbitMQ(url, queue, b, fmt.Sprintf("    in_flight: {messages: %d}", room))
	require.NoError(t, os.WriteFile(path, []byte("server: {listen: 127.0.0.1:0}\n"+configuration), 0o600))
	var sent map[string]string
	var sending sync.WaitGroup
	sending.Go(func() { sent = send(t, server, queue, 10_000, 400) })

	working := 0
	for range kills {
		before, _ := server.QueueStats(queue)
		r := runRelay(t, path)
		life := time.NewTimer(20*time.Millisecond + rand.N(300*time.Millisecond))
		<-life.C
		require.Equal(t, -1, r.end(syscall.SIGKILL))
		if after, _ := server.QueueStats(queue); after.Received > before.Received {
			working++
		}
	}
	require.Greater(t, working, kills/4, "killed while it was at work, often enough")

	r := runRelay(t, path)
	sending.Wait()
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	_, duplicates := b.counts()
	t.Logf("%d of %d kills hit a relay at work: %d duplicates of %d messages", working, kills, duplicates, len(sent))
	require.LessOrEqual(t, duplicates, working*room, "at most what was in flight at each kill")
	require.True(t, r.source().Balance.Exact)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A relay that gets no processor time for longer than its leases last, as one does that is
// throttled, goes on with receipts that are dead: others may have the messages by then.
func TestAFrozenRelayLosesNothing(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 2 * time.Second})
	b := newInbox(t, broker.URL(t))
	b.start()
	r := startRelay(t, toRabbitMQ(url, queue, b, "    in_flight: {messages: 64}"))
	var sent map[string]string
	var sending sync.WaitGroup
	sending.Go(func() { sent = send(t, server, queue, 6000, 400) })
	for _, frozen := range []time.Duration{300 * time.Millisecond, 2500 * time.Millisecond, 100 * time.Millisecond, 4 * time.Second} {
		deleted := r.source().Balance.Deleted
		eventually(t, 20*time.Second, "messages flow", func() bool { return r.source().Balance.Deleted > deleted+50 })
		require.NoError(t, r.Signal(syscall.SIGSTOP))
		pause := time.NewTimer(frozen)
		<-pause.C
		require.NoError(t, r.Signal(syscall.SIGCONT))
	}
	sending.Wait()
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	_, duplicates := b.counts()
	require.LessOrEqual(t, duplicates, 4*64, "at most what was in flight each time")
	require.True(t, r.source().Balance.Exact)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// Two replicas are replaced one after the other, as a deployment does: nothing is lost, and
// nothing comes twice, for each finishes what it has begun.
func TestARollingUpdateOfTwoReplicas(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	b := newInbox(t, broker.URL(t))
	b.start()
	configuration := toRabbitMQ(url, queue, b, "")
	replicas := []*relay{startRelay(t, configuration), startRelay(t, configuration)}
	var sent map[string]string
	var sending sync.WaitGroup
	sending.Go(func() { sent = send(t, server, queue, 4000, 500) })
	for i := range replicas {
		eventually(t, 20*time.Second, "both are at work", func() bool {
			return replicas[0].source().Balance.Deleted > 50 && replicas[1].source().Balance.Deleted > 50
		})
		next := startRelay(t, configuration)
		eventually(t, 20*time.Second, "the new one is ready", func() bool { code, _ := next.get("/readyz"); return code == http.StatusOK })
		require.Zero(t, replicas[i].end(syscall.SIGTERM))
		replicas[i] = next
	}
	sending.Wait()
	eventually(t, 40*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	_, duplicates := b.counts()
	require.Zero(t, duplicates)
	for _, r := range replicas {
		require.Zero(t, r.end(syscall.SIGTERM))
	}
}

// keptByRedis counts what the ledger remembers.
func keptByRedis(t *testing.T, url string) int {
	t.Helper()
	options, err := redis.ParseURL(url)
	require.NoError(t, err)
	client := redis.NewClient(options)
	defer func() { _ = client.Close() }()
	n, err := client.DBSize(t.Context()).Result()
	require.NoError(t, err)
	return int(n)
}

// What one sink of a fan-out has confirmed is known to every replica: a message that
// another sink refuses is tried there alone, whoever receives it next, and however the
// first one ended. Not parallel: the ledger has a quarter of a second for each answer.
func TestFanOutOverReplicasTriesOnlyTheSinkThatFails(t *testing.T) {
	const messages = 500
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 3 * time.Second})
	kept := redisserver.Start(t, redisserver.Config{})
	b := newInbox(t, broker.URL(t))
	b.start()
	// An exchange that no queue is bound to gives every message back.
	late := newInbox(t, broker.URL(t), "late")
	late.with(func(ch *amqp.Channel) { require.NoError(t, ch.QueueUnbind(late.exchange, "#", late.exchange, nil)) })
	configuration := strings.Replace(toRabbitMQ(url, queue, b, "    redelivery: {initial: 1s, max: 2s}"), "to: events", "to: [events, late]", 1) +
		fmt.Sprintf("  late: {type: amqp091, url: %q, exchange: %s, routing_key: sms.report}\nledger: {type: redis, url: %q}\n", late.url, late.exchange, kept.URL())
	replicas := []*relay{startRelay(t, configuration), startRelay(t, configuration)}
	sent := send(t, server, queue, messages, 0)
	eventually(t, 60*time.Second, "every message has come to the one, and is known to have", func() bool {
		n, _ := b.counts()
		return n == messages && keptByRedis(t, kept.URL()) == messages
	})
	require.Equal(t, messages, left(t, server, queue))
	require.Equal(t, -1, replicas[0].end(syscall.SIGKILL))
	late.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.QueueBind(late.exchange, "#", late.exchange, false, nil))
	})
	late.start()
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	for _, inbox := range []*inbox{b, late} {
		eventually(t, 10*time.Second, "every message is consumed", func() bool { n, _ := inbox.counts(); return n == messages })
		inbox.requireAll(sent)
		_, duplicates := inbox.counts()
		require.Zero(t, duplicates)
	}
	require.Zero(t, keptByRedis(t, kept.URL()), "what is deleted is forgotten")
	require.Zero(t, replicas[1].end(syscall.SIGTERM))
}

// The API answers at once while the broker hangs with a full window in flight, tells the
// truth, and says that the process is alive. Not parallel, since it measures.
func TestTheAPIAnswersDuringABrokerOutage(t *testing.T) {
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
	private := nodes.Private(t)
	b := newInbox(t, private.URL())
	r := startRelay(t, toRabbitMQ(url, queue, b, ""))
	send(t, server, queue, 5000, 0)
	eventually(t, 20*time.Second, "messages flow", func() bool { return r.source().Balance.Deleted > 100 })
	require.NoError(t, private.Pause())
	paused := time.Now()
	var took []time.Duration
	waiting := false
	for time.Since(paused) < 25*time.Second && (!waiting || time.Since(paused) < 5*time.Second) {
		for path, want := range map[string]int{"/livez": http.StatusOK, "/readyz": http.StatusOK, "/metrics": http.StatusOK, "/api/v1/status": http.StatusOK} {
			began := time.Now()
			code, _ := r.get(path)
			took = append(took, time.Since(began))
			require.Equal(t, want, code, path)
		}
		status := r.status()
		waiting = status.Sources[0].State == "waiting" && strings.Contains(status.Sources[0].Reason, "events") && status.Sinks[0].State == "down"
	}
	require.True(t, waiting, "the status says which sink is down: %+v", r.status())
	slices.Sort(took)
	require.Less(t, took[len(took)*95/100], 100*time.Millisecond)
	require.Less(t, took[len(took)-1], time.Second, "none waits for the broker")
	require.NoError(t, private.Resume())
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	require.Zero(t, r.end(syscall.SIGTERM))
}

// peak is the most memory that a process has had resident, in bytes (proc(5): VmHWM).
func peak(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if rest, is := strings.CutPrefix(line, "VmHWM:"); is {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			require.NoError(t, err)
			return kib << 10
		}
	}
	require.FailNow(t, "the kernel does not tell")
	return 0
}

// What a relay holds in memory is bounded by its room in bytes, whatever the backlog: a
// limit of memory can be set by it. Not parallel, since it measures.
func TestMemoryFollowsTheRoomInBytes(t *testing.T) {
	const messages, size = 1500, 60 << 10
	peaks := map[string]int64{}
	for _, room := range []string{"4MiB", "256MiB"} {
		server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
		hook, asked, release := hangingHook(t)
		body := strings.Repeat("x", size)
		for range messages {
			_, err := server.Send(queue, []byte(body))
			require.NoError(t, err)
		}
		configuration := strings.Replace(toWebhook(url, queue, hook, fmt.Sprintf("    in_flight: {messages: 4096, bytes: %s}", room)), "timeout: 2s", "timeout: 60s, concurrency: 4096", 1)
		r := startRelay(t, configuration)
		settled := uint64(0)
		eventually(t, 60*time.Second, "no more is received", func() bool {
			before := settled
			settled = r.source().Balance.Received
			tick := time.NewTimer(500 * time.Millisecond)
			<-tick.C
			return settled > 0 && before == settled && asked.Load() > 0
		})
		peaks[room] = peak(t, r.PID())
		t.Logf("room %s: %d messages of %d KiB in flight, at most %d MiB resident", room, settled, size>>10, peaks[room]>>20)
		close(release)
		eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
		require.Zero(t, r.end(syscall.SIGTERM))
	}
	require.Less(t, peaks["4MiB"], int64(96<<20), "a small room needs little more than the process itself")
	require.Greater(t, peaks["256MiB"], peaks["4MiB"]+int64(messages*size)/2, "and it is the room that does it")
}
