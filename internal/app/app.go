// Package app is the composition root: it builds a relay from a configuration, runs
// it, changes it while it runs and stops it in order.
//
// Start: the API listens first, so that probes answer from the beginning and a port in
// use fails the start. Then sinks connect and credentials are fetched, each in its own
// time and for ever; pipelines receive as soon as their credential and sinks are there.
//
// Stop: not ready; receiving ends at once, waiting polls included; what is in flight
// is delivered and settled while leases are still renewed, for at most the drain
// timeout; then connections are closed, and the API last.
//
// Reload: the new file is read and every part that it changes is built before anything
// is touched, so that a bad file changes nothing. Then the pipelines that it changes
// drain, the sinks that it changes close, and the new ones start. Everything else runs
// on untouched.
package app

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"mnsrelay/internal/audit"
	"mnsrelay/internal/config"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/ledger"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/telemetry"
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
	// Level is that of Log, for an operator and for a reload to change.
	Level zap.AtomicLevel
	// Load reads the configuration again, for a reload; nil: there is none.
	Load func() (*config.Config, error)
}

// Agent is what a relay calls itself to the far sides: its User-Agent, and the name of its
// connections.
func Agent(version, instance string) string {
	return fmt.Sprintf("mnsrelay/%s (%s)", version, instance)
}

func (d *Deps) agent() string { return Agent(d.Version, d.Instance) }

// App is one relay: all sources, sinks and routes of a configuration.
type App struct {
	deps    Deps
	log     *zap.Logger
	started time.Time
	metrics *metrics
	shared  *relay.Room
	spare   *relay.Room
	ledger  ledger.Ledger
	// tracing is nil where there is none.
	tracing *telemetry.Tracing
	// credentials are those of all sources.
	credentials *credentials.Pool
	api         *httpapi.Server
	meters      meters
	audited     audit.Counter
	addr        atomic.Pointer[net.TCPAddr]

	ready    atomic.Bool
	draining atomic.Bool
	// failed is why a part of the relay ended that should not have, for Live.
	failed atomic.Pointer[error]
	// reloads carries what Reload has read to Run; it has no room, so that a reload is
	// taken up or refused.
	reloads chan reload
	// reloading makes reloads come one after the other.
	reloading sync.Mutex

	mu    sync.Mutex
	parts parts
	stats map[string]*relay.Stats
	// sinkStats are those of sinks.
	sinkStats map[string]*relay.SinkStats
	paused    map[string]string // by an operator: source to reason
	loaded    loaded
}

// parts are what one configuration runs, in the order of its file.
type parts struct {
	cfg     *config.Config
	audit   *auditing
	sources []*source
	sinks   []*sink
}

// ErrDrainCut says that the drain was ended before everything in flight was settled.
// Nothing is lost: what was not deleted comes again.
var ErrDrainCut = errors.New("the drain was cut short; what was not confirmed comes again")

// spareOf is the room for what is on its way to optional sinks alone, of all sources
// together: half as much again as in_flight says.
func spareOf(cfg *config.Config) (messages int, bytes int64) {
	return cfg.InFlight.Messages / 2, int64(cfg.InFlight.Bytes) / 2
}

// New builds a relay from a checked configuration. It opens no connection and starts
// nothing.
func New(cfg *config.Config, deps Deps) (*App, error) {
	a := &App{
		deps: deps, log: deps.Log, started: time.Now(), metrics: newMetrics(deps.Registry),
		credentials: credentials.NewPool(deps.Log),
		shared:      relay.NewRoom(cfg.InFlight.Messages, int64(cfg.InFlight.Bytes)),
		spare:       relay.NewRoom(spareOf(cfg)),
		reloads:     make(chan reload),
		stats:       make(map[string]*relay.Stats),
		sinkStats:   make(map[string]*relay.SinkStats),
		paused:      make(map[string]string),
		loaded:      loaded{generation: 1, digest: cfg.Digest, at: time.Now()},
	}
	var err error
	if a.ledger, err = ledger.Open(cfg.Ledger, ledger.Deps{Log: deps.Log}); err != nil {
		return nil, fmt.Errorf("open the ledger: %w", err)
	}
	if a.tracing, err = newTracing(&cfg.Tracing, deps); err != nil {
		return nil, errors.Join(err, a.ledger.Close())
	}
	p, err := a.plan(cfg)
	if err != nil {
		return nil, errors.Join(err, a.ledger.Close())
	}
	a.parts = p.parts
	deps.Registry.MustRegister(&collector{app: a})
	a.api, err = httpapi.New(httpapi.Config{
		Listen: cfg.Server.Listen, AdminListen: cfg.Server.AdminListen, AdminToken: cfg.Server.AdminToken, TLS: cfg.Server.TLS,
	}, httpapi.Deps{
		Instance: deps.Instance, Relay: a, Metrics: deps.Registry, Log: deps.Log.Named("api"), Level: deps.Level,
	})
	if err != nil {
		return nil, errors.Join(err, a.ledger.Close())
	}
	return a, nil
}

// Run relays until ctx ends, then drains. The drain is cut when cut ends or the drain
// timeout has passed; what was then still in flight makes the error ErrDrainCut. Any
// other error says why the relay could not start. Run may be called once.
func (a *App) Run(ctx, cut context.Context) (err error) {
	defer func() { err = errors.Join(err, a.ledger.Close()) }()
	addr, admin, err := a.api.Listen(ctx)
	if err != nil {
		return err
	}
	if tcp, ok := addr.(*net.TCPAddr); ok {
		a.addr.Store(tcp)
	}
	// The API, the connections and the credentials outlive ctx: the drain needs them.
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	if a.tracing != nil {
		a.tracing.Start()
	}
	connected, disconnect := context.WithCancel(serving)
	defer disconnect()
	work, stopWork := context.WithCancel(serving)
	defer stopWork()

	var api sync.WaitGroup
	api.Go(func() { a.supervise("the API", a.api.Run(serving)) })
	api.Go(func() { a.sampleMeters(serving) })
	now := a.present()
	for _, s := range now.sinks {
		s.start(connected, a.supervise)
	}
	now.audit.start(connected)
	for _, s := range now.sources {
		s.start(ctx, work, connected, a.supervise)
	}
	fields := []zap.Field{
		zap.String("version", a.deps.Version), zap.Stringer("api", addr), zap.Bool("tls", !now.cfg.Server.TLS.IsZero()),
		zap.Int("sources", len(now.sources)), zap.Int("sinks", len(now.sinks)), zap.Int("processors", runtime.GOMAXPROCS(0)),
	}
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		fields = append(fields, zap.Int64("memory_limit", limit)) // bytes
	}
	if admin != nil {
		fields = append(fields, zap.Stringer("admin", admin))
	}
	a.log.Info("relay started", fields...)

	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case r := <-a.reloads:
			// Only here is it sure that the change before has been made.
			p, err := a.plan(r.cfg)
			r.planned <- err
			if err == nil {
				a.apply(ctx, work, connected, p)
			}
		}
	}
	err = a.drain(cut, stopWork)
	a.present().audit.end()
	disconnect()
	for _, s := range a.present().sinks {
		<-s.ended
	}
	if a.tracing != nil {
		api.Go(func() { a.tracing.Stop(cut) }) // the last spans are those of the drain
	}
	stopServing()
	api.Wait()
	return err
}

// drain waits until what is in flight is settled, and cuts it when the time is over.
func (a *App) drain(cut context.Context, stopWork context.CancelFunc) error {
	a.draining.Store(true)
	begun := time.Now()
	now := a.present()
	timeout := now.cfg.DrainTimeout
	a.log.Info("draining: receiving has stopped, messages in flight are being delivered", zap.Duration("timeout", timeout))
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for _, s := range now.sources {
			<-s.ended
		}
	}()
	timer := time.NewTimer(timeout)
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
	inFlight := 0
	for _, s := range now.sources {
		inFlight += s.pipeline.UnderWay()
	}
	a.log.Warn("drain cut short; messages that were not confirmed are given back to their queues",
		zap.String("by", reason), zap.Int("in_flight", inFlight), zap.Duration("after", time.Since(begun)))
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

// present gives what runs now.
func (a *App) present() parts {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.parts
}

// Addr is where the API listens; nil before Run has opened it.
func (a *App) Addr() *net.TCPAddr { return a.addr.Load() }

// Pause stops a source from receiving until Resume, over reloads too. What is in flight
// goes on. httpapi.ErrNotFound: there is none of that name.
func (a *App) Pause(name string) error {
	return a.steer(name, func(s *source) {
		a.paused[name] = "paused by an operator"
		s.pipeline.Pause(a.paused[name])
		a.log.Info("source paused by an operator", zap.String("source", name))
	})
}

// Resume lets a source receive again, whatever has paused it. httpapi.ErrNotFound:
// there is none of that name.
func (a *App) Resume(name string) error {
	return a.steer(name, func(s *source) {
		delete(a.paused, name)
		s.pipeline.Resume()
		a.log.Info("source resumed by an operator", zap.String("source", name))
	})
}

func (a *App) steer(name string, do func(s *source)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.parts.sources {
		if s.cfg.Name == name {
			do(s)
			return nil
		}
	}
	return fmt.Errorf("source %q: %w", name, httpapi.ErrNotFound)
}
