package main

import (
	"context"
	"fmt"
	"time"
)

// everything are the scenarios there are, standard those that are measured unless others are
// asked for.
func everything() []string { return append(standard(), "sinks", "growth") }

func standard() []string {
	return []string{"backlog", "bodies", "webhook", "latency", "roundtrip", "templates", "ledger", "rest"}
}

// The contenders; see the package's comment.
const (
	floor     = "floor"
	usual     = "usual"
	overlap   = "overlap"
	postFloor = "post"
	theRelay  = "relay"
	templated = "relay with templates"
)

// contests opens what a scenario needs and gives its contests.
func (w *world) contests(ctx context.Context, scenario string) ([]*contest, error) {
	if scenario != "ledger" {
		if err := w.open(ctx); err != nil {
			return nil, err
		}
	}
	switch scenario {
	case "backlog":
		return []*contest{w.backlog()}, nil
	case "bodies":
		return w.bodies(), nil
	case "webhook":
		return w.webhook(ctx)
	case "latency":
		return []*contest{w.latency()}, nil
	case "roundtrip":
		return w.roundTrip()
	case "templates":
		return []*contest{w.templates()}, nil
	case "ledger":
		return w.ledger()
	case "rest":
		return []*contest{w.atRest()}, nil
	case "growth":
		return w.growth(), nil
	}
	return w.sinks(ctx)
}

// scaled is a number of messages, at least enough for each poller to have a batch.
func (w *world) scaled(messages int) int {
	return max(int(float64(messages)*w.scale), 2*batch*w.pollers)
}

// one is a load of one source and one sink.
func (w *world) one(messages, size int) load {
	return load{messages: w.scaled(messages), size: size, pollers: w.pollers, sources: 1, sinks: 1, replicas: 1}
}

// racing makes a contest of a load; share says of a contender which part of the messages is
// enough for it, if not all.
func (w *world) racing(c contest, l load, share map[string]float64) *contest {
	if c.What == "" {
		c.What = fmt.Sprintf("%d messages of %s, %d pollers", l.messages, bytesOf(l.size), l.pollers)
	}
	c.run = func(ctx context.Context, kind string, round int) (run, error) {
		l := l
		if part := share[kind]; part > 0 {
			l.messages = max(int(float64(l.messages)*part), 2*batch*w.pollers)
		}
		if round == warmUp {
			l.messages = max(l.messages/10, 2*batch*w.pollers)
		}
		l.templates = kind == templated
		return w.race(ctx, kind, l, round)
	}
	return &c
}

func bytesOf(size int) string {
	if size >= 1<<10 && size%(1<<10) == 0 {
		return fmt.Sprintf("%d KiB", size>>10)
	}
	return fmt.Sprintf("%d B", size)
}

// slow is how much of the messages is enough for the usual way, which takes long.
func slow(part float64) map[string]float64 { return map[string]float64{usual: part} }

func (w *world) backlog() *contest {
	return w.racing(contest{
		Scenario: "backlog", contenders: []string{floor, usual, theRelay}, against: []string{floor, usual},
		targets: []target{
			{of: theRelay, to: floor, how: ratio, quantity: perSecond, bound: 0.95, atLeast: true},
			{of: theRelay, to: floor, how: ratio, quantity: cpu, bound: 1.5},
			{of: theRelay, to: usual, how: ratio, quantity: cpu, bound: 0.5},
			{of: theRelay, to: floor, how: ratio, quantity: allocations, bound: 1.3},
			{of: theRelay, quantity: requests, bound: 0.127},
		},
	}, w.one(100_000, 400), slow(0.2))
}

func (w *world) bodies() []*contest {
	targets := []target{{of: theRelay, to: floor, how: ratio, quantity: cpu, bound: 1.3}}
	var all []*contest
	for _, l := range []load{w.one(20_000, 4<<10), w.one(3_000, 64<<10)} {
		all = append(all, w.racing(contest{
			Scenario: "bodies", contenders: []string{floor, theRelay}, against: []string{floor}, targets: targets,
		}, l, nil))
	}
	return all
}

func (w *world) webhook(ctx context.Context) ([]*contest, error) {
	if err := w.needReceiver(ctx); err != nil {
		return nil, err
	}
	l := w.one(20_000, 400)
	l.hook = true
	return []*contest{w.racing(contest{
		Scenario: "webhook", contenders: []string{postFloor, theRelay}, against: []string{postFloor},
		targets: []target{{of: theRelay, to: postFloor, how: ratio, quantity: perSecond, bound: 0.9, atLeast: true}},
	}, l, nil)}, nil
}

func (w *world) latency() *contest {
	const rate, lasts = 500, 8 // a second, seconds
	l := w.one(rate*lasts, 400)
	l.rate = rate
	return w.racing(contest{
		Scenario: "latency", contenders: []string{floor, usual, theRelay}, against: []string{floor, usual},
		What:    fmt.Sprintf("%d messages a second of %s, %d pollers", rate, bytesOf(l.size), l.pollers),
		targets: []target{{of: theRelay, to: floor, how: ratio, quantity: percentile99, bound: 1.5}},
	}, l, nil)
}

func (w *world) roundTrip() ([]*contest, error) {
	if err := w.needDistance(); err != nil {
		return nil, err
	}
	l := w.one(40_000, 400)
	l.distant = true
	return []*contest{w.racing(contest{
		Scenario: "roundtrip", contenders: []string{overlap, usual, theRelay}, against: []string{overlap, usual},
		What: fmt.Sprintf("%d messages of %s, %d pollers, %v to the broker and back, %v to MNS", l.messages, bytesOf(l.size), l.pollers, brokerRoundTrip, emulatorRoundTrip),
		targets: []target{
			{of: theRelay, to: usual, how: ratio, quantity: perSecond, bound: 7, atLeast: true},
			{of: theRelay, to: overlap, how: ratio, quantity: perSecond, bound: 0.95, atLeast: true},
		},
	}, l, slow(0.125))}, nil
}

func (w *world) templates() *contest {
	return w.racing(contest{
		Scenario: "templates", contenders: []string{theRelay, templated}, against: []string{theRelay},
		targets: []target{{of: templated, to: theRelay, how: difference, quantity: cpu, bound: 3}},
	}, w.one(50_000, 400), nil)
}

// atRest looks at relays that have nothing to do.
func (w *world) atRest() *contest {
	const one, many = "1 source", "200 sources"
	most := func(of string, q quantity, bound float64) target { return target{of: of, quantity: q, bound: bound} }
	return &contest{
		Scenario: "rest", What: fmt.Sprintf("nothing to do for %v", w.rest), contenders: []string{one, many}, once: true,
		run: func(ctx context.Context, kind string, _ int) (run, error) {
			if kind == many {
				return w.idle(ctx, 200)
			}
			return w.idle(ctx, 1)
		},
		targets: []target{
			most(one, anonymous, 20), most(one, resident, 48), most(one, cores, 0.1), most(one, firstReceive, 300),
			most(many, anonymous, 80), most(many, cores, 1), most(many, perMinute, 2.2),
			most(many, firstReceive, float64((3 * time.Second).Milliseconds())), most(many, drained, float64((3 * time.Second).Milliseconds())),
			most(one, binarySize, 45),
		},
	}
}
