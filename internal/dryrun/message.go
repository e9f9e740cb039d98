package dryrun

import (
	"encoding/base64"
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
}

// ReadMessage reads one message.
func ReadMessage(data []byte) (*Message, error) {
	m := new(Message)
	if err := yaml.Load(data, m, yaml.WithKnownFields()); err != nil {
		return nil, fmt.Errorf("%s; the keys of a message are source, id, body, body_base64, raw, attributes, attempt and enqueued_at", problem(err))
	}
	return m, nil
}

// problem is what a YAML error says, in one line and without the library's name.
func problem(err error) string {
	text := unknownKey.ReplaceAllString(err.Error(), "there is no key $1")
	text = strings.TrimPrefix(strings.TrimPrefix(text, "yaml: "), "construct errors: ")
	return strings.Join(strings.Fields(text), " ")
}

// unknownKey is how the library says that a struct has no such field.
var unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)

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
	if resolved(n).Kind == yaml.ScalarNode {
		return []byte(resolved(n).Value), nil
	}
	return toJSON(n)
}

func resolved(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}
