// Package audit writes down what became of each message, a line of JSON for each confirm,
// and finds the lines of a message again: "mnsrelay where".
//
// A line holds what the relay decided about a message and never what is in it: its id,
// source, route and sink, what the sink calls its far side in the configuration, and one
// key that the configuration chooses, hashed if it says so. Every value is a string of
// JSON, so that no message can forge a line.
//
// Lines go to the log (Logged) or to a file sink (Writer). Neither decides about messages:
// what cannot be written is counted, said, and lost.
package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// ToLog is the To of an audit that goes to the log.
const ToLog = "log"

// Config says what is audited and where to.
type Config struct {
	// To says where the lines go: `log`, or the name of a file sink that no route leads to; empty:
	// nothing is audited.
	To string `yaml:"to"`
	// Key is a template, as in {{ body.biz_id }}, by which messages can be found besides their
	// id. It is cut to 256 bytes. A message that does not have it has none in its lines.
	Key string `yaml:"key"`
	// HashSecret makes HMAC-SHA-256 of the key, in hex, in the place of the key itself.
	HashSecret setting.Secret `yaml:"hash_secret"`
}

// minSecret is how many characters a secret should have: whoever guesses it can try all phone
// numbers.
const minSecret = 16

// Validate reports every problem at once, joined, each a *setting.Problem. Whether To names
// a file sink only the whole configuration knows.
func (c *Config) Validate() error {
	var problems []error
	if c.To == "" && (c.Key != "" || !c.HashSecret.IsZero()) {
		problems = append(problems, setting.Problemf("to", "is missing, so nothing is audited: write log, or the name of a file sink"))
	}
	if c.Key == "" {
		if !c.HashSecret.IsZero() {
			problems = append(problems, setting.Problemf("hash_secret", "has a meaning with a key only: write key too, or remove it"))
		}
		return errors.Join(problems...)
	}
	if _, err := expr.CompileSetting("key", c.Key); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// Warnings are what works and is probably not meant, each a *setting.Problem.
func (c *Config) Warnings() (warnings []error) {
	if n := len(c.HashSecret.Reveal()); n > 0 && n < minSecret {
		warnings = append(warnings, setting.Problemf("hash_secret", "is shorter than %d characters, so it can be guessed, and with it every key; openssl rand -hex 32 makes one that cannot", minSecret))
	}
	if template, err := expr.CompileTemplate(c.Key); err == nil && c.Key != "" && template.Literal() {
		warnings = append(warnings, setting.Problemf("key", "is the same for every message: write a template, as in '{{ body.biz_id }}'"))
	}
	return warnings
}

// maxText bounds a key and an id, in bytes: a key is no body.
const maxText = 256

// Line is what is written of one event.
type Line struct {
	// Time is RFC 3339 in UTC and milliseconds.
	Time string `json:"time"`
	// Audit is the event; it tells a line of an audit from others.
	Audit     relay.AuditEvent `json:"audit"`
	MessageID string           `json:"message_id"`
	Source    string           `json:"source"`
	Route     string           `json:"route,omitempty"`
	Sink      string           `json:"sink,omitempty"`
	// Target is what the sink calls its far side: an exchange, the path of a URL.
	Target string `json:"target,omitempty"`
	// Attempt counts the receives of the message, from 1.
	Attempt int `json:"attempt"`
	// Seconds are those from the hand-over to the sink to its confirm.
	Seconds float64 `json:"duration,omitempty"`
	Reason  string  `json:"reason,omitempty"`
	// Key is the configured key, or KeyHash its hash.
	Key     string `json:"key,omitempty"`
	KeyHash string `json:"key_hash,omitempty"`
}

// Keys makes the keys of messages. Make it with NewKeys.
type Keys struct {
	template *expr.Template // nil: there are none
	secret   []byte         // nil: they are not hashed
}

// NewKeys takes a validated Config.
func NewKeys(c *Config) (*Keys, error) {
	k := &Keys{}
	if c.Key == "" {
		return k, nil
	}
	var err error
	if k.template, err = expr.CompileTemplate(c.Key); err != nil {
		return nil, err
	}
	if secret := c.HashSecret.Reveal(); secret != "" {
		k.secret = []byte(secret)
	}
	return k, nil
}

// hash is that of a key; empty where keys are not hashed.
func (k *Keys) hash(key string) string {
	if k.secret == nil {
		return ""
	}
	mac := hmac.New(sha256.New, k.secret)
	_, _ = mac.Write([]byte(key))
	return hex.EncodeToString(mac.Sum(nil))
}

// line makes the line of an entry.
func (k *Keys) line(e *relay.AuditEntry) Line {
	m := e.Message
	line := Line{
		Time: e.Time.UTC().Format(relay.EnqueuedAtFormat), Audit: e.Event, MessageID: cut(m.ID), Source: m.Source,
		Route: e.Target.Route, Sink: e.Target.Sink, Target: e.Address, Attempt: m.Attempt, Reason: e.Reason,
	}
	if !e.Begun.IsZero() {
		line.Seconds = max(e.Time.Sub(e.Begun), time.Microsecond).Round(time.Microsecond).Seconds()
	}
	if k.template == nil {
		return line
	}
	key, err := k.template.Render(expr.Of(m))
	if err != nil || key == "" {
		return line // it has no such member, or could not be decoded
	}
	if line.KeyHash = k.hash(key); line.KeyHash == "" {
		line.Key = cut(key)
	}
	return line
}

// cut bounds a text, at the end of a character.
func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	return strings.ToValidUTF8(text[:maxText], "")
}

// Counter counts lines over all that write them. It is safe for concurrent use.
type Counter struct{ written, lost atomic.Uint64 }

// Counts gives the lines that were written and those that could not be.
func (c *Counter) Counts() (written, lost uint64) { return c.written.Load(), c.lost.Load() }
