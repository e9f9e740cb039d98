package mns_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
)

func TestConformance(t *testing.T) {
	relaytest.TestSource(t, relaytest.SourceHarness{
		Open: func(t *testing.T, lease, wait time.Duration) (relay.Source, func(bodies ...string)) {
			t.Helper()
			server, source := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: lease}, func(c *mns.Config, _ *mns.Deps) { c.Wait = wait })
			return source, func(bodies ...string) {
				for _, body := range bodies {
					_, err := server.Send("q", []byte(body))
					require.NoError(t, err)
				}
			}
		},
	})
}
