package e2e_test

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
)

// With acknowledge: reply a message leaves MNS only when its consumer has said that the work
// is done, however long that takes: its lease is renewed meanwhile. One that the consumer
// fails on comes to it again, with its id.
func TestAMessageLeavesWhenItsConsumerHasAnswered(t *testing.T) {
	t.Parallel()
	const messages, work = 20, 5 * time.Second
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 3 * time.Second})
	b := newInbox(t, broker.URL(t))
	conn, err := amqp.Dial(b.url)
	require.NoError(t, err)
	ch, err := conn.Channel()
	require.NoError(t, err)
	deliveries, err := ch.Consume(b.exchange, "", true, false, false, false, nil)
	require.NoError(t, err)
	var (
		consuming sync.WaitGroup
		mu        sync.Mutex
		tries     = map[string]int{}
	)
	began := make(chan struct{}, messages)
	consuming.Go(func() {
		for d := range deliveries {
			mu.Lock()
			tries[d.MessageId]++
			first := tries[d.MessageId] == 1
			mu.Unlock()
			answer := "ok"
			if first {
				began <- struct{}{}
				if strings.HasSuffix(d.MessageId, "0") {
					answer = `{"error": "the database is away", "retry_after": 1}`
				}
			}
			consuming.Go(func() {
				done := time.NewTimer(work)
				<-done.C
				_ = ch.Publish("", d.ReplyTo, false, false, amqp.Publishing{CorrelationId: d.CorrelationId, Body: []byte(answer)})
			})
		}
	})
	t.Cleanup(func() {
		_ = conn.Close()
		consuming.Wait()
	})
	configuration := toRabbitMQ(url, queue, b, "    redelivery: {initial: 1s, max: 2s}") + "    acknowledge: reply\n    reply: {timeout: 30s}\n"
	sent := send(t, server, queue, messages, 0)
	r := startRelay(t, configuration)
	for range messages {
		<-began
	}
	stats, _ := server.QueueStats(queue)
	require.Zero(t, stats.Deleted, "nobody has answered yet")
	require.EqualValues(t, messages, stats.Received, "%v", stats)
	eventually(t, 60*time.Second, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
	stats, _ = server.QueueStats(queue)
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, tries, messages)
	for id := range sent {
		want := 1
		if strings.HasSuffix(id, "0") {
			want = 2
		}
		require.Equal(t, want, tries[id], "%s: once for each answer, though its lease is shorter than the work", id)
	}
	require.EqualValues(t, messages, stats.Deleted)
	require.Zero(t, r.end(syscall.SIGTERM))
}
