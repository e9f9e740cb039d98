package amqp091_test

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(broker.Closing(m, nodes, strict)) }

var (
	// nodes are lent to tests that take their broker away or change what only its
	// administrator can change.
	nodes = broker.NewPool(broker.Config{Plugins: []string{"rabbitmq_consistent_hash_exchange"}})
	// strict ones allow only small messages and frames.
	strict = broker.NewPool(broker.Config{Conf: "max_message_size = 10000\nframe_max = 8192"})
)

const (
	patience   = relaytest.Patience
	routingKey = "sms.report"
)

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

func run(tb testing.TB, c *amqp091.Config) *relaytest.Running {
	tb.Helper()
	return relaytest.Run(tb, c.Open)
}

func headers(of map[string]any) map[string]setting.Value {
	headers := make(map[string]setting.Value, len(of))
	for name := range of {
		headers[name] = setting.NewValue(of[name])
	}
	return headers
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
