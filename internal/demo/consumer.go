package demo

import (
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"mnsrelay/internal/setting"
)

// What the demo declares at the broker; all of it is gone when the demo ends.
const (
	exchangeName = "mnsrelay.demo"
	routingKey   = "sms.report"
)

// consumer reads what the relay published from a queue of its own.
type consumer struct {
	arrivals
	url   setting.URL
	conn  *amqp.Connection
	ended chan struct{}
}

func consume(url setting.URL) (*consumer, error) {
	if _, err := url.Parse(); err != nil {
		return nil, fmt.Errorf("read the broker's URL: %w", err)
	}
	conn, err := amqp.DialConfig(url.Reveal(), amqp.Config{Dial: amqp.DefaultDial(5 * time.Second), Heartbeat: 10 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w; is the broker running, and may this user use the vhost?", url, err)
	}
	c := &consumer{url: url, conn: conn, ended: make(chan struct{})}
	deliveries, err := c.declare()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("declare a queue at %s: %w", url, err)
	}
	go func() {
		defer close(c.ended)
		for d := range deliveries {
			c.add(d.MessageId)
		}
	}()
	return c, nil
}

func (c *consumer) declare() (<-chan amqp.Delivery, error) {
	ch, err := c.conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := ch.ExchangeDeclare(exchangeName, amqp.ExchangeTopic, false, true, false, false, nil); err != nil {
		return nil, err
	}
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return nil, err
	}
	if err := ch.QueueBind(q.Name, routingKey, exchangeName, false, nil); err != nil {
		return nil, err
	}
	return ch.Consume(q.Name, "", true, true, false, false, nil)
}

func (c *consumer) close() {
	_ = c.conn.CloseDeadline(time.Now().Add(2 * time.Second))
	<-c.ended
}
