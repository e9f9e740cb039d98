package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
)

const (
	name        = "bench"
	outstanding = 256
	batch       = 16
)

type message = relay.Message

// messages makes what is published.
func messages(n, size int) []message {
	body := []byte(strings.Repeat("x", size))
	ms := make([]message, n)
	for i := range ms {
		ms[i] = message{ID: fmt.Sprintf("%032d", i), Source: "sms", Body: body, EnqueuedAt: time.Now(), Attempt: 1}
	}
	return ms
}

// target is an exchange with a durable queue, and a connection of its own to look after it.
type target struct {
	url     string
	channel *amqp.Channel
}

func newTarget(url string) (*target, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return nil, err
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := ch.ExchangeDeclare(name, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		return nil, err
	}
	if _, err := ch.QueueDeclare(name, true, false, false, false, nil); err != nil {
		return nil, err
	}
	return &target{url: url, channel: ch}, ch.QueueBind(name, "#", name, false, nil)
}

func (t *target) empty() error {
	_, err := t.channel.QueuePurge(name, false)
	return err
}

func (t *target) count() (int, error) {
	q, err := t.channel.QueueDeclarePassive(name, true, false, false, false, nil)
	return q.Messages, err
}

// publishBare is the least there is: one channel, a window of confirms.
func publishBare(_ context.Context, t *target, ms []message) error {
	conn, err := amqp.Dial(t.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	if err := ch.Confirm(false); err != nil {
		return err
	}
	window := make([]*amqp.DeferredConfirmation, 0, outstanding)
	for i := range ms {
		m := &ms[i]
		if len(window) == outstanding {
			if !window[0].Wait() {
				return errors.New("a message was refused")
			}
			window = window[:copy(window, window[1:])]
		}
		confirm, err := ch.PublishWithDeferredConfirm(name, "sms.report", true, false, amqp.Publishing{
			Headers: amqp.Table{
				relay.HeaderSource: m.Source, relay.HeaderAttempt: int64(m.Attempt),
				relay.HeaderEnqueuedAt: m.EnqueuedAtText(), relay.HeaderBody: m.BodyEncoding(),
			},
			ContentType: "text/plain; charset=utf-8", DeliveryMode: amqp.Persistent,
			MessageId: m.ID, Timestamp: m.EnqueuedAt, Body: m.Body,
		})
		if err != nil {
			return err
		}
		window = append(window, confirm)
	}
	for _, confirm := range window {
		if !confirm.Wait() {
			return errors.New("a message was refused")
		}
	}
	return nil
}

// publishSink is the sink as pipelines use it: batches of 16, several at once.
func publishSink(ctx context.Context, t *target, ms []message) error {
	c := amqp091.Defaults()
	c.URL, c.Exchange.Name, c.RoutingKey = setting.NewURL(t.url), name, "sms.report"
	endpoint, err := c.Open(relay.SinkDeps{Name: name, Instance: name, Log: zap.NewNop()})
	if err != nil {
		return err
	}
	sink, err := endpoint.Bind(nil)
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var connected, senders sync.WaitGroup
	connected.Go(func() { _ = endpoint.Run(running) })
	defer connected.Wait()
	defer stop()
	for health, changed := endpoint.Health(); health.State != relay.Up; health, changed = endpoint.Health() {
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var next atomic.Int64
	var failure atomic.Pointer[error]
	for range outstanding / batch {
		senders.Go(func() {
			for {
				from := int(next.Add(batch)) - batch
				if from >= len(ms) || failure.Load() != nil {
					return
				}
				sink.Deliver(ctx, ms[from:min(from+batch, len(ms))], func(_ int, r relay.Result) {
					if r.Outcome != relay.Delivered {
						failure.CompareAndSwap(nil, &r.Err)
					}
				})
			}
		})
	}
	senders.Wait()
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}
