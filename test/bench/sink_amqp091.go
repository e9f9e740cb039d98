package main

import (
	"context"
	"errors"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
)

// brokerSide is a durable queue behind the exchange, and a channel to look after it.
type brokerSide struct {
	url     string
	channel *amqp.Channel
}

// reportKey is the routing key of what the senders publish, reports the queue that gets it.
const (
	reportKey = "sms.report"
	reports   = name + ".reports"
)

func newBrokerSide(url string, channel *amqp.Channel) (*brokerSide, error) {
	if _, err := channel.QueueDeclare(reports, true, false, false, false, nil); err != nil {
		return nil, err
	}
	return &brokerSide{url: url, channel: channel}, channel.QueueBind(reports, reportKey, name, false, nil)
}

func (t *brokerSide) senders() []sender {
	return []sender{
		{"bare amqp091-go, 256 outstanding", t.publishBare},
		{"amqp091 sink, confirms", t.publishSink},
	}
}

func (t *brokerSide) empty(context.Context) error {
	_, err := t.channel.QueuePurge(reports, false)
	return err
}

func (t *brokerSide) count(context.Context) (int, error) {
	q, err := t.channel.QueueDeclarePassive(reports, true, false, false, false, nil)
	return q.Messages, err
}

// publishBare is the least there is: one channel, a window of confirms.
func (t *brokerSide) publishBare(_ context.Context, ms []message) error {
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
		confirm, err := ch.PublishWithDeferredConfirm(name, reportKey, true, false, amqp.Publishing{
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

func (t *brokerSide) publishSink(ctx context.Context, ms []message) error {
	c := amqp091.Defaults()
	c.URL, c.Exchange.Name, c.RoutingKey = setting.NewURL(t.url), name, reportKey
	endpoint, err := c.Open(relay.SinkDeps{Name: name, Instance: name, Log: zap.NewNop()})
	if err != nil {
		return err
	}
	return feed(ctx, endpoint, ms)
}
