// Package amqp091 delivers to an AMQP 0-9-1 broker, RabbitMQ above all.
package amqp091

import (
	"context"
	"time"

	"mnsrelay/internal/relay"
)

const defaultHeartbeat = 10 * time.Second

// Endpoint is one broker.
type Endpoint struct {
	config  Config
	targets []target
	deps    relay.SinkDeps
	monitor *relay.Monitor
}

func newEndpoint(c *Config, targets []target, deps relay.SinkDeps) *Endpoint {
	return &Endpoint{config: *c, targets: targets, deps: deps, monitor: relay.NewMonitor(relay.Down, "not connected yet")}
}

func (e *Endpoint) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (e *Endpoint) Health() (relay.Health, <-chan struct{}) { return e.monitor.Health() }

func (e *Endpoint) Bind(with relay.Overrides) (relay.Sink, error) { return nil, nil }
