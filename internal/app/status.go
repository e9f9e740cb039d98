package app

import (
	"fmt"
	"slices"
	"strings"

	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/relay"
)

var _ httpapi.Relay = (*App)(nil)

// Status is part of httpapi.Relay.
func (a *App) Status() httpapi.Status {
	a.Ready() // which finds out whether everything has worked once
	status := httpapi.Status{Version: a.deps.Version, Started: a.started.UTC(), State: httpapi.Starting}
	switch {
	case a.draining.Load():
		status.State = httpapi.Draining
	case a.ready.Load():
		status.State = httpapi.Running
	}
	now := a.present()
	status.Configuration = a.configuration()
	for _, s := range now.sources {
		status.Sources = append(status.Sources, s.status())
	}
	for _, s := range now.sinks {
		status.Sinks = append(status.Sinks, s.status())
	}
	slices.SortFunc(status.Sources, func(x, y httpapi.Source) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(status.Sinks, func(x, y httpapi.Sink) int { return strings.Compare(x.Name, y.Name) })
	for _, r := range now.cfg.Routes {
		route := httpapi.Route{Name: r.Name, From: r.From}
		for _, to := range r.To {
			route.To = append(route.To, httpapi.Target{Sink: to.Sink, Required: to.Required})
		}
		status.Routes = append(status.Routes, route)
	}
	return status
}

func (s *source) status() httpapi.Source {
	counts := s.stats.Counts()
	state, reason := s.state()
	var returned uint64
	for _, n := range counts.Returned {
		returned += n
	}
	out := httpapi.Source{
		Name: s.cfg.Name, Queue: s.cfg.Queue, State: state, Reason: reason,
		Pollers: int64(counts.Pollers), Returned: counts.Returned, Retried: counts.Retried,
		DeadLettered: counts.DeadLettered, GivenUp: counts.GivenUp,
		Balance:     httpapi.NewBalance(counts.Received, counts.Deleted, returned, counts.LostLeases, int64(counts.InFlight)), //nolint:gosec // bounded by the room
		LastReceive: counts.LastReceive.UTC(),
		Credential:  s.credential(),
	}
	if e := counts.LastError; e != nil {
		out.LastError = &httpapi.Error{Text: e.Text, Time: e.Since.UTC(), Class: e.Class.String()}
	}
	if depth := s.depth.Load(); depth != nil {
		out.QueueMessages = &httpapi.QueueMessages{Active: &depth.Active, Inactive: &depth.Inactive, Delayed: &depth.Delayed}
	}
	return out
}

func (s *source) credential() *httpapi.Credential {
	c := s.refresher.Status()
	out := &httpapi.Credential{Type: string(c.Type), Expires: c.Expires, LastRefresh: c.LastRefresh}
	switch {
	case c.LastError != "":
		out.LastError = &httpapi.Error{Text: c.LastError, Time: c.FailingSince}
	case !c.RefusedSince.IsZero():
		out.LastError = &httpapi.Error{Text: "MNS refuses these keys", Time: c.RefusedSince, Class: relay.ClassAuth.String()}
	}
	return out
}

func (s *sink) status() httpapi.Sink {
	health, _ := s.endpoint.Health()
	delivered, failed := s.stats.Counts()
	return httpapi.Sink{
		Name: s.name, Type: s.kind, State: health.State.String(), Reason: health.Reason,
		Since: health.Since.UTC(), Delivered: delivered, Failed: failed,
	}
}

// Ready is part of httpapi.Relay.
func (a *App) Ready() (ok bool, waiting []string) {
	if a.draining.Load() {
		return false, []string{"draining: the process is about to end"}
	}
	if a.ready.Load() {
		return true, nil
	}
	now := a.present()
	for _, s := range now.sinks {
		if s.used(now.sources) && !s.hasWorked() {
			health, _ := s.endpoint.Health()
			if health.State == relay.Up {
				health.Reason = "nothing that it was sent has been delivered"
			}
			waiting = append(waiting, fmt.Sprintf("sink %s has not worked yet: %s", s.name, health.Reason))
		}
	}
	for _, s := range now.sources {
		waiting = append(waiting, s.waiting()...)
	}
	if len(waiting) > 0 {
		return false, waiting
	}
	a.ready.Store(true)
	return true, nil
}

// used tells whether a pipeline waits for the sink.
func (s *sink) used(sources []*source) bool {
	return slices.ContainsFunc(sources, func(src *source) bool { return src.sinks[s.name] != nil })
}

// waiting says what of the source has not worked yet. A source that is paused is not
// expected to receive.
func (s *source) waiting() (waiting []string) {
	state, reason := s.state()
	if s.stats.Counts().Worked || state == relay.SourcePaused {
		return nil
	}
	if reason == "" {
		reason = "it is starting"
	}
	return []string{fmt.Sprintf("source %s has not received yet: %s", s.cfg.Name, reason)}
}

// Live is part of httpapi.Relay.
func (a *App) Live() error {
	if err := a.failed.Load(); err != nil {
		return *err
	}
	return nil
}
