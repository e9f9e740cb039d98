package relay

import (
	"context"
	"maps"
	"sync"
	"time"
)

// SinkStats counts what became of the messages given to one sink, over all its
// routes. It is safe for concurrent use.
type SinkStats struct {
	mu        sync.Mutex
	delivered uint64
	failed    map[string]uint64
}

// NewSinkStats starts at nought.
func NewSinkStats() *SinkStats { return &SinkStats{failed: make(map[string]uint64)} }

// Counts gives the messages delivered and the failed tries by reason.
func (s *SinkStats) Counts() (delivered uint64, failed map[string]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.delivered, maps.Clone(s.failed)
}

func (s *SinkStats) count(r Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Outcome == Delivered {
		s.delivered++
		return
	}
	s.failed[ReasonOf(r.Err)]++
}

// Measure decorates a sink: every result is counted in stats, and took, if not nil, is
// told how long each confirmed message took from the call of Deliver.
func Measure(sink Sink, stats *SinkStats, took func(d time.Duration, m *Message)) Sink {
	return &measured{sink: sink, stats: stats, took: took}
}

type measured struct {
	sink  Sink
	stats *SinkStats
	took  func(time.Duration, *Message)
}

func (m *measured) Deliver(ctx context.Context, ms []Message, done func(i int, r Result)) {
	begun := time.Now()
	m.sink.Deliver(ctx, ms, func(i int, r Result) {
		m.stats.count(r)
		if r.Outcome == Delivered && m.took != nil {
			m.took(time.Since(begun), &ms[i])
		}
		done(i, r)
	})
}
