package credentials

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// cached keeps the keys of a provider for those that ask for other keys with them, as
// long as they are good. It is safe for concurrent use.
type cached struct {
	provider Provider

	mu sync.Mutex
	// keys were obtained then; zero: there are none, or they were refused.
	keys     Keys
	obtained time.Time
	// retryAt holds fetches back after one that failed while keys are in force.
	retryAt time.Time
	fetch   *fetch // under way; nil: none
}

// fetch is one attempt, which all that come meanwhile wait for.
type fetch struct {
	ended     chan struct{}
	keys      Keys
	err       error
	abandoned bool // the caller that made it has gone: err says nothing
}

// Retrieve gives the keys at hand, others where these have lived for two thirds of their
// life. Where there are none to be had, the old ones serve until they end: a server that
// does not answer takes a third of the caller's time, of one caller.
func (c *cached) Retrieve(ctx context.Context) (Keys, error) {
	for {
		c.mu.Lock()
		now := time.Now()
		ends := !c.obtained.IsZero() && !c.keys.Expires.IsZero() // what has no end may be other keys the next time
		inForce := ends && now.Before(c.keys.Expires)
		young := inForce && now.Before(c.keys.Expires.Add(-c.keys.Expires.Sub(c.obtained)/3))
		keys, f := c.keys, c.fetch
		if young || inForce && (f != nil || now.Before(c.retryAt)) {
			c.mu.Unlock()
			return keys, nil
		}
		if f == nil {
			f = &fetch{ended: make(chan struct{})}
			c.fetch = f
			c.mu.Unlock()
			c.ask(ctx, f, inForce)
			if f.err != nil && inForce {
				return keys, nil
			}
			return f.keys, f.err
		}
		c.mu.Unlock()
		select {
		case <-f.ended:
			if !f.abandoned {
				return f.keys, f.err
			}
		case <-ctx.Done():
		}
		if deadline, has := ctx.Deadline(); ctx.Err() != nil || has && !time.Now().Before(deadline) {
			return Keys{}, fmt.Errorf("wait for the base's keys: %w", networkError(opBase, cmp.Or(ctx.Err(), context.DeadlineExceeded)))
		}
	}
}

// opBase is what an Error calls waiting for the fetch of another, or for a turn.
const opBase = "for base keys"

// ask makes the attempt f and records what came of it.
func (c *cached) ask(ctx context.Context, f *fetch, inForce bool) {
	attempt := ctx
	if deadline, has := ctx.Deadline(); has && inForce {
		var cancel context.CancelFunc
		attempt, cancel = context.WithTimeout(ctx, time.Until(deadline)/3)
		defer cancel()
	}
	f.keys, f.err = hedged(attempt, callTimeout, noTurn, c.provider.Retrieve) // which waits for turns itself
	f.abandoned = f.err != nil && ctx.Err() != nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fetch = nil
	switch {
	case f.err == nil:
		c.keys, c.obtained, c.retryAt = f.keys, time.Now(), time.Time{}
	case inForce:
		c.retryAt = time.Now().Add(retryMost)
	}
	close(f.ended)
}

func noTurn(context.Context) error { return nil }

// refused forgets keys that a server has refused.
func (c *cached) refused(keys Keys) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keys.Same(keys) {
		c.keys, c.obtained = Keys{}, time.Time{}
	}
}

// refusesKeys tells whether a code is about the keys of a request, and not about what they
// may do: others may do no more.
func refusesKeys(code string) bool {
	return strings.HasPrefix(code, "InvalidAccessKeyId") || strings.HasPrefix(code, "InvalidSecurityToken") || code == "SignatureDoesNotMatch"
}

// paced waits for its turn to ask a server, as part of an attempt that is under way.
type paced struct {
	Provider
	turns *turns
}

// Retrieve asks when it may.
func (p paced) Retrieve(ctx context.Context) (Keys, error) {
	if err := p.turns.wait(ctx, underWay); err != nil {
		return Keys{}, networkError(opBase, err)
	}
	return p.Provider.Retrieve(ctx)
}

// withBase asks for keys with those of a base, and where these are refused, with others of
// the same base, if there are others.
func withBase(ctx context.Context, base Provider, turns *turns, ask func(context.Context, Keys) (Keys, error)) (Keys, error) {
	var before Keys
	var refusal error
	for {
		keys, err := base.Retrieve(ctx)
		if err != nil {
			return Keys{}, fmt.Errorf("get base keys: %w", err)
		}
		if refusal != nil && (keys.Same(before) || turns.wait(ctx, underWay) != nil) {
			return Keys{}, refusal
		}
		got, err := ask(ctx, keys)
		e, is := errors.AsType[*Error](err)
		holder, caches := base.(*cached)
		if refusal != nil || !is || !caches || !refusesKeys(e.Code) {
			return got, err
		}
		holder.refused(keys)
		before, refusal = keys, err
	}
}
