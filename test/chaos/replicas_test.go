package chaos_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
)

const (
	// calm is how long replicas work undisturbed before the first fault.
	calm = 12 * time.Second
	// unevenness is how far the share of a replica may be from an equal one.
	unevenness = 0.2
)

// lanesOfReplicas are the faults that replicas help each other through: one of them is
// killed or ended and comes back, and what all of them use goes away.
func lanesOfReplicas() []lane {
	const second = time.Second
	return []lane{
		{name: "relay", share: 2. / 3, kinds: []kind{
			{name: "a replica kill -9", least: second, most: 4 * second, more: second, do: restartReplica(syscall.SIGKILL)},
			{name: "a replica SIGTERM", least: second, most: 4 * second, more: 2 * second, do: restartReplica(syscall.SIGTERM)},
		}},
		{name: "others", share: 1, kinds: []kind{
			{name: "broker kill -9", least: second, most: 6 * second, more: 6 * second, blinds: true, do: killBroker},
			{name: "broker cut before confirm", least: second / 2, most: 2 * second, do: cutConfirms},
			{name: "Redis kill -9", least: 2 * second, most: 6 * second, do: killLedger},
			{name: "delete dropped", least: 2 * second, most: 6 * second, do: dropping(emulator.OpDelete)},
			{name: "tokens revoked", do: revoke},
		}},
	}
}

// restartReplica ends the relay of a place and starts another there.
func restartReplica(with syscall.Signal) func(context.Context, *world, *rand.Rand, time.Duration) error {
	return func(ctx context.Context, w *world, dice *rand.Rand, lasts time.Duration) error {
		place := dice.IntN(replicas)
		if err := w.end(ctx, place, with); err != nil {
			return err
		}
		if err := pause(ctx, lasts); err != nil {
			return err
		}
		return w.start(ctx, place)
	}
}

// Four relays with one queue and one ledger share the work evenly while nothing is wrong, and
// lose nothing of it when something is.
func TestReplicas(t *testing.T) {
	seed := seed(t)
	short := *minutesFlag == 0
	span := 15 * time.Second
	if !short {
		span = time.Duration(*minutesFlag * float64(time.Minute))
	}
	messages := int((calm + span).Minutes() * perMinute)
	t.Logf("seed %d: %d messages over %v", seed, messages, calm+span)

	w := newWorld(t, true)
	require.NoError(t, w.start(t.Context(), first))
	atRest := w.rest(t)
	for place := second; place < replicas; place++ {
		require.NoError(t, w.start(t.Context(), place))
	}
	// One that listens may wait for its token still, and would have a smaller share.
	w.await(t, restWithin, "every replica receives", func() (bool, string) {
		for _, r := range w.living() {
			status, err := r.Status(t.Context())
			if err != nil {
				return false, err.Error()
			}
			if state := status.Sources[0].State; state != api.SourceStateRunning {
				return false, "one is " + string(state)
			}
		}
		return true, ""
	})
	plans := plan(seed, span, short, busy, lanesOfReplicas())
	for _, events := range plans {
		for _, e := range events {
			e.at += calm
		}
	}
	var shares []uint64
	r := w.happen(t, messages, calm+span, plans, func(ctx context.Context) error {
		if err := pause(ctx, calm-time.Second); err != nil {
			return err
		}
		for _, relay := range w.living() {
			status, err := relay.Status(ctx)
			if err != nil {
				return fmt.Errorf("ask a replica for its share: %w", err)
			}
			shares = append(shares, status.Sources[0].Balance.Deleted)
		}
		return nil
	})
	w.requireArrived(t, r, messages, atRest)

	t.Logf("deleted before the first fault: %d", shares)
	require.Len(t, shares, replicas)
	var sum uint64
	for _, share := range shares {
		sum += share
	}
	for _, share := range shares {
		require.InEpsilon(t, float64(sum)/replicas, share, unevenness, "of %d", shares)
	}
}
