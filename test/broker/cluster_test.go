package broker_test

import (
	"errors"
	"os"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/test/broker"
)

// A quorum queue outlives the death of its leader; a node that is cut off confirms
// nothing and closes its connections until it is let back.
func TestCluster(t *testing.T) {
	t.Parallel()
	if !broker.Installed() {
		_, err := broker.StartCluster(bounded(t), broker.Config{}, 3)
		require.ErrorContains(t, err, "test/setup")
		return
	}
	dir := t.TempDir()
	begun := time.Now()
	c, err := broker.StartCluster(bounded(t), broker.Config{Dir: dir}, 3)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	t.Logf("started in %v", time.Since(begun).Round(100*time.Millisecond))
	const queue = "mnsrelay.test.cluster"
	conn, err := amqp.Dial(c.Nodes()[0].URL())
	require.NoError(t, err)
	ch, err := conn.Channel()
	require.NoError(t, err)
	_, err = ch.QueueDeclare(queue, true, false, false, false, amqp.Table{"x-queue-type": "quorum"})
	require.NoError(t, err)
	confirmed := 0
	publish := func(to *broker.Node) error {
		conn, err := amqp.Dial(to.URL())
		if err != nil {
			return err
		}
		defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		if err := ch.Confirm(false); err != nil {
			return err
		}
		confirm, err := ch.PublishWithDeferredConfirm("", queue, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent})
		if err != nil {
			return err
		}
		acked, err := confirm.WaitContext(bounded(t))
		if err == nil && !acked {
			err = errors.New("the broker refused the message") // while there is no leader
		}
		if err == nil {
			confirmed++
		}
		return err
	}
	require.NoError(t, publish(c.Nodes()[1]))
	require.Equal(t, 1, confirmed)

	leader, err := c.Leader(bounded(t), queue, c.Nodes()[0])
	require.NoError(t, err)
	require.NotNil(t, leader)
	var followers []*broker.Node
	for _, n := range c.Nodes() {
		if n != leader {
			followers = append(followers, n)
		}
	}
	require.NoError(t, leader.Kill(bounded(t)))
	soon := func(to *broker.Node) {
		require.Eventually(t, func() bool { return publish(to) == nil }, time.Minute, 100*time.Millisecond)
	}
	soon(followers[0])
	require.Equal(t, 2, confirmed)
	require.NoError(t, leader.Start(bounded(t)))

	// The one that is cut off pauses, and the others go on.
	alone := followers[1]
	conn, err = amqp.Dial(alone.URL())
	require.NoError(t, err)
	closed := conn.NotifyClose(make(chan *amqp.Error, 1))
	require.NoError(t, c.Cut(bounded(t), alone))
	select {
	case err := <-closed:
		require.Error(t, err)
	case <-bounded(t).Done():
		require.Fail(t, "the node that is cut off does not pause")
	}
	soon(followers[0])
	require.Equal(t, 3, confirmed)
	require.NoError(t, c.Heal(bounded(t), alone))
	soon(alone)
	require.Equal(t, 4, confirmed)

	require.NoError(t, c.Nodes()[2].Pause())
	require.NoError(t, c.Close())
	require.NoError(t, c.Close(), "again")
	require.Empty(t, processesIn(t, dir))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}
