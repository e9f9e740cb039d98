package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// body is what message n holds.
func body(n int) []byte {
	return fmt.Appendf(nil, `{"n":%d,"content":"%s"}`, n, strings.Repeat("x", 100+n%300))
}

// number gives the number of the message with a body; -1: that is nobody's body.
func number(got []byte) int {
	message := struct{ N int }{N: -1}
	if err := json.Unmarshal(got, &message); err != nil || !bytes.Equal(got, body(message.N)) {
		return -1
	}
	return message.N
}

// arrivals is when each message came to a sink, by number.
type arrivals struct {
	mu    sync.Mutex
	times map[int][]time.Time
}

func (a *arrivals) add(n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.times == nil {
		a.times = make(map[int][]time.Time)
	}
	a.times[n] = append(a.times[n], time.Now())
}

// usualDelay is how long an answer takes of the webhook and of the broker when they are
// well.
const usualDelay = 30 * time.Millisecond

// silent is the answer of a webhook that gives none.
const silent = 0

// hook is a webhook that can be told how to answer. What it answered with 2xx has
// arrived.
type hook struct {
	arrivals

	server *httptest.Server
	status atomic.Int64
	// spoken is closed and made new when silence ends.
	spoken atomic.Pointer[chan struct{}]
}

func newHook(t *testing.T) *hook {
	t.Helper()
	h := &hook{}
	h.answer(http.StatusNoContent)
	h.server = httptest.NewServer(h)
	t.Cleanup(h.server.Close)
	return h
}

func (h *hook) answer(status int64) {
	h.status.Store(status)
	spoken := make(chan struct{})
	if before := h.spoken.Swap(&spoken); before != nil {
		close(*before)
	}
}

// ServeHTTP is part of http.Handler.
func (h *hook) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	spoken := *h.spoken.Load()
	status := int(h.status.Load())
	got, err := io.ReadAll(request.Body)
	if err != nil {
		return // a relay was killed
	}
	switch status {
	case silent:
		select {
		case <-spoken:
		case <-request.Context().Done():
		}
		panic(http.ErrAbortHandler)
	case http.StatusNoContent:
		// Not at once, so that something is in flight at any moment.
		if pause(request.Context(), usualDelay) != nil {
			return
		}
		h.add(number(got))
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
}

// exchange is where relays publish, and the name of the queue that keeps it all.
const exchange = "chaos"

// inbox is a durable queue at the broker. It is read at the end only, so that no copy is
// taken for another; a second queue, which may lose messages, tells meanwhile when they
// came.
type inbox struct {
	arrivals // as far as they were seen

	url string
}

func newInbox(ctx context.Context, url string) (*inbox, error) {
	b := &inbox{url: url}
	return b, b.with(ctx, func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
			return err
		}
		if _, err := ch.QueueDeclare(exchange, true, false, false, false, nil); err != nil {
			return err
		}
		return ch.QueueBind(exchange, "", exchange, false, nil)
	})
}

// with opens a channel that ends with ctx.
func (b *inbox) with(ctx context.Context, do func(ch *amqp.Channel) error) error {
	conn, err := amqp.DialConfig(b.url, amqp.Config{Dial: func(network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, func() { _ = conn.Close() })
		return conn, nil
	}})
	if err != nil {
		return fmt.Errorf("connect to the broker: %w", err)
	}
	defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open a channel: %w", err)
	}
	return do(ch)
}

// watch notes when messages come until the test ends, as far as the broker lets it.
func (b *inbox) watch(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			_ = b.with(ctx, b.look) // The broker was taken away.
			if pause(ctx, 100*time.Millisecond) != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		watching.Wait()
	})
}

func (b *inbox) look(ch *amqp.Channel) error {
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return err
	}
	if err := ch.QueueBind(q.Name, "", exchange, false, nil); err != nil {
		return err
	}
	deliveries, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		return err
	}
	for d := range deliveries {
		b.add(number(d.Body))
	}
	return nil
}

// read empties the queue and counts the copies of each message, by number.
func (b *inbox) read(ctx context.Context) (copies map[int]int, err error) {
	copies = make(map[int]int)
	err = b.with(ctx, func(ch *amqp.Channel) error {
		q, err := ch.QueueDeclarePassive(exchange, true, false, false, false, nil)
		if err != nil {
			return err
		}
		deliveries, err := ch.Consume(exchange, "", true, true, false, false, nil)
		if err != nil {
			return err
		}
		for range q.Messages {
			d, ok := <-deliveries
			if !ok {
				return amqp.ErrClosed
			}
			copies[number(d.Body)]++
		}
		if q, err = ch.QueueDeclarePassive(exchange, true, false, false, false, nil); err == nil && q.Messages > 0 {
			err = fmt.Errorf("%d messages more than there were", q.Messages)
		}
		return err
	})
	return copies, err
}
