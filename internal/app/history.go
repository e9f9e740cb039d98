package app

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"mnsrelay/api"
	"mnsrelay/internal/relay"
)

const (
	// sampleEvery is the time between two points of the history, historyKept how many of them
	// are kept: half an hour.
	sampleEvery = 10 * time.Second
	historyKept = 180
	// minuteSamples are those that the rates and latencies of the last minute begin with.
	minuteSamples = 6
)

// meterName is what a meter is of: a source, a sink, or a sink of a route.
type meterName struct{ source, route, sink string }

// meters are those of everything that has run; they outlive reloads, as the counts do. The
// zero value is empty.
type meters struct {
	mu  sync.Mutex
	all map[meterName]*meter
	// end is when the last samples were taken.
	end time.Time
}

// of gives the meter of name, and makes it: ask before anything is counted, since what is
// counted by then is taken for new.
func (m *meters) of(name meterName) *meter {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.all[name] == nil {
		if m.all == nil {
			m.all = make(map[meterName]*meter)
		}
		m.all[name] = &meter{marks: []mark{{at: time.Now()}}}
	}
	return m.all[name]
}

// sampleMeters adds a point to the history every ten seconds, until ctx ends.
func (a *App) sampleMeters(ctx context.Context) {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now, present := time.Now(), a.present()
		delivered := make(map[relay.TargetName]uint64)
		for _, s := range present.sources {
			counts := s.stats.Counts()
			a.meters.of(meterName{source: s.cfg.Name}).sample(now, counts.Received)
			for target, n := range counts.Delivered {
				delivered[target] += n
			}
		}
		for _, s := range present.sinks {
			delivered, _ := s.stats.Counts()
			a.meters.of(meterName{sink: s.name}).sample(now, delivered)
		}
		// Those that have delivered nothing too, or their next rate would be that of a longer time.
		for _, r := range present.cfg.Routes {
			for _, to := range r.To {
				a.meters.of(meterName{route: r.Name, sink: to.Sink}).sample(now, delivered[relay.TargetName{Route: r.Name, Sink: to.Sink}])
			}
		}
		a.meters.mu.Lock()
		a.meters.end = now
		a.meters.mu.Unlock()
	}
}

// History is part of httpapi.Relay.
func (a *App) History() api.History {
	a.meters.mu.Lock()
	end := a.meters.end
	a.meters.mu.Unlock()
	if end.IsZero() {
		end = a.started
	}
	history := api.History{
		End: end.UTC(), IntervalSeconds: sampleEvery.Seconds(),
		Sources: make(map[string]api.Points), Sinks: make(map[string]api.Points), Routes: make(map[string]map[string]api.Points),
	}
	present := a.present()
	for _, s := range present.sources {
		history.Sources[s.cfg.Name] = a.meters.of(meterName{source: s.cfg.Name}).points()
	}
	for _, s := range present.sinks {
		history.Sinks[s.name] = a.meters.of(meterName{sink: s.name}).points()
	}
	for _, r := range present.cfg.Routes {
		history.Routes[r.Name] = make(map[string]api.Points)
		for _, to := range r.To {
			history.Routes[r.Name][to.Sink] = a.meters.of(meterName{route: r.Name, sink: to.Sink}).points()
		}
	}
	return history
}

// meter tells the rate of a counter, and the latencies of what it counts.
type meter struct {
	latency latency

	mu sync.Mutex
	// marks are the counter, its latencies and the time at the last samples, the oldest first.
	marks []mark
	// rates are a second, the oldest first.
	rates []float32
}

type mark struct {
	at        time.Time
	count     uint64
	latencies latencies
}

// sample adds a point to the history.
func (m *meter) sample(now time.Time, count uint64) {
	latencies := m.latency.read()
	m.mu.Lock()
	defer m.mu.Unlock()
	last := &m.marks[len(m.marks)-1]
	m.rates = append(m.rates, float32(perSecond(last, now, count)))
	if len(m.rates) > historyKept {
		m.rates = append(m.rates[:0], m.rates[1:]...)
	}
	m.marks = append(m.marks, mark{at: now, count: count, latencies: latencies})
	if len(m.marks) > minuteSamples {
		m.marks = append(m.marks[:0], m.marks[1:]...)
	}
}

func perSecond(since *mark, now time.Time, count uint64) float64 {
	took := now.Sub(since.at).Seconds()
	if took <= 0 || count < since.count {
		return 0
	}
	return float64(count-since.count) / took
}

// minute tells the rate a second and the latencies of the last minute; none where nothing
// was measured.
func (m *meter) minute(now time.Time, count uint64) (rate float64, p50, p99 time.Duration, measured bool) {
	latencies := m.latency.read()
	m.mu.Lock()
	defer m.mu.Unlock()
	since := &m.marks[0]
	p50, measured = latencies.quantile(&since.latencies, 0.5)
	p99, _ = latencies.quantile(&since.latencies, 0.99)
	return perSecond(since, now, count), p50, p99, measured
}

// points are the rates so far, the oldest first.
func (m *meter) points() []float32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]float32{}, m.rates...)
}

// The buckets of latencies: each is a fifth wider than the one before, from 100 µs to more
// than a day.
const (
	latencyFirst   = 100 * time.Microsecond
	latencyGrowth  = 1.2
	logGrowth      = 0.1823215567939546 // math.Log(latencyGrowth), which would be taken for each message
	latencyBuckets = 120
)

// latency counts durations by bucket. It is safe for concurrent use.
type latency struct{ buckets [latencyBuckets]atomic.Uint64 }

func (l *latency) observe(d time.Duration) {
	i := 0
	if d > latencyFirst {
		i = min(int(math.Log(float64(d)/float64(latencyFirst))/logGrowth)+1, latencyBuckets-1)
	}
	l.buckets[i].Add(1)
}

func (l *latency) read() (counts latencies) {
	for i := range l.buckets {
		counts[i] = l.buckets[i].Load()
	}
	return counts
}

// latencies are counts by bucket.
type latencies [latencyBuckets]uint64

// quantile of what was counted after since; none where nothing was. It is the middle of a
// bucket, a tenth off at most.
func (l *latencies) quantile(since *latencies, q float64) (d time.Duration, found bool) {
	var total uint64
	for i := range l {
		total += l[i] - since[i]
	}
	if total == 0 {
		return 0, false
	}
	rank := uint64(math.Ceil(q * float64(total)))
	for i := range l {
		n := l[i] - since[i]
		if n >= rank {
			return time.Duration(float64(latencyFirst) * math.Pow(latencyGrowth, float64(i)-0.5)), true
		}
		rank -= n
	}
	return 0, false // not reached: the ranks end with total
}
