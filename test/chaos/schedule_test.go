package chaos_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"
)

// kind is a kind of fault.
type kind struct {
	name string
	// least and most bound how long it lasts; what comes in addition to bring it about
	// and to mend it is more, at a guess.
	least, most, more time.Duration
	// free faults cost no duplicate, whatever is in flight.
	free bool
	// blinds says that whoever watches the broker may miss what comes to it meanwhile and
	// until it is connected again.
	blinds bool
	// do brings it about, waits as long as it lasts, and mends it.
	do func(ctx context.Context, w *world, dice *rand.Rand, lasts time.Duration) error
}

// event is one fault of a schedule.
type event struct {
	kind
	// at is when it begins, from the start of the run; later, where the one before it
	// took longer than was thought.
	at, lasts time.Duration
	seed      uint64

	begun, ended time.Time // filled in as it happens
}

func (e *event) dice() *rand.Rand { return rand.New(rand.NewPCG(e.seed, 0)) }

// lane holds faults of one part of the world, of which one happens at a time. Those of
// different lanes overlap.
type lane struct {
	name  string
	kinds []kind
	// share is the part of the run, from its start, in which they happen.
	share float64
}

// busy is the share of a long run in which a lane is at fault.
const busy = 0.5

// plan lays out the faults of a run of the given length, each at least once, and as many as
// make each lane busy. A short run has each once, for as short as can be. The same seed makes
// the same plan.
func plan(seed uint64, span time.Duration, short bool, busy float64, lanes []lane) [][]*event {
	dice := rand.New(rand.NewPCG(seed, 1))
	plans := make([][]*event, len(lanes))
	for l, lane := range lanes {
		within := time.Duration(float64(span) * lane.share)
		var events []*event
		var taken time.Duration
		for round := 0; round == 0 || !short && taken < time.Duration(float64(within)*busy); round++ {
			for _, k := range dice.Perm(len(lane.kinds)) {
				e := &event{kind: lane.kinds[k], seed: dice.Uint64()}
				e.lasts = e.least
				if !short && e.most > e.least {
					e.lasts += time.Duration(dice.Int64N(int64(e.most - e.least)))
				}
				taken += e.lasts + e.more
				events = append(events, e)
			}
		}
		// What is left of the time goes between them, at random.
		gaps := make([]time.Duration, len(events))
		for i := range gaps {
			gaps[i] = time.Duration(dice.Int64N(int64(max(within-taken, 1))))
		}
		slices.Sort(gaps)
		var before time.Duration
		for i, e := range events {
			e.at = gaps[i] + before
			before += e.lasts + e.more
		}
		plans[l] = events
	}
	return plans
}

// run makes the events of one lane happen.
func run(ctx context.Context, w *world, begun time.Time, events []*event) error {
	for _, e := range events {
		if err := pause(ctx, time.Until(begun.Add(e.at))); err != nil {
			return err
		}
		e.begun = time.Now()
		err := e.do(ctx, w, e.dice(), e.lasts)
		e.ended = time.Now()
		if err != nil {
			return err
		}
	}
	return nil
}

// pause waits for d.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
