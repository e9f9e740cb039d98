package mns

import (
	"errors"
	"os"
	"time"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Format says what of a message goes into the queue.
type Format string

// The formats. FormatRaw sends the body alone, FormatEnvelope an mns.Envelope: all that
// is known of the message, in JSON.
const (
	FormatRaw      Format = "raw"
	FormatEnvelope Format = "envelope"
)

// Config holds the settings of a queue as a sink. Start from Defaults.
type Config struct {
	// Endpoint is the URL of the MNS server.
	Endpoint setting.URL `yaml:"endpoint" schema:"required"`
	// Queue is the queue's name. It must exist.
	Queue string `yaml:"queue" schema:"required"`
	// Credentials say whose keys sign the requests. They must be allowed to send.
	Credentials credentials.Config `yaml:"credentials" schema:"required"`
	// Settings are those that a route may set otherwise.
	Settings `yaml:",inline"`
}

// Settings are the settings that a route may set otherwise.
type Settings struct {
	// Format is raw or envelope. Dead letters are in envelopes whatever it says.
	Format Format `yaml:"format"`
	// Body says how the bodies of format raw are encoded: auto as they were in their own
	// queue, base64, or raw, which rejects what XML cannot carry.
	Body mns.BodyEncoding `yaml:"body"`
	// Timeout bounds a delivery of up to 16 messages: more than 0, at most 10 minutes.
	Timeout time.Duration `yaml:"timeout" schema:"positive"`
}

const maxTimeout = 10 * time.Minute

// Defaults gives the settings that apply where the configuration is silent.
func Defaults() *Config {
	return &Config{Settings: Settings{Format: FormatRaw, Body: mns.BodyAuto, Timeout: 10 * time.Second}}
}

// Validate reports every problem at once, each a *setting.Problem.
func (c *Config) Validate() error {
	keys := c.Credentials
	keys.Defaults(os.Getenv)
	return errors.Join(
		(&mns.Config{Endpoint: c.Endpoint.Reveal(), Queue: c.Queue}).Validate(),
		below("credentials", keys.Validate()),
		c.validate(),
	)
}

// Warnings reports what works and is better changed, each a *setting.Problem.
func (c *Config) Warnings() []error {
	var warnings []error
	if endpoint, err := mns.ParseEndpoint(c.Endpoint.Reveal()); err == nil && endpoint.Exposed() {
		warnings = append(warnings, setting.Problemf("endpoint", "is http://: messages and signatures travel unencrypted; write https://"))
	}
	for _, err := range c.Credentials.Warnings() {
		warnings = append(warnings, below("credentials", err))
	}
	return warnings
}

func (s *Settings) validate() error {
	var problems []error
	switch s.Format {
	case FormatRaw, FormatEnvelope:
	default:
		problems = append(problems, setting.Problemf("format", "is %q; write %s or %s", s.Format, FormatRaw, FormatEnvelope))
	}
	switch s.Body {
	case mns.BodyAuto:
	case mns.BodyBase64, mns.BodyRaw:
		if s.Format == FormatEnvelope {
			problems = append(problems, setting.Problemf("body", "has no meaning in format: %s, which has every body in base64; remove it", FormatEnvelope))
		}
	default:
		problems = append(problems, setting.Problemf("body", "is %q; write %s, %s or %s", s.Body, mns.BodyAuto, mns.BodyBase64, mns.BodyRaw))
	}
	if s.Timeout <= 0 || s.Timeout > maxTimeout {
		problems = append(problems, setting.Problemf("timeout", "is %v; write a duration above 0s, at most %v", s.Timeout, maxTimeout))
	}
	return errors.Join(problems...)
}

// below puts owner before the paths of problems.
func below(owner string, err error) error {
	if joined, is := err.(interface{ Unwrap() []error }); is {
		var problems []error
		for _, err := range joined.Unwrap() {
			problems = append(problems, below(owner, err))
		}
		return errors.Join(problems...)
	}
	p, is := errors.AsType[*setting.Problem](err)
	if !is {
		return err
	}
	if p.Path != "" {
		owner += "." + p.Path
	}
	return &setting.Problem{Path: owner, Message: p.Message}
}

// Open makes the endpoint of a validated Config.
func (c *Config) Open(deps relay.SinkDeps) (relay.Endpoint, error) { return New(c, deps) }
