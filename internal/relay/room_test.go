package relay_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

func TestRoomIsGrantedWhenThereIsAsMuch(t *testing.T) {
	t.Parallel()
	for name, demand := range map[string]struct {
		messages int
		bytes    int64
		waits    bool
	}{
		"fits":              {4, 40, false},
		"too many messages": {5, 1, true},
		"too many bytes":    {1, 41, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				room := relay.NewRoom(10, 100)
				require.NoError(t, room.Reserve(t.Context(), 6, 60))
				granted := make(chan error, 1)
				go func() { granted <- room.Reserve(t.Context(), demand.messages, demand.bytes) }()
				synctest.Wait()
				require.Equal(t, demand.waits, len(granted) == 0)
				room.Give(6, 60)
				require.NoError(t, <-granted)
				messages, bytes := room.InFlight()
				require.Equal(t, demand.messages, messages)
				require.Equal(t, demand.bytes, bytes)
			})
		})
	}
}

// A batch that is larger than the whole room must not wait for ever.
func TestALargeDemandIsGrantedInAnEmptyRoom(t *testing.T) {
	t.Parallel()
	room := relay.NewRoom(10, 100)
	require.NoError(t, room.Reserve(t.Context(), 16, 1000))
}

func TestWaitingForRoomEndsWithTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		room := relay.NewRoom(1, 100)
		room.Charge(3, 10)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, room.Reserve(ctx, 1, 1), context.DeadlineExceeded)
		require.ErrorIs(t, room.Await(ctx), context.DeadlineExceeded)
		messages, bytes := room.InFlight()
		require.Equal(t, 3, messages, "charged over the bounds")
		require.EqualValues(t, 10, bytes, "what was not granted is not taken")
	})
}

func TestRedeliveryDoublesUpToItsMax(t *testing.T) {
	t.Parallel()
	r := relay.Redelivery{Initial: 5 * time.Second, Max: time.Minute}
	for attempt, want := range map[int]time.Duration{
		0: 5 * time.Second, 1: 5 * time.Second, 2: 10 * time.Second, 3: 20 * time.Second,
		4: 40 * time.Second, 5: time.Minute, 6: time.Minute, 1 << 40: time.Minute,
	} {
		for range 100 {
			delay := r.Delay(attempt, 0)
			require.LessOrEqual(t, delay, want)
			require.GreaterOrEqual(t, delay, want*3/4)
		}
	}
}

func TestRedeliveryKeepsToWhatTheQueueCanDo(t *testing.T) {
	t.Parallel()
	r := relay.Redelivery{Initial: time.Millisecond, Max: time.Hour}
	require.Equal(t, relay.MinRedelivery, r.Delay(1, 0), "never nought")
	require.Equal(t, 2*time.Hour, r.Delay(1, 2*time.Hour), "what the far side asks for goes over max")
	require.Equal(t, relay.MaxRedelivery, r.Delay(1, 48*time.Hour))
}
