// Package redrive moves messages from one MNS queue into another: dead letters back to
// where they came from, once what kept them from being delivered is mended.
//
// A message is deleted only after the other queue has given its copy an id. So a move
// may be interrupted anywhere, by a signal or by the end of the process, and be begun
// again: at worst a message is there twice. All that is known of the move is in the two
// queues, but for one thing: messages whose copy was sent and whose delete failed are
// remembered, and only deleted when they come again. That keeps one move from making
// two copies of a message; a second move cannot know.
//
// An envelope is unwrapped, so that the message goes back as it was. Any other message
// is moved as it is. What cannot be moved, an envelope of a later version for one, stays
// and is named; its lease ends by itself.
package redrive

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"

	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

// Origin is the queue that messages are taken from; a *mns.Queue is one.
type Origin interface {
	BatchReceive(ctx context.Context, n int, wait time.Duration) ([]relay.Delivery, error)
	BatchDelete(ctx context.Context, receipts []string) ([]error, error)
	ChangeVisibility(ctx context.Context, receipt string, timeout time.Duration) (mns.Lease, error)
}

// Destination is the queue that they go to; a *mns.Queue is one.
type Destination interface {
	BatchSend(ctx context.Context, ms []mns.Outgoing) ([]mns.Sent, error)
}

var (
	_ Origin      = (*mns.Queue)(nil)
	_ Destination = (*mns.Queue)(nil)
)

// Config says how much is moved, and how fast.
type Config struct {
	// Max is how many messages are moved at most; 0: all.
	Max int
	// Rate is how many messages are moved in a second at most; 0: as many as can be.
	Rate float64
	// Wait is how long a queue must have shown no message to be empty, in whole seconds;
	// 0: 3 s.
	Wait time.Duration
	// Patience is how long a queue may fail before the move is given up; 0: a minute.
	Patience time.Duration
}

const (
	defaultWait     = 3 * time.Second
	defaultPatience = time.Minute
	// defaultLease is the visibility timeout of a queue made without one (MNS:
	// CreateQueue).
	defaultLease = 30 * time.Second
	// longestReturn is how long messages are waited for that are to come back.
	longestReturn = 2 * time.Minute
	// giveBackTimeout bounds the return of messages that were received together.
	giveBackTimeout = 5 * time.Second
)

// Progress is how far a move is.
type Progress struct {
	// Moved messages are in the other queue, and deleted; Unwrapped of them were
	// envelopes.
	Moved, Unwrapped int
	// Stayed messages cannot be moved.
	Stayed int
	// Twofold messages are in the other queue and not deleted, as far as is known:
	// another move would make a second copy. It is set at the end.
	Twofold int
	// Trouble is why there is no progress just now; empty where there is.
	Trouble string
}

// Deps are what a Mover needs of others.
type Deps struct {
	From Origin
	To   Destination
	// Report, if not nil, is told of every step.
	Report func(Progress)
	// Stays, if not nil, is told once of every message that cannot be moved.
	Stays func(id string, why error)
}

// Mover moves messages. Make it with New; it may run once.
type Mover struct {
	cfg  Config
	deps Deps

	progress Progress
	// stayed and sent hold ids: of messages that cannot be moved, and of those whose copy
	// was sent and that are not deleted.
	stayed, sent map[string]struct{}
	// back holds until when messages are away that are to come again; the empty id stands
	// for those of a receive that got no answer.
	back map[string]time.Time
	// lease is how long the leases are.
	lease time.Duration
	// next is when the rate allows the next message.
	next time.Time

	retry   *backoff.ExponentialBackOff
	failing time.Time // when a queue began to fail; zero: none does
}

// New makes a Mover.
func New(cfg Config, deps Deps) *Mover {
	if cfg.Wait == 0 {
		cfg.Wait = defaultWait
	}
	if cfg.Patience == 0 {
		cfg.Patience = defaultPatience
	}
	if deps.Report == nil {
		deps.Report = func(Progress) {}
	}
	if deps.Stays == nil {
		deps.Stays = func(string, error) {}
	}
	m := &Mover{
		cfg: cfg, deps: deps, lease: defaultLease,
		stayed: map[string]struct{}{}, sent: map[string]struct{}{}, back: map[string]time.Time{},
		retry: &backoff.ExponentialBackOff{
			InitialInterval: 200 * time.Millisecond, MaxInterval: 5 * time.Second, Multiplier: 2, RandomizationFactor: 0.3,
		},
	}
	m.retry.Reset()
	return m
}

// Run moves messages until the queue is empty, Max have been moved or stop ends: then
// what was received is moved to its end, unless work ends as well. It gives an error if
// it was stopped, which then is that of the context, or if a queue does not work.
func (m *Mover) Run(stop, work context.Context) (Progress, error) {
	err := m.run(stop, work)
	m.progress.Trouble = ""
	m.progress.Twofold = len(m.sent)
	return m.progress, err
}

func (m *Mover) run(stop, work context.Context) error {
	var wait time.Duration
	fruitless := 0
	for {
		n := m.room()
		if n == 0 {
			return nil
		}
		if err := sleep(stop, time.Until(m.next)); err != nil {
			return err
		}
		ds, err := m.receive(stop, work, n, wait)
		if err != nil {
			return err
		}
		fresh := m.fresh(ds)
		switch {
		case len(fresh) > 0:
			wait, fruitless = 0, 0
			if err := m.move(stop, work, fresh); err != nil {
				return err
			}
		case len(ds) > 0:
			// Only such as stay; others may be behind them.
			if fruitless++; fruitless > len(m.stayed)/mns.MaxBatch+1 && !m.expects() {
				return nil
			}
		case wait > 0 && !m.expects():
			return nil
		default:
			wait = m.cfg.Wait // a receive that does not wait may miss some
		}
	}
}

// room is how many messages may be received.
func (m *Mover) room() int {
	n := mns.MaxBatch
	if m.cfg.Max > 0 {
		n = min(n, max(m.cfg.Max-m.progress.Moved-len(m.sent), 0))
	}
	if m.cfg.Rate > 0 {
		n = min(n, max(int(m.cfg.Rate), 1))
	}
	return n
}

// fresh leaves out the messages that were found to stay.
func (m *Mover) fresh(ds []relay.Delivery) []relay.Delivery {
	fresh := make([]relay.Delivery, 0, len(ds))
	for _, d := range ds {
		delete(m.back, d.ID)
		if _, stays := m.stayed[d.ID]; !stays {
			fresh = append(fresh, d)
		}
	}
	return fresh
}

// expects tells whether messages are away that are soon to come again.
func (m *Mover) expects() bool {
	const late = 2 * time.Second
	now := time.Now()
	for _, until := range m.back {
		if now.Before(until.Add(late)) && until.Before(now.Add(longestReturn)) {
			return true
		}
	}
	return false
}

// receive asks until there is an answer. A stop ends one that waits; one that does not
// is soon answered, and cutting it would leave leases to nobody.
func (m *Mover) receive(stop, work context.Context, n int, wait time.Duration) ([]relay.Delivery, error) {
	ctx := work
	if wait > 0 {
		ctx = stop
	}
	for {
		ds, err := m.deps.From.BatchReceive(ctx, n, wait)
		if err == nil {
			m.works()
			if len(ds) > 0 {
				m.lease = time.Until(ds[0].Deadline) + time.Second // which a deadline leaves out
			}
			return ds, nil
		}
		if answer, is := errors.AsType[*mns.Error](err); !is || answer.Code == "" {
			m.back[""] = time.Now().Add(m.lease) // it may have leased some all the same
		}
		if err := m.trouble(stop, err); err != nil {
			return nil, err
		}
	}
}

// letter is one message on its way.
type letter struct {
	relay.Delivery
	body    []byte
	wrapped bool
}

// move sends what was received and deletes what was sent.
func (m *Mover) move(stop, work context.Context, ds []relay.Delivery) error {
	var letters, gone []letter
	for _, d := range ds {
		l := letter{Delivery: d}
		if err := l.open(); err != nil {
			m.stays(d.ID, err)
			continue
		}
		if _, sent := m.sent[d.ID]; sent {
			gone = append(gone, l)
			continue
		}
		letters = append(letters, l)
	}
	var err error
	for len(letters) > 0 && err == nil {
		request := letters[:fit(letters)]
		letters = letters[len(request):]
		var sent, left []letter
		sent, left, err = m.send(stop, work, request)
		gone = append(gone, sent...)
		m.giveBack(work, left)
	}
	m.giveBack(work, letters)
	for _, l := range gone {
		m.sent[l.ID] = struct{}{}
	}
	if m.cfg.Rate > 0 {
		now := time.Now()
		if m.next.Before(now) {
			m.next = now
		}
		m.next = m.next.Add(time.Duration(float64(len(gone)) / m.cfg.Rate * float64(time.Second)))
	}
	// Whatever else went wrong: what has a copy is to be deleted.
	if failed := m.remove(stop, work, gone); err == nil {
		err = failed
	}
	return err
}

// open gives the letter the body that is sent.
func (l *letter) open() error {
	envelope, is, err := mns.ReadEnvelope(l.Body)
	switch {
	case err != nil:
		return err
	case !is:
		l.body = l.Body
	default:
		l.wrapped = true
		if l.body, err = envelope.Original(); err != nil {
			return err
		}
	}
	if !mns.IsText(l.body) {
		return errors.New("its body has bytes that MNS cannot carry")
	}
	if len(l.body) > mns.MaxBody {
		return fmt.Errorf("its body has %d bytes, and MNS takes %d", len(l.body), mns.MaxBody)
	}
	return nil
}

// fit is how many of the letters one request holds.
func fit(letters []letter) int {
	size := 0
	for i, l := range letters {
		if size += len(l.body); size > mns.MaxBody {
			return i
		}
	}
	return len(letters)
}

// send sends one request, again while it fails and the leases last. It gives the letters
// that have a copy and those that do not and may be tried later.
func (m *Mover) send(stop, work context.Context, letters []letter) (sent, left []letter, err error) {
	for {
		results, err := m.deps.To.BatchSend(work, outgoing(letters))
		if err == nil {
			sent, left, err = m.sort(letters, results)
			if len(sent) > 0 || len(left) == 0 {
				m.works()
				return sent, left, nil
			}
			letters = left
		}
		if mns.RefusesBody(err) {
			if len(letters) > 1 {
				return m.sendEach(stop, work, letters)
			}
			m.works()
			m.stays(letters[0].ID, err)
			return nil, nil, nil
		}
		if err := m.troubleUntil(stop, work, ends(letters), err); err != nil {
			if errors.Is(err, errLeaseOver) {
				err = nil
			}
			return nil, letters, err
		}
	}
}

func outgoing(letters []letter) []mns.Outgoing {
	out := make([]mns.Outgoing, len(letters))
	for i, l := range letters {
		out[i].Body = l.body
	}
	return out
}

// ends is when the first of the leases does.
func ends(letters []letter) time.Time {
	first := letters[0].Deadline
	for _, l := range letters {
		if l.Deadline.Before(first) {
			first = l.Deadline
		}
	}
	return first
}

// sendEach sends letters alone, of which one or another makes a request fail as a whole.
func (m *Mover) sendEach(stop, work context.Context, letters []letter) (sent, left []letter, err error) {
	for i := range letters {
		s, l, err := m.send(stop, work, letters[i:i+1])
		sent, left = append(sent, s...), append(left, l...)
		if err != nil {
			return sent, append(left, letters[i+1:]...), err
		}
	}
	return sent, left, nil
}

// sort divides letters by what became of them; the error is that of one that is left.
func (m *Mover) sort(letters []letter, results []mns.Sent) (sent, left []letter, why error) {
	for i, l := range letters {
		switch err := results[i].Err; {
		case err == nil:
			sent = append(sent, l)
		case mns.RefusesBody(err):
			m.stays(l.ID, err)
		default:
			left, why = append(left, l), err
		}
	}
	return sent, left, why
}

// remove deletes messages that have a copy, in a request that is tried again while it
// fails and the leases last.
func (m *Mover) remove(stop, work context.Context, letters []letter) error {
	if len(letters) == 0 {
		return nil
	}
	receipts := make([]string, len(letters))
	for i, l := range letters {
		receipts[i] = l.Receipt
	}
	for again := false; ; again = true {
		results, err := m.deps.From.BatchDelete(work, receipts)
		if len(letters) == 1 && errors.Is(err, relay.ErrLeaseLost) {
			results, err = []error{err}, nil
		}
		if err == nil {
			m.works()
			m.removed(letters, results, again)
			return nil
		}
		if err := m.troubleUntil(stop, work, ends(letters), err); err != nil {
			for _, l := range letters {
				m.back[l.ID] = l.Deadline
			}
			if errors.Is(err, errLeaseOver) {
				return nil // they come again, and are deleted then
			}
			return err
		}
	}
}

// removed notes what became of deletes. A handle that is dead before its time, after a
// delete that got no answer, was deleted by that.
func (m *Mover) removed(letters []letter, results []error, again bool) {
	for i, l := range letters {
		deleted := results[i] == nil || again && errors.Is(results[i], relay.ErrLeaseLost) && time.Now().Before(l.Deadline)
		if !deleted {
			m.back[l.ID] = l.Deadline
			continue
		}
		delete(m.sent, l.ID)
		m.progress.Moved++
		if l.wrapped {
			m.progress.Unwrapped++
		}
	}
	m.report()
}

// giveBack shows messages again that were received and not sent. Where that fails, the
// end of their lease does it.
func (m *Mover) giveBack(ctx context.Context, letters []letter) {
	ctx, cancel := context.WithTimeout(ctx, giveBackTimeout)
	defer cancel()
	for _, l := range letters {
		until := l.Deadline
		if _, err := m.deps.From.ChangeVisibility(ctx, l.Receipt, mns.MinVisibility); err == nil {
			until = time.Now().Add(mns.MinVisibility)
		}
		m.back[l.ID] = until
	}
}

func (m *Mover) stays(id string, why error) {
	m.stayed[id] = struct{}{}
	m.progress.Stayed++
	m.deps.Stays(id, why)
	m.report()
}

func (m *Mover) report() { m.deps.Report(m.progress) }

// works notes that a queue has answered as it should.
func (m *Mover) works() {
	if !m.failing.IsZero() {
		m.failing = time.Time{}
		m.retry.Reset()
	}
	m.progress.Trouble = ""
}

// trouble waits before the next try, unless there is to be none.
func (m *Mover) trouble(stop context.Context, err error) error {
	if stop.Err() != nil {
		return context.Cause(stop)
	}
	if isFinal(err) {
		return err
	}
	now := time.Now()
	if m.failing.IsZero() {
		m.failing = now
	}
	if now.Sub(m.failing) > m.cfg.Patience {
		return fmt.Errorf("give up after %v: %w", m.cfg.Patience, err)
	}
	m.progress.Trouble = err.Error()
	m.report()
	return sleep(stop, m.retry.NextBackOff())
}

var errLeaseOver = errors.New("the lease is over")

// troubleUntil is trouble with messages in hand: a later try must come before ends.
func (m *Mover) troubleUntil(stop, work context.Context, ends time.Time, err error) error {
	if work.Err() != nil {
		return context.Cause(work)
	}
	if err := m.trouble(stop, err); err != nil {
		return err
	}
	if !time.Now().Before(ends) {
		return errLeaseOver
	}
	return nil
}

// isFinal tells an error that no later try mends.
func isFinal(err error) bool {
	switch relay.ClassOf(err) {
	case relay.ClassAuth, relay.ClassNotFound:
		return true
	default:
		return errors.Is(err, relay.ErrNotPermitted)
	}
}

// sleep waits for d, or gives why ctx has ended.
func sleep(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
