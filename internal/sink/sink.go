// Package sink is the table of sink types. A new one is a folder below this one, a
// line in Types and a call of the conformance suite.
package sink

import (
	"mnsrelay/internal/relay"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/internal/sink/file"
	"mnsrelay/internal/sink/mns"
	"mnsrelay/internal/sink/webhook"
)

// Config holds the settings of one sink, with the yaml tags by which the
// configuration fills it.
type Config interface {
	// Validate reports every problem at once, joined, each a *setting.Problem with
	// a path below the sink.
	Validate() error
	// Open makes the endpoint of a validated Config. It opens no connection and
	// starts no goroutine; Endpoint.Run does.
	Open(deps relay.SinkDeps) (relay.Endpoint, error)
}

// Types gives, for each type of sink, its settings with their defaults.
func Types() map[string]func() Config {
	return map[string]func() Config{
		"amqp091": func() Config { return amqp091.Defaults() },
		"amqp10":  func() Config { return amqp10.Defaults() },
		"file":    func() Config { return file.Defaults() },
		"mns":     func() Config { return mns.Defaults() },
		"webhook": func() Config { return webhook.Defaults() },
	}
}
