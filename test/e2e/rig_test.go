// Package e2e_test runs the built program as users do, a process with a configuration
// file, between an emulated MNS and a real RabbitMQ.
package e2e_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/setting"
	"mnsrelay/test/broker"
	"mnsrelay/test/rig"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) { os.Exit(rig.BuildAndRun(broker.Closing(m, nodes), &binary)) }

// nodes are lent to tests that take their broker away or look into it.
var nodes = broker.NewPool(broker.Config{})

// The keys that the emulator accepts; the secret must appear in no output.
const (
	keyID     = "LTAI-e2e-test"
	keySecret = "e2e:secret/with#odd@characters"
)

// startEmulator serves MNS with one queue for SMS reports.
func startEmulator(t *testing.T, cfg emulator.Config, queue emulator.QueueConfig) (server *emulator.Server, url, name string) {
	t.Helper()
	rig.Secret(keySecret)
	cfg.Issued = rig.Secret
	cfg.AccessKeys = []emulator.AccessKey{{ID: keyID, Secret: setting.NewSecret(keySecret)}}
	server, err := emulator.New(cfg)
	require.NoError(t, err)
	name = server.AlicomQueue("SmsReport")
	require.NoError(t, server.CreateQueue(name, queue))
	url, err = server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	return server, url, name
}

// relay is a running mnsrelay.
type relay struct {
	*rig.Relay
	t *testing.T
}

// startRelay writes the configuration and runs it. The API listens on a free port.
func startRelay(t *testing.T, configuration string) *relay {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mnsrelay.yaml")
	require.NoError(t, os.WriteFile(path, []byte("server: {listen: 127.0.0.1:0}\n"+configuration), 0o600))
	return runRelay(t, path)
}

func runRelay(t *testing.T, path string) *relay {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	started, err := rig.Start(ctx, binary, path, "ALIBABA_CLOUD_ACCESS_KEY_ID="+keyID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET="+keySecret)
	require.NoError(t, err)
	r := &relay{Relay: started, t: t}
	t.Cleanup(func() {
		_, err := r.End(context.Background(), syscall.SIGKILL)
		require.NoError(t, err)
		if t.Failed() {
			t.Logf("log of the relay:\n%s", r.log())
		}
	})
	return r
}

func (r *relay) log() string { return r.Log() }

// end sends a signal and gives the exit code.
func (r *relay) end(s syscall.Signal) int {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code, err := r.End(ctx, s)
	require.NoError(r.t, err)
	return code
}

// get asks the API.
func (r *relay) get(path string) (status int, body string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	status, body, err := r.Get(ctx, path)
	require.NoError(r.t, err)
	return status, body
}

func (r *relay) status() api.Status {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	status, err := r.Status(ctx)
	require.NoError(r.t, err)
	return status
}

func (r *relay) source() api.Source { return r.status().Sources[0] }

// eventually waits until check is true.
func eventually(t *testing.T, within time.Duration, what string, check func() bool) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !check() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// inbox is a durable queue at a RabbitMQ behind an exchange, and what came out of it.
type inbox struct {
	t        *testing.T
	url      string
	exchange string

	mu     sync.Mutex
	bodies map[string]string
	total  int

	conn   *amqp.Connection
	reader sync.WaitGroup
}

// newInbox declares the exchange and the queue, both named after the test and what is
// given to tell several apart.
func newInbox(t *testing.T, url string, apart ...string) *inbox {
	t.Helper()
	name := strings.Join(append([]string{"e2e", strings.ReplaceAll(t.Name(), "/", ".")}, apart...), ".")
	b := &inbox{t: t, url: url, exchange: name, bodies: make(map[string]string)}
	b.with(func(ch *amqp.Channel) {
		require.NoError(t, ch.ExchangeDeclare(b.exchange, amqp.ExchangeTopic, true, false, false, false, nil))
		_, err := ch.QueueDeclare(b.exchange, true, false, false, false, nil)
		require.NoError(t, err)
		require.NoError(t, ch.QueueBind(b.exchange, "#", b.exchange, false, nil))
	})
	t.Cleanup(func() {
		b.stop()
		b.with(func(ch *amqp.Channel) {
			_, err := ch.QueueDelete(b.exchange, false, false, false)
			require.NoError(t, err)
			require.NoError(t, ch.ExchangeDelete(b.exchange, false, false))
		})
	})
	return b
}

func (b *inbox) with(do func(ch *amqp.Channel)) {
	conn, err := amqp.Dial(b.url)
	require.NoError(b.t, err)
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	require.NoError(b.t, err)
	do(ch)
}

// start consumes until stop.
func (b *inbox) start() {
	b.t.Helper()
	conn, err := amqp.Dial(b.url)
	require.NoError(b.t, err)
	ch, err := conn.Channel()
	require.NoError(b.t, err)
	require.NoError(b.t, ch.Qos(1000, 0, false))
	deliveries, err := ch.Consume(b.exchange, "", false, false, false, false, nil)
	require.NoError(b.t, err)
	b.conn = conn
	b.reader.Go(func() {
		for d := range deliveries {
			b.mu.Lock()
			// What the broker gives again because an ack was lost is not counted twice.
			if _, seen := b.bodies[d.MessageId]; !seen || !d.Redelivered {
				b.total++
			}
			b.bodies[d.MessageId] = string(d.Body)
			b.mu.Unlock()
			if err := d.Ack(false); err != nil {
				return
			}
		}
	})
}

func (b *inbox) stop() {
	if b.conn == nil {
		return
	}
	if err := b.conn.Close(); err != nil && !errors.Is(err, amqp.ErrClosed) {
		b.t.Logf("close the consumer: %v", err)
	}
	b.reader.Wait()
	b.conn = nil
}

// counts gives how many different messages came and how many came again.
func (b *inbox) counts() (messages, duplicates int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.bodies), b.total - len(b.bodies)
}

// requireAll checks that exactly the sent messages came, each as it was sent.
func (b *inbox) requireAll(sent map[string]string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	require.Len(b.t, b.bodies, len(sent))
	for id, body := range sent {
		got, came := b.bodies[id]
		require.True(b.t, came, "message %s is lost", id)
		require.Equal(b.t, sha256.Sum256([]byte(body)), sha256.Sum256([]byte(got)), "message %s came as %d bytes %.60q, not as %d bytes %.60q", id, len(got), got, len(body), body)
	}
}

// send puts n reports into the queue at a rate a second, 0 for all at once, and gives
// the bodies by message id.
func send(t *testing.T, server *emulator.Server, queue string, n, rate int) map[string]string {
	t.Helper()
	sent := make(map[string]string, n)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	begun := time.Now()
	for len(sent) < n {
		due := n
		if rate > 0 {
			<-ticker.C
			due = min(n, int(time.Since(begun).Seconds()*float64(rate)))
		}
		for len(sent) < due {
			body := fmt.Sprintf(`{"phone_number":"13900001234","success":true,"biz_id":"%d^0"}`, len(sent))
			id, err := server.SendBase64(queue, []byte(body))
			require.NoError(t, err)
			sent[id] = body
		}
	}
	return sent
}

// left is how many messages the emulator's queue still holds.
func left(t *testing.T, server *emulator.Server, queue string) int {
	t.Helper()
	stats, found := server.QueueStats(queue)
	require.True(t, found)
	return stats.Active + stats.Inactive + stats.Delayed
}

// requests counts the requests to MNS so far, tokens not included.
func requests(server *emulator.Server) (total int64) {
	for op, codes := range server.Requests() {
		if op == emulator.OpToken {
			continue
		}
		for _, n := range codes {
			total += n
		}
	}
	return total
}

// toRabbitMQ is a configuration of the main job: SMS reports to an exchange.
func toRabbitMQ(endpoint, queue string, b *inbox, more string) string {
	return fmt.Sprintf(`
sources:
  sms:
    queue: %s
    endpoint: %s
    credentials: {endpoint: %s}
    to: events
%s
sinks:
  events:
    type: amqp091
    url: %q
    exchange: %s
    routing_key: sms.report
`, queue, endpoint, endpoint, more, b.url, b.exchange)
}
