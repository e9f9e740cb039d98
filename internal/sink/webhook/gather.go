package webhook

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
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
	items []*item
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
	json    json.RawMessage // what it is in the body of a request
	// ended is closed when nobody waits for the result.
	ended <-chan struct{}
	give  func(r relay.Result)
	// begun says that it is in a request.
	begun atomic.Bool
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

// deliver puts messages into batches and waits for these.
func (g *gatherer) deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	answers := relay.NewAnswers(len(ms), done)
	items := make([]*item, len(ms))
	for i := range ms {
		items[i] = &item{message: ms[i], ended: ctx.Done(), give: func(r relay.Result) { answers.Give(i, r) }}
	}
	for _, b := range g.join(ctx, items) {
		select {
		case <-b.sent:
		case <-ctx.Done():
			g.leave(b)
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		for _, it := range items {
			if !it.begun.Load() {
				it.give(g.sink.endpoint.failed(unsent(cause)))
			}
		}
	}
	answers.Finish(g.sink.endpoint.failed(relay.Fail(reasonStopped, context.Cause(ctx))))
}

// join gives the batches that the messages are in.
func (g *gatherer) join(ctx context.Context, items []*item) (joined []*batch) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, it := range items {
		m := &it.message
		limit := g.limitOf(m)
		if b := g.open; b != nil && (len(b.items) >= limit || b.size+len(m.Body) > int(g.MaxBytes)) {
			g.close()
		}
		if g.open == nil {
			g.begin(ctx)
		}
		b := g.open
		b.items = append(b.items, it)
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
func (g *gatherer) send(ctx context.Context, items []*item) {
	e := g.sink.endpoint
	if err := e.acquire(ctx); err != nil {
		setAll(items, e.failed(err))
		return
	}
	began := time.Now()
	said := g.sink.poster.postBatch(ctx, items)
	e.limit.release(began, said)
}
