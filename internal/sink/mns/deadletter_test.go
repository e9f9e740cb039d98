package mns_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	sink "mnsrelay/internal/sink/mns"
)

// A pipeline whose sink rejects everything, with this sink for its dead letters: what
// fits into an envelope is there with the original body and the reason, and gone from
// its queue; what does not fit stays in its queue, counted.
func TestDeadLettersOfAPipeline(t *testing.T) {
	server, url := startServer(t, emulator.QueueConfig{})
	require.NoError(t, server.CreateQueue("orders", emulator.QueueConfig{}))
	small, large := "an order", strings.Repeat("x", 60<<10)
	_, err := server.SendBase64("orders", []byte(small))
	require.NoError(t, err)
	largeID, err := server.Send("orders", []byte(large))
	require.NoError(t, err)

	source, err := mns.NewSource(mns.Config{Name: "orders", Endpoint: url, Queue: "orders", Wait: time.Second}, mns.Deps{Credentials: staticKeys{}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, source.Close()) })
	rejects := relaytest.NewRecorder()
	rejects.Answer(func(context.Context, relay.Message) relay.Result {
		return relay.Result{Outcome: relay.Rejected, Err: relay.Fail("status_4xx", errors.New("the endpoint answered 422"))}
	})
	endpoint := open(t, url, func(c *sink.Config) { c.Timeout = 10 * time.Second })
	dead := run(t, endpoint, relay.Up)

	decoder := mns.Decoder{Body: mns.BodyAuto}
	stats := relay.NewStats()
	pipeline := relay.New(relay.Config{
		Source: "orders", BatchSize: 16, Wait: time.Second, MinPollers: 1, MaxPollers: 1,
		Redelivery: relay.Redelivery{Initial: time.Hour, Max: time.Hour},
	}, relay.Deps{
		Source: source, Decode: decoder.Decode,
		Routes:     []relay.Route{{Name: "all", Targets: []relay.Target{{Name: relay.TargetName{Route: "all", Sink: "hook"}, Sink: rejects, Health: rejects}}}},
		DeadLetter: &relay.Target{Name: relay.TargetName{Sink: "dead-letters"}, Sink: dead, Health: endpoint},
		Room:       relay.NewRoom(64, 8<<20), Shared: relay.NewRoom(64, 8<<20), Spare: relay.NewRoom(32, 4<<20),
		Stats: stats, Log: zaptest.NewLogger(t),
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { pipeline.Run(ctx, context.WithoutCancel(ctx)) })
	require.Eventually(t, func() bool {
		c := stats.Counts()
		return c.Received == 2 && c.InFlight == 0
	}, 20*time.Second, 5*time.Millisecond)
	cancel()
	running.Wait()

	c := stats.Counts()
	require.True(t, c.Balanced())
	require.Equal(t, map[string]uint64{"status_4xx": 1}, c.DeadLettered)
	require.EqualValues(t, 1, c.Deleted)
	require.EqualValues(t, 1, c.Retried["too_large"], "counted: %v", c.Retried)

	bodies := (&reader{url: url}).bodies(t)
	require.Len(t, bodies, 1)
	letter, is, err := mns.ReadEnvelope([]byte(bodies[0]))
	require.NoError(t, err)
	require.True(t, is)
	require.Equal(t, "YW4gb3JkZXI=", string(letter.Body), "as it was in its queue")
	require.Equal(t, "orders", letter.Source)
	require.Equal(t, "orders", letter.Queue)
	require.Equal(t, "status_4xx", letter.Reason)
	require.Equal(t, "hook", letter.Sink)
	require.Contains(t, letter.Error, "the endpoint answered 422")
	require.Equal(t, 1, letter.Attempts)
	original, err := letter.Original()
	require.NoError(t, err)
	require.Equal(t, "YW4gb3JkZXI=", string(original))

	left, found := server.QueueStats("orders")
	require.True(t, found)
	require.Equal(t, 1, left.Active+left.Inactive+left.Delayed)
	require.Equal(t, 1, rejects.Times()[largeID])
}
