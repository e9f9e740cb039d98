package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// DeadLetterLimit bounds how many messages may be given up in a stretch of time: more
// means that something is wrong with the receiver, not with the messages. A Count of 0
// is no limit.
type DeadLetterLimit struct {
	Count int
	Per   time.Duration
}

// deadLetters brings what was given up to the dead-letter sink.
type deadLetters struct {
	*target
	limit DeadLetterLimit

	mu sync.Mutex
	// recent holds when the last Count messages were given up.
	recent []time.Time
}

// allow takes a place under the limit, if there is one.
func (d *deadLetters) allow(now time.Time) bool {
	if d.limit.Count == 0 {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.recent) > 0 && now.Sub(d.recent[0]) > d.limit.Per {
		d.recent = d.recent[1:]
	}
	if len(d.recent) >= d.limit.Count {
		return false
	}
	d.recent = append(d.recent, now)
	return true
}

// reset forgets what was given up before: an operator has looked.
func (d *deadLetters) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recent = nil
}

// doomed tells whether a message is given up, and under which reason. A message is
// given up only after a failed try: a sink that is down, a lease that was lost and a
// drain are none.
func (p *Pipeline) doomed(work context.Context, v *verdict, attempt int) (reason string, yes bool) {
	switch {
	case work.Err() != nil:
		return "", false
	case v.outcome == Rejected:
		return ReasonOf(v.err), true
	case v.outcome == Retry && p.cfg.MaxReceives > 0 && attempt >= p.cfg.MaxReceives &&
		!errors.Is(v.err, errSinkDown) && !errors.Is(v.err, ErrLeaseLost) && !errors.Is(v.err, errUnmatched):
		return "max_receives", true
	}
	return "", false
}

// bury sends the doomed of the messages that index names to the dead-letter sink, as
// they were received. What that sink confirms is deleted; the rest stays in its queue.
func (p *Pipeline) bury(ctx, work context.Context, b *batch, index []int) {
	if p.dead == nil {
		return
	}
	var letters []Message
	var of []int
	for _, i := range index {
		v, d := &b.verdicts[i], &b.leases[i].delivery
		reason, yes := p.doomed(work, v, d.Attempt)
		if !yes {
			continue
		}
		now := time.Now()
		if health, _ := p.dead.Health.Health(); health.State == Down {
			p.dead.trouble.failed("down", "the dead-letter sink is down; what it should take stays in the queue", zap.String("reason", health.Reason))
			continue
		}
		if !p.dead.allow(now) {
			p.Pause(fmt.Sprintf("more than %d dead letters in %v, the last for %s: %v; find the cause, then resume the source",
				p.dead.limit.Count, p.dead.limit.Per, reason, v.err))
			continue
		}
		m := d.Message
		m.Dead = &DeadLetter{Reason: reason, Error: v.err.Error(), Sink: v.sink, First: m.EnqueuedAt, Last: now}
		letters, of = append(letters, m), append(of, i)
	}
	p.deadLetter(ctx, b, letters, func(k int) { b.verdicts[of[k]].buried = letters[k].Dead.Reason })
}

// buryOptional sends what an optional target would not take to the dead-letter sink
// too. The message itself is none of it: it goes its way.
func (p *Pipeline) buryOptional(ctx context.Context, b *batch, t *target, i int, r Result) {
	reason := ReasonOf(r.Err)
	p.deps.Stats.givenUp(reason)
	if p.dead == nil || errors.Is(r.Err, errSinkDown) || !p.dead.allow(time.Now()) {
		return
	}
	m := b.leases[i].delivery.Message
	m.Dead = &DeadLetter{Reason: reason, Sink: t.Name.Sink, First: m.EnqueuedAt, Last: time.Now()}
	if r.Err != nil {
		m.Dead.Error = r.Err.Error()
	}
	p.deadLetter(ctx, b, []Message{m}, func(int) {})
}

// deadLetter delivers letters and calls buried for each that was confirmed.
func (p *Pipeline) deadLetter(ctx context.Context, b *batch, letters []Message, buried func(k int)) {
	if len(letters) == 0 {
		return
	}
	all := make([]int, len(letters))
	for k := range all {
		all[k] = k
	}
	d := &delivery{target: p.dead.target, leases: b.leases, messages: letters, answer: func(k int, r Result) {
		if r.Outcome != Delivered {
			return
		}
		buried(k)
		p.deps.Stats.deadLettered(letters[k].Dead.Reason)
		p.log.Warn("message dead-lettered", zap.String("message_id", letters[k].ID), zap.String("reason", letters[k].Dead.Reason),
			zap.String("sink", letters[k].Dead.Sink), zap.String("error", letters[k].Dead.Error), zap.Int("attempt", letters[k].Attempt))
	}}
	left := d.send(ctx, all)
	for k, i := range left.index {
		p.dead.failed(&letters[i], left.results[k])
	}
}
