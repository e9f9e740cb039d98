package expr

import (
	"sync"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"mnsrelay/internal/document"
	"mnsrelay/internal/relay"
)

// Input is a message as expressions see it. It does nothing until one asks, and reads
// the body once. It is safe for concurrent use; make one for each message and give it to
// all conditions and templates.
type Input struct {
	message *relay.Message
	queue   string

	textOnce sync.Once
	text     string

	bodyOnce sync.Once
	body     *document.Document
	value    ref.Val // of the whole body
	bodyErr  error
}

// Of gives the Input of a message, the same for all copies of one that is on its way.
func Of(m *relay.Message) *Input {
	in, is := m.Memo(func() any { return NewInput(m, m.Queue) }).(*Input)
	if !is {
		panic("expr: the memo of a message is an Input") // it is nobody else's to keep something in
	}
	return in
}

// NewInput wraps a message of the named queue. It keeps m and does not change it.
func NewInput(m *relay.Message, queue string) *Input {
	return &Input{message: m, queue: queue}
}

// asText gives the body as valid UTF-8. Each byte that is none becomes U+FFFD, as
// encoding/json has it.
func (in *Input) asText() string {
	in.textOnce.Do(func() {
		in.text = string(in.message.Body)
		if !utf8.ValidString(in.text) {
			in.text = string([]rune(in.text))
		}
	})
	return in.text
}

// document gives the body as JSON.
func (in *Input) document() (*document.Document, error) {
	in.bodyOnce.Do(func() {
		body := in.message.Body
		if !utf8.Valid(body) {
			body = []byte(in.asText())
		}
		if in.body, in.bodyErr = document.Parse(body); in.bodyErr == nil {
			in.value = valueOf(in.body, 0)
		}
	})
	return in.body, in.bodyErr
}

// activation is an Input as cel-go asks for it.
type activation Input

var _ cel.Activation = (*activation)(nil)

// Parent is none.
func (a *activation) Parent() cel.Activation { return nil }

// ResolveName gives a variable.
func (a *activation) ResolveName(name string) (any, bool) {
	in := (*Input)(a)
	switch name {
	case "id":
		return types.String(in.message.ID), true
	case "source":
		return types.String(in.message.Source), true
	case "queue":
		return types.String(in.queue), true
	case "text":
		return types.String(in.asText()), true
	case "body":
		if _, err := in.document(); err != nil {
			// A new one for each evaluation, for cel-go writes into it.
			return types.WrapErr(err), true
		}
		return in.value, true
	case "attempt":
		return types.Int(in.message.Attempt), true
	case "enqueued_at":
		return types.Timestamp{Time: in.message.EnqueuedAt.UTC()}, true
	case "attributes":
		return in.message.Attributes, true
	}
	return nil, false
}
