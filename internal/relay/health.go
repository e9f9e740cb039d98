package relay

import (
	"sync"
	"time"
)

// State is how much an endpoint can take.
type State uint8

// Down is the zero value: nothing is known to work yet.
const (
	Down  State = iota
	Probe       // one message at a time, to find out
	Up
)

func (s State) String() string {
	switch s {
	case Down:
		return "down"
	case Probe:
		return "probe"
	case Up:
		return "up"
	}
	return "unknown"
}

// Health is a State with its cause.
type Health struct {
	State State
	// Reason says in words why the state is not Up; empty when it is.
	Reason string
	// Since is when the state began.
	Since time.Time
}

// Monitor holds the health of an endpoint for those who wait for it to change. Make
// it with NewMonitor.
type Monitor struct {
	mu      sync.Mutex
	health  Health
	changed chan struct{}
}

// NewMonitor starts in the given state.
func NewMonitor(state State, reason string) *Monitor {
	return &Monitor{
		health:  Health{State: state, Reason: reason, Since: time.Now()},
		changed: make(chan struct{}),
	}
}

// Set records a state and tells whether it differs from the one before; a reason
// that differs in the same state is recorded and keeps Since.
func (m *Monitor) Set(state State, reason string) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.health.State == state && m.health.Reason == reason {
		return false
	}
	changed = m.health.State != state
	m.health.Reason = reason
	if changed {
		m.health.State = state
		m.health.Since = time.Now()
	}
	close(m.changed)
	m.changed = make(chan struct{})
	return changed
}

// Health is what Endpoint.Health gives.
func (m *Monitor) Health() (Health, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.health, m.changed
}
