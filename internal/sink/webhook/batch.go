package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"math/bits"
	"net/http"
	"time"

	"mnsrelay/internal/relay"
)

// postBatch sends messages, gives each its result as soon as it is known, and gives what the
// receiver said of its load. A request that is refused for good may be so for one message,
// and each half of it is sent; that ends with the first request that is not answered for
// good, with the patience, or when the circuit lets nothing through.
func (p *poster) postBatch(ctx context.Context, items []*item) (said load) {
	e := p.endpoint
	fit := make([]*item, 0, len(items))
	for _, it := range items {
		if it.left() {
			continue
		}
		it.begun.Store(true)
		var err error
		if it.json, err = p.format.Element(&it.message); err != nil {
			it.give(p.rejected(err))
			continue
		}
		fit = append(fit, it)
	}
	end := time.Now().Add(p.patience(len(fit)))
	parts := [][]*item{fit} // the last is the next
	for first := true; len(parts) > 0; first = false {
		part := parts[len(parts)-1]
		parts = parts[:len(parts)-1]
		if part = waitedFor(part); len(part) == 0 {
			continue
		}
		var r relay.Result
		var results []relay.Result
		switch {
		case !first && time.Now().After(end):
			r = e.failed(relay.Fail(reasonTimeout, errors.New("the receiver refused a batch, and there was no time to find out for which message")))
		case !first && e.pace(ctx) != nil:
			r = e.failed(unsent(context.Cause(ctx)))
		default:
			r = e.breaker.Do(ctx, func() (r relay.Result) {
				r, results = p.postOnce(ctx, part)
				return r
			})
		}
		said = max(said, loadOf(r))
		switch {
		case r.Outcome == relay.Delivered:
			for i, it := range part {
				it.give(results[i])
			}
		case r.Outcome == relay.Retry:
			setAll(part, r)
			for _, part := range parts {
				setAll(part, r)
			}
			return said
		case relay.ReasonOf(r.Err) == reasonRefused && len(part) > 1:
			half := len(part) / 2
			parts = append(parts, part[half:], part[:half])
		default:
			setAll(part, r)
		}
	}
	return said
}

// patience is how long a batch is taken apart, but for its last request. To find one message of
// n takes 2 log n + 1 requests: this is enough where they take half of the timeout each, and
// short enough that the messages, which all the while are leased, come back before long.
func (p *poster) patience(n int) time.Duration {
	return time.Duration(bits.Len(uint(n))+1) * p.timeout
}

// waitedFor gives those whose results somebody waits for.
func waitedFor(items []*item) []*item {
	kept := make([]*item, 0, len(items))
	for _, it := range items {
		if !it.left() {
			kept = append(kept, it)
		}
	}
	return kept
}

func setAll(items []*item, r relay.Result) {
	for _, it := range items {
		it.give(r)
	}
}

// postOnce sends messages in one request. Where that is delivered, results are those of each.
func (p *poster) postOnce(ctx context.Context, items []*item) (r relay.Result, results []relay.Result) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, errTimeout)
	defer cancel()
	var seen attempt
	request, body := p.newBatchRequest(seen.watch(ctx), items)
	p.setBody(request, body)
	// Of its full size at once: growing would take several times as much.
	a := answer{body: bytes.NewBuffer(make([]byte, 0, maxAnswer+bytes.MinRead))}
	if r = p.send(request, &seen, &a); r.Outcome != relay.Delivered {
		return r, nil
	}
	reader := resultReader{poster: p, header: request.Header, items: items}
	results, err := reader.read(&a)
	if err != nil {
		return p.endpoint.failed(relay.Fail(reasonAnswerInvalid, err)), nil
	}
	return r, results
}

// newBatchRequest is newRequest of several messages.
func (p *poster) newBatchRequest(ctx context.Context, items []*item) (*http.Request, []byte) {
	request := p.emptyRequest(ctx)
	parts := make([]json.RawMessage, len(items))
	for i, it := range items {
		parts[i] = it.json
	}
	payload := p.format.Batch(parts)
	h := request.Header
	contentType, _ := payload.ContentTypeOr(h.Get("Content-Type")) // fails for attributes only, and here are none
	h.Set("Content-Type", contentType)
	h.Set(relay.HeaderSource, headerSafe(items[0].message.Source)) // which all have in common
	if len(items) == 1 {
		describe(h, &items[0].message)
	}
	p.prove(h, batchID(items), payload.Body)
	return request, payload.Body
}

// batchID is the id of a request: the same for the same messages.
func batchID(items []*item) string {
	hash := sha256.New()
	for _, it := range items {
		_, _ = io.WriteString(hash, it.message.ID+"\n")
	}
	return "batch_" + base64.RawURLEncoding.EncodeToString(hash.Sum(nil))
}
