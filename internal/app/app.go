// Package app is the composition root: it builds a relay from a configuration, runs
// it and stops it in order.
//
// Start: the API listens first, so that probes answer from the beginning and a port in
// use fails the start. Then sinks connect and credentials are fetched, each in its own
// time and for ever; pipelines begin at once and receive as soon as their sinks are up.
//
// Stop: not ready; receiving ends at once, waiting polls included; what is in flight
// is delivered and settled while leases are still renewed, for at most the drain
// timeout; then connections are closed, and the API last.
package app

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"mnsrelay/internal/config"
	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/relay"
)

// Deps are what a relay is built with.
type Deps struct {
	// Version is that of the build.
	Version string
	// Instance names this process in every answer of the API and to the brokers: the
	// name of the host or pod.
	Instance string
	// Registry takes the metrics. Each App needs one of its own.
	Registry *prometheus.Registry
	Log      *zap.Logger
}

// App is one relay: all sources, sinks and routes of a configuration.
type App struct {
	cfg     *config.Config
	deps    Deps
	log     *zap.Logger
	started time.Time
	sources []*source
	sinks   []*sink
	api     *httpapi.Server
	addr    atomic.Pointer[net.TCPAddr]

	ready    latch
	draining atomic.Bool
	// failed is why a part of the relay ended that should not have, for Live.
	failed atomic.Pointer[error]
}

// ErrDrainCut says that the drain was ended before everything in flight was settled.
// Nothing is lost: what was not deleted comes again.
var ErrDrainCut = errors.New("the drain was cut short; what was not confirmed comes again")

// New builds a relay from a checked configuration. It opens no connection and starts
// nothing.
func New(cfg *config.Config, deps Deps) (*App, error) {
	a := &App{cfg: cfg, deps: deps, log: deps.Log, started: time.Now()}
	shared := relay.NewRoom(cfg.InFlight.Messages, int64(cfg.InFlight.Bytes))
	m := newMetrics(deps.Registry)
	sinks := make(map[string]*sink, len(cfg.Sinks))
	for _, c := range cfg.Sinks {
		s, err := newSink(c, deps, m)
		if err != nil {
			return nil, fmt.Errorf("open sink %q: %w", c.Name, err)
		}
		sinks[c.Name] = s
		a.sinks = append(a.sinks, s)
	}
	for _, c := range cfg.Sources {
		s, err := newSource(c, cfg.Routes, sinks, shared, deps, m)
		if err != nil {
			return nil, fmt.Errorf("open source %q: %w", c.Name, err)
		}
		a.sources = append(a.sources, s)
	}
	deps.Registry.MustRegister(&collector{app: a})
	a.api = httpapi.New(httpapi.Config{Listen: cfg.Server.Listen}, httpapi.Deps{
		Instance: deps.Instance, Relay: a, Metrics: deps.Registry, Log: deps.Log.Named("api"),
	})
	return a, nil
}

// Run relays until ctx ends, then drains. The drain is cut when cut ends or the drain
// timeout has passed; what was then still in flight makes the error ErrDrainCut. Any
// other error says why the relay could not start. Run may be called once.
func (a *App) Run(ctx, cut context.Context) error {
	addr, err := a.api.Listen(ctx)
	if err != nil {
		return err
	}
	if tcp, ok := addr.(*net.TCPAddr); ok {
		a.addr.Store(tcp)
	}
	// The API, the connections and the credentials outlive ctx: the drain needs them.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	connected, disconnect := context.WithCancel(serving)
	defer disconnect()
	work, stopWork := context.WithCancel(serving)
	defer stopWork()

	var api, connections, pipelines sync.WaitGroup
	api.Go(func() { a.supervise("the API", a.api.Run(serving)) })
	for _, s := range a.sinks {
		connections.Go(func() { a.supervise("sink "+s.name, s.endpoint.Run(connected)) })
		connections.Go(func() { s.watch(connected) })
	}
	for _, s := range a.sources {
		connections.Go(func() { a.supervise("credential of source "+s.cfg.Name, s.refresher.Run(connected)) })
		connections.Go(func() { s.watchDepth(connected) })
		pipelines.Go(func() { s.run(ctx, work) })
	}
	a.log.Info("relay started", zap.String("version", a.deps.Version), zap.Stringer("api", addr),
		zap.Int("sources", len(a.sources)), zap.Int("sinks", len(a.sinks)))

	<-ctx.Done()
	err = a.drain(cut, &pipelines, stopWork)
	disconnect()
	connections.Wait()
	for _, s := range a.sources {
		err = errors.Join(err, s.queue.Close())
	}
	stopServing()
	api.Wait()
	return err
}

// drain waits until what is in flight is settled, and cuts it when the time is over.
func (a *App) drain(cut context.Context, pipelines *sync.WaitGroup, stopWork context.CancelFunc) error {
	a.draining.Store(true)
	begun := time.Now()
	a.log.Info("draining: receiving has ended, what is in flight is delivered", zap.Duration("timeout", a.cfg.DrainTimeout))
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		pipelines.Wait()
	}()
	timer := time.NewTimer(a.cfg.DrainTimeout)
	defer timer.Stop()
	var reason string
	select {
	case <-drained:
		a.log.Info("drained", zap.Duration("after", time.Since(begun)))
		return nil
	case <-cut.Done():
		reason = "a second signal"
	case <-timer.C:
		reason = "drain_timeout has passed"
	}
	var inFlight uint64
	for _, s := range a.sources {
		inFlight += s.stats.Counts().InFlight
	}
	a.log.Warn("drain cut short; messages that were not confirmed are given back to their queues",
		zap.String("by", reason), zap.Uint64("in_flight", inFlight), zap.Duration("after", time.Since(begun)))
	stopWork()
	<-drained
	if inFlight == 0 {
		return nil
	}
	return ErrDrainCut
}

// supervise notes that a part has ended which should run until it is told to stop: a
// restart of the process is all that can help.
func (a *App) supervise(part string, err error) {
	if err == nil {
		return
	}
	a.log.Error("a part of the relay has ended; the process needs a restart", zap.String("part", part), zap.Error(err))
	err = fmt.Errorf("%s has ended: %w", part, err)
	a.failed.CompareAndSwap(nil, &err)
}

// Addr is where the API listens; nil before Run has opened it.
func (a *App) Addr() *net.TCPAddr { return a.addr.Load() }

// latch is a condition that has been true once.
type latch struct{ set atomic.Bool }
