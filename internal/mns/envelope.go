package mns

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"mnsrelay/internal/relay"
)

// MaxBody is what MNS takes as one body, and as all bodies of one request, in bytes
// (MNS: SendMessage, BatchSendMessage).
const MaxBody = 64 << 10

// IsText tells whether a message can carry body as it is: MNS speaks XML, which has no
// place for most control characters nor for what is not UTF-8.
func IsText(body []byte) bool { return isText(body) }

// Encode gives the body of m as it goes into a queue: the opposite of Decoder.Decode.
//
// BodyAuto writes a body as it was in the queue that it came from: base64 again if it
// was base64 there, or else as it is, so that whoever reads that queue can read this
// one. Where XML cannot carry a body, BodyAuto makes base64 of it and BodyRaw gives an
// error.
func (e BodyEncoding) Encode(m *relay.Message) ([]byte, error) {
	text := isText(m.Body)
	if e == BodyRaw && !text {
		return nil, errNotText
	}
	if e == BodyRaw || e != BodyBase64 && text && m.BodyEncoding() == relay.BodyRaw {
		return m.Body, nil
	}
	return base64.StdEncoding.AppendEncode(nil, m.Body), nil
}

// EnvelopeVersion marks an Envelope of the present format.
const EnvelopeVersion = envelopeMark + "1"

// envelopeMark begins the version of every envelope there will ever be.
const envelopeMark = "mnsrelay/"

// Envelope is a message with what is known of it, as JSON: a message of MNS is a body
// and nothing else. The format is stable: fields may be added to it, and what changes
// their meaning has another version.
type Envelope struct {
	// Version is EnvelopeVersion.
	Version string `json:"envelope"`
	// ID, Source and Queue are the message's: an id of the queue it was in, which is
	// not the id that this queue gives to the envelope.
	ID     string `json:"id"`
	Source string `json:"source"`
	Queue  string `json:"queue,omitempty"`
	// Body is the message's, byte for byte: of a dead letter as it was in its queue, of
	// any other as sinks get it, decoded.
	Body []byte `json:"body_base64"`
	// Attributes are relay.Message.Attributes.
	Attributes map[string]string `json:"attributes,omitempty"`
	// Attempts is how often the message was received.
	Attempts int `json:"attempts"`
	// EnqueuedAt is when its queue accepted it. Times are relay.EnqueuedAtFormat.
	EnqueuedAt string `json:"enqueued_at,omitempty"`
	// Reason, Error, Sink, First and Last are relay.DeadLetter; absent where the
	// message is none. Of a long error there are the first 1024 bytes.
	Reason string `json:"reason,omitempty"`
	Error  string `json:"error,omitempty"`
	Sink   string `json:"sink,omitempty"`
	First  string `json:"first,omitempty"`
	Last   string `json:"last,omitempty"`
}

// maxEnvelopeError bounds Envelope.Error, in bytes: the room is for the body.
const maxEnvelopeError = 1024

// Wrap makes the envelope of a message.
func Wrap(m *relay.Message) Envelope {
	e := Envelope{
		Version: EnvelopeVersion,
		ID:      m.ID, Source: m.Source, Queue: m.Queue,
		Body:       append([]byte{}, m.Body...), // nil would be null
		Attributes: m.Attributes,
		Attempts:   m.Attempt,
		EnqueuedAt: timeText(m.EnqueuedAt),
	}
	if d := m.Dead; d != nil {
		e.Reason, e.Sink = d.Reason, d.Sink
		e.Error = strings.ToValidUTF8(d.Error[:min(len(d.Error), maxEnvelopeError)], "")
		e.First, e.Last = timeText(d.First), timeText(d.Last)
	}
	return e
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(relay.EnqueuedAtFormat)
}

// Text is the envelope as it goes into a queue: one line of JSON that XML can carry.
func (e Envelope) Text() ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		return nil, fmt.Errorf("write envelope: %w", err)
	}
	text := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	// All that JSON leaves as it is and XML cannot carry.
	text = bytes.ReplaceAll(text, []byte("\ufffe"), []byte(`\ufffe`))
	return bytes.ReplaceAll(text, []byte("\uffff"), []byte(`\uffff`)), nil
}

// Original gives the message's body as it was in its own queue. Where the message is no
// dead letter, the notification of a topic is not put around it again.
func (e Envelope) Original() ([]byte, error) {
	return BodyAuto.Encode(&relay.Message{Body: e.Body, Attributes: e.Attributes})
}

// ReadEnvelope reads a body from a queue. It is false for any message that is no
// envelope. An envelope that cannot be read, or one of a later version, is an error.
func ReadEnvelope(body []byte) (e Envelope, is bool, err error) {
	if !bytes.Contains(body, []byte(`"`+envelopeMark)) || !bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		return e, false, nil
	}
	var mark struct {
		Version string `json:"envelope"`
	}
	if json.Unmarshal(body, &mark) != nil || !strings.HasPrefix(mark.Version, envelopeMark) {
		return e, false, nil //nolint:nilerr // no JSON, or not of this form: somebody else's message
	}
	if mark.Version != EnvelopeVersion {
		return e, true, fmt.Errorf("read envelope: its version is %q, and this program knows %q: use a newer one", clean(mark.Version), EnvelopeVersion)
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, true, fmt.Errorf("read envelope: %w", err)
	}
	if e.Body == nil {
		return e, true, errors.New("read envelope: it has no body_base64")
	}
	return e, true, nil
}
