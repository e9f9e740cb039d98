package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"mnsrelay/api"
	"mnsrelay/internal/config"
	"mnsrelay/internal/dryrun"
	"mnsrelay/internal/relay"
)

// loaded is which configuration is in force, and how the last try to change it went.
type loaded struct {
	generation int
	digest     string
	at         time.Time
	// tried is when a reload was last asked for; err is why it was refused.
	tried time.Time
	err   error
}

// configuration is loaded as the API shows it.
func (a *App) configuration() api.Configuration {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := api.Configuration{
		Generation: a.loaded.generation, Digest: a.loaded.digest, Loaded: a.loaded.at.UTC(), LastReload: a.loaded.tried.UTC(),
	}
	if a.loaded.err != nil {
		out.LastError = &api.Error{Text: a.loaded.err.Error(), Time: a.loaded.tried.UTC()}
	}
	return out
}

// Reload reads the configuration again and puts it in force. It returns when the new
// configuration was found to be good and the change has begun, or with the reason why
// the old one stays in force; draining what is changed takes its time after that.
func (a *App) Reload(ctx context.Context) (api.Configuration, error) {
	a.reloading.Lock()
	defer a.reloading.Unlock()
	cfg, err := a.change(ctx)
	a.mu.Lock()
	a.loaded.tried, a.loaded.err = time.Now(), err
	if err == nil {
		a.loaded.generation++
		a.loaded.digest, a.loaded.at = cfg.Digest, a.loaded.tried
	}
	a.mu.Unlock()
	if err != nil {
		a.metrics.reloads.WithLabelValues("failure").Inc()
		a.log.Error("configuration not reloaded; the one before stays in force", zap.Error(err))
	} else {
		a.metrics.reloads.WithLabelValues("success").Inc()
	}
	return a.configuration(), err
}

// reload is a configuration that Run is asked to put in force.
type reload struct {
	cfg *config.Config
	// planned takes whether it can be; it has room for the answer.
	planned chan error
}

func (a *App) change(ctx context.Context) (*config.Config, error) {
	if a.deps.Load == nil {
		return nil, errors.New("this relay was not started from a file")
	}
	cfg, err := a.deps.Load()
	if err != nil {
		return nil, err
	}
	if fixed := fixedChanges(a.present().cfg, cfg); len(fixed) > 0 {
		return nil, fmt.Errorf("changes of %s need a restart: put them back, or restart the relay", strings.Join(fixed, ", "))
	}
	r := reload{cfg: cfg, planned: make(chan error, 1)}
	select {
	case a.reloads <- r:
		return cfg, <-r.planned
	case <-ctx.Done():
		return nil, fmt.Errorf("the last reload is still under way: %w", ctx.Err())
	}
}

// fixedChanges names what only a restart can change.
func fixedChanges(before, after *config.Config) (fixed []string) {
	for _, s := range []struct{ name, before, after string }{
		{"server", before.ServerFingerprint(), after.ServerFingerprint()},
		{"ledger", before.LedgerFingerprint(), after.LedgerFingerprint()},
		{"tracing", before.TracingFingerprint(), after.TracingFingerprint()},
		{"log.format", before.Log.Format, after.Log.Format},
		{"reload.watch", strconv.FormatBool(before.Reload.Watch), strconv.FormatBool(after.Reload.Watch)},
	} {
		if s.before != s.after {
			fixed = append(fixed, s.name)
		}
	}
	return fixed
}

// plan is what a configuration changes. Nothing in it has been started.
type plan struct {
	parts
	// stopSources and stopSinks are those of now that are not in parts; startSources
	// and startSinks are those of parts that are not of now.
	stopSources, startSources []*source
	stopSinks, startSinks     []*sink
}

// plan builds what cfg has and the relay has not; what is the same in both is kept.
func (a *App) plan(cfg *config.Config) (_ *plan, err error) {
	now := a.present()
	p := &plan{parts: parts{cfg: cfg, audit: now.audit}}
	defer func() {
		if err != nil { // What runs on is not to look after what never will.
			for _, s := range p.startSources {
				s.unbind()
			}
		}
	}()
	idle := onlyShadowed(cfg)
	sinks := make(map[string]*sink, len(cfg.Sinks))
	for _, c := range cfg.Sinks {
		fingerprint := cfg.SinkFingerprint(c.Name)
		if idle[c.Name] {
			fingerprint = "idle " + fingerprint
		}
		s := find(now.sinks, func(s *sink) bool { return s.name == c.Name && s.fingerprint == fingerprint })
		if s == nil {
			if s, err = a.newSink(c, idle[c.Name]); err != nil {
				return nil, fmt.Errorf("open sink %q: %w", c.Name, err)
			}
			s.fingerprint = fingerprint
			p.startSinks = append(p.startSinks, s)
		}
		sinks[c.Name] = s
		p.sinks = append(p.sinks, s)
	}
	if p.audit == nil || p.audit.fingerprint != cfg.AuditFingerprint() {
		if p.audit, err = newAuditing(cfg, sinks, &a.audited, a.log); err != nil {
			return nil, err
		}
	}
	var dry *dryrun.Relay // for sources in shadow mode
	if slices.ContainsFunc(cfg.Sources, func(s config.Source) bool { return s.Shadow() }) {
		if dry, err = dryrun.New(cfg, a.deps.agent()); err != nil {
			return nil, err
		}
	}
	for _, c := range cfg.Sources {
		fingerprint := cfg.SourceFingerprint(c.Name)
		s := find(now.sources, func(s *source) bool { return s.cfg.Name == c.Name && s.fingerprint == fingerprint })
		if s == nil {
			if s, err = a.newSource(c, cfg.Routes, sinks, p.audit.auditor, dry); err != nil {
				return nil, fmt.Errorf("open source %q: %w", c.Name, err)
			}
			s.fingerprint = fingerprint
			p.startSources = append(p.startSources, s)
		}
		p.sources = append(p.sources, s)
	}
	for _, s := range now.sources {
		if !slices.Contains(p.sources, s) {
			p.stopSources = append(p.stopSources, s)
		}
	}
	for _, s := range now.sinks {
		if !slices.Contains(p.sinks, s) {
			p.stopSinks = append(p.stopSinks, s)
		}
	}
	return p, nil
}

func find[T any](all []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(all, is); i >= 0 {
		return all[i]
	}
	return nil
}

// apply puts a plan in force: the pipelines that it changes drain, then the sinks that
// it changes close, then the new ones start. A stop of the relay meanwhile leaves the
// rest of the change undone.
func (a *App) apply(receive, work, connected context.Context, p *plan) {
	a.log.Info("reloading", zap.Strings("stop_sources", names(p.stopSources)), zap.Strings("start_sources", names(p.startSources)),
		zap.Int("stop_sinks", len(p.stopSinks)), zap.Int("start_sinks", len(p.startSinks)))
	for _, s := range p.sinks {
		if resumer, ok := s.endpoint.(relay.Resumer); ok && !slices.Contains(p.startSinks, s) {
			resumer.Resume()
		}
	}
	for _, s := range p.stopSources {
		s.stop()
	}
	timer := time.NewTimer(a.present().cfg.DrainTimeout)
	defer timer.Stop()
	for _, s := range p.stopSources {
		select {
		case <-s.ended:
		case <-receive.Done():
			return // the drain of the whole relay goes on with them
		case <-timer.C:
			for _, late := range p.stopSources {
				late.cutDrain()
			}
			<-s.ended
		}
	}
	if before := a.present().audit; before != p.audit {
		before.end()
	}
	for _, s := range p.stopSinks {
		s.stop()
	}
	for _, s := range p.stopSinks {
		<-s.ended
	}
	_ = a.deps.Level.UnmarshalText([]byte(p.cfg.Log.Level)) // it has been checked
	a.shared.SetBounds(p.cfg.InFlight.Messages, int64(p.cfg.InFlight.Bytes))
	a.spare.SetBounds(spareOf(p.cfg))
	for _, s := range p.startSinks {
		s.before = countsOf(s.stats)
		s.start(connected, a.supervise)
	}
	if p.audit != a.present().audit {
		p.audit.start(connected)
	}
	a.mu.Lock()
	for _, s := range p.startSources {
		if reason := a.paused[s.cfg.Name]; reason != "" {
			s.pipeline.Pause(reason)
		}
	}
	a.parts = p.parts
	a.mu.Unlock()
	for _, s := range p.startSources {
		s.start(receive, work, connected, a.supervise)
	}
	a.log.Info("reloaded", zap.String("digest", p.cfg.Digest))
}

func names(sources []*source) []string {
	out := make([]string, len(sources))
	for i, s := range sources {
		out[i] = s.cfg.Name
	}
	return out
}
