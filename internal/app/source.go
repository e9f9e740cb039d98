package app

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/config"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/dryrun"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/shadow"
)

// source is one configured queue at work.
type source struct {
	cfg         config.Source
	fingerprint string
	refresher   *credentials.Refresher
	queue       *mns.Source
	stats       *relay.Stats
	pipeline    pipeline
	shadow      *shadow.Pipeline // nil: the source relays
	// sinks are those that the pipeline waits for, by name.
	sinks map[string]*sink
	// bound gives back what the targets hold of their sinks.
	bound []func()
	// depth is what the queue last told of itself; nil: it does not tell.
	depth atomic.Pointer[mns.Attributes]
	log   *zap.Logger

	stop, cutDrain context.CancelFunc
	ended          chan struct{}
}

// pipeline is what a source does with its queue: it relays or looks.
type pipeline interface {
	// Run goes on until receive ends and what is in flight is settled, or until work ends.
	Run(receive, work context.Context)
	Pause(reason string)
	Resume()
	State() (state relay.SourceState, reason string)
	// UnderWay counts the messages that a drain waits for.
	UnderWay() int
	InFlight(id string) (attempt int, found bool)
	SetRetention(retention time.Duration)
	Retention() time.Duration
	SetQueuePolicy(maxReceives int, queue string)
}

var (
	_ pipeline = (*relay.Pipeline)(nil)
	_ pipeline = (*shadow.Pipeline)(nil)
)

// newSource makes a source; auditor may be nil, and dry is for one in shadow mode.
func (a *App) newSource(c config.Source, routes config.Routes, sinks map[string]*sink, auditor relay.Auditor, dry *dryrun.Relay) (*source, error) {
	s := &source{
		cfg: c, stats: a.statsOf(c.Name), sinks: make(map[string]*sink), ended: make(chan struct{}),
		log: a.deps.Log.With(zap.String("source", c.Name)),
	}
	var err error
	// Sources that have the same credential share its refresher, over reloads too.
	if s.refresher, err = a.credentials.Refresher(&c.Credentials, c.Queue); err != nil {
		return nil, err
	}
	s.queue, err = mns.NewSource(mns.Config{
		Name: c.Name, Endpoint: c.Endpoint.Reveal(), Queue: c.Queue, Wait: c.Wait,
	}, mns.Deps{
		Credentials: s.refresher, Log: s.log,
		Observe: func(op, code string) { a.metrics.requests.WithLabelValues(c.Name, op, code).Inc() },
	})
	if err != nil {
		return nil, err
	}
	if c.Shadow() {
		s.shadow = shadow.New(c.Paused, shadow.Deps{
			Peek: s.queue.Queue().Peek, Denied: mns.NotAllowed, Audit: auditor, Log: s.log,
			Explain: func(m relay.Message) (*dryrun.Explanation, error) { return dry.ExplainPeeked(c.Name, m) },
		})
		s.pipeline = s.shadow
		return s, nil
	}
	bound, err := s.bind(routes, sinks)
	if err != nil {
		s.unbind()
		return nil, err
	}
	duration := newHistogram(a.metrics.endToEnd.WithLabelValues(c.Name), a.tracing != nil)
	latency := &a.meters.of(meterName{source: c.Name}).latency
	deps := relay.Deps{
		Source: s.queue, Decode: c.Decoder().Decode, Routes: bound, Ledger: a.ledger,
		Room: relay.NewRoom(c.InFlight.Messages, int64(c.InFlight.Bytes)), Shared: a.shared, Spare: a.spare,
		Stats: s.stats, Log: a.deps.Log, Audit: auditor,
		Confirmed: func(d time.Duration, m *relay.Message) {
			duration.observe(max(d.Seconds(), 0), m)
			latency.observe(d)
		},
	}
	if a.tracing != nil {
		kinds := make(map[string]string, len(sinks))
		for name, s := range sinks {
			kinds[name] = s.kind
		}
		deps.Tracer = a.tracing.Tracer(c.Name, c.Queue, kinds)
	}
	if c.DeadLetter != "" {
		dead, err := s.target(sinks[c.DeadLetter], "", nil)
		if err != nil {
			s.unbind()
			return nil, err
		}
		deps.DeadLetter = &dead
	}
	s.pipeline = relay.New(relay.Config{
		Source: c.Name, BatchSize: c.BatchSize, Wait: c.Wait,
		MinPollers: c.Pollers.Min, MaxPollers: c.Pollers.Max,
		Redelivery:      relay.Redelivery{Initial: c.Redelivery.Initial, Max: c.Redelivery.Max},
		MaxReceives:     c.MaxReceives,
		DeadLetterLimit: relay.DeadLetterLimit{Count: c.DeadLetterLimit.Count, Per: c.DeadLetterLimit.Per},
		Unmatched:       unmatched(c.Unmatched),
		AtMostOnce:      c.AtMostOnce(),
		Paused:          c.Paused,
	}, deps)
	return s, nil
}

// statsOf gives the counts of a source, which outlive a reload.
func (a *App) statsOf(name string) *relay.Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stats[name] == nil {
		a.stats[name] = relay.NewStats()
	}
	return a.stats[name]
}

// bind makes the routes of the source with their sinks.
func (s *source) bind(routes config.Routes, sinks map[string]*sink) (bound []relay.Route, err error) {
	for _, r := range routes {
		if !slices.Contains(r.From, s.cfg.Name) {
			continue
		}
		route := relay.Route{Name: r.Name, Match: r.Match}
		for _, to := range r.To {
			target, err := s.target(sinks[to.Sink], r.Name, to.With)
			if err != nil {
				return nil, err
			}
			target.Optional = !to.Required
			route.Targets = append(route.Targets, target)
			if to.Required {
				s.sinks[to.Sink] = sinks[to.Sink]
			}
		}
		bound = append(bound, route)
	}
	return bound, nil
}

func (s *source) target(to *sink, route string, with relay.Overrides) (relay.Target, error) {
	target, unbind, err := to.target(route, with)
	if err == nil {
		s.bound = append(s.bound, unbind)
	}
	return target, err
}

// unbind gives back what the targets hold of their sinks. Call it once nothing is delivered.
func (s *source) unbind() {
	for _, unbind := range s.bound {
		unbind()
	}
	s.bound = nil
}

func unmatched(setting string) relay.Unmatched {
	switch setting {
	case "delete":
		return relay.UnmatchedDelete
	case "dead_letter":
		return relay.UnmatchedDeadLetter
	}
	return relay.UnmatchedRetain
}

// start relays until stop, or until receiving ends for the whole relay; then it drains,
// until cutDrain or until work ends.
func (s *source) start(receive, work, connected context.Context, supervise func(part string, err error)) {
	receive, stop := context.WithCancel(receive)
	work, cutDrain := context.WithCancel(work)
	connected, disconnect := context.WithCancel(connected)
	s.stop, s.cutDrain = stop, cutDrain
	var connections sync.WaitGroup
	connections.Go(func() { supervise("credential of source "+s.cfg.Name, s.refresher.Run(connected, s.cfg.Name)) })
	connections.Go(func() { s.watchDepth(connected) })
	go func() {
		defer close(s.ended)
		s.run(receive, work)
		s.unbind()
		disconnect()
		connections.Wait()
		if err := s.queue.Close(); err != nil {
			s.log.Debug("close the queue", zap.Error(err))
		}
		stop()
		cutDrain()
	}()
}

// run waits for the first credential, without which there is nothing to ask the queue,
// and then relays.
func (s *source) run(receive, work context.Context) {
	select {
	case <-s.refresher.Ready():
		s.pipeline.Run(receive, work)
	case <-receive.Done():
	}
}

// state tells what the source is doing and, where it does not receive, why.
func (s *source) state() (state relay.SourceState, reason string) {
	select {
	case <-s.refresher.Ready():
		return s.pipeline.State()
	default:
	}
	reason = "the credential is being fetched"
	if e := s.refresher.Status().LastError; e != "" {
		reason = "there is no credential: " + e
	}
	return relay.SourceStarting, reason
}

// How often a queue is asked for its attributes: at every tick while there is a
// backlog, at every tenth while there is none.
const (
	depthTick = 30 * time.Second
	depthIdle = 10
)

// backlogFill is how full batches come under a backlog.
const backlogFill = 0.5

// backlog tells whether the queue has more than comes with a poll. One poller is enough to
// see it by: batches come full. How full the last ones were says nothing once none comes.
func backlog(counts *relay.Counts, now time.Time) bool {
	return counts.Pollers > 1 || counts.Fill >= backlogFill && now.Sub(counts.LastReceive) <= depthTick
}

// watchDepth reads the queue's attributes once receiving has worked, then at every
// tick that is due. A queue that does not tell costs nothing more than the asking.
func (s *source) watchDepth(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	worked, ticks := false, 0
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		counts := s.stats.Counts()
		if !worked {
			if worked = s.hasWorked(&counts); worked {
				ticker.Reset(depthTick)
				s.readDepth(ctx)
			}
			continue
		}
		if ticks++; backlog(&counts, time.Now()) || ticks%depthIdle == 0 {
			s.readDepth(ctx)
		}
	}
}

// hasWorked tells whether the queue has answered a receive or, in shadow mode, a peek.
func (s *source) hasWorked(counts *relay.Counts) bool {
	if s.shadow != nil {
		return !s.shadow.Report().LastPeek.IsZero()
	}
	return counts.Worked
}

// readDepth keeps nothing where the queue does not tell: unknown is not nought.
func (s *source) readDepth(ctx context.Context) {
	attributes, err := s.queue.Attributes(ctx)
	if err != nil {
		s.depth.Store(nil)
		s.log.Debug("queue attributes not read", zap.Error(err))
		return
	}
	s.pipeline.SetRetention(attributes.Retention)
	s.pipeline.SetQueuePolicy(attributes.DeadLetterPolicy.MaxReceives, attributes.DeadLetterPolicy.Queue)
	if !attributes.Counted {
		s.depth.Store(nil)
		return
	}
	s.depth.Store(&attributes)
}
