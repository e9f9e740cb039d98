package relay

import (
	"errors"
	"maps"
	"sync"
	"time"
)

// SourceState is what a pipeline is doing.
type SourceState string

// The states of a pipeline.
const (
	SourceStarting SourceState = "starting" // no receive has worked yet
	SourceRunning  SourceState = "running"
	SourceWaiting  SourceState = "waiting"  // for a required sink
	SourcePaused   SourceState = "paused"   // by the configuration or an operator
	SourceRetrying SourceState = "retrying" // the queue or the credential fails
	SourceDraining SourceState = "draining"
	SourceStopped  SourceState = "stopped"
)

// SourceStates are all of them.
func SourceStates() []SourceState {
	return []SourceState{SourceStarting, SourceRunning, SourceWaiting, SourcePaused, SourceRetrying, SourceDraining, SourceStopped}
}

// TargetName names one target of a route.
type TargetName struct{ Route, Sink string }

// SourceError is an error of a source that still lasts.
type SourceError struct {
	Class Class
	Text  string
	// Since is when the first call in a row failed.
	Since time.Time
}

// Counts are what became of the messages of one source. Every received message ends
// in exactly one of Deleted, Returned and LostLeases, or is InFlight.
type Counts struct {
	Received, Deleted, LostLeases, InFlight uint64
	// Returned counts messages given back to the queue undelivered, by reason.
	Returned map[string]uint64
	// Retried counts failed tries to deliver, by reason.
	Retried map[string]uint64
	// Delivered counts confirms by target.
	Delivered map[TargetName]uint64
	// DeadLettered counts messages that a dead-letter sink took, by reason; they are
	// among Deleted.
	DeadLettered map[string]uint64
	// Skipped counts deliveries that the ledger spared, by sink.
	Skipped map[string]uint64
	// GivenUp counts what was not delivered and will not be tried again: of sinks that
	// are not required, and of a source that delivers at most once. By reason.
	GivenUp map[string]uint64
	// Pollers is how many pollers ask the queue at present.
	Pollers int
	// Fill is how full the batches were that held anything, of late: 0 to 1; 0
	// before the first.
	Fill float64
	// OldestAge is the age of the oldest message of the last batch when it was
	// received.
	OldestAge   time.Duration
	LastReceive time.Time
	// LastError is nil while calls work.
	LastError *SourceError
	// Worked says that a receive has worked at least once.
	Worked bool
}

// Balanced reports whether every message that was received is accounted for.
func (c *Counts) Balanced() bool {
	sum := c.Deleted + c.LostLeases + c.InFlight
	for _, n := range c.Returned {
		sum += n
	}
	return sum == c.Received
}

// Stats keeps the Counts of one source. It outlives the pipeline that fills it, so
// that counts survive a restart of the pipeline, and is safe for concurrent use.
type Stats struct {
	mu       sync.Mutex
	counts   Counts
	failures tries
}

// NewStats starts at nought.
func NewStats() *Stats {
	return &Stats{counts: Counts{
		Returned:  make(map[string]uint64),
		Retried:   make(map[string]uint64),
		Delivered: make(map[TargetName]uint64),

		DeadLettered: make(map[string]uint64),
		Skipped:      make(map[string]uint64),
		GivenUp:      make(map[string]uint64),
	}}
}

// Counts gives the counts of one moment.
func (s *Stats) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := s.counts
	counts.Returned = maps.Clone(s.counts.Returned)
	counts.Retried = maps.Clone(s.counts.Retried)
	counts.Delivered = maps.Clone(s.counts.Delivered)
	counts.DeadLettered = maps.Clone(s.counts.DeadLettered)
	counts.Skipped = maps.Clone(s.counts.Skipped)
	counts.GivenUp = maps.Clone(s.counts.GivenUp)
	if s.counts.LastError != nil {
		lastError := *s.counts.LastError
		counts.LastError = &lastError
	}
	return counts
}

// fillWeight is the weight of the newest batch in Fill, which so follows the last
// twenty batches or so.
const fillWeight = 0.05

func (s *Stats) receiveWorked(ds []Delivery, asked int) {
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &s.counts
	c.Worked, c.LastError = true, nil
	if len(ds) == 0 {
		return
	}
	c.Received += uint64(len(ds))
	c.InFlight += uint64(len(ds))
	c.LastReceive = now
	c.OldestAge = 0
	for i := range ds {
		c.OldestAge = max(c.OldestAge, now.Sub(ds[i].EnqueuedAt))
	}
	fill := float64(len(ds)) / float64(asked)
	if c.Fill > 0 {
		fill = c.Fill + fillWeight*(fill-c.Fill)
	}
	c.Fill = fill
}

func (s *Stats) oldest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts.OldestAge
}

func (s *Stats) receiveFailed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since := time.Now()
	if s.counts.LastError != nil {
		since = s.counts.LastError.Since
	}
	s.counts.LastError = &SourceError{Class: ClassOf(err), Text: err.Error(), Since: since}
}

func (s *Stats) pollersChanged(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Pollers += by
}

func (s *Stats) delivered(t TargetName) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Delivered[t]++
}

func (s *Stats) skipped(sink string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Skipped[sink]++
}

func (s *Stats) givenUp(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.GivenUp[reason]++
}

func (s *Stats) deadLettered(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.DeadLettered[reason]++
}

// settled records the end of messages; returned gives the reasons of those that went
// back to the queue.
func (s *Stats) settled(deleted, lost int, returned []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Deleted += uint64(deleted)                         //nolint:gosec // a count
	s.counts.LostLeases += uint64(lost)                         //nolint:gosec // a count
	s.counts.InFlight -= uint64(deleted + lost + len(returned)) //nolint:gosec // a count
	for _, reason := range returned {
		s.counts.Returned[reason]++
	}
}

// ReasonOf is the name under which err is counted: that of the first Failure in its
// chain, or "error".
func ReasonOf(err error) string {
	if f, ok := errors.AsType[*Failure](err); ok {
		return f.Reason
	}
	return "error"
}
