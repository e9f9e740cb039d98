package main

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/errgroup"

	"mnsrelay/internal/relay"
)

// worker takes one batch at a time from its queue to its channel.
type worker struct {
	queue   *queue
	channel *amqp.Channel
	key     string
	raw     bool
	// poster, if not nil, takes the place of channel.
	poster *http.Client
	hook   string

	items    []item
	headers  amqp.Table
	handles  [][]byte
	body     []byte
	confirms []*amqp.DeferredConfirmation
}

// openChannel opens a channel with confirms. A message that comes back ends everything.
func openChannel(conn *amqp.Connection, failed func(error)) (*amqp.Channel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	returns := ch.NotifyReturn(make(chan amqp.Return, batch))
	go func() { // ends with the channel
		for range returns {
			failed(errors.New("a message was not routable"))
		}
	}()
	return ch, ch.Confirm(false)
}

// newWorkers opens as many workers as said over one connection.
func newWorkers(conn *amqp.Connection, t *task, count int, failed func(error)) ([]*worker, error) {
	client := newHTTPClient(2 * count)
	workers := make([]*worker, count)
	for i := range workers {
		w := &worker{queue: newQueue(client, t.Endpoint, t.Queue), key: t.Key, raw: t.Raw, hook: t.Hook, headers: amqp.Table{}}
		if t.Hook != "" {
			w.poster = client
		} else {
			ch, err := openChannel(conn, failed)
			if err != nil {
				return nil, err
			}
			w.channel = ch
		}
		workers[i] = w
	}
	return workers, nil
}

// runFloor is the least loop: each poller receives, publishes and deletes.
func runFloor(ctx context.Context, conn *amqp.Connection, t *task, failed func(error)) error {
	workers, err := newWorkers(conn, t, t.Pollers, failed)
	if err != nil {
		return err
	}
	pollers, ctx := errgroup.WithContext(ctx)
	for _, w := range workers {
		pollers.Go(func() error {
			for {
				if err := w.receive(ctx); err != nil {
					return err
				}
				if err := w.settle(ctx); err != nil {
					return err
				}
			}
		})
	}
	return pollers.Wait()
}

// runOverlap is the floor whose pollers do not wait for what they have received: up to the
// relay's room is in their hands.
func runOverlap(ctx context.Context, conn *amqp.Connection, t *task, failed func(error)) error {
	const room = 512 // the default of in_flight.messages of a source
	workers, err := newWorkers(conn, t, max(room/batch, t.Pollers), failed)
	if err != nil {
		return err
	}
	free := make(chan *worker, len(workers)) // room for all of them
	for _, w := range workers {
		free <- w
	}
	settling, ctx := errgroup.WithContext(ctx)
	for range t.Pollers {
		settling.Go(func() error {
			for {
				var w *worker
				select {
				case w = <-free:
				case <-ctx.Done():
					return ctx.Err()
				}
				if err := w.receive(ctx); err != nil {
					return err
				}
				settling.Go(func() error {
					err := w.settle(ctx)
					free <- w
					return err
				})
			}
		})
	}
	return settling.Wait()
}

func (w *worker) receive(ctx context.Context) (err error) {
	w.items, err = w.queue.receive(ctx, w.items[:0])
	return err
}

// settle sends what was received and deletes it.
func (w *worker) settle(ctx context.Context) error {
	if len(w.items) == 0 {
		return nil
	}
	send := w.publish
	if w.poster != nil {
		send = w.post
	}
	if err := send(ctx); err != nil {
		return err
	}
	w.handles = w.handles[:0]
	for i := range w.items {
		w.handles = append(w.handles, w.items[i].handle)
	}
	// The handles lie in the last answer, which is not overwritten before they are sent.
	return w.queue.delete(ctx, w.handles)
}

// decoded is the body of a message, until the next.
func (w *worker) decoded(m *item) (body []byte, err error) {
	if w.raw {
		return m.body, nil
	}
	w.body, err = base64.StdEncoding.AppendDecode(w.body[:0], m.body)
	return w.body, err
}

// publish publishes the batch and waits for its confirms.
func (w *worker) publish(context.Context) error {
	w.confirms = w.confirms[:0]
	for i := range w.items {
		m := &w.items[i]
		body, err := w.decoded(m)
		if err != nil {
			return err
		}
		confirm, err := w.channel.PublishWithDeferredConfirm(name, w.key, true, false, publishing(w.headers, m.id, m.attempt, m.enqueuedAt, w.raw, body))
		if err != nil {
			return err
		}
		w.confirms = append(w.confirms, confirm)
	}
	for _, confirm := range w.confirms {
		if !confirm.Wait() {
			return errRefused
		}
	}
	return nil
}

var errRefused = errors.New("the broker refused a message")

// publishing is what the relay publishes of such a message. The headers are written into a
// table, which is read before the publish returns.
func publishing(headers amqp.Table, id string, attempt int64, enqueuedAt time.Time, raw bool, body []byte) amqp.Publishing {
	headers[relay.HeaderSource], headers[relay.HeaderAttempt] = sourceName(0), attempt
	headers[relay.HeaderEnqueuedAt], headers[relay.HeaderBody] = enqueuedAt.UTC().Format(relay.EnqueuedAtFormat), encoding(raw)
	return amqp.Publishing{
		Headers: headers, ContentType: "application/json", DeliveryMode: amqp.Persistent, MessageId: id, Timestamp: enqueuedAt, Body: body,
	}
}

func encoding(raw bool) string {
	if raw {
		return relay.BodyRaw
	}
	return relay.BodyBase64
}

// post posts the batch, one message after the other.
func (w *worker) post(ctx context.Context) error {
	for i := range w.items {
		m := &w.items[i]
		body, err := w.decoded(m)
		if err != nil {
			return err
		}
		sent := message{ID: m.id, Source: sourceName(0), Body: body, EnqueuedAt: m.enqueuedAt, Attempt: int(m.attempt)}
		if !w.raw {
			sent.Attributes = map[string]string{relay.AttributeBody: relay.BodyBase64}
		}
		if err := post(ctx, w.poster, w.hook, &sent); err != nil {
			return err
		}
	}
	return nil
}
