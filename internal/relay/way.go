package relay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
)

// The way of a message, top to bottom: room, receive, decode, route, ledger, sinks,
// dead letter, settle, and room given back.

// receive makes one poll: it waits for the gate and for room, leases a batch and sends
// it on its way, for whose end it does not wait. Nothing there: nil, nil.
func (p *Pipeline) receive(receive, work, settle context.Context, wait bool) (*batch, error) {
	ctx, leave, err := p.gate.enter(receive)
	if err != nil {
		return nil, err
	}
	defer leave()

	// Room for the batch at its largest, taken before any lease begins to age.
	if err := p.deps.Shared.Await(ctx); err != nil {
		return nil, fmt.Errorf("%w: %w", errShut, err)
	}
	asked := p.cfg.BatchSize
	if p.gate.probing() {
		asked = 1
	}
	reserved := int64(asked) * maxBody
	if err := p.deps.Room.Reserve(ctx, asked, reserved); err != nil {
		return nil, fmt.Errorf("%w: %w", errShut, err)
	}

	poll, done := answered(ctx)
	ds, err := p.deps.Source.Receive(poll, asked, wait)
	done()
	b := newBatch(ds, len(p.targets), p.confirmed)
	p.deps.Room.Give(asked-len(ds), reserved-b.size)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", errShut, err)
		}
		return nil, err
	}
	p.deps.Stats.receiveWorked(ds, asked)
	if len(ds) == 0 {
		return nil, nil //nolint:nilnil // nothing there is the usual answer
	}
	p.warnOfAge()
	p.deps.Shared.Charge(len(ds), b.size)
	p.batches.Go(func() { p.carry(work, settle, receive.Done(), b) })
	return b, nil
}

// answerWithin is how old a poll may be that is still let be answered when receiving is
// stopped. One that is older waits at the server and is ended at once; of a younger one
// the answer may be on its way, with messages that would be leased for nothing.
const answerWithin = 250 * time.Millisecond

// answered gives a context for a poll that begins now: it ends with ctx, but not before
// the poll is answerWithin old.
func answered(ctx context.Context) (poll context.Context, done func()) {
	begun := time.Now()
	poll, end := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(time.Until(begun.Add(answerWithin)), end)
		context.AfterFunc(poll, func() { timer.Stop() })
	})
	return poll, func() {
		stop()
		end()
	}
}

// carry takes a batch from its receive to its settlement.
func (p *Pipeline) carry(work, settle context.Context, draining <-chan struct{}, b *batch) {
	release := p.keeper.keep(settle, b.leases)
	defer release()
	defer p.track(b)()

	accepted := p.decode(b)
	defer p.trace(b)()
	plans := p.route(b, accepted)
	if p.cfg.AtMostOnce {
		p.once(work, settle, draining, b, plans)
		return
	}
	p.recall(work, b, plans)
	defer p.deliver(work, draining, b, plans)()
	b.completions(settle, settleLinger, func(ctx context.Context, index []int) {
		// What waits for the dead-letter sink does not hold up the others, nor they it.
		doomed, others := p.divide(work, b, index)
		var ending sync.WaitGroup
		if len(doomed) > 0 {
			ending.Go(func() {
				p.bury(ctx, work, b, doomed)
				p.end(ctx, work, b, doomed)
			})
		}
		p.end(ctx, work, b, others)
		ending.Wait()
	})
	close(b.settled)
}

// end settles messages and forgets them.
func (p *Pipeline) end(ctx, work context.Context, b *batch, index []int) {
	if len(index) == 0 {
		return
	}
	p.record(ctx, b, index)
	p.flushAudit(ctx)
	p.settle(ctx, work, b, index, func(part, gone []int) {
		p.give(b, part)
		p.forget(ctx, b, gone)
	})
}

// decode unwraps and decodes each message and gives the index of those that can be
// delivered. The others are rejected.
func (p *Pipeline) decode(b *batch) (accepted []int) {
	accepted = make([]int, 0, len(b.messages))
	for i := range b.messages {
		decoded, err := p.deps.Decode(b.messages[i])
		if err != nil {
			p.reject(b, i, err)
			continue
		}
		b.messages[i] = decoded
		accepted = append(accepted, i)
	}
	return accepted
}

// reject decides on a message that no target is asked about.
func (p *Pipeline) reject(b *batch, i int, err error) {
	p.deps.Stats.fail(TargetName{}, &b.messages[i], Rejected, err)
	b.decide(i, Result{Outcome: Rejected, Err: err})
}

// ErrUnmatched is why a message that no route takes is dead-lettered, or stays in its queue.
var ErrUnmatched = Fail("unmatched", errors.New("no route takes the message"))

// route gives, for each target, the messages that go to it: every route that matches
// applies. It decides on those that no route takes.
func (p *Pipeline) route(b *batch, accepted []int) (plans [][]int) {
	plans = make([][]int, len(p.targets))
	if !p.conditional {
		for t := range plans {
			plans[t] = accepted
		}
		return plans
	}
	matches := make([]bool, len(p.deps.Routes))
	for _, i := range accepted {
		matched, err := p.match(&b.messages[i], matches)
		switch {
		case err != nil:
			p.reject(b, i, err)
			continue
		case !matched:
			p.unmatched(b, i)
			continue
		}
		for _, t := range p.targets {
			if matches[t.route] {
				plans[t.index] = append(plans[t.index], i)
			}
		}
	}
	return plans
}

// match fills in which routes take a message.
func (p *Pipeline) match(m *Message, matches []bool) (matched bool, err error) {
	for r := range p.deps.Routes {
		matches[r] = true
		if match := p.deps.Routes[r].Match; match != nil {
			if matches[r], err = match(m); err != nil {
				return false, fmt.Errorf("route %s: %w", p.deps.Routes[r].Name, err)
			}
		}
		matched = matched || matches[r]
	}
	return matched, nil
}

func (p *Pipeline) unmatched(b *batch, i int) {
	switch p.cfg.Unmatched {
	case UnmatchedDelete:
		p.audit(AuditUnmatched, &b.messages[i], nil, "")
		b.decide(i, Result{Outcome: Delivered})
	case UnmatchedDeadLetter:
		b.decide(i, Result{Outcome: Rejected, Err: ErrUnmatched})
	case UnmatchedRetain:
		b.decide(i, Result{Outcome: Retry, Err: ErrUnmatched})
	}
}

// deliver starts bringing each target its messages; wait waits for all of them.
func (p *Pipeline) deliver(work context.Context, draining <-chan struct{}, b *batch, plans [][]int) (wait func()) {
	pending := make([]int, len(b.messages))
	planned := make([]bool, len(b.messages))
	for _, t := range p.targets {
		for _, i := range plans[t.index] {
			planned[i] = true
			if !t.Optional {
				pending[i]++
			}
		}
	}
	for i := range b.messages {
		if planned[i] || b.known(i) {
			b.expect(i, pending[i])
		}
	}

	ctx, cancel := work, func() {}
	if p.keeper.forbidden.Load() {
		// The first lease has to do: what is not confirmed in it comes again anyway.
		left := time.Until(b.leases.ends())
		ctx, cancel = context.WithTimeout(work, left-min(settleMargin, left/4))
	}
	var deliveries sync.WaitGroup
	for _, t := range p.targets {
		if index := plans[t.index]; len(index) > 0 {
			d := &delivery{target: t, leases: b.leases, messages: b.messages, draining: draining, batch: b.span}
			deliveries.Go(func() { p.deliverTo(ctx, d, b, index) })
		}
	}
	return func() {
		deliveries.Wait()
		cancel()
	}
}

// deliverTo brings a target its messages.
func (p *Pipeline) deliverTo(ctx context.Context, d *delivery, b *batch, index []int) {
	if !d.Optional {
		d.answer = func(i int, r Result) { b.answer(i, d.target, r) }
		d.deliver(ctx, index)
		p.recordEarly(ctx, b, index)
		return
	}
	// The room of the batch is given back without asking an optional target, so what
	// is on its way to it has a room of its own.
	leave, entered := p.enterSpare(len(index), b.size)
	if !entered {
		for _, i := range index {
			p.deps.Stats.givenUp(reasonBusy)
			p.audit(AuditGivenUp, &b.messages[i], d.target, reasonBusy)
		}
		return
	}
	defer leave()
	var mu sync.Mutex
	var refused failures
	d.answer = func(i int, r Result) {
		if r.Outcome == Delivered {
			b.confirm(i, d.target)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		refused.append(failures{index: []int{i}, results: []Result{r}})
	}
	d.deliver(ctx, index)
	p.buryOptional(ctx, b, d.target, refused)
	p.record(ctx, b, index)
}

// reasonBusy is why a message was not sent to an optional target: too many are on their way
// to such ones.
const reasonBusy = "busy"

// enterSpare takes room for messages on their way to an optional target, if there is any at
// once.
func (p *Pipeline) enterSpare(messages int, bytes int64) (leave func(), entered bool) {
	if !p.spare.Try(messages, bytes) {
		return nil, false
	}
	if !p.deps.Spare.Try(messages, bytes) {
		p.spare.Give(messages, bytes)
		return nil, false
	}
	return func() {
		p.deps.Spare.Give(messages, bytes)
		p.spare.Give(messages, bytes)
	}, true
}

// once delivers at most once: what was deleted first is sent, and what then fails is
// counted as given up.
func (p *Pipeline) once(work, settle context.Context, draining <-chan struct{}, b *batch, plans [][]int) {
	planned := make([]bool, len(b.messages))
	for _, index := range plans {
		for _, i := range index {
			planned[i] = true
		}
	}
	var all []int
	for i := range planned {
		if planned[i] {
			b.decide(i, Result{Outcome: Delivered})
		}
		all = append(all, i)
	}
	p.bury(settle, work, b, all)
	p.flushAudit(settle)
	p.settle(settle, work, b, all, func([]int, []int) {})
	var deliveries sync.WaitGroup
	for _, t := range p.targets {
		var index []int
		for _, i := range plans[t.index] {
			if b.gone[i] {
				index = append(index, i)
			}
		}
		if len(index) == 0 {
			continue
		}
		d := &delivery{target: t, leases: b.leases, messages: b.messages, draining: draining, batch: b.span, answer: func(i int, r Result) {
			if r.Outcome != Delivered {
				p.deps.Stats.givenUp(ReasonOf(r.Err))
				p.audit(AuditGivenUp, &b.messages[i], t, ReasonOf(r.Err))
			}
		}}
		deliveries.Go(func() { d.deliver(work, index) })
	}
	deliveries.Wait()
	p.give(b, all)
	close(b.settled)
}

func (p *Pipeline) confirmed(m *Message) {
	if p.deps.Confirmed != nil {
		p.deps.Confirmed(time.Since(m.EnqueuedAt), m)
	}
}

// settle deletes what every required target or the dead-letter sink has confirmed, and
// gives the rest back to the queue. It calls done with each part that is settled, and with what
// of it was deleted: a message whose lease is being renewed waits for that alone.
func (p *Pipeline) settle(ctx, work context.Context, b *batch, index []int, done func(part, gone []int)) {
	now := make([]int, 0, len(index))
	var renewing sync.WaitGroup
	for k, i := range index {
		if b.leases[i].claim() {
			alone := index[k : k+1 : k+1]
			renewing.Go(func() { done(alone, p.settleClaimed(ctx, work, b, alone)) })
		} else {
			now = append(now, i)
		}
	}
	if len(now) > 0 {
		done(now, p.settleClaimed(ctx, work, b, now))
	}
	renewing.Wait()
}

func (p *Pipeline) settleClaimed(ctx, work context.Context, b *batch, index []int) (gone []int) {
	settlements := make([]Settlement, 0, len(index))
	settled := make([]int, 0, len(index))
	var deleted, lost int
	var returned []string
	for _, i := range index {
		d, ok := b.leases[i].settle()
		s := p.settlement(work, d, &b.verdicts[i])
		if !ok && !s.Delete {
			lost++
			continue
		}
		// A lease that seems to be lost may not be: its delete is tried all the same.
		settlements = append(settlements, s)
		settled = append(settled, i)
	}

	gone = make([]int, 0, len(settled))
	for k, err := range p.deps.Source.Settle(ctx, settlements) {
		v := &b.verdicts[settled[k]]
		switch {
		case settlements[k].Delete && err == nil:
			deleted++
			gone = append(gone, settled[k])
			b.markGone(settled[k])
		case settlements[k].Delete || errors.Is(err, ErrLeaseLost):
			// A delete whose outcome is unknown: the message may come again.
			lost++
			p.undeleted.failed(kindOf(err), "a message is delivered but its delete is not confirmed; it may come again", zap.Error(err),
				zap.String("message_id", settlements[k].ID), zap.Int("attempt", settlements[k].Attempt))
		default:
			// Where the queue did not take the delay, the lease runs out by itself.
			returned = append(returned, returnReason(work, v))
			if v.outcome == Rejected {
				p.stays(&b.messages[settled[k]], v)
			}
		}
	}
	if deleted > 0 && lost == 0 {
		p.undeleted.ended("deletes are confirmed again")
	}
	p.deps.Stats.settled(deleted, lost, returned)
	if b.span != nil {
		b.span.Settled(deleted, len(returned), lost)
	}
	return gone
}

// stays says once of a message that it was rejected and stays in its queue all the same,
// and not again each time it comes: that would be for as long as the queue keeps it.
func (p *Pipeline) stays(m *Message, v *verdict) {
	if !p.stayed.add(m.ID) {
		return
	}
	p.log.Warn("message rejected; it stays in the queue and is retried at growing intervals", zap.String("message_id", m.ID), zap.String("reason", ReasonOf(v.err)),
		zap.Error(v.err), zap.String("sink", v.sink), zap.Int("attempt", m.Attempt))
}

// settlement says what to tell the queue of a message: only Delivered deletes.
func (p *Pipeline) settlement(work context.Context, d Delivery, v *verdict) Settlement {
	switch {
	case v.outcome == Delivered || v.buried != "":
		return Settlement{Delivery: d, Delete: true}
	case errors.Is(v.err, ErrSinkDown), work.Err() != nil:
		// Not the message's fault: whoever can deliver it may have it at once.
		return Settlement{Delivery: d, Delay: MinRedelivery}
	default:
		return Settlement{Delivery: d, Delay: p.cfg.Redelivery.Delay(d.Attempt, v.retryAfter)}
	}
}

func returnReason(work context.Context, v *verdict) string {
	if work.Err() != nil {
		return "drain"
	}
	return ReasonOf(v.err)
}

// give gives back the room of messages that are settled. That of their bodies is given back
// with the last of a batch: as long as one is on its way, the memory of all is in use.
func (p *Pipeline) give(b *batch, index []int) {
	var size int64
	if b.room.Add(-int64(len(index))) == 0 {
		size = b.size
	}
	p.deps.Room.Give(len(index), size)
	p.deps.Shared.Give(len(index), size)
}

// warnOfAge warns of messages that have been in the queue for half the time that it
// keeps them.
func (p *Pipeline) warnOfAge() {
	retention := time.Duration(p.retention.Load())
	if retention == 0 {
		return
	}
	if age := p.deps.Stats.oldest(); age > retention/2 {
		p.aged.failed("aged", "messages are older than half the queue's retention; what is not delivered by its end is lost",
			zap.Duration("age", age), zap.Duration("retention", retention))
		return
	}
	p.aged.ended("messages are younger than half the queue's retention again")
}
