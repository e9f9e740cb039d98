// Package broker gives tests a real RabbitMQ.
//
// Most tests share one: they take its address from URL, and keep apart by names of
// their own. Whoever runs them names it in MNSRELAY_TEST_AMQP_URL; "make test"
// starts a Node for that with the command test/withbroker. A test that takes its
// broker away or breaks it asks for a Private one.
//
// No test is skipped for want of a broker: it fails, and says what to do.
package broker

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"
)

// Variable is the environment variable that names the broker tests share.
const Variable = "MNSRELAY_TEST_AMQP_URL"

// patience is how long a broker may take to start or to stop on a busy machine.
const patience = 90 * time.Second

// URL is the broker that tests share: they may declare and delete what they like
// under names of their own, and leave nothing behind.
func URL(tb testing.TB) string {
	tb.Helper()
	u := os.Getenv(Variable)
	if u == "" {
		tb.Fatalf("%s is not set: run the tests with \"make test\", or \"go run ./test/withbroker -- go test ./...\", or set it to amqp://user:password@host:5672/vhost of a RabbitMQ that tests may write to", Variable)
	}
	return u
}

// Broker is a RabbitMQ that a test may take away.
type Broker interface {
	// URL stays the same over Stop, Kill and Start.
	URL() string
	// Stop ends the broker in order: it tells its clients.
	Stop(ctx context.Context) error
	// Kill ends the broker at once.
	Kill(ctx context.Context) error
	// Start starts the broker again after Stop or Kill, with its durable data, and
	// returns when it accepts connections.
	Start(ctx context.Context) error
	// Pause keeps the broker from reading and writing, its connections open.
	Pause() error
	// Resume ends Pause.
	Resume() error
	// Block raises an alarm: a connection that publishes is told that it is
	// blocked. The reason given differs between brokers.
	Block(ctx context.Context) error
	// Unblock clears the alarm.
	Unblock(ctx context.Context) error
}

var (
	_ Broker = (*Node)(nil)
	_ Broker = (*Proxy)(nil)
)

// Private is a broker that the test has for itself, gone when the test ends: a
// Node, or, on a machine that has no rabbitmq-server but a shared broker, a Proxy
// in front of that one.
func Private(tb testing.TB) Broker {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !Installed() {
		if shared := os.Getenv(Variable); shared != "" {
			proxy, err := NewProxy(ctx, shared)
			if err != nil {
				tb.Fatalf("put a proxy before the broker of %s: %v", Variable, err)
			}
			tb.Cleanup(proxy.Close)
			return proxy
		}
		tb.Fatalf("rabbitmq-server is not installed: run test/setup, or set %s to a RabbitMQ that tests may write to", Variable)
	}
	node, err := Start(ctx, Config{Dir: tb.TempDir()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := node.Close(); err != nil {
			tb.Errorf("close the broker: %v", err)
		}
	})
	return node
}

// Installed tells whether this machine can start a Node.
func Installed() bool {
	_, err := exec.LookPath(server)
	return err == nil
}
