package relay_test

import (
	"testing"
	"time"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
)

// The queue of the tests in this package keeps the contract that mns.Source keeps.
func TestTheQueueOfTheTests(t *testing.T) {
	t.Parallel()
	relaytest.TestSource(t, relaytest.SourceHarness{
		Bubble: true,
		Open: func(_ *testing.T, lease, wait time.Duration) (relay.Source, func(bodies ...string)) {
			q := relaytest.NewQueue("q")
			q.Visibility, q.Wait = lease, wait
			return q, func(bodies ...string) { q.Send(bodies...) }
		},
	})
}
