package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"time"
)

// The scenario "sinks" measures the sinks alone, fed from memory in this process as pipelines
// do, with batches of 16, 256 messages outstanding. Each sends what the bare client beside
// it sends, to the same far side.

// farSide counts what has arrived since it was empty.
type farSide interface {
	empty(ctx context.Context) error
	count(ctx context.Context) (int, error)
}

// sender sends messages to a far side; the first of several is the bare one.
type sender struct {
	name string
	send func(context.Context, []message) error
}

func (w *world) sinks(ctx context.Context) ([]*contest, error) {
	if err := w.needReceiver(ctx); err != nil {
		return nil, err
	}
	broker, err := newBrokerSide(w.node.URL(), w.channel)
	if err != nil {
		return nil, err
	}
	ms := messages(w.scaled(20_000), 1024)
	return []*contest{
		feeding("sinks: amqp091", broker, ms, broker.senders()),
		feeding("sinks: webhook", w.receiver, ms, w.receiver.senders()),
	}, nil
}

// feeding makes a contest of senders.
func feeding(scenario string, far farSide, ms []message, senders []sender) *contest {
	c := &contest{Scenario: scenario, What: fmt.Sprintf("%d messages of %s from memory", len(ms), bytesOf(len(ms[0].Body))), against: []string{senders[0].name}}
	send := map[string]func(context.Context, []message) error{}
	for _, s := range senders {
		c.contenders = append(c.contenders, s.name)
		send[s.name] = s.send
	}
	c.run = func(ctx context.Context, name string, _ int) (run, error) { return feedOne(ctx, far, ms, send[name]) }
	return c
}

// feedOne measures one run. The processor time is that of this process: the client and, in
// one process with it, whatever feeds it.
func feedOne(ctx context.Context, far farSide, ms []message, send func(context.Context, []message) error) (run, error) {
	if err := far.empty(ctx); err != nil {
		return nil, err
	}
	runtime.GC() // what another has left
	used, err := processorTime(os.Getpid())
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := send(ctx, ms); err != nil {
		return nil, err
	}
	took := time.Since(began)
	usedLater, err := processorTime(os.Getpid())
	if err != nil {
		return nil, err
	}
	if n, err := far.count(ctx); err != nil || n != len(ms) {
		return nil, fmt.Errorf("%d of %d messages have arrived: %w", n, len(ms), err)
	}
	n := float64(len(ms))
	return run{perSecond: n / took.Seconds(), cpu: float64((usedLater - used).Nanoseconds()) / 1e3 / n}, nil
}
