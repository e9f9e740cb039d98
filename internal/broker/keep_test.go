package broker_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/broker"
)

// tries runs a Keeper for a while and gives when it tried which address. Session answers for
// the nth try.
func tries(t *testing.T, addresses int, d time.Duration, session func(n int) error) (at []time.Duration, of []int, log *observer.ObservedLogs) {
	t.Helper()
	core, log := observer.New(zap.InfoLevel)
	names := make([]string, addresses)
	began := time.Now()
	k := &broker.Keeper{
		Addresses: names, Log: zap.New(core), Disconnected: func(error) {},
		Session: func(_ context.Context, i int, _ func()) error {
			at, of = append(at, time.Since(began)), append(of, i)
			return session(len(at))
		},
	}
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	k.Run(ctx)
	return at, of, log
}

// A broker that is away is tried for ever, in turn and at random below 0.8 s.
func TestItTriesForEver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		at, of, log := tries(t, 3, 10*time.Minute, func(int) error { return errors.New("connection refused") })
		require.Greater(t, len(at), 1000)
		for i := 1; i < len(at); i++ {
			require.LessOrEqual(t, at[i]-at[i-1], 800*time.Millisecond)
			require.Equal(t, (of[i-1]+1)%3, of[i])
		}
		require.Equal(t, 3, log.Len(), "said once of each")
	})
}

// Credentials that are refused by all are left alone for half a minute: more would lock the
// account.
func TestRefusedCredentialsAreLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		at, _, _ := tries(t, 2, 10*time.Minute, func(int) error {
			return &broker.LoginError{Message: "the broker refuses the user", Refused: true}
		})
		require.InDelta(t, 21, len(at), 2, "one each 30 s once both have refused")
	})
}

// A broker that hangs up during the login may be going down, or refuse in its own way: it is
// tried less and less, up to every 5 s.
func TestALoginThatEndsWithoutAWord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		at, _, _ := tries(t, 1, 10*time.Minute, func(int) error { return &broker.LoginError{Message: "hung up"} })
		require.Greater(t, len(at), 120)
		require.Less(t, len(at), 600)
		for i := 1; i < len(at); i++ {
			require.LessOrEqual(t, at[i]-at[i-1], 5*time.Second)
		}
	})
}
