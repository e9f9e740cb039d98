package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// stopOnSignals gives two contexts: the first SIGTERM or SIGINT ends soft, which
// begins a drain, and the second ends hard, which cuts it short. A third ends the
// process as if nobody listened. Hard ends with parent, soft with hard. Call release
// when the contexts are no longer used.
func stopOnSignals(parent context.Context) (soft, hard context.Context, release func()) {
	signals := make(chan os.Signal, 2) // one for each context
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	return stopOn(parent, signals, func() { signal.Stop(signals) })
}

func stopOn(parent context.Context, signals <-chan os.Signal, unlisten func()) (soft, hard context.Context, release func()) {
	hard, cut := context.WithCancelCause(parent)
	soft, stop := context.WithCancelCause(hard)
	released, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer unlisten()
		for _, end := range []context.CancelCauseFunc{stop, cut} {
			select {
			case s := <-signals:
				end(fmt.Errorf("received the signal %s", s))
			case <-released:
				return
			}
		}
	}()
	return soft, hard, sync.OnceFunc(func() {
		close(released)
		<-done
		cut(nil)
		stop(nil)
	})
}
