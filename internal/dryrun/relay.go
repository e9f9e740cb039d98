package dryrun

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/config"
	"mnsrelay/internal/expr"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

// Relay is a configuration that tells what it would do. Make it with New.
type Relay struct {
	cfg     *config.Config
	sources map[string]*source
}

// source is a queue with its routes as they would be bound.
type source struct {
	cfg     config.Source
	decoder *mns.Decoder
	routes  []boundRoute
	dead    *target // nil: there is no dead-letter sink
}

type boundRoute struct {
	config.Route
	targets []target
}

type target struct {
	route, name, kind string
	required          bool
	address           string
	sink              relay.Previewer
}

// New makes the sinks of a checked configuration. instance is what they call themselves to
// the far side.
func New(cfg *config.Config, instance string) (*Relay, error) {
	r := &Relay{cfg: cfg, sources: make(map[string]*source)}
	endpoints := make(map[string]relay.Endpoint)
	kinds := make(map[string]string)
	for _, c := range cfg.Sinks {
		endpoint, err := c.Settings.Open(relay.SinkDeps{Name: c.Name, Instance: instance, Log: zap.NewNop()})
		if err != nil {
			return nil, fmt.Errorf("make sink %q: %w", c.Name, err)
		}
		endpoints[c.Name], kinds[c.Name] = endpoint, c.Type
	}
	bind := func(routeName string, t config.Target) (target, error) {
		sink, err := endpoints[t.Sink].Bind(t.With)
		if err != nil {
			return target{}, fmt.Errorf("bind sink %q to route %q: %w", t.Sink, routeName, err)
		}
		previewer, can := sink.(relay.Previewer)
		if !can {
			return target{}, fmt.Errorf("sink %q does not tell what it would send", t.Sink)
		}
		bound := target{route: routeName, name: t.Sink, kind: kinds[t.Sink], required: t.Required, sink: previewer}
		if addressed, can := sink.(relay.Addressed); can {
			bound.address = addressed.Address()
		}
		return bound, nil
	}
	for _, c := range cfg.Sources {
		s := &source{cfg: c, decoder: c.Decoder()}
		r.sources[c.Name] = s
		for _, rc := range cfg.Routes {
			if !slices.Contains(rc.From, c.Name) {
				continue
			}
			bound := boundRoute{Route: rc}
			for _, t := range rc.To {
				to, err := bind(rc.Name, t)
				if err != nil {
					return nil, err
				}
				bound.targets = append(bound.targets, to)
			}
			s.routes = append(s.routes, bound)
		}
		if c.DeadLetter != "" {
			dead, err := bind("", config.Target{Sink: c.DeadLetter})
			if err != nil {
				return nil, err
			}
			s.dead = &dead
		}
	}
	return r, nil
}

// Explain tells what would become of a message, in the order of the relay's own way.
// The error says that the message does not fit the configuration.
func (r *Relay) Explain(given *Message) (*Explanation, error) {
	s, err := r.source(given.Source)
	if err != nil {
		return nil, err
	}
	m, encoded, err := given.message(s.cfg.Name, s.cfg.Queue)
	if err != nil {
		return nil, err
	}
	if !encoded {
		return s.explain(m), nil
	}
	return s.decode(m), nil
}

// ExplainPeeked is Explain for a message that is in the queue of the named source, as it is
// there, for the next time that it is received.
func (r *Relay) ExplainPeeked(source string, m relay.Message) (*Explanation, error) {
	s, err := r.source(source)
	if err != nil {
		return nil, err
	}
	m.Attempt++
	return s.decode(m), nil
}

// decode explains a message as it is in the queue.
func (s *source) decode(m relay.Message) *Explanation {
	decoded, err := s.decoder.Decode(m)
	if err != nil {
		e := &Explanation{Message: m}
		s.reject(e, "", err)
		return e
	}
	return s.explain(decoded)
}

func (s *source) explain(m relay.Message) *Explanation {
	e := &Explanation{Message: m}
	matched := false
	for _, rt := range s.routes {
		explained := rt.explain(&m)
		e.Routes = append(e.Routes, explained)
		if explained.Err != nil {
			for i := range e.Routes {
				e.Routes[i].Deliveries = nil
			}
			s.reject(e, "", fmt.Errorf("route %s: %w", rt.Name, explained.Err))
			return e
		}
		matched = matched || explained.Matches
	}
	if !matched {
		s.unmatched(e)
		return e
	}
	s.end(e)
	return e
}

// end says what becomes of a message that routes take.
func (s *source) end(e *Explanation) {
	var waited []string
	var refused *Delivery // by a required sink, if there is one
	for _, rt := range e.Routes {
		for i := range rt.Deliveries {
			d := &rt.Deliveries[i]
			if d.Err != nil && (refused == nil || d.Required && !refused.Required) {
				refused = d
			}
			if d.Required && !slices.Contains(waited, d.Sink) {
				waited = append(waited, d.Sink)
			}
		}
	}
	e.End = s.deleted(waited)
	switch {
	case refused == nil:
	case s.cfg.AtMostOnce():
		e.Rejected = refused.Err
	case refused.Required:
		s.reject(e, refused.Sink, refused.Err)
	default:
		e.Rejected = refused.Err
		s.bury(e, refused.Sink, refused.Err)
	}
}

// source gives the named source; the only one needs no name.
func (r *Relay) source(name string) (*source, error) {
	names := make([]string, 0, len(r.cfg.Sources))
	for _, s := range r.cfg.Sources {
		names = append(names, s.Name)
	}
	switch {
	case name == "" && len(names) == 1:
		name = names[0]
	case name == "":
		return nil, fmt.Errorf("the message has no source, and the configuration has several: name one of %s", strings.Join(names, ", "))
	case r.sources[name] == nil:
		return nil, fmt.Errorf("there is no source %q: there is %s", name, strings.Join(names, ", "))
	}
	return r.sources[name], nil
}

// explain gives what a route does with a message.
func (rt *boundRoute) explain(m *relay.Message) Route {
	explained := Route{Name: rt.Name, When: rt.When, Matches: true}
	if rt.Match != nil {
		if explained.Steps, explained.Err = expr.Explain(rt.When, expr.Of(m)); explained.Err == nil {
			explained.Matches, explained.Err = rt.Match(m)
		}
	}
	if explained.Matches && explained.Err == nil {
		for i := range rt.targets {
			explained.Deliveries = append(explained.Deliveries, rt.targets[i].preview(m))
		}
	}
	return explained
}

func (t *target) preview(m *relay.Message) Delivery {
	d := Delivery{Route: t.route, Sink: t.name, Type: t.kind, Required: t.required, Address: t.address}
	d.Preview, d.Err = t.sink.Preview(m)
	return d
}

// reject gives a message up, and to the dead-letter sink.
func (s *source) reject(e *Explanation, sink string, err error) {
	e.Rejected = err
	s.bury(e, sink, err)
	switch {
	case e.DeadLetter == nil:
		e.Retained = true
		e.End = "The source has no dead_letter: the message stays in the queue and comes again."
	case e.DeadLetter.Err != nil:
		e.Retained = true
		e.End = "The dead-letter sink " + e.DeadLetter.Sink + " refuses it, too: the message stays in the queue and comes again."
	default:
		e.End = "Deleted from the queue once the dead-letter sink " + e.DeadLetter.Sink + " has confirmed it."
	}
}

func (s *source) bury(e *Explanation, sink string, err error) {
	if s.dead == nil {
		return
	}
	m := e.Message
	m.Dead = &relay.DeadLetter{Reason: relay.ReasonOf(err), Error: err.Error(), Sink: sink, First: m.EnqueuedAt, Last: time.Now()}
	d := s.dead.preview(&m)
	e.DeadLetter = &d
}

func (s *source) unmatched(e *Explanation) {
	switch s.cfg.Unmatched {
	case "delete":
		e.End = "No route takes it: deleted from the queue (unmatched: delete)."
	case "dead_letter":
		s.reject(e, "", relay.ErrUnmatched)
	default:
		e.Retained = true
		e.End = "No route takes it: it stays in the queue and comes again (unmatched: retain)."
	}
}

// deleted says when a message is deleted that the named sinks are waited for.
func (s *source) deleted(waited []string) string {
	switch {
	case s.cfg.AtMostOnce():
		return "Deleted from the queue before it is delivered (guarantee: at_most_once)."
	case len(waited) == 0:
		return "Deleted from the queue without waiting for anyone: no sink is required."
	case len(waited) == 1:
		return "Deleted from the queue once " + waited[0] + " has confirmed it."
	}
	return "Deleted from the queue once " + strings.Join(waited, " and ") + " have confirmed it."
}
