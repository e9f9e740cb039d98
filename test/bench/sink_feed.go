package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"mnsrelay/internal/relay"
)

const (
	outstanding = 256
	batch       = 16
)

type message = relay.Message

// messages makes what is sent: JSON, as what the relay is for.
func messages(n, size int) []message {
	body := []byte(`"` + strings.Repeat("x", max(0, size-2)) + `"`)
	ms := make([]message, n)
	for i := range ms {
		ms[i] = message{ID: fmt.Sprintf("%032d", i), Source: "sms", Body: body, EnqueuedAt: time.Now(), Attempt: 1}
	}
	return ms
}

// feed runs an endpoint and delivers as pipelines do: batches of 16, several at once.
func feed(ctx context.Context, endpoint relay.Endpoint, ms []message) error {
	sink, err := endpoint.Bind(nil)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var connected, senders sync.WaitGroup
	connected.Go(func() { _ = endpoint.Run(running) })
	defer connected.Wait()
	defer stop()
	for health, changed := endpoint.Health(); health.State != relay.Up; health, changed = endpoint.Health() {
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var next atomic.Int64
	var failure atomic.Pointer[error]
	for range outstanding / batch {
		senders.Go(func() {
			for {
				from := int(next.Add(batch)) - batch
				if from >= len(ms) || failure.Load() != nil {
					return
				}
				sink.Deliver(ctx, ms[from:min(from+batch, len(ms))], func(_ int, r relay.Result) {
					if r.Outcome != relay.Delivered {
						failure.CompareAndSwap(nil, &r.Err)
					}
				})
			}
		})
	}
	senders.Wait()
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}
