package credentials

import (
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
	turn     chan struct{} // size 1: one fetch at a time

	mu       sync.Mutex
	keys     Keys
	obtained time.Time // zero: there are none, or they were refused
}

func newCached(p Provider) *cached { return &cached{provider: p, turn: make(chan struct{}, 1)} }

// Retrieve gives the keys at hand, others where these have lived for two thirds of their
// life. Where there are none to be had, the old ones serve until they end.
func (c *cached) Retrieve(ctx context.Context) (Keys, error) {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return Keys{}, context.Cause(ctx)
	}
	defer func() { <-c.turn }()
	c.mu.Lock()
	keys, obtained := c.keys, c.obtained
	c.mu.Unlock()
	now := time.Now()
	if !obtained.IsZero() && !keys.Expires.IsZero() && now.Before(keys.Expires.Add(-keys.Expires.Sub(obtained)/3)) {
		return keys, nil
	}
	fresh, err := c.provider.Retrieve(ctx)
	if err != nil {
		if !obtained.IsZero() && !keys.Expires.IsZero() && now.Before(keys.Expires) {
			return keys, nil
		}
		return Keys{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keys, c.obtained = fresh, time.Now()
	return fresh, nil
}

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

// withBase asks for keys with those of a base, and where these are refused, with others of
// the same base, if there are others.
func withBase(ctx context.Context, base Provider, ask func(context.Context, Keys) (Keys, error)) (Keys, error) {
	var before Keys
	var refusal error
	for {
		keys, err := base.Retrieve(ctx)
		if err != nil {
			return Keys{}, fmt.Errorf("get base keys: %w", err)
		}
		if refusal != nil && keys.Same(before) {
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
