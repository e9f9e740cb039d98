package mns

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"mnsrelay/internal/relay"
)

// BodyEncoding says how bodies are encoded in the queue.
type BodyEncoding string

// The encodings. BodyAuto, which the empty one is too, takes a body for base64 only if
// it is canonical, padded base64 of text: UTF-8 without control characters other than
// tab and line ends. Alibaba's own producers send that.
const (
	BodyAuto   BodyEncoding = "auto"
	BodyBase64 BodyEncoding = "base64"
	BodyRaw    BodyEncoding = "raw"
)

// Attributes of a message that a topic has put into the queue.
const (
	AttributeTopic          = "topic"
	AttributeTopicOwner     = "topic_owner"
	AttributeSubscriber     = "subscriber" // the account that has subscribed
	AttributeSubscription   = "subscription"
	AttributeTopicMessageID = "topic_message_id"
	AttributeTag            = "tag"
	AttributePublishTime    = "publish_time" // as relay.EnqueuedAtFormat
)

// Decoder makes of a body in the queue what its sender meant. It is safe for
// concurrent use; it must not be copied after its first use.
type Decoder struct {
	Body BodyEncoding
	// Unwrap replaces the Notification that a topic has put into the queue, in XML or
	// JSON, by the message that it holds.
	Unwrap bool

	once sync.Once
	// The attributes of messages that have no others, shared by all.
	raw, base64 map[string]string
}

// errNotBase64 is what a body gets that Body promises to be.
var errNotBase64 = errors.New("the body is not base64, which body: base64 promises; write body: auto if some are not")

// Decode gives the message with its body decoded and its attributes set. An error is a
// relay.Failure with the reason decode: no later try will do better.
func (d *Decoder) Decode(m relay.Message) (relay.Message, error) {
	d.once.Do(func() {
		d.raw = map[string]string{relay.AttributeBody: relay.BodyRaw}
		d.base64 = map[string]string{relay.AttributeBody: relay.BodyBase64}
	})
	var attributes map[string]string
	if d.Unwrap {
		if n, ok := readNotification(m.Body); ok {
			m.Body, attributes = n.body, n.attributes()
		}
	}
	encoding, shared := relay.BodyRaw, d.raw
	switch d.Body {
	case BodyRaw:
	case BodyBase64:
		body, ok := decodeBase64(m.Body)
		if !ok {
			return m, relay.Fail("decode", errNotBase64)
		}
		m.Body, encoding, shared = body, relay.BodyBase64, d.base64
	default: // BodyAuto
		if body, ok := decodeText64(m.Body); ok {
			m.Body, encoding, shared = body, relay.BodyBase64, d.base64
		}
	}
	m.Attributes = shared
	if attributes != nil {
		attributes[relay.AttributeBody] = encoding
		m.Attributes = attributes
	}
	if m.Trace == nil {
		m.Trace = eventTrace(m.Body)
	}
	return m, nil
}

// decodeBase64 decodes a body that is meant to be base64: padded, with or without line
// ends.
func decodeBase64(body []byte) ([]byte, bool) {
	decoded := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
	n, err := base64.StdEncoding.Decode(decoded, body)
	return decoded[:n], err == nil
}

// decodeText64 decodes a body that cannot be anything but base64 of text.
func decodeText64(body []byte) ([]byte, bool) {
	// Most that is not base64 shows it at once and costs no memory. A line end is not
	// canonical, and the decoder would pass over it.
	const enough = 64
	if len(body) == 0 || len(body)%4 != 0 || !isAlphabet64(body[:min(len(body), enough)]) ||
		bytes.IndexByte(body, '\r') >= 0 || bytes.IndexByte(body, '\n') >= 0 {
		return nil, false
	}
	decoded := make([]byte, base64.StdEncoding.DecodedLen(len(body)))
	n, err := base64.StdEncoding.Strict().Decode(decoded, body)
	if err != nil || !isPlain(decoded[:n]) {
		return nil, false
	}
	return decoded[:n], true
}

func isAlphabet64(b []byte) bool {
	for _, c := range b {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '+', c == '/', c == '=':
		default:
			return false
		}
	}
	return true
}

// isPlain tells text without control characters other than tab and line ends.
func isPlain(b []byte) bool {
	const each, top = 0x0101010101010101, 0x8080808080808080
	for i := 0; i < len(b); {
		if len(b)-i >= 8 {
			// Eight bytes of ASCII at a time: none has the top bit, or is less than a space or
			// the last of all, which borrows or carries into that bit.
			if w := binary.LittleEndian.Uint64(b[i:]); (w|(w-' '*each)|(w+each))&top == 0 {
				i += 8
				continue
			}
		}
		c := b[i]
		if c < utf8.RuneSelf {
			if c < ' ' && c != '\t' && c != '\n' && c != '\r' || c == 0x7f {
				return false
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 || r >= 0x80 && r < 0xa0 {
			return false
		}
		i += n
	}
	return true
}

// notification is the wrapping of a topic's message (MNS: push to a queue, XML and JSON
// formats).
type notification struct {
	owner, topic, subscriber, subscription, id, published, tag string

	body []byte
}

func (n *notification) attributes() map[string]string {
	attributes := make(map[string]string, 8)
	for name, value := range map[string]string{
		AttributeTopic: n.topic, AttributeTopicOwner: n.owner, AttributeSubscriber: n.subscriber, AttributeSubscription: n.subscription,
		AttributeTopicMessageID: n.id, AttributeTag: n.tag, AttributePublishTime: publishTime(n.published),
	} {
		if value != "" {
			attributes[name] = value
		}
	}
	return attributes
}

// publishTime writes milliseconds since 1970 as other times are written.
func publishTime(ms string) string {
	n, err := strconv.ParseInt(ms, 10, 64)
	if err != nil || n <= 0 {
		return ms
	}
	return time.UnixMilli(n).UTC().Format(relay.EnqueuedAtFormat)
}

// readNotification tells a Notification from anything else by its parts, all of which
// must be there: a body of the user's own is never taken for one by its look alone.
func readNotification(body []byte) (notification, bool) {
	text := bytes.TrimSpace(body)
	if len(text) == 0 || !bytes.Contains(text, []byte("TopicOwner")) {
		return notification{}, false
	}
	var (
		n  notification
		ok bool
	)
	switch text[0] {
	case '<':
		ok = n.readXML(text)
	case '{':
		ok = n.readJSON(text)
	}
	return n, ok && n.owner != "" && n.topic != "" && n.id != "" && n.published != ""
}

func (n *notification) readXML(text []byte) bool {
	var (
		s      scanner
		fields [8]field
	)
	names := []string{"Message", "TopicOwner", "TopicName", "Subscriber", "SubscriptionName", "MessageId", "PublishTime", "MessageTag"}
	if s.one(text, "Notification", names, fields[:]) != nil {
		return false
	}
	n.body = fields[0].value
	for i, value := range []*string{&n.owner, &n.topic, &n.subscriber, &n.subscription, &n.id, &n.published, &n.tag} {
		*value = strings.TrimSpace(string(fields[1+i].value))
	}
	return true
}

func (n *notification) readJSON(text []byte) bool {
	var parts struct {
		Message          *string
		TopicOwner       string
		TopicName        string
		Subscriber       string
		SubscriptionName string
		MessageID        string `json:"MessageId"`
		PublishTime      json.RawMessage
		MessageTag       string
	}
	if json.Unmarshal(text, &parts) != nil || parts.Message == nil {
		return false
	}
	*n = notification{
		owner: parts.TopicOwner, topic: parts.TopicName, subscriber: parts.Subscriber, subscription: parts.SubscriptionName,
		id: parts.MessageID, published: strings.Trim(string(parts.PublishTime), `"`), tag: parts.MessageTag,
		body: []byte(*parts.Message),
	}
	return true
}
