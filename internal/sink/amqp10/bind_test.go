package amqp10_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/test/amqppeer"
)

// An address tells of the health as long as something is bound to it, and one that messages
// decide as long as there are such messages.
func TestUnbindForgetsTheAddress(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		const reason = `address "refuse" does not exist`
		r := run(t, config(p, "refuse"))
		r.AwaitReason(relay.Down, reason)
		for _, address := range []string{"accept", "{{ body.to }}"} {
			s := bind(t, r, func(s *amqp10.Settings) { s.Address = address })
			if address == "accept" {
				r.Await(relay.Up)
			}
			bound, ok := s.(relay.Unbinder)
			require.True(t, ok)
			bound.Unbind()
			r.AwaitReason(relay.Down, reason)
		}
	})
}
