package relay

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// gate decides whether a source may receive: not while a required sink is down, and
// not while it is paused. Closing it ends the polls under way.
type gate struct {
	mu sync.Mutex
	// paused says why the source is paused; empty: it is not.
	paused string
	// down holds the reason of each required sink that is down, in the order of
	// sinks.
	down  map[string]string
	sinks []string
	// probes are the sinks that may have one message at a time.
	probes  map[string]struct{}
	polls   map[*poll]struct{}
	changed chan struct{}
}

// poll is one pass through the gate.
type poll struct{ abort context.CancelFunc }

// newGate is shut until the health of every sink has been told.
func newGate(sinks []string) *gate {
	g := &gate{
		down:    make(map[string]string, len(sinks)),
		sinks:   sinks,
		probes:  make(map[string]struct{}),
		polls:   make(map[*poll]struct{}),
		changed: make(chan struct{}),
	}
	for _, name := range sinks {
		g.down[name] = "not connected yet"
	}
	return g
}

// watch tells the gate of a sink's health until ctx ends.
func (g *gate) watch(ctx context.Context, sink string, of Reporter) {
	for {
		health, changed := of.Health()
		g.tell(sink, health)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (g *gate) tell(sink string, health Health) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.down, sink)
	delete(g.probes, sink)
	switch health.State {
	case Down:
		g.down[sink] = health.Reason
	case Probe:
		g.probes[sink] = struct{}{}
	case Up:
	}
	g.update()
}

// pause shuts the gate for the given reason until resume.
func (g *gate) pause(reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = reason
	g.update()
}

func (g *gate) resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.paused = ""
	g.update()
}

// update ends the polls under way if the gate is shut and wakes those who wait for
// it; the caller holds the lock.
func (g *gate) update() {
	if !g.open() {
		for p := range g.polls {
			p.abort()
		}
		clear(g.polls)
	}
	close(g.changed)
	g.changed = make(chan struct{})
}

func (g *gate) open() bool { return g.paused == "" && len(g.down) == 0 }

// probing tells whether a sink may have one message only.
func (g *gate) probing() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.probes) > 0
}

// shut tells why the gate is shut; empty: it is open.
func (g *gate) shut() (state SourceState, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paused != "" {
		return SourcePaused, g.paused
	}
	if len(g.down) == 0 {
		return SourceRunning, ""
	}
	var reasons []string
	for _, name := range g.sinks {
		if reason, down := g.down[name]; down {
			reasons = append(reasons, fmt.Sprintf("sink %s is down: %s", name, reason))
		}
	}
	return SourceWaiting, strings.Join(reasons, "; ")
}

// enter waits until the gate is open and gives a context for one poll, which ends
// with ctx and when the gate is shut. leave must be called after the poll.
func (g *gate) enter(ctx context.Context) (pollCtx context.Context, leave func(), err error) {
	for {
		g.mu.Lock()
		if g.open() {
			pollCtx, abort := context.WithCancel(ctx)
			p := &poll{abort: abort}
			g.polls[p] = struct{}{}
			g.mu.Unlock()
			return pollCtx, func() { g.leave(p) }, nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

func (g *gate) leave(p *poll) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p.abort()
	delete(g.polls, p)
}
