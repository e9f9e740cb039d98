// Package format makes of a message what a sink sends: its body as it came or as a
// template makes it, the whole message as JSON, or an event of CloudEvents 1.0
// (github.com/cloudevents/spec, v1.0.2). Which of its parts go where, into headers or into
// properties, is the sink's own (the protocol bindings of the same specification).
package format

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"mnsrelay/internal/document"
	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Kind says what is sent.
type Kind string

// Body is the body itself, JSON the message as the file sink writes it, CloudEvents an
// event as JSON (structured mode), CloudEventsBinary the body with the event's attributes
// beside it.
const (
	Body              Kind = "body"
	JSON              Kind = "json"
	CloudEvents       Kind = "cloudevents"
	CloudEventsBinary Kind = "cloudevents_binary"
)

// Config is what of a message is sent, and how.
type Config struct {
	// Format is body, json, cloudevents or cloudevents_binary.
	Format Kind `yaml:"format"`
	// Body is a text with {{ }} templates that is sent in the place of the message's body;
	// empty: the body as it came. It is the data of an event, too.
	Body string `yaml:"body"`
	// CloudEvents are the attributes of events that the configuration decides.
	CloudEvents Attributes `yaml:"cloudevents"`
}

// Attributes of an event. Each may hold {{ }} templates.
type Attributes struct {
	// Source is a URI reference that names where events come from.
	Source string `yaml:"source"`
	// Type is what kind of event it is.
	Type string `yaml:"type"`
	// Subject is left out where it comes to nothing.
	Subject string `yaml:"subject"`
}

// Defaults gives what applies where the configuration is silent.
func Defaults() Config {
	return Config{Format: Body, CloudEvents: Attributes{Source: "mns:/queues/{{ queue }}", Type: "mnsrelay.message"}}
}

// isAttribute tells whether an event's attribute is one of the specification's, and not an
// extension.
func isAttribute(name string) bool {
	switch name {
	case "specversion", "id", "time", "source", "type", "subject", "datacontenttype":
		return true
	}
	return false
}

// Batches tells whether the payloads of several messages can be one.
func (c *Config) Batches() bool { return c.Format != CloudEventsBinary }

// CheckExtension says what is wrong with a header or property of the configuration that
// begins with the prefix of attributes and goes on with name: nothing, or a *setting.Problem
// at path.
func (c *Config) CheckExtension(path, prefix, name string) error {
	switch {
	case c.Format == CloudEvents:
		return setting.Problemf(path, "is no part of an event that is sent as JSON; write format: cloudevents_binary, or another name")
	case c.Format != CloudEventsBinary:
		return nil // whoever makes an event by hand sets all of it
	case isAttribute(name):
		return setting.Problemf(path, "is an attribute that the relay sets: write it under cloudevents, or leave it out")
	case name == "" || name == "data" || strings.ContainsFunc(name, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }):
		return setting.Problemf(path, "names no extension of an event; write %s and then lower-case letters and digits", prefix)
	}
	return nil
}

// CheckContentType says what is wrong with a content type of the configuration: nothing, or a
// *setting.Problem at path.
func (c *Config) CheckContentType(path, contentType string) error {
	if c.Format == CloudEventsBinary && IsEvent(contentType) {
		return setting.Problemf(path, "is that of an event as JSON, and format: cloudevents_binary sends the data alone: write that of the data, or format: cloudevents")
	}
	return nil
}

// Extension gives the value of an extension in the types that CloudEvents has ("Type
// System"): string, bool, an int64 of 32 bits, []byte or time.Time. Other numbers become
// text. Its error holds nothing of the value.
func Extension(value any) (any, error) {
	switch v := value.(type) {
	case string:
		if !isText(v) {
			return nil, errText
		}
	case int64:
		if v < math.MinInt32 || v > math.MaxInt32 {
			return strconv.FormatInt(v, 10), nil
		}
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64), nil
	case bool, []byte, time.Time:
	default:
		return nil, errors.New("an extension of an event is text, a number, a boolean or a timestamp, and no list or mapping")
	}
	return value, nil
}

// Attribute is one of an event, as text.
type Attribute struct{ Name, Value string }

// Payload is what a message becomes.
type Payload struct {
	Body []byte
	// Attributes are those of an event in binary mode, but for the content type; else nil.
	Attributes []Attribute

	contentType string // empty: what the body is
}

// ContentType is that of the format, or else that of the body, which is read for it.
func (p *Payload) ContentType() string {
	if p.contentType != "" {
		return p.contentType
	}
	return document.ContentType(p.Body)
}

// ContentTypeOr gives the configured content type, and where that is empty, or the body is
// an event as JSON, that of ContentType. Its error has the reason ReasonInvalid.
func (p *Payload) ContentTypeOr(configured string) (string, error) {
	switch {
	case configured == "" || IsEvent(p.contentType):
		return p.ContentType(), nil
	case p.Attributes != nil && IsEvent(configured):
		return "", relay.Fail(ReasonInvalid, errors.New("the content type gets that of an event as JSON, and this one is in binary mode"))
	}
	return configured, nil
}

// IsEvent tells whether a reader takes a body of a content type for an event or several of
// them (as in the AMQP protocol binding, 3).
func IsEvent(contentType string) bool {
	const media = "application/cloudevents"
	return len(contentType) >= len(media) && strings.EqualFold(contentType[:len(media)], media)
}

// Formatter formats messages. It is safe for concurrent use. Make it with Config.Formatter.
type Formatter struct {
	kind                    Kind
	body                    *expr.Template // nil: as it came
	source, kindOf, subject *expr.Template
}

// ReasonInvalid is why a message is rejected whose attributes would make no event.
const ReasonInvalid = "invalid_property"

// Formatter reports every problem at once, joined, each a *setting.Problem.
func (c *Config) Formatter() (*Formatter, error) {
	f := &Formatter{kind: c.Format}
	var problems []error
	switch c.Format {
	case Body, JSON, CloudEvents, CloudEventsBinary:
	default:
		problems = append(problems, setting.Problemf("format", "is %q; write body, json, cloudevents or cloudevents_binary", string(c.Format)))
	}
	if c.Format == JSON && c.Body != "" {
		problems = append(problems, setting.Problemf("body", "has no place where format is json, which holds the message as it is; remove one of them"))
	}
	for _, t := range []struct {
		path, text string
		into       **expr.Template
		required   bool
	}{
		{"body", c.Body, &f.body, false},
		{"cloudevents.source", c.CloudEvents.Source, &f.source, true},
		{"cloudevents.type", c.CloudEvents.Type, &f.kindOf, true},
		{"cloudevents.subject", c.CloudEvents.Subject, &f.subject, false},
	} {
		if t.text == "" {
			if t.required {
				problems = append(problems, setting.Problemf(t.path, "is empty, and every event has one"))
			}
			continue
		}
		template, err := expr.CompileSetting(t.path, t.text)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		*t.into = template
	}
	return f, errors.Join(problems...)
}

// Format makes the payload of a message. Its error has the reason expr.Reason or
// ReasonInvalid and holds nothing of the message.
func (f *Formatter) Format(m *relay.Message) (Payload, error) {
	if f.kind == JSON {
		line, err := Envelopes([]relay.Message{*m})
		return Payload{Body: bytes.TrimSuffix(line, []byte{'\n'}), contentType: "application/json"}, err
	}
	p := Payload{Body: m.Body}
	if f.body != nil {
		text, err := f.body.Render(expr.Of(m))
		if err != nil {
			return Payload{}, fmt.Errorf("work out the body: %w", err)
		}
		p.Body = []byte(text)
	}
	if f.kind == Body {
		return p, nil
	}
	attributes, err := f.attributes(m)
	if err != nil {
		return Payload{}, err
	}
	if f.kind == CloudEventsBinary {
		p.Attributes = attributes
		return p, nil
	}
	return structured(p, attributes)
}

// Element makes the payload of a message as Format does, as JSON that can be part of a
// batch. A body that is no JSON is a string; one that is no text either has no place there
// and its error has ReasonInvalid.
func (f *Formatter) Element(m *relay.Message) (json.RawMessage, error) {
	p, err := f.Format(m)
	switch {
	case err != nil:
		return nil, err
	case f.kind != Body:
		return p.Body, nil
	case !utf8.Valid(p.Body):
		return nil, relay.Fail(ReasonInvalid, errors.New("the body is no text, and a batch is JSON: write format: json"))
	case json.Valid(p.Body):
		return p.Body, nil
	}
	return json.Marshal(string(p.Body)) //nolint:wrapcheck // a string cannot fail
}

// Batch makes one payload of several elements (for events: the JSON batch format,
// cloudevents/formats/json-format.md, 4).
func (f *Formatter) Batch(elements []json.RawMessage) Payload {
	size := 1
	for _, e := range elements {
		size += len(e) + 1
	}
	body := append(make([]byte, 0, size), '[')
	for i, e := range elements {
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, e...)
	}
	p := Payload{Body: append(body, ']'), contentType: "application/json"}
	if f.kind == CloudEvents {
		p.contentType = "application/cloudevents-batch+json; charset=utf-8"
	}
	return p
}

// attributes gives the context attributes of an event but for the content type.
func (f *Formatter) attributes(m *relay.Message) ([]Attribute, error) {
	in := expr.Of(m)
	all := []Attribute{
		{"specversion", "1.0"},
		{"id", m.ID},
		{"time", m.EnqueuedAtText()},
	}
	for _, a := range []struct {
		name     string
		template *expr.Template
	}{{"source", f.source}, {"type", f.kindOf}, {"subject", f.subject}} {
		if a.template == nil {
			continue
		}
		value, err := a.template.Render(in)
		if err != nil {
			return nil, fmt.Errorf("work out the attribute %s: %w", a.name, err)
		}
		switch {
		case value == "" && a.name == "subject":
			continue
		case value == "":
			return nil, invalid(a.name, "comes to nothing")
		case a.name == "source":
			if _, err := url.Parse(value); err != nil { // whose error quotes it
				return nil, invalid(a.name, "comes to what is no URI reference")
			}
		}
		all = append(all, Attribute{a.name, value})
	}
	for _, a := range all {
		if !isText(a.Value) {
			return nil, invalid(a.Name, errText.Error())
		}
	}
	return all, nil
}

func invalid(name, what string) error {
	return relay.Fail(ReasonInvalid, fmt.Errorf("the attribute %s %s", name, what))
}

var errText = errors.New("gets a control character, or is not UTF-8")

// isText tells whether a text can be a String of CloudEvents.
func isText(s string) bool { return utf8.ValidString(s) && !strings.ContainsFunc(s, isControl) }

// isControl tells what no String of CloudEvents may hold ("Type System").
func isControl(r rune) bool {
	return r < 0x20 || 0x7f <= r && r <= 0x9f || 0xfdd0 <= r && r <= 0xfdef || r&0xfffe == 0xfffe
}

// structured gives an event in the JSON format (cloudevents/formats/json-format.md).
func structured(p Payload, attributes []Attribute) (Payload, error) {
	event := make(map[string]any, len(attributes)+2)
	for _, a := range attributes {
		event[a.Name] = a.Value
	}
	contentType := p.ContentType()
	switch {
	case len(p.Body) == 0:
	case contentType == "application/json" && utf8.Valid(p.Body):
		event["datacontenttype"], event["data"] = contentType, json.RawMessage(p.Body)
	case utf8.Valid(p.Body):
		event["datacontenttype"], event["data"] = contentType, string(p.Body)
	default:
		event["datacontenttype"], event["data_base64"] = contentType, p.Body
	}
	body, err := json.Marshal(event)
	if err != nil {
		return Payload{}, fmt.Errorf("encode the event: %w", err)
	}
	return Payload{Body: body, contentType: "application/cloudevents+json; charset=utf-8"}, nil
}
