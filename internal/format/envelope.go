package file

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"mnsrelay/internal/relay"
)

// line is what one message becomes. Exactly one of Body and BodyBase64 is there, an
// empty body included; Body where the body is UTF-8 text, JSON or not. Dead is there
// for a dead letter only.
type line struct {
	ID         string            `json:"id"`
	Source     string            `json:"source"`
	Attempt    int               `json:"attempt"`
	EnqueuedAt string            `json:"enqueued_at"`
	Attributes map[string]string `json:"attributes"`
	Dead       *dead             `json:"dead,omitempty"`
	Body       *string           `json:"body,omitempty"`
	BodyBase64 []byte            `json:"body_base64,omitempty"`
}

// dead is why a dead letter was given up.
type dead struct {
	Reason string `json:"reason"`
	Error  string `json:"error"`
	Sink   string `json:"sink"`
	First  string `json:"first"`
	Last   string `json:"last"`
}

// encode writes messages as JSON, one a line. JSON escapes line breaks, so that a
// line is always one message.
func encode(ms []relay.Message) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false) // these lines are read by people, too
	for i := range ms {
		m := &ms[i]
		l := line{
			ID:         m.ID,
			Source:     m.Source,
			Attempt:    m.Attempt,
			EnqueuedAt: m.EnqueuedAtText(),
			Attributes: m.Attributes,
		}
		if l.Attributes == nil {
			l.Attributes = map[string]string{}
		}
		if d := m.Dead; d != nil {
			l.Dead = &dead{
				Reason: d.Reason,
				Error:  d.Error,
				Sink:   d.Sink,
				First:  d.First.UTC().Format(relay.EnqueuedAtFormat),
				Last:   d.Last.UTC().Format(relay.EnqueuedAtFormat),
			}
		}
		if utf8.Valid(m.Body) {
			text := string(m.Body)
			l.Body = &text
		} else {
			l.BodyBase64 = m.Body
		}
		if err := encoder.Encode(l); err != nil {
			return nil, fmt.Errorf("encode message %q: %w", m.ID, err)
		}
	}
	return b.Bytes(), nil
}
