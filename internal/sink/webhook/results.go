package webhook

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"mnsrelay/internal/relay"
)

// messageResult is what an answer says of one message, which it names by id or by its place in
// the request, from 0. What has another type than it should have is read as far as it makes
// sense, so that it is about its message alone.
type messageResult struct {
	ID         json.RawMessage `json:"id"`
	Index      json.RawMessage `json:"index"`
	OK         json.RawMessage `json:"ok"`
	Error      json.RawMessage `json:"error"`
	Reject     json.RawMessage `json:"reject"`
	RetryAfter json.RawMessage `json:"retry_after"` // seconds
}

// resultReader reads the results in the answer to a request.
type resultReader struct {
	poster *poster
	header http.Header // of the request
	items  []*item

	places  map[string][]int // of items, by id
	results []*relay.Result  // nil: it has none yet
}

// errAnswer is why an answer cannot be read.
var errAnswer = errors.New(`answered 2xx with a body that cannot be read as it should be: nothing, some text, or {"results": [{"id": "...", "ok": true}]}, in UTF-8 and not compressed`)

// read reads an answer of 2xx: {"results": [...]}, of messageResult. Where it has none, all
// messages are delivered; where it has some, those that it does not name are tried again,
// and of several about one message the worst counts. What could hold results and cannot be
// read is an error.
func (r *resultReader) read(a *answer) ([]relay.Result, error) {
	body := bytes.TrimFunc(a.body.Bytes(), func(c rune) bool { return unicode.IsSpace(c) || c == '\ufeff' })
	results := make([]relay.Result, len(r.items))
	for i := range results {
		results[i].Outcome = relay.Delivered
	}
	switch {
	case len(body) == 0:
		return results, nil
	case a.encoding != "" && !strings.EqualFold(a.encoding, "identity"), body[0] == '[':
		return nil, errAnswer
	case body[0] != '{':
		return results, nil
	}
	found, err := r.object(json.NewDecoder(bytes.NewReader(body)))
	if err != nil || !found {
		return results, err
	}
	for i := range results {
		results[i] = r.poster.endpoint.failed(relay.Fail(reasonUnanswered, errors.New("the answer has results, and none for this message")))
		if r.results[i] != nil {
			results[i] = *r.results[i]
		}
	}
	return results, nil
}

// object reads the whole answer and tells whether there are results in it. What it allocates is
// bounded by the number of messages, and not by what a receiver puts into 64 KiB.
func (r *resultReader) object(d *json.Decoder) (found bool, err error) {
	_, _ = d.Token() // {
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return false, errAnswer
		}
		if name, _ := key.(string); !strings.EqualFold(name, "results") {
			if d.Decode(new(skipped)) != nil {
				return false, errAnswer
			}
			continue
		}
		if found {
			return false, errAnswer
		}
		found = true
		if err := r.list(d); err != nil {
			return false, err
		}
	}
	if end, err := d.Token(); err != nil || end != json.Delim('}') {
		return false, errAnswer
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return false, errAnswer
	}
	return found, nil
}

// skipped is a value that is of no interest.
type skipped struct{}

func (*skipped) UnmarshalJSON([]byte) error { return nil }

// list reads the results.
func (r *resultReader) list(d *json.Decoder) error {
	if begin, err := d.Token(); err != nil || begin != json.Delim('[') {
		return errAnswer
	}
	r.results = make([]*relay.Result, len(r.items))
	r.places = make(map[string][]int, len(r.items))
	for i, it := range r.items {
		r.places[it.message.ID] = append(r.places[it.message.ID], i)
	}
	for n := 0; d.More(); n++ {
		var one messageResult
		if n == 2*len(r.items) || d.Decode(&one) != nil {
			return errAnswer
		}
		for _, i := range r.of(&one) {
			result := r.result(&one)
			if r.results[i] == nil || severity(result) > severity(*r.results[i]) {
				r.results[i] = &result
			}
		}
	}
	if _, err := d.Token(); err != nil {
		return errAnswer
	}
	return nil
}

// severity orders results: the worst counts.
func severity(r relay.Result) int {
	return slices.Index([]relay.Outcome{relay.Delivered, relay.Retry, relay.Rejected}, r.Outcome)
}

// of gives the messages that a result is about. An id that is none of theirs may be the
// receiver's own.
func (r *resultReader) of(m *messageResult) []int {
	if places := r.places[textOf(m.ID)]; len(places) > 0 {
		return places
	}
	at, err := strconv.ParseFloat(textOf(m.Index), 64)
	if err != nil || at != math.Trunc(at) || at < 0 || at >= float64(len(r.items)) {
		return nil
	}
	return []int{int(at)}
}

func (r *resultReader) result(m *messageResult) relay.Result {
	reject, said := textOf(m.Reject) == "true", textOf(m.Error)
	if said == "false" {
		said = ""
	}
	if textOf(m.OK) == "true" && said == "" && !reject {
		return relay.Result{Outcome: relay.Delivered}
	}
	p := r.poster
	cause := fmt.Errorf("the receiver says: %s", oneLine(p.masked(said, r.header)))
	if reject {
		return p.rejected(relay.Fail(reasonReceiverRejected, cause))
	}
	result := p.endpoint.failed(relay.Fail(reasonReceiverFailed, cause))
	if seconds, err := strconv.ParseFloat(textOf(m.RetryAfter), 64); err == nil && seconds > 0 {
		result.RetryAfter = time.Duration(min(seconds, maxRetryAfter.Seconds()) * float64(time.Second))
	}
	return result
}

// textOf gives a string's text, and of another value its JSON; nothing for null.
func textOf(value json.RawMessage) string {
	var text string
	if json.Unmarshal(value, &text) != nil {
		return string(value)
	}
	return text
}

// How long, in bytes, a header's value or a part of it has to be for being hidden: shorter ones
// are found everywhere.
const (
	minMasked     = 4
	minMaskedPart = 8
)

// masked hides in a receiver's words what proves to it who we are, which it may repeat: by
// the headers of the request.
func (p *poster) masked(text string, h http.Header) string {
	var secrets []string
	for _, name := range slices.Concat(p.secret, []string{"Authorization", HeaderSignature}) {
		value := h.Get(name)
		secrets = append(secrets, value)
		for part := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == ' ' || r == ',' }) {
			if len(part) >= minMaskedPart {
				secrets = append(secrets, part)
			}
		}
		if encoded, is := strings.CutPrefix(value, "Basic "); is {
			if pair, err := base64.StdEncoding.DecodeString(encoded); err == nil {
				_, password, _ := strings.Cut(string(pair), ":")
				secrets = append(secrets, string(pair), password)
			}
		}
	}
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // a longer one may hold a shorter
	for _, secret := range secrets {
		if len(secret) >= minMasked {
			text = strings.ReplaceAll(text, secret, relay.Masked)
		}
	}
	return text
}

// maxReceiverError is how much of a receiver's error is shown, in bytes.
const maxReceiverError = 200

// oneLine makes of a receiver's error what a log line, and a terminal, can hold.
func oneLine(text string) string {
	text = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r): // control characters, and those that change the direction
			return -1
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxReceiverError {
		text = strings.ToValidUTF8(text[:maxReceiverError], "") + "..."
	}
	return text
}
