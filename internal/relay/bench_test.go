package relay_test

import (
	"context"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
)

// BenchmarkPipeline is a message's whole way through a pipeline, in full batches, between a
// queue and a sink that cost next to nothing: one operation is one message. The sink answers
// as a broker does, one message after the other.
func BenchmarkPipeline(b *testing.B) {
	for _, sinks := range []int{1, 4} {
		b.Run("sinks-"+strconv.Itoa(sinks), func(b *testing.B) {
			receive, stop := context.WithCancel(b.Context())
			queue := &endless{left: b.N, done: stop}
			up := relay.NewMonitor(relay.Up, "")
			route := relay.Route{Name: "r"}
			for i := range sinks {
				name := relay.TargetName{Route: "r", Sink: strconv.Itoa(i)}
				route.Targets = append(route.Targets, relay.Target{Name: name, Sink: steady{}, Health: up})
			}
			stats := relay.NewStats()
			p := relay.New(relay.Config{Source: "q", BatchSize: 16, MinPollers: 8, MaxPollers: 8}, relay.Deps{
				Source: queue, Decode: func(m relay.Message) (relay.Message, error) { return m, nil }, Routes: []relay.Route{route},
				Room: relay.NewRoom(256, 64<<20), Shared: relay.NewRoom(4096, 256<<20), Spare: relay.NewRoom(2048, 128<<20), Stats: stats, Log: zap.NewNop(),
			})
			b.ReportAllocs()
			b.ResetTimer()
			p.Run(receive, b.Context())
			require.EqualValues(b, b.N, stats.Counts().Deleted)
		})
	}
}

// endless is a queue that always has a full batch, until so many were deleted.
type endless struct {
	mu         sync.Mutex
	left, sent int
	deleted    int
	done       func()
}

func (q *endless) Receive(ctx context.Context, limit int, _ bool) ([]relay.Delivery, error) {
	q.mu.Lock()
	n := min(limit, q.left)
	q.left -= n
	q.sent += n
	q.mu.Unlock()
	if n == 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ds := make([]relay.Delivery, n)
	now := time.Now()
	for i := range ds {
		ds[i] = relay.Delivery{Message: relay.Message{ID: "m", Source: "q", EnqueuedAt: now, Attempt: 1}, Receipt: "r", Deadline: now.Add(time.Hour)}
	}
	return ds, nil
}

func (q *endless) Extend(_ context.Context, d relay.Delivery) (relay.Delivery, error) { return d, nil }

func (q *endless) Settle(_ context.Context, ss []relay.Settlement) []error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.deleted += len(ss)
	if q.left == 0 && q.deleted == q.sent {
		q.done()
	}
	return make([]error, len(ss))
}

// steady is a sink whose answers come one by one.
type steady struct{}

func (steady) Deliver(_ context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	for i := range ms {
		runtime.Gosched() // others have their turn, as between two confirms
		done(i, relay.Result{Outcome: relay.Delivered})
	}
}
