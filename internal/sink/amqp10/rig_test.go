package amqp10_test

import (
	"encoding/base64"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/test/amqppeer"
	"mnsrelay/test/broker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(broker.Closing(m, rabbits)) }

// rabbits are lent to tests.
var rabbits = broker.NewPool(broker.Config{Plugins: []string{"rabbitmq_amqp1_0"}})

const patience = relaytest.Patience

// kinds are the peers that everything about outcomes is tried on.
func kinds() []amqppeer.Kind { return []amqppeer.Kind{amqppeer.Proton, amqppeer.Rhea} }

// each runs a test with each peer.
func each(t *testing.T, test func(t *testing.T, p *amqppeer.Peer)) {
	t.Helper()
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			test(t, amqppeer.Start(t, kind))
		})
	}
}

// eachAlone is for a test that counts goroutines: nothing runs beside it.
func eachAlone(t *testing.T, test func(t *testing.T, p *amqppeer.Peer)) {
	t.Helper()
	for _, kind := range kinds() {
		t.Run(string(kind), func(t *testing.T) { test(t, amqppeer.Start(t, kind)) })
	}
}

func config(p *amqppeer.Peer, address string) *amqp10.Config {
	c := amqp10.Defaults()
	c.URL = setting.NewURL(p.URL())
	c.Address = address
	return c
}

func run(tb testing.TB, c *amqp10.Config) *relaytest.Running {
	tb.Helper()
	return relaytest.Run(tb, c.Open)
}

func values(of map[string]any) map[string]setting.Value {
	values := make(map[string]setting.Value, len(of))
	for name := range of {
		values[name] = setting.NewValue(of[name])
	}
	return values
}

// ids counts the copies of each message that came to a peer.
func ids(p *amqppeer.Peer) map[string]int {
	ids := map[string]int{}
	for _, m := range p.Messages() {
		ids[m.ID]++
	}
	return ids
}

// awaitMessages waits until a peer has seen n messages.
func awaitMessages(t *testing.T, p *amqppeer.Peer, n int) []amqppeer.Message {
	t.Helper()
	require.Eventually(t, func() bool { return len(p.Messages()) >= n }, patience, 5e6, "%d messages", n)
	return p.Messages()
}

// pair is how a peer shows a value.
func pair(kind string, value any) []any { return []any{kind, value} }

func binary(b []byte) []any { return pair("binary", base64.StdEncoding.EncodeToString(b)) }

func deps() relay.SinkDeps {
	return relay.SinkDeps{Name: "events", Instance: "mnsrelay/test (here)", Log: zap.NewNop()}
}
