package relay_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
)

// slowRenewals is a queue to which a renewal takes a while.
type slowRenewals struct {
	*relaytest.Queue
	takes time.Duration

	mu      sync.Mutex
	settled []time.Time // of each message
}

func (s *slowRenewals) Extend(ctx context.Context, d relay.Delivery) (relay.Delivery, error) {
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return relay.Delivery{}, ctx.Err()
	}
	return s.Queue.Extend(ctx, d)
}

func (s *slowRenewals) Settle(ctx context.Context, ss []relay.Settlement) []error {
	s.mu.Lock()
	for range ss {
		s.settled = append(s.settled, time.Now())
	}
	s.mu.Unlock()
	return s.Queue.Settle(ctx, ss)
}

// What is confirmed while leases are being renewed is deleted at once, but for the messages
// whose renewals are under way: these wait for their new handles, and no other renewal begins.
func TestARenewalHoldsUpOnlyItsOwnMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var source *slowRenewals
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) {
			source = &slowRenewals{Queue: d.Source.(*relaytest.Queue), takes: 4 * time.Second}
			d.Source = source
		})
		begun := time.Now()
		confirmed := begun.Add(15500 * time.Millisecond) // renewals begin after half of 30 s
		r.sinks[0].Answer(func(context.Context, relay.Message) relay.Result {
			<-time.After(time.Until(confirmed))
			return relay.Result{Outcome: relay.Delivered}
		})
		r.queue.Send(bodies(16)...)
		r.start()
		pass(time.Minute)
		require.Len(t, source.settled, 16)
		for i, at := range source.settled {
			if i < 12 {
				require.LessOrEqual(t, at.Sub(confirmed), 100*time.Millisecond, "no renewal of it was under way")
			} else {
				require.LessOrEqual(t, at.Sub(confirmed), source.takes)
			}
		}
		require.Zero(t, r.stats.Counts().LostLeases)
		for id, n := range r.sinks[0].Times() {
			require.Equal(t, 1, n, id)
		}
		r.stop()
	})
}

// bounded confirms all but the first message of a batch at once, and that after a while. It
// notes whether a delivery had to end.
type bounded struct {
	mu    sync.Mutex
	bound []bool
}

func (*bounded) Health() (relay.Health, <-chan struct{}) {
	return relay.Health{State: relay.Up}, nil
}

func (b *bounded) Deliver(ctx context.Context, ms []relay.Message, done func(int, relay.Result)) {
	_, has := ctx.Deadline()
	b.mu.Lock()
	b.bound = append(b.bound, has)
	b.mu.Unlock()
	for i := range ms[1:] {
		done(i+1, relay.Result{Outcome: relay.Delivered})
	}
	if len(ms) > 1 {
		select {
		case <-time.After(29 * time.Second):
		case <-ctx.Done():
		}
	}
	done(0, relay.Result{Outcome: relay.Delivered})
}

// That the credential may not renew is said once, and what is received from then on has to be
// delivered within its only lease, also while other messages of a batch are settled.
func TestACredentialThatMayNotRenewBoundsWhatFollows(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &bounded{}
		r := newRig(t, 0, func(_ *relay.Config, d *relay.Deps) {
			d.Routes[0].Targets = []relay.Target{{Name: relay.TargetName{Route: "r", Sink: "s"}, Sink: b, Health: b}}
		})
		r.queue.Fault = func(op, _ string) error {
			if op == "extend" {
				return fmt.Errorf("extend: %w", relay.ErrNotPermitted)
			}
			return nil
		}
		r.queue.Send(bodies(16)...)
		r.start()
		pass(28 * time.Second)
		require.Equal(t, 1, r.logs.FilterMessageSnippet("may not renew").Len())
		r.queue.Send("late")
		pass(time.Second / 2)
		b.mu.Lock()
		require.Equal(t, []bool{false, true}, b.bound)
		b.mu.Unlock()
		pass(time.Minute)
		require.Empty(t, r.queue.Left())
		r.stop()
	})
}
