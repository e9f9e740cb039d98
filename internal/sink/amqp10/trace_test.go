package amqp10_test

import (
	"testing"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp10"
)

// A message takes its trace context along, unless the configuration has a property of that name.
func TestTraceContext(t *testing.T) {
	relaytest.TestTraceContext(t, "application_properties", func(own map[string]any) (relay.Endpoint, error) {
		c := amqp10.Defaults()
		c.URL, c.Address, c.ApplicationProperties = setting.NewURL("amqp://localhost"), "a", values(own)
		return c.Open(deps())
	})
}
