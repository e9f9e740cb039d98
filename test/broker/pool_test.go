package broker_test

import (
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/test/broker"
)

// A node that one test has had is lent to the next one as if it were new, unless the test has
// ended it.
func TestPool(t *testing.T) {
	t.Parallel()
	if !broker.Installed() {
		p := broker.NewPool(broker.Config{})
		require.IsType(t, &broker.Proxy{}, p.Private(t))
		return
	}
	pool := broker.NewPool(broker.Config{})
	ctl := func(t *testing.T, n *broker.Node, args ...string) string {
		t.Helper()
		out, err := n.Ctl(bounded(t), args...)
		require.NoError(t, err)
		return strings.TrimSpace(out)
	}
	// What a test can leave behind.
	state := func(t *testing.T, n *broker.Node) string {
		t.Helper()
		return ctl(t, n, "eval", "{rabbit_vhost:list_names(), rabbit_amqqueue:list(), rabbit_auth_backend_internal:list_users(), "+
			"rabbit_auth_backend_internal:list_permissions(), length(rabbit_exchange:list()), rabbit_networking:connections()}.")
	}
	var first, unused string
	t.Run("first", func(t *testing.T) {
		n := pool.Borrow(t)
		first, unused = n.URL(), state(t, n)
		conn, err := amqp.Dial(n.URL())
		require.NoError(t, err)
		ch, err := conn.Channel()
		require.NoError(t, err)
		_, err = ch.QueueDeclare("left", true, false, false, false, nil)
		require.NoError(t, err)
		require.NoError(t, ch.Publish("", "left", false, false, amqp.Publishing{Body: []byte("x")}))
		ctl(t, n, "add_vhost", "left")
		ctl(t, n, "add_user", "left", "left")
		ctl(t, n, "set_permissions", "left", ".*", ".*", ".*")
		ctl(t, n, "set_permissions", "guest", "", "", "")
		require.NoError(t, n.Pause())
	})
	t.Run("second", func(t *testing.T) {
		n := pool.Borrow(t)
		require.Equal(t, first, n.URL())
		require.Equal(t, unused, state(t, n))
		require.NotEqual(t, first, pool.Borrow(t).URL(), "each has its own")
		require.NoError(t, n.Kill(bounded(t)))
	})
	t.Run("third", func(t *testing.T) {
		n := pool.Borrow(t)
		require.NotEqual(t, first, n.URL())
		require.Equal(t, unused, state(t, n))
	})
	require.NoError(t, pool.Close())
	_, err := amqp.Dial(first)
	require.Error(t, err)
}
