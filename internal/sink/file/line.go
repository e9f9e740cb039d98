package file

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"

	"mnsrelay/internal/relay"
)

// line is what one message becomes. Exactly one of Body and BodyBase64 is there, an
// empty body included; Body where the body is UTF-8 text, JSON or not.
type line struct {
	ID         string            `json:"id"`
	Source     string            `json:"source"`
	Attempt    int               `json:"attempt"`
	EnqueuedAt string            `json:"enqueued_at"`
	Attributes map[string]string `json:"attributes"`
	Body       *string           `json:"body,omitempty"`
	BodyBase64 []byte            `json:"body_base64,omitempty"`
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
