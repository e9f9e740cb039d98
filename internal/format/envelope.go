package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"mnsrelay/internal/relay"
)

// envelope is a message with all that is known of it. Exactly one of Body and BodyBase64
// is there, an empty body included; Body where the body is UTF-8 text, JSON or not. Dead
// is there for a dead letter only.
type envelope struct {
	ID         string            `json:"id"`
	Source     string            `json:"source"`
	Attempt    int               `json:"attempt"`
	EnqueuedAt string            `json:"enqueued_at"`
	Attributes map[string]string `json:"attributes"`
	Dead       *dead             `json:"dead,omitempty"`
	Body       *string           `json:"body,omitempty"`
	BodyBase64 []byte            `json:"body_base64,omitempty"`
}

// dead is why a message was dead-lettered.
type dead struct {
	Reason string `json:"reason"`
	Error  string `json:"error"`
	Sink   string `json:"sink"`
	First  string `json:"first"`
	Last   string `json:"last"`
}

// Envelopes writes messages as JSON, one a line. JSON escapes line breaks, so that a line
// is always one message.
func Envelopes(ms []relay.Message) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false) // these lines are read by people, too
	for i := range ms {
		if err := encoder.Encode(envelopeOf(&ms[i])); err != nil {
			return nil, fmt.Errorf("encode message %q: %w", ms[i].ID, err)
		}
	}
	return b.Bytes(), nil
}

func envelopeOf(m *relay.Message) envelope {
	e := envelope{
		ID:         m.ID,
		Source:     m.Source,
		Attempt:    m.Attempt,
		EnqueuedAt: m.EnqueuedAtText(),
		Attributes: m.Attributes,
	}
	if e.Attributes == nil {
		e.Attributes = map[string]string{}
	}
	if d := m.Dead; d != nil {
		e.Dead = &dead{
			Reason: d.Reason,
			Error:  d.Error,
			Sink:   d.Sink,
			First:  d.First.UTC().Format(relay.EnqueuedAtFormat),
			Last:   d.Last.UTC().Format(relay.EnqueuedAtFormat),
		}
	}
	if utf8.Valid(m.Body) {
		text := string(m.Body)
		e.Body = &text
	} else {
		e.BodyBase64 = m.Body
	}
	return e
}
