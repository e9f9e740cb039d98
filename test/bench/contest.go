package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// quantity is what is measured of a run.
type quantity string

// The quantities, in the order of the tables. What a scenario does not measure is missing.
const (
	perSecond    quantity = "messages_per_second"
	cpu          quantity = "cpu_us_per_message" // of the contender
	emulatorCPU  quantity = "emulator_cpu_us_per_message"
	brokerCPU    quantity = "broker_cpu_us_per_message"
	allocations  quantity = "allocations_per_message"
	allocated    quantity = "allocated_bytes_per_message"
	peakRSS      quantity = "peak_rss_mib"
	requests     quantity = "mns_requests_per_message"
	median50     quantity = "latency_p50_ms"
	percentile99 quantity = "latency_p99_ms"
	slowest      quantity = "latency_max_ms"
	anonymous    quantity = "rss_anon_mib"
	resident     quantity = "rss_mib"
	cores        quantity = "percent_of_a_core"
	perMinute    quantity = "requests_a_minute_per_source"
	firstReceive quantity = "start_to_first_receive_ms"
	drained      quantity = "drain_ms"
	binarySize   quantity = "binary_mib"
	ledgerCost   quantity = "us_per_message"
)

func quantities() []quantity {
	return []quantity{
		perSecond, cpu, emulatorCPU, brokerCPU, allocations, allocated, peakRSS, requests, median50, percentile99, slowest,
		anonymous, resident, cores, perMinute, firstReceive, drained, binarySize, ledgerCost,
	}
}

// run is what was measured of one contender in one round.
type run map[quantity]float64

// contest is contenders that do the same work in turn.
type contest struct {
	Scenario string `json:"scenario"`
	What     string `json:"what"`
	// At is the value of what grows, where something does.
	At         float64 `json:"at,omitempty"`
	contenders []string
	// against are those to which the others' ratios are taken.
	against []string
	// once: one round is enough, without one to warm up.
	once    bool
	run     func(ctx context.Context, contender string, round int) (run, error)
	targets []target
}

// outcome is a contest that was played.
type outcome struct {
	contest

	Results []result `json:"results"`
	Judged  []judged `json:"targets,omitempty"`
}

// result is that of one contender, a run for each round.
type result struct {
	Name string `json:"name"`
	Runs []run  `json:"runs"`
	// Ratios to others, by their name: of the runs of the same round.
	Ratios map[string]map[quantity]spread `json:"ratios,omitempty"`
}

// warmUp is the round whose runs do not count.
const warmUp = 0

// play lets the contenders take turns. Each round begins with another.
func (c *contest) play(ctx context.Context, o options) (*outcome, error) {
	rounds := o.rounds
	if c.once {
		rounds = 1
	}
	out := &outcome{contest: *c, Results: make([]result, len(c.contenders))}
	for i := range out.Results {
		out.Results[i].Name = c.contenders[i]
	}
	for round := range rounds + 1 {
		if round == warmUp && c.once {
			continue
		}
		for turn := range c.contenders {
			i := (turn + round) % len(c.contenders)
			began := time.Now()
			r, err := c.run(ctx, c.contenders[i], round)
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", c.contenders[i], round, err)
			}
			o.log("%s, round %d of %d, %s: %.0f messages/s, took %v", c.What, round, rounds, c.contenders[i],
				r[perSecond], time.Since(began).Round(100*time.Millisecond))
			if round != warmUp {
				out.Results[i].Runs = append(out.Results[i].Runs, r)
			}
		}
	}
	for i := range out.Results {
		out.compare(&out.Results[i])
	}
	for _, t := range c.targets {
		j, err := t.judge(out)
		if err != nil {
			return nil, err
		}
		out.Judged = append(out.Judged, j)
	}
	return out, nil
}

// compare fills in the ratios of a contender.
func (out *outcome) compare(r *result) {
	for _, to := range out.against {
		other := out.of(to)
		if other == nil || to == r.Name {
			continue
		}
		if r.Ratios == nil {
			r.Ratios = map[string]map[quantity]spread{}
		}
		r.Ratios[to] = map[quantity]spread{}
		for _, q := range quantities() {
			if ratios := ratiosOf(r.Runs, other.Runs, q); len(ratios) > 0 {
				r.Ratios[to][q] = spreadOf(ratios)
			}
		}
	}
}

// of gives the result of a contender, nil if it did not take part.
func (out *outcome) of(name string) *result {
	i := slices.IndexFunc(out.Results, func(r result) bool { return r.Name == name })
	if i < 0 {
		return nil
	}
	return &out.Results[i]
}

// ratiosOf compares runs that were neighbours in time, so that what else the machine did
// for minutes does not matter. It is empty where the quantity was not measured.
func ratiosOf(runs, others []run, q quantity) (ratios []float64) {
	for i := range runs {
		if a, b := runs[i][q], others[i][q]; b > 0 {
			ratios = append(ratios, a/b)
		}
	}
	return ratios
}

// spread is the median, the least and the most of some values.
type spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func spreadOf(values []float64) spread {
	sorted := slices.Sorted(slices.Values(values))
	return spread{Median: sorted[len(sorted)/2], Min: sorted[0], Max: sorted[len(sorted)-1]}
}

// values are those of one quantity, where it was measured.
func values(runs []run, q quantity) (all []float64) {
	for _, r := range runs {
		if v, found := r[q]; found {
			all = append(all, v)
		}
	}
	return all
}

// compared says how a target's value is made of the runs of two contenders.
type compared uint8

const (
	alone      compared = iota // the value itself
	ratio                      // its ratio to the other's of the same round
	difference                 // what it is more than the other's of the same round
)

// target is what the relay promises of a scenario.
type target struct {
	of, to   string
	how      compared
	quantity quantity
	bound    float64
	// atLeast: the bound is the least, otherwise the most.
	atLeast bool
}

// judged is a target with what was measured.
type judged struct {
	Text  string  `json:"text"`
	Value spread  `json:"value"`
	Bound float64 `json:"bound"`
	Holds bool    `json:"holds"`
}

func (t target) judge(out *outcome) (judged, error) {
	runs := out.of(t.of).Runs
	var all []float64
	text := fmt.Sprintf("%s of %s", t.quantity, t.of)
	switch t.how {
	case alone:
		all = values(runs, t.quantity)
	case ratio:
		all = ratiosOf(runs, out.of(t.to).Runs, t.quantity)
		text += ", to that of " + t.to
	case difference:
		text += ", more than that of " + t.to
		for i, other := range out.of(t.to).Runs {
			all = append(all, runs[i][t.quantity]-other[t.quantity])
		}
	}
	if len(all) == 0 {
		return judged{}, fmt.Errorf("judge the target %q: it was not measured", text)
	}
	j := judged{Value: spreadOf(all), Bound: t.bound}
	if t.atLeast {
		j.Text, j.Holds = text+": at least", j.Value.Median >= t.bound
	} else {
		j.Text, j.Holds = text+": at most", j.Value.Median <= t.bound
	}
	return j, nil
}
