// Package check finds out what would keep a configuration from working, by trying all that
// can be tried without a message: credentials are fetched, queues looked at, sinks connected
// to (relay.Checker). Sinks are made and bound as the relay makes them, so that what it says
// is what a run does.
package check

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/config"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/ledger"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

// atOnce is how many parts are looked at at the same time.
const atOnce = 16

// Options say how to look.
type Options struct {
	// Instance is what this process calls itself to the far sides.
	Instance string
	// Timeout bounds each credential, each queue and each sink.
	Timeout time.Duration
	// STS is asked whose keys they are where the configuration does not say; nil: STS of
	// Alibaba Cloud, about sources that have their queue there.
	STS *url.URL
}

// bounded gives look the time that a part may take.
func (o Options) bounded(look func(context.Context) []relay.Finding) func(context.Context) []relay.Finding {
	return func(ctx context.Context) []relay.Finding {
		ctx, cancel := context.WithTimeout(ctx, o.Timeout)
		defer cancel()
		return look(ctx)
	}
}

// Kind is what a part of a configuration is.
type Kind string

// The kinds.
const (
	Source Kind = "source"
	Sink   Kind = "sink"
	Ledger Kind = "ledger"
)

// Line is a finding about one part.
type Line struct {
	Kind Kind
	// Name is empty for the ledger.
	Name string
	relay.Finding
}

// Report holds the lines in the order of the file: sources, sinks, ledger.
type Report []Line

// Count tells how many lines have the verdict.
func (r Report) Count(v relay.Verdict) (n int) {
	for _, line := range r {
		if line.Verdict == v {
			n++
		}
	}
	return n
}

// part is one thing to look at.
type part struct {
	kind     Kind
	name     string
	look     func(ctx context.Context) []relay.Finding
	findings []relay.Finding
}

// Run looks at everything in a checked configuration. Its error says that a part cannot be
// made, or that ctx has ended.
func Run(ctx context.Context, cfg *config.Config, o Options) (Report, error) {
	sources, err := newSources(cfg, o)
	if err != nil {
		return nil, err
	}
	sinks, err := newSinks(cfg, o)
	if err != nil {
		return nil, err
	}
	parts := slices.Concat(sources, sinks, []*part{{kind: Ledger, look: o.bounded(func(ctx context.Context) []relay.Finding {
		return ledger.Check(ctx, cfg.Ledger, ledger.Deps{Log: zap.NewNop()})
	})}})
	var looking sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for _, p := range parts {
		slots <- struct{}{}
		looking.Go(func() {
			defer func() { <-slots }()
			p.findings = p.look(ctx)
		})
	}
	looking.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var report Report
	for _, p := range parts {
		for _, f := range p.findings {
			report = append(report, Line{Kind: p.kind, Name: p.name, Finding: f})
		}
	}
	return report, nil
}

// newSources makes the parts that look at sources. Those that share a credential fetch it
// once.
func newSources(cfg *config.Config, o Options) ([]*part, error) {
	pool := credentials.NewPool(zap.NewNop())
	type holder struct {
		once    sync.Once
		finding relay.Finding
	}
	holders := make(map[*credentials.Refresher]*holder)
	var parts []*part
	for i := range cfg.Sources {
		c := &cfg.Sources[i]
		refresher, err := pool.Refresher(&c.Credentials, c.Queue)
		if err != nil {
			return nil, fmt.Errorf("make source %q: %w", c.Name, err)
		}
		queue, err := mns.NewQueue(mns.Config{Name: c.Name, Endpoint: c.Endpoint.Reveal(), Queue: c.Queue}, mns.Deps{Credentials: refresher})
		if err != nil {
			return nil, fmt.Errorf("make source %q: %w", c.Name, err)
		}
		h := holders[refresher]
		if h == nil {
			h = &holder{}
			holders[refresher] = h
		}
		parts = append(parts, &part{kind: Source, name: c.Name, look: func(ctx context.Context) []relay.Finding {
			defer queue.Close()
			h.once.Do(func() {
				o.bounded(func(ctx context.Context) []relay.Finding {
					h.finding = refresher.Check(ctx, &c.Credentials, stsFor(c, o))
					return nil
				})(ctx)
			})
			if h.finding.Verdict == relay.Failed {
				return []relay.Finding{h.finding}
			}
			look := queue.CheckSource
			if c.Shadow() {
				look = queue.CheckShadow
			}
			return append([]relay.Finding{h.finding}, o.bounded(look)(ctx)...)
		}})
	}
	return parts, nil
}

// stsFor gives the STS that may be asked about the keys of a source: those of an emulator
// are none of Alibaba Cloud's business.
func stsFor(c *config.Source, o Options) *url.URL {
	if o.STS != nil {
		return o.STS
	}
	if endpoint, err := c.Endpoint.Parse(); err == nil && strings.HasSuffix(endpoint.Hostname(), ".aliyuncs.com") {
		return &url.URL{Scheme: "https", Host: "sts.aliyuncs.com"}
	}
	return nil
}

// newSinks makes the sinks, binds them to the routes that lead to them, and makes the parts
// that look at them.
func newSinks(cfg *config.Config, o Options) ([]*part, error) {
	endpoints := make(map[string]relay.Endpoint)
	var parts []*part
	for _, c := range cfg.Sinks {
		endpoint, err := c.Settings.Open(relay.SinkDeps{Name: c.Name, Instance: o.Instance, Log: zap.NewNop()})
		if err != nil {
			return nil, fmt.Errorf("make sink %q: %w", c.Name, err)
		}
		checker, can := endpoint.(relay.Checker)
		if !can {
			return nil, fmt.Errorf("sink %q cannot be looked at", c.Name)
		}
		endpoints[c.Name] = endpoint
		parts = append(parts, &part{kind: Sink, name: c.Name, look: o.bounded(checker.Check)})
	}
	bind := func(sink, route string, with relay.Overrides) error {
		if _, err := endpoints[sink].Bind(with); err != nil {
			return fmt.Errorf("bind sink %q to route %q: %w", sink, route, err)
		}
		return nil
	}
	for _, r := range cfg.Routes {
		for _, to := range r.To {
			if err := bind(to.Sink, r.Name, to.With); err != nil {
				return nil, err
			}
		}
	}
	for i := range cfg.Sources {
		if c := &cfg.Sources[i]; c.DeadLetter != "" {
			if err := bind(c.DeadLetter, "", nil); err != nil {
				return nil, err
			}
		}
	}
	return parts, nil
}
