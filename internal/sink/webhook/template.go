package webhook

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

// What a message may make of a request, in bytes. Servers refuse more: some by closing
// the connection, which would look like an outage.
const (
	maxURL     = 8 << 10
	maxHeaders = 16 << 10 // the values of templates, together
)

// header is one whose value each message decides.
type header struct {
	name  string
	event bool // an extension of an event
	value *expr.Template
}

// fill works out what of a request depends on its message. Its error has the reason
// expr.Reason or reasonInvalid, and holds nothing of the message.
func (p *poster) fill(request *http.Request, m *relay.Message) error {
	if p.endpoint.template == nil && len(p.headers) == 0 {
		return nil
	}
	in := expr.Of(m)
	if p.endpoint.template != nil {
		u, err := renderURL(p.endpoint.template, in)
		if err != nil {
			return fmt.Errorf("work out the URL: %w", err)
		}
		request.URL = u
	}
	size := 0
	for _, h := range p.headers {
		value, err := h.value.Render(in)
		if err != nil {
			return fmt.Errorf("work out the header %s: %w", h.name, err)
		}
		if !httpguts.ValidHeaderFieldValue(value) {
			return relay.Fail(reasonInvalid, fmt.Errorf("the header %s gets a line break or another control character", h.name))
		}
		if size += len(value); size > maxHeaders {
			return relay.Fail(reasonInvalid, fmt.Errorf("the headers get longer than %d bytes", maxHeaders))
		}
		request.Header.Set(h.name, headerValue(value, h.event))
	}
	return nil
}

// renderURL gives the URL for a message. All that a value can do is to fill its place in
// the path or the query: the host is literal (Config.parseURL), what has a meaning in a
// URL is encoded, and a segment . or .., which encoding does not help against, is refused.
func renderURL(t *expr.Template, in *expr.Input) (*url.URL, error) {
	text, err := t.RenderEscaped(in, func(before []byte, value string) string {
		if bytes.IndexByte(before, '?') >= 0 { // literal: in values it is encoded
			return url.QueryEscape(value)
		}
		return url.PathEscape(value)
	})
	if err != nil {
		return nil, err
	}
	if len(text) > maxURL {
		return nil, relay.Fail(reasonInvalid, fmt.Errorf("it gets %d bytes long, and %d is the limit", len(text), maxURL))
	}
	u, err := url.Parse(text)
	if err != nil { // its text holds the URL
		return nil, relay.Fail(reasonInvalid, errors.New("it gets one that cannot be read"))
	}
	if hasDotSegment(u) {
		return nil, relay.Fail(reasonInvalid, errors.New("its path gets a segment . or .., which would lead elsewhere"))
	}
	u.User = nil // sent as a header
	return u, nil
}

// hasDotSegment tells whether the path has a segment that a server takes for this or the
// one above, written out or encoded (WHATWG URL: "single-dot URL path segment").
func hasDotSegment(u *url.URL) bool {
	for segment := range strings.FieldsFuncSeq(u.Path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if segment == "." || segment == ".." {
			return true
		}
	}
	return false
}
