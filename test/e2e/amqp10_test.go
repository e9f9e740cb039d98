package e2e_test

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/amqppeer"
)

// Whatever a peer of AMQP 1.0 makes of a message, and however it goes wrong, only what it
// has accepted leaves its queue.
func TestOverAMQP10OnlyWhatIsAcceptedIsDeleted(t *testing.T) {
	for _, kind := range []amqppeer.Kind{amqppeer.Proton, amqppeer.Rhea} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 3 * time.Second})
			p := amqppeer.Start(t, kind)
			r := startRelay(t, fmt.Sprintf(`
sources:
  sms:
    queue: %s
    endpoint: %s
    credentials: {endpoint: %s}
    redelivery: {initial: 1s, max: 2s}
    to: events
sinks:
  events: {type: amqp10, url: %q, address: "{{ body.to }}", timeout: 1s}
`, queue, url, url, p.URL()))
			ways := []string{"reject", "release", "modify", "modify-undeliverable", "settle", "silent", "detach", "nocredit", "refuse", "drop"}
			accepted := map[string]bool{}
			for n := range 4 {
				for _, to := range append([]string{"accept"}, ways...) {
					id, err := server.SendBase64(queue, fmt.Appendf(nil, `{"to": "%s", "n": %d}`, to, n))
					require.NoError(t, err)
					if to == "accept" {
						accepted[id] = true
					}
				}
			}
			eventually(t, 60*time.Second, "all that is accepted is deleted", func() bool {
				stats, _ := server.QueueStats(queue)
				return stats.Deleted == int64(len(accepted))
			})
			tries := time.NewTimer(4 * time.Second) // several more of the others
			<-tries.C
			require.Equal(t, 4*len(ways), left(t, server, queue))
			stats, _ := server.QueueStats(queue)
			require.Positive(t, stats.Redelivered)
			for _, m := range p.Messages() {
				require.True(t, m.Address != "accept" || accepted[m.ID])
				require.True(t, m.Address == "accept" || slices.Contains(ways, m.Address))
			}
			require.True(t, r.source().Balance.Exact)
			require.Zero(t, r.end(syscall.SIGTERM))
		})
	}
}
