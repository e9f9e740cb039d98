package app

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"mnsrelay/api"
	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/shadow"
)

var _ httpapi.Relay = (*App)(nil)

// Status is part of httpapi.Relay.
func (a *App) Status() api.Status {
	a.Ready() // which finds out whether everything has worked once
	status := api.Status{Version: a.deps.Version, Started: a.started.UTC(), State: api.StatusStateStarting}
	switch {
	case a.draining.Load():
		status.State = api.StatusStateDraining
	case a.ready.Load():
		status.State = api.StatusStateRunning
	}
	present := a.present()
	status.Configuration = a.configuration()
	now := time.Now()
	delivered := make(map[relay.TargetName]uint64)
	for _, s := range present.sources {
		counts := s.stats.Counts()
		for target, n := range counts.Delivered {
			delivered[target] += n
		}
		out := s.status(&counts)
		out.ReceivedPerSecond, out.Latency = a.meters.of(meterName{source: s.cfg.Name}).status(now, counts.Received)
		status.Sources = append(status.Sources, out)
	}
	for _, s := range present.sinks {
		out := s.status()
		out.DeliveredPerSecond, out.Latency = a.meters.of(meterName{sink: s.name}).status(now, out.Delivered)
		status.Sinks = append(status.Sinks, out)
	}
	slices.SortFunc(status.Sources, func(x, y api.Source) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(status.Sinks, func(x, y api.Sink) int { return strings.Compare(x.Name, y.Name) })
	for _, r := range present.cfg.Routes {
		route := api.Route{Name: r.Name, From: r.From}
		for _, to := range r.To {
			target := api.Target{Sink: to.Sink, Required: to.Required, Delivered: delivered[relay.TargetName{Route: r.Name, Sink: to.Sink}]}
			target.DeliveredPerSecond, target.Latency = a.meters.of(meterName{route: r.Name, sink: to.Sink}).status(now, target.Delivered)
			route.To = append(route.To, target)
		}
		status.Routes = append(status.Routes, route)
	}
	return status
}

// status tells the rate and the latencies of the last minute; nil: there are none.
func (m *meter) status(now time.Time, count uint64) (rate float64, latency *api.Latency) {
	rate, p50, p99, measured := m.minute(now, count)
	if measured {
		latency = &api.Latency{P50Seconds: p50.Seconds(), P99Seconds: p99.Seconds()}
	}
	return rate, latency
}

// balance accounts for every message that was received.
func balance(counts *relay.Counts) api.Balance {
	b := api.Balance{
		Received: counts.Received, Deleted: counts.Deleted, LostLeases: counts.LostLeases, InFlight: counts.InFlight,
		Exact: counts.Balanced(),
	}
	for _, n := range counts.Returned {
		b.Returned += n
	}
	return b
}

func (s *source) status(counts *relay.Counts) api.Source {
	state, reason := s.state()
	out := api.Source{
		Name: s.cfg.Name, Queue: s.cfg.Queue, State: api.SourceState(state), Reason: reason,
		Pollers: counts.Pollers, Returned: counts.Returned, Retried: counts.Retried,
		DeadLettered: counts.DeadLettered, GivenUp: counts.GivenUp,
		Balance:     balance(counts),
		LastReceive: counts.LastReceive.UTC(),
		BatchFill:   counts.Fill, OldestMessageAgeSeconds: max(counts.OldestAge.Seconds(), 0),
		Credential: s.credential(),
	}
	if e := counts.LastError; e != nil {
		out.LastError = &api.Error{Text: e.Text, Time: e.Since.UTC(), Class: api.ErrorClass(e.Class.String())}
	}
	if depth := s.depth.Load(); depth != nil {
		out.QueueMessages = &api.QueueMessages{Active: &depth.Active, Inactive: &depth.Inactive, Delayed: &depth.Delayed}
	}
	if s.shadow != nil {
		out.Shadow = shadowStatus(s.shadow.Report())
	}
	return out
}

// shadowStatus is a report as the API shows it.
func shadowStatus(r shadow.Report) *api.Shadow {
	out := &api.Shadow{
		Seen: r.Seen, WouldDeliver: r.Delivered, WouldDeadLetter: r.DeadLettered, WouldDelete: r.Deleted, WouldRetain: r.Retained,
		Head: r.Head, LastPeek: r.LastPeek.UTC(), Previews: []api.Preview{},
	}
	for _, p := range r.Previews {
		preview := api.Preview{
			Time: p.Time.UTC(), MessageId: p.Message, Attempt: p.Attempt, EnqueuedAt: p.EnqueuedAt.UTC(), End: p.End,
			Reason: p.Reason, Text: p.Text, Deliveries: []api.WouldDeliver{},
		}
		for _, d := range p.Deliveries {
			preview.Deliveries = append(preview.Deliveries, api.WouldDeliver{Route: d.Route, Sink: d.Sink, Target: d.Address, Reason: d.Reason, Text: d.Text})
		}
		out.Previews = append(out.Previews, preview)
	}
	return out
}

func (s *source) credential() *api.Credential {
	c := s.refresher.Status()
	out := &api.Credential{Type: string(c.Type), Expires: c.Expires, LastRefresh: c.LastRefresh}
	switch {
	case c.LastError != "":
		out.LastError = &api.Error{Text: c.LastError, Time: c.FailingSince}
	case !c.RefusedSince.IsZero():
		out.LastError = &api.Error{Text: "MNS refuses these keys", Time: c.RefusedSince, Class: api.Auth}
	}
	return out
}

func (s *sink) status() api.Sink {
	health, _ := s.endpoint.Health()
	delivered, failed := s.stats.Counts()
	if s.idle {
		return api.Sink{
			Name: s.name, Type: s.kind, State: api.SinkStateIdle, Since: health.Since.UTC(), Failed: failed,
			Reason: "only sources in shadow mode lead here: it is not connected to",
		}
	}
	return api.Sink{
		Name: s.name, Type: s.kind, State: api.SinkState(health.State.String()), Reason: health.Reason,
		Since: health.Since.UTC(), Delivered: delivered, Failed: failed,
	}
}

// Failures is part of httpapi.Relay.
func (a *App) Failures(source string) (all []api.Failure) {
	for _, s := range a.present().sources {
		if source != "" && s.cfg.Name != source {
			continue
		}
		for _, f := range s.stats.Failures() {
			all = append(all, api.Failure{
				Time: f.Time.UTC(), Source: s.cfg.Name, Route: f.Target.Route, Sink: f.Target.Sink, MessageId: f.Message,
				Attempt: f.Attempt, Outcome: api.FailureOutcome(f.Outcome.String()), Reason: f.Reason, Text: f.Text,
			})
		}
	}
	slices.SortStableFunc(all, func(x, y api.Failure) int { return y.Time.Compare(x.Time) })
	return all
}

// Message is part of httpapi.Relay.
func (a *App) Message(ctx context.Context, id string) (api.MessageState, error) {
	state := api.MessageState{Id: id}
	for _, f := range a.Failures("") {
		if f.MessageId == id {
			state.Failures = append(state.Failures, f)
		}
	}
	var keys []relay.LedgerKey
	for _, r := range a.present().cfg.Routes {
		for _, source := range r.From {
			for _, to := range r.To {
				keys = append(keys, relay.LedgerKey{Source: source, Message: id, Route: r.Name, Sink: to.Sink})
			}
		}
	}
	known, err := a.ledger.Confirmed(ctx, keys)
	if err != nil {
		return state, fmt.Errorf("ask the ledger: %w", err)
	}
	for i, is := range known {
		if is {
			state.Confirmed = append(state.Confirmed, api.Confirmation{Source: keys[i].Source, Route: keys[i].Route, Sink: keys[i].Sink})
		}
	}
	for _, s := range a.present().sources {
		if attempt, found := s.pipeline.InFlight(id); found {
			state.InFlight = append(state.InFlight, api.Flight{Source: s.cfg.Name, Attempt: attempt})
		}
	}
	for _, s := range a.present().sources {
		if s.shadow == nil {
			continue
		}
		for _, p := range shadowStatus(s.shadow.Report()).Previews {
			if p.MessageId == id {
				state.Previews = append(state.Previews, api.MessagePreview{Source: s.cfg.Name, Preview: p})
			}
		}
	}
	if len(state.Confirmed) == 0 && len(state.Failures) == 0 && len(state.InFlight) == 0 && len(state.Previews) == 0 {
		return state, fmt.Errorf("message %q: %w", id, httpapi.ErrNotFound)
	}
	return state, nil
}

// Configuration is part of httpapi.Relay.
func (a *App) Configuration() (api.Configuration, string) {
	return a.configuration(), string(a.present().cfg.YAML())
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
// expected to receive. Neither is one in shadow mode, whose keys may not even peek: it must
// not keep the probes from the sources beside it, nor end a rollout.
func (s *source) waiting() (waiting []string) {
	state, reason := s.state()
	if s.stats.Counts().Worked || state == relay.SourcePaused || s.shadow != nil {
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
