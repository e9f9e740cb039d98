package app

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/config"
	"mnsrelay/internal/relay"
)

// sink is one configured sink at work.
type sink struct {
	name, kind string
	endpoint   relay.Endpoint
	stats      *relay.SinkStats
	took       func(time.Duration)
	log        *zap.Logger
	worked     latch
}

func newSink(c config.Sink, deps Deps, m *metrics) (*sink, error) {
	log := deps.Log.With(zap.String("sink", c.Name))
	endpoint, err := c.Settings.Open(relay.SinkDeps{
		Name:     c.Name,
		Instance: fmt.Sprintf("mnsrelay/%s (%s)", deps.Version, deps.Instance),
		Log:      log,
	})
	if err != nil {
		return nil, err
	}
	duration := m.deliveryDuration.WithLabelValues(c.Name)
	return &sink{
		name: c.Name, kind: c.Type, endpoint: endpoint, stats: relay.NewSinkStats(), log: log,
		took: func(d time.Duration) { duration.Observe(d.Seconds()) },
	}, nil
}

// target binds the sink to one target of a route.
func (s *sink) target(route string) (relay.Target, error) {
	bound, err := s.endpoint.Bind(nil)
	if err != nil {
		return relay.Target{}, fmt.Errorf("bind sink %q to route %q: %w", s.name, route, err)
	}
	return relay.Target{
		Name:   relay.TargetName{Route: route, Sink: s.name},
		Sink:   relay.Measure(bound, s.stats, s.took),
		Health: s.endpoint,
	}, nil
}

// watch notes that the sink has worked once.
func (s *sink) watch(ctx context.Context) {
	for {
		health, changed := s.endpoint.Health()
		if health.State == relay.Up {
			s.worked.set.Store(true)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
