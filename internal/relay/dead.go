package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// DeadLetterLimit bounds how many messages may be dead-lettered in a stretch of time: more
// means that something is wrong with the receiver, not with the messages. A Count of 0
// is no limit.
type DeadLetterLimit struct {
	Count int
	Per   time.Duration
}

// deadLetters brings dead letters to their sink.
type deadLetters struct {
	*target
	limit DeadLetterLimit

	mu sync.Mutex
	// recent holds when the last Count messages were dead-lettered, optional those that
	// optional sinks would not take: they have a limit of their own, for they must not
	// pause the source.
	recent, optional []time.Time
}

// allow takes a place under the limit, if there is one.
func (d *deadLetters) allow(recent *[]time.Time, now time.Time) bool {
	if d.limit.Count == 0 {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(*recent) > 0 && now.Sub((*recent)[0]) > d.limit.Per {
		*recent = (*recent)[1:]
	}
	if len(*recent) >= d.limit.Count {
		return false
	}
	*recent = append(*recent, now)
	return true
}

// refund gives back a place under the limit: the letter was not taken.
func (d *deadLetters) refund(recent *[]time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(*recent); n > 0 {
		*recent = (*recent)[:n-1]
	}
}

// reset forgets what was dead-lettered before: an operator has looked.
func (d *deadLetters) reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.recent, d.optional = nil, nil
}

// doomed tells whether a message is dead-lettered, and under which reason. A message is
// dead-lettered only after a failed try: a sink that is down, a lease that was lost and a
// drain are none.
func (p *Pipeline) doomed(work context.Context, v *verdict, attempt int) (reason string, yes bool) {
	switch {
	case work.Err() != nil:
		return "", false
	case v.outcome == Rejected:
		return ReasonOf(v.err), true
	case v.outcome == Retry && p.cfg.MaxReceives > 0 && attempt >= p.cfg.MaxReceives &&
		!errors.Is(v.err, ErrSinkDown) && !errors.Is(v.err, ErrLeaseLost) && !errors.Is(v.err, ErrUnmatched):
		return "max_receives", true
	}
	return "", false
}

// divide tells the messages that are dead-lettered from the others.
func (p *Pipeline) divide(work context.Context, b *batch, index []int) (doomed, others []int) {
	if p.dead == nil {
		return nil, index
	}
	for _, i := range index {
		if _, yes := p.doomed(work, &b.verdicts[i], b.leases[i].delivery.Attempt); yes {
			doomed = append(doomed, i)
		} else {
			others = append(others, i)
		}
	}
	return doomed, others
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
		if !p.dead.allow(&p.dead.recent, now) {
			p.Pause(fmt.Sprintf("more than %d dead letters in %v, the last for %s: %v; find the cause, then resume the source",
				p.dead.limit.Count, p.dead.limit.Per, reason, v.err))
			continue
		}
		m := d.Message
		m.Trace = b.messages[i].Trace
		m.Dead = &DeadLetter{Reason: reason, Error: v.err.Error(), Sink: v.sink, First: m.EnqueuedAt, Last: now}
		letters, of = append(letters, m), append(of, i)
	}
	p.deadLetter(ctx, b, letters, of, &p.dead.recent, func(k int) { b.verdicts[of[k]].buried = letters[k].Dead.Reason })
}

// buryOptional sends what an optional target would not take to the dead-letter sink
// too; what that confirms counts as confirmed by the target, which is not asked again.
// The messages themselves are none of it: they go their way.
func (p *Pipeline) buryOptional(ctx context.Context, b *batch, t *target, refused failures) {
	var letters []Message
	var of []int
	for k, i := range refused.index {
		reason := ReasonOf(refused.results[k].Err)
		p.deps.Stats.givenUp(reason)
		p.audit(AuditGivenUp, &b.messages[i], t, reason)
		if p.dead == nil || errors.Is(refused.results[k].Err, ErrSinkDown) || ctx.Err() != nil || !p.dead.allow(&p.dead.optional, time.Now()) {
			continue
		}
		m := b.leases[i].delivery.Message
		m.Trace = b.messages[i].Trace
		m.Dead = &DeadLetter{Reason: reason, Sink: t.Name.Sink, First: m.EnqueuedAt, Last: time.Now()}
		if err := refused.results[k].Err; err != nil {
			m.Dead.Error = err.Error()
		}
		letters, of = append(letters, m), append(of, i)
	}
	if p.dead != nil {
		p.deadLetter(ctx, b, letters, of, &p.dead.optional, func(k int) { b.confirm(of[k], t) })
	}
}

// deadLetter delivers letters, of names the messages in the batch that they are of, and
// calls buried for each that was confirmed; the places of the others under the limit are
// given back.
func (p *Pipeline) deadLetter(ctx context.Context, b *batch, letters []Message, of []int, recent *[]time.Time, buried func(k int)) {
	if len(letters) == 0 {
		return
	}
	all := make([]int, len(letters))
	for k := range all {
		all[k] = k
	}
	d := &delivery{target: p.dead.target, leases: b.leases, messages: letters, batch: b.span, answer: func(k int, r Result) {
		if r.Outcome != Delivered {
			p.dead.refund(recent)
			return
		}
		buried(k)
		p.deps.Stats.deadLettered(letters[k].Dead.Reason)
		p.audit(AuditDeadLettered, &b.messages[of[k]], p.dead.target, letters[k].Dead.Reason)
		p.log.Warn("message dead-lettered", zap.String("message_id", letters[k].ID), zap.String("reason", letters[k].Dead.Reason),
			zap.String("sink", letters[k].Dead.Sink), zap.String("error", letters[k].Dead.Error), zap.Int("attempt", letters[k].Attempt))
	}}
	d.trace(all)
	left := d.send(ctx, all)
	for k, i := range left.index {
		p.dead.failed(&letters[i], left.results[k])
		d.finish(i, left.results[k])
	}
}
