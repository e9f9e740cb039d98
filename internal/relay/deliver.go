package relay

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Target is a sink as one route uses it.
type Target struct {
	Name TargetName
	Sink Sink
	// Health is that of the endpoint behind the sink.
	Health Reporter
}

// target is a Target at work.
type target struct {
	Target
	trouble trouble
	stats   *Stats
}

// errUnanswered is the cause of a result that a sink never gave.
var errUnanswered = Fail("unanswered", errors.New("the sink gave no result"))

// errSinkDown is the cause of a message that was given back because its sink stayed
// down. It does not count as a failed try.
var errSinkDown = Fail("sink_down", errors.New("the sink stayed down"))

// deliver brings those of ms that index names to the target and calls answer(i, r)
// once for each, as the results come in.
//
// What fails while the sink is down is not given back at once but held, for half of
// what is left of the lease, and sent again when the sink is up: a broker that
// restarts costs no attempt. A stop of receiving (draining) ends the holding, for a
// drain does not wait for a sink.
func (t *target) deliver(ctx context.Context, draining <-chan struct{}, ms []Message, index []int, leaseEnds time.Time, answer func(i int, r Result)) {
	hold := holding{draining: draining, leaseEnds: leaseEnds}
	defer hold.stop()
	for {
		if !hold.awaitUp(ctx, t.Health) {
			for _, i := range index {
				answer(i, Result{Err: errSinkDown})
			}
			return
		}
		failed := t.send(ctx, ms, index, answer)
		if len(failed.index) == 0 {
			return
		}
		if health, _ := t.Health.Health(); health.State != Down || ctx.Err() != nil {
			failed.report(t, ms, answer)
			return
		}
		index = failed.index
	}
}

// send makes one try with those of ms that index names. It answers for what was
// delivered or rejected, as soon as that is known, and gives the others.
func (t *target) send(ctx context.Context, ms []Message, index []int, answer func(i int, r Result)) retries {
	sent := ms
	if len(index) < len(ms) {
		sent = make([]Message, len(index))
		for k, i := range index {
			sent[k] = ms[i]
		}
	}

	var (
		mu        sync.Mutex
		ended     bool
		answered  = make([]bool, len(sent))
		failed    retries
		delivered int
	)
	t.Sink.Deliver(ctx, sent, func(k int, r Result) {
		mu.Lock()
		if ended || answered[k] {
			mu.Unlock()
			return
		}
		answered[k] = true
		switch r.Outcome {
		case Delivered:
			delivered++
			t.stats.delivered(t.Name)
		case Rejected:
		case Retry:
			failed.add(index[k], r)
			mu.Unlock()
			return
		}
		mu.Unlock()
		if r.Outcome == Rejected {
			t.failed(&sent[k], r)
		}
		answer(index[k], r)
	})
	mu.Lock()
	defer mu.Unlock()
	ended = true
	for k := range answered {
		if !answered[k] {
			failed.add(index[k], Result{Err: errUnanswered})
		}
	}
	if delivered == len(sent) {
		t.trouble.ended("sink delivers again")
	}
	return failed
}

// failed counts a failed try and logs it, unless the last one failed alike.
func (t *target) failed(m *Message, r Result) {
	if r.Err == nil {
		r.Err = errUnanswered
	}
	reason := ReasonOf(r.Err)
	t.stats.retried(reason)
	t.trouble.failed(r.Outcome.String()+" "+reason, "delivery failed",
		zap.Stringer("outcome", r.Outcome), zap.String("reason", reason), zap.Error(r.Err),
		zap.String("message_id", m.ID), zap.Int("attempt", m.Attempt))
}

// retries are the messages of one try that are to be tried again.
type retries struct {
	index   []int
	results []Result
}

func (f *retries) add(i int, r Result) {
	f.index = append(f.index, i)
	f.results = append(f.results, r)
}

func (f *retries) report(t *target, ms []Message, answer func(i int, r Result)) {
	for k, i := range f.index {
		t.failed(&ms[i], f.results[k])
		answer(i, f.results[k])
	}
}

// holding is the time for which a batch is kept for a sink that is down.
type holding struct {
	draining  <-chan struct{}
	leaseEnds time.Time
	timer     *time.Timer
}

// awaitUp waits until the sink is not down. It reports false if that takes longer
// than half the lease, counted from the first time the sink was found down, if ctx
// ends or if the drain begins.
func (h *holding) awaitUp(ctx context.Context, sink Reporter) bool {
	for {
		health, changed := sink.Health()
		if health.State != Down {
			return true
		}
		if h.timer == nil {
			h.timer = time.NewTimer(time.Until(h.leaseEnds) / 2)
		}
		select {
		case <-changed:
		case <-h.timer.C:
			return false
		case <-h.draining:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

func (h *holding) stop() {
	if h.timer != nil {
		h.timer.Stop()
	}
}
