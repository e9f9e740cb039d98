package amqp091_test

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what has to happen and takes no set time.
const patience = 30 * time.Second

const routingKey = "sms.report"

// inbox is an exchange with a durable queue bound to it, on a broker.
type inbox struct {
	t        testing.TB
	url      string
	exchange string
	queue    string
}

func newInbox(tb testing.TB, brokerURL string) *inbox {
	tb.Helper()
	name := fmt.Sprintf("mnsrelay.test.%s.%d", strings.ReplaceAll(tb.Name(), "/", "."), time.Now().UnixNano())
	if len(name) > 200 {
		name = name[len(name)-200:]
	}
	in := &inbox{t: tb, url: brokerURL, exchange: name, queue: name}
	in.with(func(ch *amqp.Channel) {
		require.NoError(tb, ch.ExchangeDeclare(name, amqp.ExchangeTopic, true, false, false, false, nil))
		_, err := ch.QueueDeclare(name, true, false, false, false, nil)
		require.NoError(tb, err)
		require.NoError(tb, ch.QueueBind(name, "#", name, false, nil))
	})
	tb.Cleanup(in.remove)
	return in
}

// with calls do with a channel of a connection of its own.
func (in *inbox) with(do func(ch *amqp.Channel)) {
	in.t.Helper()
	c, err := amqp.Dial(in.url)
	require.NoError(in.t, err)
	defer c.Close() //nolint:errcheck // Nothing hangs on it.
	ch, err := c.Channel()
	require.NoError(in.t, err)
	do(ch)
}

func (in *inbox) remove() {
	c, err := amqp.Dial(in.url)
	if err != nil {
		return // a private broker that the test has ended
	}
	defer c.Close() //nolint:errcheck // Nothing hangs on it.
	if ch, err := c.Channel(); err == nil {
		_, _ = ch.QueueDelete(in.queue, false, false, false)
		_ = ch.ExchangeDelete(in.exchange, false, false)
	}
}

// take empties the queue.
func (in *inbox) take() []amqp.Delivery {
	in.t.Helper()
	var taken []amqp.Delivery
	in.with(func(ch *amqp.Channel) {
		q, err := ch.QueueDeclarePassive(in.queue, true, false, false, false, nil)
		require.NoError(in.t, err)
		deliveries, err := ch.Consume(in.queue, "", true, false, false, false, nil)
		require.NoError(in.t, err)
		timeout := time.After(patience)
		for range q.Messages {
			select {
			case d := <-deliveries:
				taken = append(taken, d)
			case <-timeout:
				require.FailNow(in.t, "the queue did not give what it holds")
			}
		}
	})
	return taken
}

func (in *inbox) ids() map[string]int {
	in.t.Helper()
	ids := map[string]int{}
	for _, d := range in.take() {
		ids[d.MessageId]++
	}
	return ids
}

// config is a sink that publishes to the inbox.
func (in *inbox) config() *amqp091.Config {
	c := amqp091.Defaults()
	c.URL = setting.NewURL(in.url)
	c.Exchange.Name = in.exchange
	c.RoutingKey = routingKey
	return c
}

func deps(tb testing.TB) relay.SinkDeps {
	tb.Helper()
	return relay.SinkDeps{Name: "events", Instance: "mnsrelay/test (here)", Log: zap.NewNop()}
}

// running is an endpoint that runs until the test ends, or end is called.
type running struct {
	t        testing.TB
	endpoint relay.Endpoint
	sink     relay.Sink
	log      *observer.ObservedLogs
	end      func()
}

func run(tb testing.TB, c *amqp091.Config) *running {
	tb.Helper()
	core, log := observer.New(zapcore.DebugLevel)
	d := deps(tb)
	d.Log = zap.New(core)
	endpoint, err := c.Open(d)
	require.NoError(tb, err)
	sink, err := endpoint.Bind(nil)
	require.NoError(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- endpoint.Run(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(tb, err)
		case <-time.After(patience):
			require.FailNow(tb, "Run did not end")
		}
	})
	tb.Cleanup(end)
	return &running{t: tb, endpoint: endpoint, sink: sink, log: log, end: end}
}

// await waits for a state and gives its health.
func (r *running) await(state relay.State) relay.Health {
	r.t.Helper()
	return r.awaitReason(state, "")
}

// awaitReason waits for a state whose reason holds the text.
func (r *running) awaitReason(state relay.State, text string) relay.Health {
	r.t.Helper()
	timeout := time.After(patience)
	for {
		health, changed := r.endpoint.Health()
		if health.State == state && strings.Contains(health.Reason, text) {
			return health
		}
		select {
		case <-changed:
		case <-timeout:
			require.FailNow(r.t, "wrong health", "want %v %q, have %v: %s", state, text, health.State, health.Reason)
		}
	}
}

// logged is everything that was logged, as text.
func (r *running) logged() string {
	var b strings.Builder
	for _, entry := range r.log.All() {
		fmt.Fprintf(&b, "%s %v\n", entry.Message, entry.ContextMap())
	}
	return b.String()
}

// deliver gives the results of messages, one for each.
func deliver(ctx context.Context, t *testing.T, sink relay.Sink, ms []relay.Message) []relay.Result {
	t.Helper()
	var mu sync.Mutex
	results := make([]relay.Result, len(ms))
	calls := 0
	sink.Deliver(ctx, ms, func(i int, r relay.Result) {
		mu.Lock()
		defer mu.Unlock()
		results[i] = r
		calls++
	})
	mu.Lock()
	defer mu.Unlock()
	if calls != len(ms) {
		t.Errorf("done was called %d times for %d messages", calls, len(ms))
	}
	return results
}

// node is a RabbitMQ of its own, for what a broker that others use must not be asked.
func node(t *testing.T, c broker.Config) *broker.Node {
	t.Helper()
	c.Dir = t.TempDir()
	n, err := broker.Start(bounded(t), c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.Close()) })
	return n
}

func headers(of map[string]any) map[string]setting.Value {
	headers := make(map[string]setting.Value, len(of))
	for name := range of {
		headers[name] = setting.NewValue(of[name])
	}
	return headers
}

func messages(prefix string, n, size int) []relay.Message {
	body := []byte(strings.Repeat("x", size))
	ms := make([]relay.Message, n)
	for i := range ms {
		ms[i] = relay.Message{
			ID:         fmt.Sprintf("%s-%d", prefix, i),
			Source:     "sms",
			Body:       body,
			EnqueuedAt: time.Date(2026, time.March, 1, 9, 30, 0, 45e6, time.UTC),
			Attempt:    1,
		}
	}
	return ms
}

func requireReason(t *testing.T, reason string, r relay.Result) {
	t.Helper()
	require.Equal(t, relay.Retry, r.Outcome, "error: %v", r.Err)
	var failure *relay.Failure
	require.ErrorAs(t, r.Err, &failure)
	require.Equal(t, reason, failure.Reason, "error: %v", r.Err)
}

func requireDelivered(t *testing.T, results []relay.Result) {
	t.Helper()
	for i, r := range results {
		require.NoError(t, r.Err, "message %d", i)
		require.Equal(t, relay.Delivered, r.Outcome, "message %d", i)
	}
}

// address is the host and port of a URL.
func address(t *testing.T, raw string) string {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	if u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), "5672")
	}
	return u.Host
}

// through is the URL with another host and port.
func through(t *testing.T, raw, hostPort string) string {
	t.Helper()
	u, err := url.Parse(raw)
	require.NoError(t, err)
	u.Host = hostPort
	return u.String()
}
