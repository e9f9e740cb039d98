package main

import (
	"context"
	"fmt"
	"os"
	"time"
)

// idle runs a relay of so many sources, which share one credential, without a message.
func (w *world) idle(ctx context.Context, sources int) (_ run, err error) {
	if err := w.makeQueues(ctx, sources); err != nil {
		return nil, err
	}
	l := load{sources: sources, sinks: 1, replicas: 1, role: true}
	if err := w.makeKept(l.sinks); err != nil {
		return nil, err
	}
	configuration := w.configuration(l)
	began := time.Now()
	relay, err := w.startRelay(ctx, configuration)
	if err != nil {
		return nil, err
	}
	ended := false
	defer func() { //nolint:contextcheck // It ends though ctx may have.
		if !ended {
			_ = relay.end()
		}
	}()
	if err := w.awaitPolls(ctx, sources); err != nil {
		return nil, err
	}
	r := run{firstReceive: float64(time.Since(began).Milliseconds())}

	// What starting takes is not rest.
	if err := pause(ctx, w.rest/10); err != nil {
		return nil, err
	}
	asked, err := w.requests(ctx)
	if err != nil {
		return nil, err
	}
	used, err := processorTime(relay.pid())
	if err != nil {
		return nil, err
	}
	resting := time.Now()
	if err := pause(ctx, w.rest); err != nil {
		return nil, err
	}
	usedLater, err := processorTime(relay.pid())
	if err != nil {
		return nil, err
	}
	lasted := time.Since(resting)
	askedLater, err := w.requests(ctx)
	if err != nil {
		return nil, err
	}
	m, err := memoryOf(relay.pid())
	if err != nil {
		return nil, err
	}
	r[anonymous], r[resident], r[peakRSS] = m.anonymous, m.resident, m.peak
	r[cores] = 100 * (usedLater - used).Seconds() / lasted.Seconds()
	r[perMinute] = float64(askedLater-asked) / lasted.Minutes() / float64(sources)

	stopping := time.Now()
	ended = true
	if err := relay.end(); err != nil { //nolint:contextcheck // As above.
		return nil, err
	}
	r[drained] = float64(time.Since(stopping).Milliseconds())
	binary, err := os.Stat(w.binary)
	if err != nil {
		return nil, err
	}
	r[binarySize] = float64(binary.Size()) / (1 << 20)
	return r, nil
}

// awaitPolls waits until a receive waits at each queue: the first of all has been answered.
func (w *world) awaitPolls(ctx context.Context, queues int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := w.state(ctx, queues)
		if err != nil {
			return err
		}
		if s.polled == queues {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until %d sources receive: %d do: %w", queues, s.polled, ctx.Err())
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
