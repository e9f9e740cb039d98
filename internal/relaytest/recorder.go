package relaytest

import (
	"context"
	"sync"

	"mnsrelay/internal/relay"
)

// Recorder is a relay.Sink with a health that records what it is given and answers
// as it is told to; by default it is up and everything is Delivered.
type Recorder struct {
	*relay.Monitor

	mu       sync.Mutex
	answer   func(ctx context.Context, m relay.Message) relay.Result
	messages []relay.Message
	calls    int
}

var (
	_ relay.Sink     = (*Recorder)(nil)
	_ relay.Reporter = (*Recorder)(nil)
)

// NewRecorder makes a Recorder that is up.
func NewRecorder() *Recorder {
	return &Recorder{Monitor: relay.NewMonitor(relay.Up, "")}
}

// Answer sets what each message gets; messages of one Deliver are asked for
// concurrently, so that one that blocks does not hold up the others.
func (r *Recorder) Answer(answer func(ctx context.Context, m relay.Message) relay.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// Deliver is part of relay.Sink.
func (r *Recorder) Deliver(ctx context.Context, ms []relay.Message, done func(i int, result relay.Result)) {
	r.mu.Lock()
	answer := r.answer
	r.calls++
	r.messages = append(r.messages, ms...)
	r.mu.Unlock()
	var answering sync.WaitGroup
	for i, m := range ms {
		if answer == nil {
			done(i, relay.Result{Outcome: relay.Delivered})
			continue
		}
		answering.Go(func() { done(i, answer(ctx, m)) })
	}
	answering.Wait()
}

// Messages gives every message of every call, in order.
func (r *Recorder) Messages() []relay.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]relay.Message(nil), r.messages...)
}

// Calls counts the calls of Deliver.
func (r *Recorder) Calls() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

// Times counts how often each message id was given.
func (r *Recorder) Times() map[string]int {
	times := make(map[string]int)
	for _, m := range r.Messages() {
		times[m.ID]++
	}
	return times
}
