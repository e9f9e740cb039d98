package config

import (
	"maps"
	"slices"
	"time"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/ledger"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink"
)

const (
	sourceTypeMNS = "mns"
	presetNone    = "none"
	sinkTypeKey   = "type"

	modeRelay  = "relay"
	modeShadow = "shadow"

	atLeastOnce = "at_least_once"
	atMostOnce  = "at_most_once"
)

// deadLetterReceives is after how many receives a message that fails is dead-lettered where
// there is a sink to take it.
const deadLetterReceives = 16

// Defaults are what a configuration has that sets nothing.
func Defaults() *Config {
	return &Config{
		Server:       Server{Listen: ":8080"},
		Log:          Log{Level: "info", Format: "json"},
		DrainTimeout: 45 * time.Second,
		Ledger:       ledger.Defaults(),
		Tracing:      Tracing{SampleRatio: 1},
		InFlight:     InFlight{Messages: 4096, Bytes: 256 * setting.MiB},
	}
}

// DefaultSource is what a source has that sets nothing.
func DefaultSource(name string) Source {
	return Source{
		Name:            name,
		Type:            sourceTypeMNS,
		Mode:            modeRelay,
		BatchSize:       16,
		Wait:            30 * time.Second,
		Pollers:         Pollers{Min: 1, Max: 4},
		InFlight:        InFlight{Messages: 512, Bytes: 64 * setting.MiB},
		Body:            "auto",
		Unwrap:          "auto",
		Guarantee:       atLeastOnce,
		Redelivery:      Redelivery{Initial: 5 * time.Second, Max: time.Hour},
		DeadLetterLimit: Limit{Count: 100, Per: 5 * time.Minute},
	}
}

// derive fills in what follows from what was written.
func (d *decoder) derive(c *Config) {
	for i := range c.Sources {
		d.deriveSource(&c.Sources[i])
	}
	for _, s := range c.Sources {
		if len(s.To) == 0 {
			continue
		}
		path := join("sources", s.Name)
		c.Routes = append(c.Routes, Route{Name: s.Name, From: Names{s.Name}, To: s.To, path: path})
		for i := range s.To {
			at := join(index(join(path, "to"), i), "sink")
			p := d.places[at]
			p.origin += ", makes the route " + s.Name
			d.places[at] = p
		}
	}
}

// deriveSource applies the preset that the source names or its queue's name implies.
// What was written wins; a type of credentials that was written keeps the preset's
// out.
func (d *decoder) deriveSource(s *Source) {
	path := join("sources", s.Name)
	if !d.written(join(path, "preset")) {
		s.Preset = presetNone
		if p, found := credentials.PresetFor(s.Queue); found {
			s.Preset = p.Name
			d.derived(join(path, "preset"), "queue name")
		}
	}
	if p, found := credentials.PresetNamed(s.Preset); found {
		origin := "preset " + p.Name
		if s.Endpoint.IsZero() && !d.written(join(path, "endpoint")) {
			s.Endpoint = setting.NewURL(p.MNSEndpoint)
			d.derived(join(path, "endpoint"), origin)
		}
		d.deriveCredentials(&s.Credentials, join(path, "credentials"), p, s.Queue)
	}
	if s.DeadLetter != "" && !s.AtMostOnce() && !d.written(join(path, "max_receives")) {
		s.MaxReceives = deadLetterReceives
		d.derived(join(path, "max_receives"), "default with a dead_letter")
	}
	hadBase := s.Credentials.Base != nil
	for _, v := range s.Credentials.Defaults(d.getenv) {
		d.derived(join(join(path, "credentials"), v.Path), v.Origin)
	}
	if s.Credentials.Base != nil && !hadBase {
		d.derived(join(path, "credentials.base.type"), "default: the first of environment, RRSA, profile, ECS role, credentials URI that has keys")
	}
}

func (d *decoder) deriveCredentials(c *credentials.Config, path string, p credentials.Preset, queue string) {
	if !d.written(join(path, "type")) {
		c.Type = credentials.TypeMNSToken
		d.derived(join(path, "type"), "preset "+p.Name)
	}
	if c.Type != credentials.TypeMNSToken {
		return
	}
	if !d.written(join(path, "message_type")) {
		if c.MessageType = credentials.MessageType(queue); c.MessageType != "" {
			d.derived(join(path, "message_type"), "queue name")
		}
	}
	// A region of the user's own has an endpoint of its own.
	ownRegion := d.written(join(path, "region")) && c.Region != p.Region
	if !d.written(join(path, "region")) {
		c.Region = p.Region
		d.derived(join(path, "region"), "preset "+p.Name)
	}
	if !d.written(join(path, "endpoint")) && !ownRegion {
		c.Endpoint = setting.NewURL(p.TokenEndpoint)
		d.derived(join(path, "endpoint"), "preset "+p.Name)
	}
}

// derived records where a value came from that nobody wrote.
func (d *decoder) derived(path, origin string) {
	if !d.written(path) {
		d.places[path] = place{origin: origin}
	}
}

func (d *decoder) getenv(name string) string {
	value, _ := d.env.lookup(name)
	return value
}

// SinkTypes are the types of sink in order.
func SinkTypes() []string { return slices.Sorted(maps.Keys(sink.Types())) }
