package relay

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
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
	// Optional targets never hold up the delete nor stop the source.
	Optional bool
	// Address is what an audit calls the far side of the sink: see Addressed.
	Address string
	// Retries is how often the sink's failed messages are tried again under lease; the
	// zero value means once.
	Retries Retries
}

// target is a Target at work.
type target struct {
	Target
	// route and index are its places among the routes and the targets of the pipeline.
	route, index int
	trouble      trouble
	// refused is about messages that were rejected, of which a delivery says nothing.
	refused trouble
	stats   *Stats
	// audit is told of confirms; nil: nobody is.
	audit Auditor
	// probing holds the right to send one message to a sink that is to be found out
	// about; size 1.
	probing chan struct{}
}

func newTarget(t Target, stats *Stats, log *zap.Logger) *target {
	log = log.With(zap.String("route", t.Name.Route), zap.String("sink", t.Name.Sink))
	return &target{Target: t, stats: stats, trouble: trouble{log: log}, refused: trouble{log: log}, probing: make(chan struct{}, 1)}
}

// settleMargin is what a try leaves of a lease for settling.
const settleMargin = time.Second

var (
	// errUnanswered is the cause of a result that a sink never gave.
	errUnanswered = Fail("unanswered", errors.New("the sink gave no result"))
	// errSinkDown is the cause of a message that was given back because its sink stayed
	// down.
	errSinkDown = Fail("sink_down", ErrSinkDown)
	// errLeaseOver is the cause of a message that was not sent because its lease was
	// lost: somebody else may have it.
	errLeaseOver = Fail("lease_lost", ErrLeaseLost)
)

// delivery is one batch on its way to one target.
type delivery struct {
	*target
	leases   leases
	messages []Message
	// draining is closed when receiving has ended: a drain does not wait for a sink.
	draining <-chan struct{}
	answer   func(i int, r Result)
	// batch is the span that those of the messages belong to, spans are theirs; both are nil
	// where nothing is traced.
	batch BatchSpan
	spans []DeliverySpan

	// giveUp is how long the batch is held for a sink that is down, set when the sink
	// is first found down.
	giveUp time.Time
	tries  int
	// ups counts how often the sink said that it is down while it was up.
	ups int
}

// deliver brings the messages that index names to the target and calls answer(i, r)
// once for each, as the results come in.
//
// A failed message is tried again at once as often as the sink's retries say, as long
// as the lease leaves time for it. What fails while the sink is down is not given back
// but held, for half of what is left of the lease, and sent again when the sink is up:
// a broker that restarts costs no attempt.
func (d *delivery) deliver(ctx context.Context, index []int) {
	d.trace(index)
	for {
		state := d.await(ctx)
		index = d.dropLost(index)
		var left failures
		switch {
		case len(index) == 0:
		case state == Up:
			left = d.send(ctx, index)
		case state == Probe:
			probed := d.send(ctx, index[:1])
			// The one that failed goes last, so that it does not take every probe.
			left.add(errSinkDown, index[1:]...)
			left.append(probed)
			d.rest(ctx, len(probed.index) > 0)
		default:
			left.add(errSinkDown, index...)
		}
		if state == Probe {
			<-d.probing
		}
		if len(left.index) == 0 {
			return
		}
		held := state != Down && ctx.Err() == nil && (state == Probe || d.down(ctx, &left))
		if !held && !d.again(ctx, state, &left) {
			d.giveBack(&left)
			return
		}
		d.traceRetry(&left)
		index = left.index
	}
}

// down tells whether what failed did so because the sink is down: it says so now, or it
// said so of a message, being up again already. Then the batch is held.
func (d *delivery) down(ctx context.Context, left *failures) bool {
	health, changed := d.Health.Health()
	said := slices.ContainsFunc(left.results, func(r Result) bool { return errors.Is(r.Err, ErrSinkDown) })
	if !said {
		return health.State != Up
	}
	d.hold()
	if health.State == Up && !d.pauseWhileUp(ctx, changed) {
		return false
	}
	return time.Now().Before(d.giveUp)
}

// The pauses of a batch whose sink is up and says that it is down.
const (
	firstUpPause = 10 * time.Millisecond
	mostUpPause  = 250 * time.Millisecond
)

// pauseWhileUp waits before a sink is tried again that is up and said of a message that it is
// down: it was for a moment, or a part of it is that its health does not tell of. A drain
// allows one such try.
func (d *delivery) pauseWhileUp(ctx context.Context, changed <-chan struct{}) bool {
	longest := min(firstUpPause<<min(d.ups, 20), mostUpPause)
	draining := d.draining
	if d.ups == 0 {
		draining = nil
	}
	d.ups++
	timer := time.NewTimer(longest/2 + rand.N(longest/2)) //nolint:gosec // jitter
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-draining:
		return false
	case <-ctx.Done():
		return false
	}
	return true
}

// hold sets for how long the batch is held, unless that has been done.
func (d *delivery) hold() {
	if d.giveUp.IsZero() {
		d.giveUp = time.Now().Add(time.Until(d.leases.ends()) / 2)
	}
}

// probePause lies between two probes of the same sink.
const probePause = time.Second

// rest waits after a probe that failed while the sink is still to be found out about.
func (d *delivery) rest(ctx context.Context, failed bool) {
	if health, _ := d.Health.Health(); !failed || health.State != Probe {
		return
	}
	timer := time.NewTimer(probePause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-d.draining:
	case <-ctx.Done():
	}
}

// await waits until the sink may be sent to and tells how: Up everything, Probe one
// message, which is then nobody else's right. Down means that it took too long, or
// that ctx or receiving has ended.
func (d *delivery) await(ctx context.Context) State {
	var expired <-chan time.Time
	for {
		health, changed := d.Health.Health()
		var probe chan<- struct{}
		switch health.State {
		case Up:
			return Up
		case Probe:
			probe = d.probing
		case Down:
			if d.Optional {
				return Down
			}
		}
		if expired == nil {
			d.hold()
			timer := time.NewTimer(time.Until(d.giveUp))
			defer timer.Stop()
			expired = timer.C
		}
		if !time.Now().Before(d.giveUp) {
			return Down
		}
		select {
		case probe <- struct{}{}:
			if health, _ := d.Health.Health(); health.State == Probe {
				return Probe
			}
			<-d.probing
		case <-changed:
		case <-expired:
			return Down
		case <-d.draining:
			return Down
		case <-ctx.Done():
			return Down
		}
	}
}

// dropLost answers for messages whose lease was lost, which somebody else may have, and
// gives the others.
func (d *delivery) dropLost(index []int) []int {
	var lost []int
	for _, i := range index {
		if d.leases[i].lost() {
			lost = append(lost, i)
		}
	}
	if len(lost) == 0 {
		return index
	}
	kept := make([]int, 0, len(index)-len(lost))
	for _, i := range index {
		if len(lost) > 0 && lost[0] == i {
			lost = lost[1:]
			d.finish(i, Result{Err: errLeaseOver})
			continue
		}
		kept = append(kept, i)
	}
	return kept
}

// again waits for the next try and reports whether there is one.
func (d *delivery) again(ctx context.Context, state State, left *failures) bool {
	d.tries++
	if state != Up || d.tries >= d.Retries.Attempts || ctx.Err() != nil {
		return false
	}
	longest := min(d.Retries.Initial<<min(d.tries-1, 20), d.Retries.Max)
	pause := rand.N(max(longest, 1)) //nolint:gosec // jitter
	for _, r := range left.results {
		pause = max(pause, r.RetryAfter)
	}
	if pause > d.Retries.Max || time.Until(d.leases.ends()) < pause+d.Retries.Timeout+settleMargin {
		return false // the queue's redelivery has more time
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		for k, r := range left.results {
			d.stats.fail(d.Name, &d.messages[left.index[k]], r.Outcome, r.Err)
		}
		return true
	case <-d.draining:
	case <-ctx.Done():
	}
	return false
}

// giveBack answers for what was not delivered.
func (d *delivery) giveBack(left *failures) {
	for k, i := range left.index {
		r := left.results[k]
		if !errors.Is(r.Err, ErrSinkDown) {
			d.failed(&d.messages[i], r)
		}
		d.finish(i, r)
	}
}

// finish gives a message its result.
func (d *delivery) finish(i int, r Result) {
	if d.spans != nil {
		d.spans[i].End(r)
	}
	d.answer(i, r)
}

// send makes one try with the messages that index names. It answers for what was
// delivered or rejected, as soon as that is known, and gives the others.
func (d *delivery) send(ctx context.Context, index []int) failures {
	sent := d.messages
	if len(index) < len(d.messages) || !slices.IsSorted(index) || d.spans != nil {
		sent = make([]Message, len(index))
		for k, i := range index {
			sent[k] = d.messages[i]
			if d.spans != nil {
				sent[k].Trace = d.spans[i].Context()
			}
		}
	}

	var (
		mu        sync.Mutex
		ended     bool
		answered  = make([]bool, len(sent))
		left      failures
		delivered int
	)
	begun := d.begun()
	d.Sink.Deliver(ctx, sent, func(k int, r Result) {
		mu.Lock()
		if ended || answered[k] {
			mu.Unlock()
			return
		}
		answered[k] = true
		switch r.Outcome {
		case Delivered:
			delivered++
			d.stats.delivered(d.Name)
		case Rejected:
		case Retry:
			left.index, left.results = append(left.index, index[k]), append(left.results, r)
			mu.Unlock()
			return
		}
		mu.Unlock()
		if r.Outcome == Rejected {
			d.failed(&sent[k], r)
		} else {
			d.auditConfirm(&sent[k], r, begun)
		}
		d.finish(index[k], r)
	})
	mu.Lock()
	defer mu.Unlock()
	ended = true
	for k := range answered {
		if !answered[k] {
			left.add(errUnanswered, index[k])
		}
	}
	if delivered == len(sent) {
		d.trouble.ended("sink delivers again")
	}
	return left
}

// failures are the messages of one try that were not delivered, with their results.
type failures struct {
	index   []int
	results []Result
}

func (f *failures) add(err error, index ...int) {
	for _, i := range index {
		f.index, f.results = append(f.index, i), append(f.results, Result{Err: err})
	}
}

func (f *failures) append(other failures) {
	f.index, f.results = append(f.index, other.index...), append(f.results, other.results...)
}

// failed counts a failed try and logs it, unless the last one failed alike.
func (t *target) failed(m *Message, r Result) {
	if r.Err == nil {
		r.Err = errUnanswered
	}
	reason := ReasonOf(r.Err)
	t.stats.fail(t.Name, m, r.Outcome, r.Err)
	of := &t.trouble
	if r.Outcome == Rejected {
		of = &t.refused
	}
	of.failed(reason, "delivery failed",
		zap.Stringer("outcome", r.Outcome), zap.String("reason", reason), zap.Error(r.Err),
		zap.String("message_id", m.ID), zap.Int("attempt", m.Attempt))
}
