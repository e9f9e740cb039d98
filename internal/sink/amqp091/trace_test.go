package amqp091_test

import (
	"testing"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
)

// A message takes its trace context along, unless the configuration has a header of that name.
func TestTraceContext(t *testing.T) {
	relaytest.TestTraceContext(t, "headers", func(own map[string]any) (relay.Endpoint, error) {
		c := amqp091.Defaults()
		c.URL, c.Exchange.Name, c.Headers = setting.NewURL("amqp://localhost"), "a", headers(own)
		return c.Open(deps(t))
	})
}
