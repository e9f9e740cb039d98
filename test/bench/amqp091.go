package main

import (
	"context"
	"errors"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

func openAMQP091(ctx context.Context) (*field, error) {
	node, err := broker.Start(ctx, broker.Config{})
	if err != nil {
		return nil, err
	}
	t, err := newTarget(node)
	if err != nil {
		_ = node.Close() //nolint:contextcheck // It ends though ctx may have.
		return nil, err
	}
	return &field{far: t, contenders: []contender{
		{"bare amqp091-go, 256 outstanding", t.publishBare},
		{"amqp091 sink, confirms", t.publishSink},
	}}, nil
}

// target is an exchange with a durable queue, and a connection of its own to look after it.
type target struct {
	node    *broker.Node
	channel *amqp.Channel
}

func newTarget(node *broker.Node) (*target, error) {
	conn, err := amqp.Dial(node.URL())
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
	return &target{node: node, channel: ch}, ch.QueueBind(name, "#", name, false, nil)
}

func (t *target) empty() error {
	_, err := t.channel.QueuePurge(name, false)
	return err
}

func (t *target) count() (int, error) {
	q, err := t.channel.QueueDeclarePassive(name, true, false, false, false, nil)
	return q.Messages, err
}

func (t *target) close() { _ = t.node.Close() }

// publishBare is the least there is: one channel, a window of confirms.
func (t *target) publishBare(_ context.Context, ms []message) error {
	conn, err := amqp.Dial(t.node.URL())
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
			ContentType: "application/json", DeliveryMode: amqp.Persistent,
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

func (t *target) publishSink(ctx context.Context, ms []message) error {
	c := amqp091.Defaults()
	c.URL, c.Exchange.Name, c.RoutingKey = setting.NewURL(t.node.URL()), name, "sms.report"
	endpoint, err := c.Open(relay.SinkDeps{Name: name, Instance: name, Log: zap.NewNop()})
	if err != nil {
		return err
	}
	return feed(ctx, endpoint, ms)
}
