package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// observer is the consumer of RabbitMQ that sees when messages arrive.
type observer struct {
	conn     *amqp.Connection
	messages int
	// done gives, once all have arrived or the connection has ended, what they took.
	done chan []time.Duration // size 1
}

// observe makes a queue of the observer's own beside the one that keeps the messages.
func (w *world) observe(l load) (_ *observer, err error) {
	conn, err := amqp.Dial(w.node.URL())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return nil, err
	}
	if err := ch.QueueBind(q.Name, "#", name, false, nil); err != nil {
		return nil, err
	}
	deliveries, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		return nil, err
	}
	o := &observer{conn: conn, messages: l.messages, done: make(chan []time.Duration, 1)}
	go func() {
		took := make([]time.Duration, 0, l.messages)
		for d := range deliveries {
			now := time.Now()
			// The first tenth comes while the contender starts.
			if n, found := numberOf(d.Body); found && n >= l.messages/10 {
				if sent, err := sentAt(d.Body); err == nil {
					took = append(took, now.Sub(sent))
				}
			}
			if len(took) == l.messages-l.messages/10 {
				break
			}
		}
		o.done <- took
	}()
	return o, nil
}

func (o *observer) close() error {
	if err := o.conn.Close(); err != nil && !errors.Is(err, amqp.ErrClosed) {
		return err
	}
	return nil
}

// report adds what the messages took to what was measured.
func (o *observer) report(ctx context.Context, r run) error {
	var took []time.Duration
	select {
	case took = <-o.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if len(took) != o.messages-o.messages/10 {
		return fmt.Errorf("the observer saw %d of %d messages", len(took), o.messages-o.messages/10)
	}
	slices.Sort(took)
	at := func(share float64) float64 {
		return float64(took[int(share*float64(len(took)-1))].Microseconds()) / 1e3
	}
	r[median50], r[percentile99], r[slowest] = at(0.5), at(0.99), at(1)
	return nil
}
