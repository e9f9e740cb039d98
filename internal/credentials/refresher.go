package credentials

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
)

// ErrNotFetched says that no keys have come yet.
var ErrNotFetched = errors.New("no credential yet")

// ErrExpired says that the keys have ended and no others have come.
var ErrExpired = errors.New("credential expired")

const (
	// retryFirst and retryMost bound the wait between attempts, jitter aside: a
	// token of seconds survives failed attempts, and when a server is back, messages
	// flow again within five seconds. retryLeast bounds it where keys are about to end.
	retryFirst = 250 * time.Millisecond
	retryMost  = 2 * time.Second
	retryLeast = 100 * time.Millisecond
	// refuseMost bounds the wait between fetches because MNS refuses what came: it is seldom
	// about the keys then.
	refuseMost = 30 * time.Second
	// jitter is how much of a wait is random, up and down.
	jitter = 0.4
	// shortest is the least time between keys that came and the next fetch that
	// their end asks for: a server may give the same token until it ends.
	shortest = 500 * time.Millisecond
	// rereadAfter is when keys that have no end and come from files are read again.
	rereadAfter = 5 * time.Second
	// kindsLogged bounds how many kinds of failures have a line of their own in the log, until
	// a fetch works again.
	kindsLogged = 8
	// usersShown bounds how many users are named in a line of the log.
	usersShown = 5
)

// Refresher owns the keys of one provider and keeps them fresh while Run runs. Its
// methods are safe for concurrent use and, Run aside, never wait.
type Refresher struct {
	kind     Type
	provider Provider
	before   time.Duration
	log      *zap.Logger
	turns    *turns // nil: no server is asked
	// running is held by the one call of Run that does the work.
	running chan struct{}

	ready chan struct{} // closed when the first keys have come
	wake  chan struct{} // size 1: something for Run to look at

	mu sync.Mutex
	// keys are in force from obtained on; obtained is zero before the first.
	keys     Keys
	obtained time.Time
	// refresh is when the end of keys asks for new ones; zero: never.
	refresh time.Time
	// refused is when MNS first refused keys; zero: it did not. forced says that new
	// ones are to be fetched for it.
	refused time.Time
	forced  bool
	// retryAt and forceAt hold attempts back: after a failure, and after keys that
	// were fetched because others had been refused.
	retryAt, forceAt time.Time
	// failure is why the last attempt failed, nil if it did not; failing is when the
	// failures began, logged which kinds of them have been told since.
	failure error
	failing time.Time
	logged  []string
	// users are those that Run was called for, and has not ended.
	users         []string
	succeeded     uint64
	failed        uint64
	retry, refuse *backoff.ExponentialBackOff
}

// NewRefresher makes a refresher that asks whenever it is due. It fetches nothing before Run.
func NewRefresher(provider Provider, config *Config, log *zap.Logger) *Refresher {
	newBackOff := func(most time.Duration) *backoff.ExponentialBackOff {
		b := &backoff.ExponentialBackOff{
			InitialInterval: retryFirst, MaxInterval: most, Multiplier: 2, RandomizationFactor: jitter,
		}
		b.Reset()
		return b
	}
	return &Refresher{
		kind:     config.Type,
		provider: provider,
		before:   config.RefreshBefore,
		log:      log,
		running:  make(chan struct{}, 1),
		ready:    make(chan struct{}),
		wake:     make(chan struct{}, 1),
		retry:    newBackOff(retryMost),
		refuse:   newBackOff(refuseMost),
	}
}

// Run fetches keys and replaces them before they end, until ctx ends; then it
// returns nil. No failure ends it. All that share the refresher call it, each for a user
// that the log names: one of the calls does the work, and another goes on when that one ends.
func (r *Refresher) Run(ctx context.Context, user string) error {
	r.mu.Lock()
	r.users = append(r.users, user)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		i := slices.Index(r.users, user)
		r.users = slices.Delete(r.users, i, i+1)
	}()
	select {
	case r.running <- struct{}{}:
		defer func() { <-r.running }()
	case <-ctx.Done():
		return nil
	}
	for {
		var due <-chan time.Time
		if at, ever := r.next(); ever {
			due = time.After(time.Until(at))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-due:
			r.fetch(ctx)
		}
	}
}

// rereads tells whether keys without an end may be others the next time.
func (r *Refresher) rereads() bool {
	p, can := r.provider.(interface{ changes() bool })
	return can && p.changes()
}

// Current gives the newest keys. They serve until they really end: while fetching
// new ones fails, the old ones are given. Without keys in force it is ErrNotFetched
// or ErrExpired, with the cause that the last attempt had.
func (r *Refresher) Current() (Keys, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.obtained.IsZero():
		return Keys{}, because(ErrNotFetched, r.failure)
	case r.ended(time.Now()):
		return Keys{}, because(ErrExpired, r.failure)
	}
	return r.keys, nil
}

func because(what, cause error) error {
	if cause != nil {
		what = fmt.Errorf("%w: %w", what, cause)
	}
	return noKeys{what}
}

// noKeys is why there are no keys in force, whatever the class of the cause.
type noKeys struct{ error }

// Unwrap gives the cause.
func (e noKeys) Unwrap() error { return e.error }

// Class is that of a request which was not made.
func (noKeys) Class() relay.Class { return relay.ClassNoKeys }

// Refused says that MNS refused a request signed with k. New keys are fetched in the
// background, once for all who say so, and at growing distances where the new ones
// are refused as well. Nothing happens if k is no longer in force, or never ends:
// then there are no newer keys to be had.
func (r *Refresher) Refused(k Keys) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.obtained.IsZero() || !k.Same(r.keys) {
		return
	}
	if r.refused.IsZero() {
		r.refused = time.Now()
	}
	if r.forced || r.keys.Expires.IsZero() && !r.rereads() {
		return
	}
	r.forced = true
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Ready gives a channel that is closed when the first keys have come.
func (r *Refresher) Ready() <-chan struct{} { return r.ready }

// Status is what the status API and the metrics tell of a credential. Times are UTC;
// the zero time means never.
type Status struct {
	Type        Type
	Expires     time.Time
	LastRefresh time.Time
	// NextRefresh is when the next attempt begins.
	NextRefresh time.Time
	// RefusedSince is when MNS first refused the keys that are in force.
	RefusedSince time.Time
	// LastError says why the last attempt failed; empty if it did not.
	LastError    string
	FailingSince time.Time
	// Refreshes and Failures count attempts that got keys and that did not.
	Refreshes uint64
	Failures  uint64
}

// Status tells how the credential stands.
func (r *Refresher) Status() Status {
	next, ever := r.next()
	if !ever {
		next = time.Time{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{
		Type:         r.kind,
		Expires:      r.keys.Expires.UTC(),
		LastRefresh:  r.obtained.UTC(),
		NextRefresh:  next.UTC(),
		RefusedSince: r.refused.UTC(),
		FailingSince: r.failing.UTC(),
		Refreshes:    r.succeeded,
		Failures:     r.failed,
	}
	if r.failure != nil {
		s.LastError = r.failure.Error()
	}
	return s
}

func (r *Refresher) ended(now time.Time) bool {
	return !r.keys.Expires.IsZero() && !now.Before(r.keys.Expires)
}

// next tells when the next attempt is due, if ever.
func (r *Refresher) next() (at time.Time, ever bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.obtained.IsZero():
		at = r.retryAt
	case r.forced && (r.refresh.IsZero() || r.forceAt.Before(r.refresh)):
		at = r.forceAt
	case r.refresh.IsZero():
		return time.Time{}, false
	default:
		at = r.refresh
	}
	if at.Before(r.retryAt) {
		at = r.retryAt
	}
	return at, true
}

// fetch makes one attempt and records what came of it.
func (r *Refresher) fetch(ctx context.Context) {
	if r.turns.wait(ctx, r.lane()) != nil {
		return
	}
	begun := time.Now()
	keys, err := hedged(ctx, r.patience(), func(ctx context.Context) error { return r.turns.wait(ctx, r.lane()) }, r.provider.Retrieve)
	if ctx.Err() == nil {
		r.settle(keys, err, begun)
	}
}

// settle records what came of an attempt that begun.
func (r *Refresher) settle(keys Keys, err error, begun time.Time) {
	now := time.Now()
	if err == nil && !keys.Expires.IsZero() && !now.Before(keys.Expires) {
		err = fmt.Errorf("use new keys: %w", ErrExpired)
	}
	if err != nil {
		r.fail(err, begun, now)
		return
	}
	r.accept(keys, now)
}

// patience is how long an attempt may take: so short that another one fits into what
// is left of the life of keys that live for seconds.
func (r *Refresher) patience() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys.Expires.IsZero() || r.ended(time.Now()) {
		return callTimeout
	}
	return min(callTimeout, max(time.Second, r.keys.Expires.Sub(r.obtained)/6))
}

// lane tells how urgent the next attempt is.
func (r *Refresher) lane() lane {
	const near = 30 * time.Second
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	inForce := !r.obtained.IsZero() && !r.ended(now)
	again := r.forced && !r.forceAt.IsZero() // for keys that were fetched because others were refused
	if r.failure == nil && !again || inForce && !r.keys.Expires.IsZero() && r.keys.Expires.Sub(now) < near {
		return atStake
	}
	return retrying
}

// fail records an attempt that was begun then and has failed now.
func (r *Refresher) fail(err error, begun, now time.Time) {
	r.mu.Lock()
	if r.failing.IsZero() {
		r.failing = now
	}
	kind := kindOf(err)
	news := !slices.Contains(r.logged, kind) && len(r.logged) < kindsLogged
	if news {
		r.logged = append(r.logged, kind)
	}
	r.failure = err
	r.failed++
	inForce, expires, users := !r.obtained.IsZero() && !r.ended(now), r.keys.Expires, r.usedBy()
	wait := r.retry.NextBackOff()
	if inForce && !expires.IsZero() {
		// The nearer the end of what is in force, the more urgent.
		wait = min(wait, max(retryLeast, expires.Sub(now)/3))
	}
	// A server that let the attempt wait has had its pause.
	r.retryAt = now.Add(max(retryLeast, wait-now.Sub(begun)))
	r.mu.Unlock()
	// The lock is not held while the log is written: Current does not wait for it.
	if news {
		r.log.Warn("credential not refreshed", zap.Strings("used_by", users), zap.String("type", string(r.kind)),
			zap.Bool("in_force", inForce), zap.Time("expires", expires), zap.Error(err))
	}
}

// usedBy names the users for the log. The caller holds mu.
func (r *Refresher) usedBy() []string {
	if len(r.users) <= usersShown {
		return slices.Clone(r.users)
	}
	return append(slices.Clone(r.users[:usersShown]), fmt.Sprintf("and %d more", len(r.users)-usersShown))
}

func (r *Refresher) accept(keys Keys, now time.Time) {
	r.mu.Lock()
	first, failing, changed := r.obtained.IsZero(), r.failing, !keys.Same(r.keys)
	if changed {
		r.refused = time.Time{}
	}
	if r.forced {
		r.forceAt = now.Add(r.refuse.NextBackOff())
	} else {
		r.forceAt = time.Time{}
		r.refuse.Reset()
	}
	r.keys, r.obtained, r.refresh = keys, now, r.schedule(keys, now)
	r.forced = false
	r.failure, r.failing, r.retryAt, r.logged = nil, time.Time{}, time.Time{}, nil
	r.retry.Reset()
	if first || changed || !keys.Expires.IsZero() { // what was read again is no refresh
		r.succeeded++
	}
	users := r.usedBy()
	r.mu.Unlock()
	if first {
		close(r.ready)
	}
	if !failing.IsZero() {
		r.log.Info("credential refreshed again", zap.Strings("used_by", users), zap.String("type", string(r.kind)),
			zap.Duration("after", now.Sub(failing)), zap.Time("expires", keys.Expires))
	}
}

// schedule tells when keys that came now are to be replaced: `before` their end, at
// most a third of their life, and a little sooner, so that many sources that started
// together do not stay together.
func (r *Refresher) schedule(keys Keys, now time.Time) time.Time {
	if keys.Expires.IsZero() {
		if r.rereads() {
			return now.Add(rereadAfter)
		}
		return time.Time{}
	}
	life := keys.Expires.Sub(now)
	before := min(r.before, life/3)
	early := time.Duration(0)
	if before > 0 {
		early = rand.N(before/4 + 1) //nolint:gosec // G404: spreads load, guards nothing
	}
	return now.Add(max(shortest, life-before-early))
}
