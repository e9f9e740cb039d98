package dryrun

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/relay"
)

// Message is a message as it is written down: YAML, or JSON as "queue peek" and the file
// sink write it.
type Message struct {
	// Source is the name of its source; it may be left out where there is one.
	Source string `yaml:"source"`
	ID     string `yaml:"id"`
	// Body is the body as routes see it: a text, or a mapping or list, which becomes JSON.
	Body yaml.Node `yaml:"body"`
	// BodyBase64 is a body that is no text.
	BodyBase64 string `yaml:"body_base64"`
	// Raw is the body as it is in the queue, which the source decodes.
	Raw        *string           `yaml:"raw"`
	Attributes map[string]string `yaml:"attributes"`
	// Attempt counts receives, from 1.
	Attempt    int       `yaml:"attempt"`
	EnqueuedAt time.Time `yaml:"enqueued_at"`

	// Error and Dead are in what "queue peek" and the file sink write, and mean nothing
	// here.
	Error string    `yaml:"error"`
	Dead  yaml.Node `yaml:"dead"`

	// text is the body of a message that was read from JSON, in the place of Body.
	text []byte
}

// ReadMessage reads one message.
func ReadMessage(data []byte) (*Message, error) {
	data = bytes.TrimSpace(data)
	if bytes.HasPrefix(data, []byte("{")) {
		decoder := json.NewDecoder(bytes.NewReader(data))
		var first json.RawMessage
		switch err := decoder.Decode(&first); {
		case err != nil: // YAML, with keys that are not in quotes
		case decoder.More():
			return nil, errors.New("there is more after the message, and this is about one: queue peek --max 1")
		default:
			return messageOfJSON(data)
		}
	}
	m := new(Message)
	if err := yaml.Load(data, m, yaml.WithKnownFields()); err != nil {
		return nil, withKeys(problem(err))
	}
	return m, nil
}

// messageOfJSON reads a message with the library that wrote it: YAML takes some characters and
// escapes of JSON for something else.
func messageOfJSON(data []byte) (*Message, error) {
	var written struct {
		Source     string            `json:"source"`
		ID         string            `json:"id"`
		Body       json.RawMessage   `json:"body"`
		BodyBase64 string            `json:"body_base64"`
		Raw        *string           `json:"raw"`
		Attributes map[string]string `json:"attributes"`
		Attempt    int               `json:"attempt"`
		EnqueuedAt time.Time         `json:"enqueued_at"`
		Error      string            `json:"error"`
		Dead       json.RawMessage   `json:"dead"`
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&written); err != nil {
		if another, is := errors.AsType[*json.UnmarshalTypeError](err); is {
			return nil, fmt.Errorf("%s is %s, and %s belongs there", another.Field, kindOf(another.Value), kindOf(another.Type.String()))
		}
		return nil, withKeys(problem(err))
	}
	m := &Message{
		Source: written.Source, ID: written.ID, BodyBase64: written.BodyBase64, Raw: written.Raw,
		Attributes: written.Attributes, Attempt: written.Attempt, EnqueuedAt: written.EnqueuedAt,
	}
	if written.Body == nil || string(written.Body) == "null" {
		return m, nil
	}
	var text string
	if json.Unmarshal(written.Body, &text) == nil {
		m.text = []byte(text)
		return m, nil
	}
	var compact bytes.Buffer
	err := json.Compact(&compact, written.Body)
	m.text = compact.Bytes()
	return m, err //nolint:wrapcheck // it has been read already
}

// withKeys names the keys where one of them is not known.
func withKeys(problem string) error {
	if strings.Contains(problem, noKey) {
		problem += "; the keys of a message are source, id, body, body_base64, raw, attributes, attempt and enqueued_at"
	}
	return errors.New(problem)
}

const noKey = "there is no key "

// problem is what the error of a library says, in one line and without its own names.
func problem(err error) string {
	if strings.Contains(err.Error(), "no documents in stream") {
		return "it is empty"
	}
	text := unknownKey.ReplaceAllString(err.Error(), noKey+"$1$2")
	text = anotherKind.ReplaceAllStringFunc(text, func(found string) string {
		parts := anotherKind.FindStringSubmatch(found)
		return parts[2] + "is " + kindOf(parts[1]) + ", and " + kindOf(parts[3]) + " belongs there"
	})
	for _, begin := range []string{"yaml: ", "construct errors: ", "json: "} {
		text = strings.TrimPrefix(text, begin)
	}
	return strings.Join(strings.Fields(text), " ")
}

// unknownKey is how the libraries say that a struct has no such field, and anotherKind that a
// value does not fit.
var (
	unknownKey  = regexp.MustCompile(`field (\S+) not found in type \S+|unknown field "([^"]*)"`)
	anotherKind = regexp.MustCompile("cannot construct !!(\\S+) (`[^`]*` )?into (\\S+)")
)

// kindOf names a type of YAML, of JSON or of Go.
func kindOf(name string) string {
	switch {
	case name == "map", name == "object", strings.HasPrefix(name, "map["), strings.HasPrefix(name, "dryrun."), strings.HasPrefix(name, "struct"):
		return "a mapping"
	case name == "seq", name == "array", strings.HasPrefix(name, "[]"):
		return "a list"
	case name == "str", strings.HasSuffix(name, "string"):
		return "a text"
	case name == "time.Time":
		return "a time"
	case name == "int":
		return "a whole number"
	}
	return "a " + strings.TrimPrefix(name, "*") // number, bool, float
}

// defaultID is that of a message that has none, and defaultTime when one was enqueued that
// does not say.
const defaultID = "0123456789ABCDEF-1-0123456789A-200000001"

func defaultTime() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }

// message gives the message as it was received, and tells whether its body is encoded.
func (m *Message) message(source, queue string) (received relay.Message, encoded bool, err error) {
	received = relay.Message{
		ID: m.ID, Source: source, Queue: queue, Attempt: max(m.Attempt, 1), EnqueuedAt: m.EnqueuedAt,
		Attributes: maps.Clone(m.Attributes),
	}
	if received.ID == "" {
		received.ID = defaultID
	}
	if received.EnqueuedAt.IsZero() {
		received.EnqueuedAt = defaultTime()
	}
	var bodies []string
	if m.text != nil {
		bodies = append(bodies, "body")
		received.Body = m.text
	}
	if !m.Body.IsZero() {
		bodies = append(bodies, "body")
		if received.Body, err = bodyOf(&m.Body); err != nil {
			return received, false, err
		}
	}
	if m.BodyBase64 != "" {
		bodies = append(bodies, "body_base64")
		if received.Body, err = base64.StdEncoding.DecodeString(m.BodyBase64); err != nil {
			return received, false, errors.New("body_base64 is no base64")
		}
	}
	if m.Raw != nil {
		bodies = append(bodies, "raw")
		received.Body = []byte(*m.Raw)
		if m.Attributes != nil {
			return received, false, errors.New("the message has raw and attributes, and those are decoded from raw; remove one of them")
		}
	}
	if len(bodies) > 1 {
		return received, false, fmt.Errorf("the message has %s; keep one", strings.Join(bodies, " and "))
	}
	if m.Raw == nil {
		if received.Attributes == nil {
			received.Attributes = make(map[string]string)
		}
		if received.Attributes[relay.AttributeBody] == "" {
			received.Attributes[relay.AttributeBody] = relay.BodyRaw
		}
	}
	return received, m.Raw != nil, nil
}

// bodyOf is the body that a node stands for.
func bodyOf(n *yaml.Node) ([]byte, error) {
	switch scalar := resolved(n); {
	case scalar.Kind != yaml.ScalarNode:
		return toJSON(n)
	case scalar.ShortTag() == "!!null":
		return nil, nil
	default:
		return []byte(scalar.Value), nil
	}
}

func resolved(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}
