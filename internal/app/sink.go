package app

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/config"
	"mnsrelay/internal/relay"
)

// sink is one configured sink at work.
type sink struct {
	name, kind  string
	fingerprint string
	endpoint    relay.Endpoint
	stats       *relay.SinkStats
	// before is what stats had when the sink took over from one of its name.
	before sinkCounts
	took   func(time.Duration, *relay.Message)
	meters *meters
	worked atomic.Bool
	// idle says that only sources in shadow mode lead here: the sink does not run.
	idle bool

	stop  context.CancelFunc
	ended chan struct{}
}

type sinkCounts struct {
	delivered uint64
	failed    map[string]uint64
}

func countsOf(stats *relay.SinkStats) (c sinkCounts) {
	c.delivered, c.failed = stats.Counts()
	return c
}

func (a *App) newSink(c config.Sink, idle bool) (*sink, error) {
	endpoint, err := c.Settings.Open(relay.SinkDeps{
		Name:     c.Name,
		Instance: a.deps.agent(),
		Log:      a.deps.Log.With(zap.String("sink", c.Name)),
	})
	if err != nil {
		return nil, err
	}
	duration := newHistogram(a.metrics.deliveryDuration.WithLabelValues(c.Name), a.tracing != nil)
	latency := &a.meters.of(meterName{sink: c.Name}).latency
	return &sink{
		name: c.Name, kind: c.Type, idle: idle, endpoint: endpoint, stats: a.sinkStatsOf(c.Name), meters: &a.meters,
		took: func(d time.Duration, m *relay.Message) {
			duration.observe(d.Seconds(), m)
			latency.observe(d)
		},
		ended: make(chan struct{}),
	}, nil
}

// sinkStatsOf gives the counts of a sink, which outlive a reload.
func (a *App) sinkStatsOf(name string) *relay.SinkStats {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sinkStats[name] == nil {
		a.sinkStats[name] = relay.NewSinkStats()
	}
	return a.sinkStats[name]
}

// target binds the sink to one target of a route; an empty route is that of dead letters. What
// was bound is given back with unbind, after the last message.
func (s *sink) target(route string, with relay.Overrides) (t relay.Target, unbind func(), err error) {
	bound, err := s.endpoint.Bind(with)
	if err != nil {
		return relay.Target{}, nil, fmt.Errorf("bind sink %q to route %q: %w", s.name, route, err)
	}
	unbind = func() {}
	if u, ok := bound.(relay.Unbinder); ok {
		unbind = u.Unbind
	}
	took := s.took
	if route != "" {
		latency := &s.meters.of(meterName{route: route, sink: s.name}).latency
		took = func(d time.Duration, m *relay.Message) {
			s.took(d, m)
			latency.observe(d)
		}
	}
	target := relay.Target{
		Name:   relay.TargetName{Route: route, Sink: s.name},
		Sink:   relay.Measure(bound, s.stats, took),
		Health: s.endpoint,
	}
	if addressed, ok := bound.(relay.Addressed); ok {
		target.Address = addressed.Address()
	}
	if r, ok := bound.(relay.Retrier); ok {
		target.Retries = r.Retries()
	}
	return target, unbind, nil
}

// start keeps the sink connected until stop, or until the relay disconnects.
func (s *sink) start(connected context.Context, supervise func(part string, err error)) {
	ctx, stop := context.WithCancel(connected)
	s.stop = stop
	if s.idle {
		close(s.ended)
		return
	}
	go func() {
		defer close(s.ended)
		defer stop()
		supervise("sink "+s.name, s.endpoint.Run(ctx))
	}()
}

// onlyShadowed are the sinks that nothing is sent to, since the sources that lead there are
// all in shadow mode. A connection could declare an exchange, or take a place at the broker.
func onlyShadowed(cfg *config.Config) map[string]bool {
	only := make(map[string]bool)
	for _, shadow := range []bool{true, false} {
		for _, s := range cfg.Sources {
			if s.Shadow() != shadow {
				continue
			}
			if s.DeadLetter != "" {
				only[s.DeadLetter] = shadow
			}
			for _, r := range cfg.Routes {
				for _, to := range r.To {
					if slices.Contains(r.From, s.Name) {
						only[to.Sink] = shadow
					}
				}
			}
		}
	}
	return only
}

// hasWorked tells whether the sink has worked once: it has delivered, or it is up and has
// not failed yet. What has no connection is up before it was asked for anything. What a sink
// of this name did before a reload is not this one's.
func (s *sink) hasWorked() bool {
	if s.worked.Load() {
		return true
	}
	health, _ := s.endpoint.Health()
	counts := countsOf(s.stats)
	if counts.delivered > s.before.delivered || health.State == relay.Up && maps.Equal(counts.failed, s.before.failed) {
		s.worked.Store(true)
		return true
	}
	return false
}
