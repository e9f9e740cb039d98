package webhook

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"mnsrelay/internal/relay"
)

// gatherer brings the messages of several calls of Deliver into requests. A message waits
// for others for the linger, or until the batch is full.
//
// What keeps a receiver from taking a batch may be one of its messages. It is found out by
// halves where the receiver refuses the batch for good (4xx), and by time where it fails:
// with each redelivery a message shares its request with a quarter as many, so that it is
// alone soon, and the others have arrived.
type gatherer struct {
	Batch
	sink *Sink

	mu   sync.Mutex
	open *batch // which still takes messages; nil: the next message opens one
}

// batch is what becomes one request.
type batch struct {
	items []item
	size  int // of the bodies together
	limit int // the least that one of its messages allows
	timer *time.Timer
	// calls counts those of Deliver that wait for it. The last that leaves calls abandon.
	calls   int
	abandon context.CancelCauseFunc
	// send is called once, unless the batch is abandoned before; sent is closed when all
	// results are known.
	send func()
	sent chan struct{}
}

// item is a message of a batch.
type item struct {
	message relay.Message
	// ended is closed when nobody waits for the result.
	ended <-chan struct{}
	give  func(r relay.Result)
}

// deliver puts messages into batches and waits for these.
func (g *gatherer) deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	answers := relay.NewAnswers(len(ms), done)
	for _, b := range g.join(ctx, ms, answers) {
		select {
		case <-b.sent:
		case <-ctx.Done():
			g.leave(b)
		}
	}
	answers.Finish(g.sink.endpoint.failed(relay.Fail(reasonStopped, context.Cause(ctx))))
}

// join gives the batches that the messages are in.
func (g *gatherer) join(ctx context.Context, ms []relay.Message, answers *relay.Answers) (joined []*batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range ms {
		m := &ms[i]
		limit := g.limitOf(m)
		if b := g.open; b != nil && (len(b.items) >= limit || b.size+len(m.Body) > int(g.MaxBytes)) {
			g.close()
		}
		if g.open == nil {
			g.begin(ctx)
		}
		b := g.open
		b.items = append(b.items, item{message: *m, ended: ctx.Done(), give: func(r relay.Result) { answers.Give(i, r) }})
		b.size += len(m.Body)
		b.limit = min(b.limit, limit)
		if len(joined) == 0 || joined[len(joined)-1] != b {
			joined = append(joined, b)
			b.calls++
		}
		if len(b.items) >= b.limit {
			g.close()
		}
	}
	if g.Linger == 0 && g.open != nil {
		g.close()
	}
	return joined
}

// limitOf is how many messages may be in a batch with m. A dead letter goes alone: its
// reason is in headers.
func (g *gatherer) limitOf(m *relay.Message) int {
	if m.Dead != nil {
		return 1
	}
	return max(1, g.MaxMessages>>min(2*max(m.Attempt-1, 0), 30))
}

// begin opens a batch; mu is held. Its request is none of the calls' alone: it ends when
// none of them waits any more, and not with ctx.
func (g *gatherer) begin(ctx context.Context) {
	ctx, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	b := &batch{limit: g.MaxMessages, abandon: abandon, sent: make(chan struct{})}
	b.send = func() {
		defer close(b.sent)
		defer abandon(nil)
		g.send(ctx, b.items)
	}
	b.timer = time.AfterFunc(g.Linger, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.open == b {
			g.close()
		}
	})
	g.open = b
}

// close sends the open batch; mu is held.
func (g *gatherer) close() {
	b := g.open
	g.open = nil
	b.timer.Stop()
	go b.send()
}

// leave ends the waiting of one call for a batch. The last one ends the batch.
func (g *gatherer) leave(b *batch) {
	g.mu.Lock()
	b.calls--
	last := b.calls == 0
	if last && g.open == b {
		g.open = nil
		b.timer.Stop()
		close(b.sent)
	}
	g.mu.Unlock()
	if last {
		b.abandon(errStopped)
		<-b.sent
	}
}

// send sends messages in one request, or in several where the receiver refuses that.
func (g *gatherer) send(ctx context.Context, items []item) {
	e, p := g.sink.endpoint, g.sink.poster
	if err := e.acquire(ctx); err != nil {
		for _, it := range items {
			it.give(e.failed(relay.Fail(reasonStopped, err)))
		}
		return
	}
	began := time.Now()
	var es []*element
	for i := range items {
		if it := &items[i]; !it.left() {
			es = append(es, &element{item: it})
		}
	}
	if len(es) == 0 {
		e.limit.release(began, loadSame)
		return
	}
	posted := false
	r := e.breaker.Do(ctx, func() relay.Result {
		posted = true
		p.postBatch(ctx, es)
		return together(es)
	})
	said := loadSame
	for _, el := range es {
		if !posted {
			el.result = r
		}
		said = max(said, loadOf(el.result))
	}
	e.limit.release(began, said)
	for _, el := range es {
		el.give(el.result)
	}
}

// left tells whether nobody waits for the result, so that somebody else may have the message.
func (it *item) left() bool {
	select {
	case <-it.ended:
		return true
	default:
		return false
	}
}

// together is what a batch says of the endpoint: that it works, where it has taken a message.
func together(es []*element) (r relay.Result) {
	for i, el := range es {
		if i == 0 || el.result.Outcome == relay.Delivered || el.result.Outcome == relay.Retry && r.Outcome == relay.Rejected {
			r = el.result
		}
		if r.Outcome == relay.Delivered {
			break
		}
	}
	return r
}

// element is a message in the body of a request.
type element struct {
	*item
	json   json.RawMessage
	result relay.Result
}

// postBatch sends messages and fills in their results.
func (p *poster) postBatch(ctx context.Context, es []*element) {
	fit := make([]*element, 0, len(es))
	for _, el := range es {
		var err error
		if el.json, err = p.format.Element(&el.message); err != nil {
			el.result = p.rejected(err)
			continue
		}
		fit = append(fit, el)
	}
	if len(fit) > 0 {
		p.postElements(ctx, fit)
	}
}

// postElements sends what is JSON already. Where the receiver refuses it for good, it may
// be for one message, and each half is sent; it stops when the receiver does not answer
// for good. The result is that of the last request.
func (p *poster) postElements(ctx context.Context, es []*element) relay.Result {
	r, answer := p.postOnce(ctx, es)
	switch {
	case r.Outcome == relay.Delivered:
		p.readAnswer(answer, es)
		return r
	case relay.ReasonOf(r.Err) == reasonRefused && len(es) > 1:
		half := len(es) / 2
		for _, part := range [][]*element{es[:half], es[half:]} {
			if r.Outcome == relay.Retry {
				setAll(part, r)
				continue
			}
			if err := p.endpoint.rate.Wait(ctx); err != nil {
				r = p.endpoint.failed(relay.Fail(reasonStopped, err))
				setAll(part, r)
				continue
			}
			r = p.postElements(ctx, part)
		}
		return r
	}
	setAll(es, r)
	return r
}

func setAll(es []*element, r relay.Result) {
	for _, el := range es {
		el.result = r
	}
}

func (p *poster) postOnce(ctx context.Context, es []*element) (relay.Result, []byte) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, errTimeout)
	defer cancel()
	var seen attempt
	request, body := p.newBatchRequest(seen.watch(ctx), es)
	p.setBody(request, body)
	// Of its full size at once: growing would take several times as much.
	answer := bytes.NewBuffer(make([]byte, 0, maxAnswer+bytes.MinRead))
	r := p.send(request, &seen, answer)
	return r, answer.Bytes()
}

// newBatchRequest is newRequest of several messages.
func (p *poster) newBatchRequest(ctx context.Context, es []*element) (*http.Request, []byte) {
	request := p.emptyRequest(ctx)
	parts := make([]json.RawMessage, len(es))
	for i, el := range es {
		parts[i] = el.json
	}
	payload := p.format.Batch(parts)
	h := request.Header
	contentType, _ := payload.ContentTypeOr(h.Get("Content-Type")) // fails for attributes only, and here are none
	h.Set("Content-Type", contentType)
	h.Set(relay.HeaderSource, headerSafe(es[0].message.Source)) // which all have in common
	if len(es) == 1 {
		describe(h, &es[0].message)
	}
	p.prove(h, batchID(es), payload.Body)
	return request, payload.Body
}

// batchID is the id of a request: the same for the same messages.
func batchID(es []*element) string {
	hash := sha256.New()
	for _, el := range es {
		_, _ = io.WriteString(hash, el.message.ID+"\n")
	}
	return "batch_" + base64.RawURLEncoding.EncodeToString(hash.Sum(nil))
}

// said is what an answer says of one message, which it names by id or by its place in the
// request, from 0.
type said struct {
	ID         *string `json:"id"`
	Index      *int    `json:"index"`
	OK         bool    `json:"ok"`
	Error      string  `json:"error"`
	Reject     bool    `json:"reject"`
	RetryAfter float64 `json:"retry_after"` // seconds
}

// readAnswer reads the results of an answer of 2xx: {"results": [...]}, of said. Where it
// has none, all messages are delivered; where it has some, those that it does not name
// are tried again.
func (p *poster) readAnswer(answer []byte, es []*element) {
	answer = bytes.TrimSpace(answer)
	if !bytes.HasPrefix(answer, []byte("{")) {
		setAll(es, relay.Result{Outcome: relay.Delivered})
		return
	}
	var list struct {
		Results *[]said `json:"results"`
	}
	if err := json.Unmarshal(answer, &list); err != nil {
		setAll(es, p.endpoint.failed(relay.Fail(reasonAnswerInvalid,
			errors.New(`answered 2xx with a body that begins with { and is not as it should be: {"results": [{"id": "...", "ok": true}]}`))))
		return
	}
	if list.Results == nil {
		setAll(es, relay.Result{Outcome: relay.Delivered})
		return
	}
	byID, byIndex := make(map[string]*said), make(map[int]*said)
	for i := range *list.Results {
		one := &(*list.Results)[i]
		switch {
		case one.ID != nil:
			byID[*one.ID] = one
		case one.Index != nil:
			byIndex[*one.Index] = one
		}
	}
	for i, el := range es {
		one := byID[el.message.ID]
		if one == nil {
			one = byIndex[i]
		}
		el.result = p.resultOf(one)
	}
}

func (p *poster) resultOf(one *said) relay.Result {
	switch {
	case one == nil:
		return p.endpoint.failed(relay.Fail(reasonUnanswered, errors.New("the answer has results, and none for this message")))
	case one.OK && one.Error == "" && !one.Reject:
		return relay.Result{Outcome: relay.Delivered}
	}
	cause := fmt.Errorf("the receiver says: %s", oneLine(one.Error))
	if one.Reject {
		return p.rejected(relay.Fail(reasonReceiverRejected, cause))
	}
	r := p.endpoint.failed(relay.Fail(reasonReceiverFailed, cause))
	r.RetryAfter = time.Duration(min(max(one.RetryAfter, 0), maxRetryAfter.Seconds()) * float64(time.Second))
	return r
}

// maxReceiverError is how much of a receiver's error is shown, in bytes.
const maxReceiverError = 200

// oneLine makes of a receiver's error what a log line can hold.
func oneLine(text string) string {
	if len(text) > maxReceiverError {
		text = strings.ToValidUTF8(text[:maxReceiverError], "") + "..."
	}
	return strings.Join(strings.Fields(text), " ")
}
