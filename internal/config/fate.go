package config

import (
	"slices"
	"strings"

	"mnsrelay/internal/ledger"
	"mnsrelay/internal/mns"
	mnssink "mnsrelay/internal/sink/mns"
)

// checkFate checks what may become of a message besides its delivery.
func (d *decoder) checkFate(c *Config, s *Source) {
	path := join("sources", s.Name)
	at := func(key string) string { return join(path, key) }

	switch {
	case s.MaxReceives < 0:
		d.checked(at("max_receives"), "must be 0, for never, or more, not %s", d.plain(at("max_receives"), s.MaxReceives))
	case s.MaxReceives == 0:
	case s.AtMostOnce():
		d.checked(at("max_receives"), "has no meaning with guarantee: at_most_once, where a message is received once: remove it")
	case s.DeadLetter == "" && !d.suspect(at("dead_letter")):
		d.checked(at("max_receives"), "has a meaning with a dead_letter only, for without one the queue keeps what fails: write dead_letter too, or remove it")
	}
	d.checkDeadLetter(c, s, at("dead_letter"))
	d.checkRounds(c, s)

	limit := DefaultSource("").DeadLetterLimit
	if s.DeadLetterLimit.Count < 1 {
		d.checked(at("dead_letter_limit.count"), "must be at least 1, not %s", d.plain(at("dead_letter_limit.count"), s.DeadLetterLimit.Count))
	}
	d.positive(at("dead_letter_limit.per"), s.DeadLetterLimit.Per, limit.Per)
	if s.DeadLetter == "" && s.DeadLetterLimit != limit {
		d.warn(at("dead_letter_limit"), "has no effect without a dead_letter")
	}
	d.checkUnmatched(c, s, at("unmatched"))
}

// checkDeadLetter checks the sink for dead letters. One that the source is delivered
// to anyway would be asked again for what it has just refused, and a dead-letter sink
// that is down must not stop the source, which a required one does.
func (d *decoder) checkDeadLetter(c *Config, s *Source, path string) {
	if s.DeadLetter == "" {
		if !d.suspect(path) {
			d.checkNoDeadLetter(c, s)
		}
		return
	}
	if !slices.Contains(sinkNames(c), s.DeadLetter) {
		if !d.bad["sinks"] {
			d.missing(path, "sink", s.DeadLetter, sinkNames(c))
		}
		return
	}
	for _, r := range routesOf(c, s.Name) {
		if !slices.ContainsFunc(r.To, func(t Target) bool { return t.Sink == s.DeadLetter }) {
			continue
		}
		by := "the route " + r.Name + " takes the source"
		if !strings.HasPrefix(r.path, "routes") {
			by = `"to" takes the source`
		}
		d.checked(path, "%s to this sink too, which would be asked again for what it has refused: write a sink of its own", by)
		break
	}
	if s.AtMostOnce() {
		d.warn(path, "takes only what cannot be decoded or routed: with guarantee: at_most_once a message whose delivery fails is gone by then")
	}
}

// checkRounds refuses sinks that send into the queue that the source receives from: what
// is sent gets a new id and a new count of receives, and would go round for ever.
func (d *decoder) checkRounds(c *Config, s *Source) {
	const message = "sends into the queue that the source %s receives from, where messages would go round for ever: write another sink"
	if sendsTo(c, s.DeadLetter, s) {
		d.checked(join(join("sources", s.Name), "dead_letter"), message, s.Name)
	}
	for _, r := range routesOf(c, s.Name) {
		for i, t := range r.To {
			if sendsTo(c, t.Sink, s) {
				d.checked(join(index(join(r.path, "to"), i), "sink"), message, s.Name)
			}
		}
	}
}

// feed leads from one source to the queue of another, by the setting at path.
type feed struct {
	to   int
	path string
	// sure says that it takes every message.
	sure bool
}

// checkRings looks for queues that feed each other in a ring. Where every message goes
// round it is refused; where conditions or failures decide, it may be meant, and is warned
// of.
func (d *decoder) checkRings(c *Config) {
	feeds := make([][]feed, len(c.Sources))
	for from := range c.Sources {
		s := &c.Sources[from]
		for to := range c.Sources {
			if to == from {
				continue // checkRounds
			}
			if sendsTo(c, s.DeadLetter, &c.Sources[to]) {
				feeds[from] = append(feeds[from], feed{to: to, path: join(join("sources", s.Name), "dead_letter")})
			}
			for _, r := range routesOf(c, s.Name) {
				for i, t := range r.To {
					if sendsTo(c, t.Sink, &c.Sources[to]) {
						feeds[from] = append(feeds[from], feed{to: to, path: join(index(join(r.path, "to"), i), "sink"), sure: r.When == ""})
					}
				}
			}
		}
	}
	for first := range c.Sources {
		for _, sure := range []bool{true, false} {
			ring := ringFrom(feeds, first, sure)
			if ring == nil {
				continue
			}
			around := []string{c.Sources[first].Name}
			for _, f := range ring {
				around = append(around, c.Sources[f.to].Name)
			}
			names := strings.Join(around, " -> ")
			if sure {
				d.checked(ring[0].path, "the queues feed each other, %s: every message would go round for ever: write another sink, or a condition", names)
			} else {
				d.warn(ring[0].path, "the queues feed each other, %s: a message may go round for ever, with a new id each time: make sure that a condition ends it", names)
			}
			break
		}
	}
}

// ringFrom gives the shortest way from a source back to itself over later ones, so that
// each ring is found once; nil: there is none. With sure, only by feeds that take every
// message.
func ringFrom(feeds [][]feed, first int, sure bool) []feed {
	seen := map[int]bool{}
	ways := [][]feed{nil}
	for len(ways) > 0 {
		way := ways[0]
		ways = ways[1:]
		at := first
		if len(way) > 0 {
			at = way[len(way)-1].to
		}
		for _, f := range feeds[at] {
			if sure && !f.sure || f.to < first || seen[f.to] {
				continue
			}
			next := append(slices.Clone(way), f)
			if f.to == first {
				return next
			}
			seen[f.to] = true
			ways = append(ways, next)
		}
	}
	return nil
}

// sendsTo tells whether the named sink is the queue of a source.
func sendsTo(c *Config, name string, s *Source) bool {
	i := slices.IndexFunc(c.Sinks, func(sink Sink) bool { return sink.Name == name })
	if i < 0 || s.Queue == "" {
		return false
	}
	queue, is := c.Sinks[i].Settings.(*mnssink.Config)
	if !is || queue.Queue != s.Queue {
		return false
	}
	theirs, err := mns.ParseEndpoint(queue.Endpoint.Reveal())
	if err != nil {
		return false
	}
	ours, err := mns.ParseEndpoint(s.Endpoint.Reveal())
	return err == nil && ours.String() == theirs.String()
}

// checkNoDeadLetter refuses sinks that dead-letter on purpose, by a setting of their own
// or of the route, where there is nowhere to.
func (d *decoder) checkNoDeadLetter(c *Config, s *Source) {
	for _, r := range routesOf(c, s.Name) {
		for i, t := range r.To {
			k := slices.IndexFunc(c.Sinks, func(s Sink) bool { return s.Name == t.Sink })
			if k < 0 {
				continue
			}
			owner, settings := join("sinks", t.Sink), any(c.Sinks[k].Settings)
			if with := join(index(join(r.path, "to"), i), "with"); c.settings[with] != nil {
				settings = c.settings[with]
				if does, can := settings.(deadLetterer); can && d.written(join(with, does.DeadLetters())) {
					owner = with
				}
			}
			if does, can := settings.(deadLetterer); can && does.DeadLetters() != "" {
				d.checked(join(owner, does.DeadLetters()), "dead_letter needs a sink for dead letters, and the source %s has none: write dead_letter there, or retry here", s.Name)
			}
		}
	}
}

// deadLetterer is what the settings of a sink are that can dead-letter on purpose.
type deadLetterer interface {
	// DeadLetters names the setting by which they do, empty if they do not.
	DeadLetters() string
}

// checkUnmatched checks what becomes of what no route takes: it must be said where that
// can happen.
func (d *decoder) checkUnmatched(c *Config, s *Source, path string) {
	const retain, toDeadLetter = "retain", "dead_letter"
	if s.Unmatched != "" && !d.oneOf(path, s.Unmatched, "delete", toDeadLetter, retain) {
		return
	}
	if s.Unmatched == toDeadLetter && s.DeadLetter == "" && !d.suspect(join(join("sources", s.Name), "dead_letter")) {
		d.checked(path, "needs a sink for dead letters: write dead_letter too, or %s", retain)
	}
	if slices.ContainsFunc(c.Routes, func(r Route) bool { return d.suspect(join(r.path, "from")) }) {
		return
	}
	routes := routesOf(c, s.Name)
	open := slices.IndexFunc(routes, func(r Route) bool { return r.When == "" })
	switch {
	case len(routes) == 0:
	case open < 0 && s.Unmatched == "":
		d.checked(path, "required, as every route of the source has a condition: write delete, dead_letter or retain, for what none of them takes")
	case open >= 0 && s.Unmatched != "" && !d.suspect(join(routes[open].path, "when")):
		d.warn(path, "has no effect: the route %s has no condition and takes every message", routes[open].Name)
	}
}

// checkLedger checks the memory of confirms.
func (d *decoder) checkLedger(c *Config) {
	if !d.oneOf("ledger.type", c.Ledger.Type, ledger.TypeMemory, ledger.TypeRedis) {
		return
	}
	d.validated("ledger", c.Ledger.Validate())
	for _, s := range c.Sources {
		if c.Ledger.TTL < s.Redelivery.Max && !s.AtMostOnce() && !d.suspect("ledger") && !d.suspect(join("sources", s.Name)+".redelivery") {
			d.warn("ledger.ttl", "is shorter than the redelivery.max of the source %s: what comes again later goes to the sinks that have it, too", s.Name)
			return
		}
	}
}

// routesOf are the routes that begin at a source.
func routesOf(c *Config, source string) []Route {
	var routes []Route
	for _, r := range c.Routes {
		if slices.Contains(r.From, source) {
			routes = append(routes, r)
		}
	}
	return routes
}
