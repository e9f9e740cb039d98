package app

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

// A queue is asked for its attributes every 30 s under a backlog, with one poller too, and
// seldom where messages come now and then or no longer.
func TestABacklogIsSeenByHowFullBatchesAre(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for name, test := range map[string]struct {
		counts relay.Counts
		want   bool
	}{
		"nothing yet":               {relay.Counts{Pollers: 1}, false},
		"full batches":              {relay.Counts{Pollers: 1, Fill: 0.95, LastReceive: now.Add(-time.Second)}, true},
		"full batches, slowly":      {relay.Counts{Pollers: 1, Fill: 1, LastReceive: now.Add(-20 * time.Second)}, true},
		"full batches, and no more": {relay.Counts{Pollers: 1, Fill: 1, LastReceive: now.Add(-time.Minute)}, false},
		"a message now and then":    {relay.Counts{Pollers: 1, Fill: 1.0 / 16, LastReceive: now}, false},
		"several pollers":           {relay.Counts{Pollers: 2, Fill: 0.3, LastReceive: now}, true},
	} {
		require.Equal(t, test.want, backlog(&test.counts, now), name)
	}
}
