package chaos_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"
)

// sampled is how many messages were in flight at a moment: received at least once and not
// deleted, as the queue tells, and no more than the relays that lived had room for.
type sampled struct {
	at       time.Time
	inFlight int
}

// sample looks at the queue until the function is called that it gives.
func (w *world) sample(t *testing.T) func() []sampled {
	t.Helper()
	var samples []sampled
	var sampling sync.WaitGroup
	done := make(chan struct{})
	stop := sync.OnceFunc(func() { close(done); sampling.Wait() })
	t.Cleanup(stop)
	sampling.Go(func() {
		ticker := time.NewTicker(10 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case at := <-ticker.C:
				stats, _ := w.emulator.QueueStats(w.queue)
				received := int(stats.Received - stats.Redelivered - stats.Deleted)
				samples = append(samples, sampled{at, min(received, room*len(w.living()))})
			case <-done:
				return
			}
		}
	})
	return func() []sampled { stop(); return samples }
}

// report is what a run found.
type report struct {
	begun  time.Time
	ended  time.Time
	events []*event // in the order in which they began
	flight []sampled
	sinks  []*sinkReport
}

// sinkReport is what came to one sink.
type sinkReport struct {
	name                 string
	expected, duplicates int
	lost, unexpected     []int
	// of is how many duplicates each event may have caused; causeless are those that
	// no event explains.
	of        map[*event]int
	causeless []string

	copies map[int]int
	times  map[int][]time.Time
}

func newReport(begun time.Time, plans [][]*event) *report {
	r := &report{begun: begun, ended: time.Now()}
	for _, events := range plans {
		for _, e := range events {
			if !e.begun.IsZero() {
				r.events = append(r.events, e)
			}
		}
	}
	slices.SortFunc(r.events, func(a, b *event) int { return a.begun.Compare(b.begun) })
	return r
}

func newSinkReport(name string, messages int, routed func(n int) bool, copies map[int]int, seen *arrivals) *sinkReport {
	s := &sinkReport{name: name, copies: copies, of: make(map[*event]int), times: seen.all()}
	for n := range messages {
		switch {
		case !routed(n):
		case copies[n] == 0:
			s.expected++
			s.lost = append(s.lost, n)
		default:
			s.expected++
			s.duplicates += copies[n] - 1
		}
	}
	for n := range copies {
		if n < 0 || n >= messages || !routed(n) {
			s.unexpected = append(s.unexpected, n)
		}
	}
	return s
}

func (a *arrivals) all() map[int][]time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.times
}

func (a *arrivals) copies() map[int]int {
	copies := make(map[int]int)
	for n, times := range a.all() {
		copies[n] = len(times)
	}
	return copies
}

// aftermath is for how long after its end a fault is still at work: what it held up is
// settled, connections and circuits are tried again.
const aftermath = 5 * time.Second

// attribute finds for each duplicate the fault that most likely caused it: the last one
// to begin of those at work when the copy before it came, or else the first that began
// afterwards.
func (r *report) attribute() {
	for _, s := range r.sinks {
		for n, copies := range s.copies {
			times := s.times[n]
			for k := range copies - 1 {
				var cause *event
				switch {
				case k+1 < len(times):
					cause = r.cause(times[k], times[k+1])
				case len(times) > 0:
					// One that nobody saw coming: after the others, or before them while
					// nobody could.
					if cause = r.cause(times[len(times)-1], r.ended); cause == nil {
						cause = r.blind(times[0])
					}
				}
				if cause == nil {
					s.causeless = append(s.causeless, fmt.Sprintf("message %d: %d copies, seen at %v", n, copies, r.sinceBegun(times)))
				}
				s.of[cause]++
			}
		}
	}
}

func (r *report) cause(before, copied time.Time) (cause *event) {
	for _, e := range r.events {
		switch {
		case e.free || e.ended.Add(aftermath).Before(before):
		case e.begun.Before(before):
			cause = e
		case e.begun.Before(copied) && cause == nil:
			return e
		}
	}
	return cause
}

// blind gives the last fault before a moment in which a copy could come unseen.
func (r *report) blind(before time.Time) (cause *event) {
	for _, e := range r.events {
		if e.blinds && e.begun.Before(before) {
			cause = e
		}
	}
	return cause
}

// sinceBegun shows moments of the run.
func (r *report) sinceBegun(times []time.Time) (since []time.Duration) {
	for _, at := range times {
		since = append(since, at.Sub(r.begun).Round(time.Millisecond))
	}
	return since
}

// peak is the most that was in flight while the event lasted.
func (r *report) peak(e *event) (most int) {
	for i, at := range r.flight {
		// The sample before it began tells what was in flight then.
		before := i+1 < len(r.flight) && r.flight[i+1].at.Before(e.begun)
		if !before && at.at.Before(e.ended.Add(10*time.Millisecond)) {
			most = max(most, at.inFlight)
		}
	}
	return most
}

// bound is how many duplicates a sink may get. A message is sent again to a sink that has
// it only if something went wrong while it was in flight: the confirm was lost, the relay
// with what it knew, the lease, or the delete. So a fault costs a sink at most a copy of
// each message that was in flight in its time, of which there are as many as a relay has
// room for: what else the queue gave out waits there until it is received again.
func (r *report) bound() (most int) {
	for _, e := range r.events {
		if !e.free {
			most += r.peak(e)
		}
	}
	return most
}

// String is the table of the run.
func (r *report) String() string {
	var rows, b strings.Builder
	fmt.Fprint(&rows, "at\tfor\tin flight\t")
	for _, s := range r.sinks {
		fmt.Fprintf(&rows, "duplicates at %s\t", s.name)
	}
	fmt.Fprintln(&rows, "  fault")
	for _, e := range r.events {
		fmt.Fprintf(&rows, "%.1f s\t%.1f s\t%d\t", e.begun.Sub(r.begun).Seconds(), e.ended.Sub(e.begun).Seconds(), r.peak(e))
		for _, s := range r.sinks {
			fmt.Fprintf(&rows, "%d\t", s.of[e])
		}
		fmt.Fprintf(&rows, "  %s\n", e.name)
	}
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = table.Write([]byte(rows.String()))
	_ = table.Flush()
	for _, s := range r.sinks {
		fmt.Fprintf(&b, "%s: %d messages, lost %d, unexpected %d, duplicates %d of at most %d, without a fault %d\n",
			s.name, s.expected, len(s.lost), len(s.unexpected), s.duplicates, r.bound(), len(s.causeless))
	}
	return b.String()
}
