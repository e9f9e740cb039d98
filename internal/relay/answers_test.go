package relay_test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

// Each message gets one result, whoever gives it, and none after the end.
func TestAnswersAreOneForEach(t *testing.T) {
	t.Parallel()
	const n = 100
	got := make([]int, n)
	outcomes := map[relay.Outcome]int{}
	answers := relay.NewAnswers(n, func(i int, r relay.Result) { got[i]++; outcomes[r.Outcome]++ })
	var givers sync.WaitGroup
	for range 8 {
		givers.Go(func() {
			for i := range n / 2 {
				answers.Give(i, relay.Result{Outcome: relay.Delivered})
			}
		})
	}
	givers.Wait()
	require.True(t, answers.Given(0))
	require.False(t, answers.Given(n-1))
	answers.Finish(relay.Result{})
	answers.Give(n-1, relay.Result{Outcome: relay.Delivered})
	answers.Finish(relay.Result{Outcome: relay.Rejected})
	for i := range got {
		require.Equal(t, 1, got[i])
	}
	require.Equal(t, map[relay.Outcome]int{relay.Delivered: n / 2, relay.Retry: n / 2}, outcomes)
}
