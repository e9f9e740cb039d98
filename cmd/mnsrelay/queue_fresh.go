package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/mns"
)

// freshQueue is a queue whose keys stay fresh: some commands last longer than a token lives.
type freshQueue struct {
	*mns.Queue
	keys    *credentials.Refresher
	timeout time.Duration
}

// fresh makes the client of a queue, and fetches its keys until ctx ends. Wait for refreshing
// after that, and close the client.
func (f *queueFlags) fresh(ctx context.Context, refreshing *sync.WaitGroup, cfg mns.Config, keys credentials.Config) (*freshQueue, error) {
	keys.Defaults(os.Getenv)
	provider, err := keys.Provider(cfg.Queue)
	if err != nil {
		return nil, err
	}
	refresher := credentials.NewRefresher(provider, &keys, zap.NewNop())
	queue, err := mns.NewQueue(cfg, mns.Deps{Credentials: refresher})
	if err != nil {
		return nil, err
	}
	refreshing.Go(func() { _ = refresher.Run(ctx, cfg.Queue) }) // it has no error
	return &freshQueue{Queue: queue, keys: refresher, timeout: f.timeout}, nil
}

// ready waits for the first keys, or for why there are none.
func (q *freshQueue) ready(ctx context.Context) error {
	timeout := time.NewTimer(q.timeout)
	defer timeout.Stop()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		select {
		case <-q.keys.Ready():
			return nil
		case <-look.C:
			if cause := q.keys.Status().LastError; cause != "" {
				return errors.New(cause)
			}
		case <-timeout.C:
			return fmt.Errorf("fetch a credential: no answer within %v", q.timeout)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
