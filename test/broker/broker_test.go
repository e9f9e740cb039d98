package broker_test

import (
	"context"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/test/broker"
)

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// What a Broker promises, of the kind that this machine gives, and of a Proxy.
func TestBroker(t *testing.T) {
	t.Parallel()
	for name, private := range map[string]func(t *testing.T) broker.Broker{
		"private": func(t *testing.T) broker.Broker { t.Helper(); return broker.Private(t) },
		"proxy": func(t *testing.T) broker.Broker {
			t.Helper()
			p, err := broker.NewProxy(bounded(t), broker.URL(t))
			require.NoError(t, err)
			t.Cleanup(p.Close)
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := private(t)
			at := b.URL()
			queue := "mnsrelay.test.broker." + name
			conn, err := amqp.Dial(at)
			require.NoError(t, err)
			ch, err := conn.Channel()
			require.NoError(t, err)
			_, err = ch.QueueDeclare(queue, true, false, false, false, nil)
			require.NoError(t, err)
			require.NoError(t, ch.Confirm(false))
			publish := func(ch *amqp.Channel) *amqp.DeferredConfirmation {
				confirm, err := ch.PublishWithDeferredConfirm("", queue, false, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte("x")})
				require.NoError(t, err)
				return confirm
			}
			require.True(t, publish(ch).Wait())

			// A broker that pauses confirms when it resumes, and not before.
			require.NoError(t, b.Pause())
			late := publish(ch)
			select {
			case <-late.Done():
				require.Fail(t, "a broker that pauses confirms nothing")
			case <-time.After(200 * time.Millisecond):
			}
			require.NoError(t, b.Resume())
			require.True(t, late.Wait())

			// An alarm is told to those who publish.
			blockings := conn.NotifyBlocked(make(chan amqp.Blocking, 4))
			require.NoError(t, b.Block(bounded(t)))
			held := publish(ch)
			require.True(t, (<-blockings).Active)
			require.NoError(t, b.Unblock(bounded(t)))
			require.False(t, (<-blockings).Active)
			require.True(t, held.Wait())

			// The durable queue and what it holds outlive Stop and Kill.
			for _, end := range []func(context.Context) error{b.Stop, b.Kill} {
				closed := conn.NotifyClose(make(chan *amqp.Error, 1))
				require.NoError(t, end(bounded(t)))
				require.Error(t, <-closed)
				_, err := amqp.Dial(at)
				require.Error(t, err)
				require.NoError(t, b.Start(bounded(t)))
				require.Equal(t, at, b.URL())
				conn, err = amqp.Dial(at)
				require.NoError(t, err)
				ch, err = conn.Channel()
				require.NoError(t, err)
				q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
				require.NoError(t, err)
				require.Equal(t, 3, q.Messages)
			}
			_, err = ch.QueueDelete(queue, false, false, false)
			require.NoError(t, err)
			require.NoError(t, conn.Close())
		})
	}
}

// Close leaves no process and no file, of a node that runs, that pauses and that has
// been stopped. Where there is no rabbitmq-server, Start says what to do.
func TestNodeLeavesNothing(t *testing.T) {
	t.Parallel()
	if !broker.Installed() {
		_, err := broker.Start(bounded(t), broker.Config{})
		require.ErrorContains(t, err, "test/setup")
		return
	}
	for name, before := range map[string]func(*testing.T, *broker.Node){
		"running": func(*testing.T, *broker.Node) {},
		"paused":  func(t *testing.T, n *broker.Node) { t.Helper(); require.NoError(t, n.Pause()) },
		"stopped": func(t *testing.T, n *broker.Node) { t.Helper(); require.NoError(t, n.Stop(bounded(t))) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			n, err := broker.Start(bounded(t), broker.Config{Dir: dir})
			require.NoError(t, err)
			require.NotEmpty(t, processesIn(t, dir))
			before(t, n)
			require.NoError(t, n.Close())
			require.NoError(t, n.Close(), "again")
			require.Empty(t, processesIn(t, dir))
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestNodeThatCannotStart(t *testing.T) {
	t.Parallel()
	if !broker.Installed() {
		_, err := broker.Start(bounded(t), broker.Config{})
		require.ErrorContains(t, err, "test/setup")
		return
	}
	dir := t.TempDir()
	_, err := broker.Start(bounded(t), broker.Config{Dir: dir, Conf: "no.such.setting = 1"})
	require.ErrorContains(t, err, "no.such.setting", "the server's own words")
	require.Empty(t, processesIn(t, dir))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestProxyRefusesOtherURLs(t *testing.T) {
	for _, u := range []string{"", "amqps://host", "http://host", "amqp://", "amqp://a:s3cr%et@b"} {
		_, err := broker.NewProxy(t.Context(), u)
		require.ErrorContains(t, err, "must be amqp://", "%q", u)
		require.NotContains(t, err.Error(), "s3cr")
	}
	u, err := url.Parse(broker.URL(t))
	require.NoError(t, err)
	require.Contains(t, []string{"amqp", "amqps"}, u.Scheme)
}

// processesIn are those whose environment names the folder.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	var found []string
	for _, path := range environments {
		// A process may end meanwhile, or belong to somebody else.
		if environment, err := os.ReadFile(path); err == nil && strings.Contains(string(environment), "HOME="+dir) {
			found = append(found, path)
		}
	}
	return found
}
