package webhook

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"

	"mnsrelay/internal/relay"
)

// describing is how many headers each message has: its id, the type of its body, and what
// describe says of one that is no dead letter.
const describing = 6

// usualHeaders gives how many headers a request has, but for a dead letter's, a trace's and an
// event's. A map that is made for eight takes half of the memory of one that is made for nine.
func (p *poster) usualHeaders() int {
	n := len(p.request.Header) + len(p.headers) + describing
	if p.endpoint.auth != nil {
		n++
	}
	if p.endpoint.signer != nil {
		n += 2
	}
	if p.gzip {
		n++
	}
	return n
}

// emptyRequest gives what all requests have in common, with headers that may be added to.
func (p *poster) emptyRequest(ctx context.Context) *http.Request {
	request := p.request.WithContext(ctx) // and not Clone: what is shared is only read
	request.Header = make(http.Header, p.room)
	maps.Copy(request.Header, p.request.Header)
	return request
}

// newRequest makes the request of a message, all but its body, which is as it is signed.
func (p *poster) newRequest(ctx context.Context, m *relay.Message) (request *http.Request, body []byte, err error) {
	request = p.emptyRequest(ctx)
	h := request.Header
	if err := p.fill(request, m); err != nil {
		return nil, nil, err
	}
	payload, err := p.format.Format(m)
	if err != nil {
		return nil, nil, err
	}
	contentType, err := payload.ContentTypeOr(h.Get("Content-Type"))
	if err != nil {
		return nil, nil, err
	}
	h.Set("Content-Type", contentType)
	for _, a := range payload.Attributes {
		h.Set(eventPrefix+a.Name, eventSafe(a.Value))
	}
	describe(h, m)
	p.prove(h, idOf(m), payload.Body)
	return request, payload.Body, nil
}

// describe sets the headers that say of a message what its body does not.
func describe(h http.Header, m *relay.Message) {
	for name, value := range m.Headers {
		switch name {
		case relay.HeaderDeadError: // words in printable ASCII, for people
		case relay.HeaderTraceParent, relay.HeaderTraceState: // fit for a header as they are
			if h.Get(name) != "" {
				continue // the configuration's own
			}
		default:
			value = headerSafe(value)
		}
		h.Set(name, value)
	}
}

// prove sets the id of a request and what proves where it comes from.
func (p *poster) prove(h http.Header, id string, body []byte) {
	h.Set(HeaderID, id)
	if p.endpoint.auth != nil {
		h.Set("Authorization", p.endpoint.auth.current())
	}
	if p.endpoint.signer != nil {
		p.endpoint.signer.sign(h, id, body, time.Now())
	}
	if p.gzip && len(body) > 0 {
		h.Set("Content-Encoding", "gzip")
	}
}

// setBody gives a request its body, compressed where that is wanted.
func (p *poster) setBody(request *http.Request, body []byte) {
	request.Body = http.NoBody
	if len(body) == 0 {
		return
	}
	if p.gzip {
		body = compress(body)
	}
	request.ContentLength = int64(len(body))
	// For requests that are sent again on another connection.
	request.GetBody = func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(body)), nil
	}
	request.Body, _ = request.GetBody()
}

// compress gives the body as gzip.
func compress(body []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(body) // into memory
	_ = w.Close()
	return b.Bytes()
}

// idOf is the message's id as a header has it. Standard Webhooks signs it with a dot after
// it, so it has none itself.
func idOf(m *relay.Message) string {
	return strings.ReplaceAll(headerSafe(m.ID), ".", "%2E")
}

// eventPrefix begins the headers that hold an event's attributes in binary mode.
const eventPrefix = "ce-"

// eventSafe makes an attribute of an event fit for a header (CloudEvents HTTP protocol
// binding 1.0.2, 3.1.3.2).
func eventSafe(value string) string {
	return strings.ReplaceAll(headerSafe(value), `"`, "%22")
}

// headerValue gives the value of a header of the configuration, which may hold an extension of
// an event.
func headerValue(value string, event bool) string {
	if event {
		return eventSafe(value)
	}
	return value
}

// headerSafe makes a text fit for a header, so that the same text always gives the
// same value and different texts different ones: bytes that are not visible ASCII,
// and %, become %XX.
func headerSafe(s string) string {
	const hex = "0123456789ABCDEF"
	safe := func(c byte) bool { return c > ' ' && c < 0x7f && c != '%' }
	first := 0
	for first < len(s) && safe(s[first]) {
		first++
	}
	if first == len(s) {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:first])
	for i := first; i < len(s); i++ {
		c := s[i]
		if safe(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}
