package amqp091

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/setting"
)

// Queue is one that is made on each connect, for those who keep their topology with the
// relay. A queue that exists otherwise than it is described is left as it is, and the
// sink is down and says so.
type Queue struct {
	// Name is 1 to 255 bytes long.
	Name string `yaml:"name" schema:"required"`
	// Type is what the queue is made of.
	Type QueueType `yaml:"type"`
	// Durable queues outlive a restart of the broker; a quorum queue or stream has to be.
	Durable bool `yaml:"durable"`
	// AutoDelete queues go with their last consumer.
	AutoDelete bool `yaml:"auto_delete"`
	// MessageTTL is how long the queue keeps a message, and Expires how long the broker
	// keeps the queue without a use; milliseconds count, 0: for ever.
	MessageTTL time.Duration `yaml:"message_ttl"`
	Expires    time.Duration `yaml:"expires"`
	// MaxLength is how many messages, MaxLengthBytes how many bytes of bodies fit; 0: no
	// limit. Overflow is what happens to more.
	MaxLength      int64        `yaml:"max_length" schema:"min=0"`
	MaxLengthBytes setting.Size `yaml:"max_length_bytes"`
	Overflow       Overflow     `yaml:"overflow"`
	// DeadLetterExchange takes what the queue drops, under DeadLetterRoutingKey or the
	// key that the message had.
	DeadLetterExchange   string `yaml:"dead_letter_exchange"`
	DeadLetterRoutingKey string `yaml:"dead_letter_routing_key"`
	// DeliveryLimit is after how many returns a quorum queue drops a message; 0: the
	// broker's own.
	DeliveryLimit int64 `yaml:"delivery_limit" schema:"min=0"`
	// Arguments are others, such as x-max-priority.
	Arguments map[string]setting.Value `yaml:"arguments"`
	// Bindings say which messages of which exchanges come to the queue.
	Bindings []Binding `yaml:"bindings"`
}

// Binding leads from an exchange to a queue.
type Binding struct {
	// Exchange is by default the sink's own.
	Exchange string `yaml:"exchange"`
	// RoutingKey is a pattern where the exchange is a topic.
	RoutingKey string `yaml:"routing_key"`
	// Arguments are what an exchange of type headers compares, with x-match.
	Arguments map[string]setting.Value `yaml:"arguments"`
}

// QueueType is what a queue is made of.
type QueueType string

// The values of QueueType.
const (
	QueueQuorum  QueueType = "quorum"
	QueueClassic QueueType = "classic"
	QueueStream  QueueType = "stream"
)

// Overflow is what happens to messages that no longer fit a queue; empty: what the
// broker does, which drops the oldest.
type Overflow string

// The values of Overflow. With a reject-publish the broker refuses the new message, which
// then stays in its MNS queue.
const (
	OverflowDropHead         Overflow = "drop-head"
	OverflowRejectPublish    Overflow = "reject-publish"
	OverflowRejectPublishDLX Overflow = "reject-publish-dlx"
)

// SetDefaults makes a new queue a durable quorum queue.
func (q *Queue) SetDefaults() {
	q.Type = QueueQuorum
	q.Durable = true
}

// validateQueues reports every problem at once, joined.
func (c *Config) validateQueues() error {
	var problems []error
	seen := map[string]bool{}
	for i := range c.Queues {
		q := &c.Queues[i]
		path := "queues[" + strconv.Itoa(i) + "]"
		problems = append(problems, q.validate(path))
		for k, b := range q.Bindings {
			if b.Exchange == "" && c.Exchange.Name == DefaultExchange {
				problems = append(problems, setting.Problemf(path+".bindings["+strconv.Itoa(k)+"].exchange", "required, as the sink's own is the one without a name, which every queue is bound to already"))
			}
		}
		if seen[q.Name] {
			problems = append(problems, setting.Problemf(path+".name", "%q is written twice: keep one, with all its bindings", q.Name))
		}
		seen[q.Name] = q.Name != ""
	}
	return errors.Join(problems...)
}

// refusesSilently tells whether RabbitMQ would answer a commit though the queue has refused
// messages of it.
func (q *Queue) refusesSilently() bool {
	return q.Type == QueueQuorum && (q.Overflow == OverflowRejectPublish || q.Overflow == OverflowRejectPublishDLX)
}

// checkTransaction refuses what would lose messages: the commit of a transaction is answered
// though a quorum queue has refused some of them (seen with RabbitMQ 3.10).
func (c *Config) checkTransaction(s *Settings) error {
	if s.Acknowledge != AcknowledgeTransaction {
		return nil
	}
	for i := range c.Queues {
		if c.Queues[i].refusesSilently() {
			return setting.Problemf("acknowledge", "a commit does not tell that the quorum queue %q has refused messages (overflow: %s), which would be lost: write confirm", c.Queues[i].Name, c.Queues[i].Overflow)
		}
	}
	return nil
}

func (q *Queue) validate(path string) error {
	var problems []error
	problem := func(below, format string, args ...any) {
		problems = append(problems, setting.Problemf(path+below, format, args...))
	}
	if q.Name == "" {
		problem(".name", "required: write the name of the queue")
	}
	for below, text := range map[string]string{
		".name": q.Name, ".dead_letter_exchange": q.DeadLetterExchange, ".dead_letter_routing_key": q.DeadLetterRoutingKey,
	} {
		if len(text) > maxShortString {
			problem(below, "%d bytes long: AMQP allows at most %d", len(text), maxShortString)
		}
	}
	switch q.Type {
	case QueueClassic:
	case QueueQuorum, QueueStream:
		if !q.Durable {
			problem(".durable", "a queue of type %s is durable: remove the line, or write type: classic", q.Type)
		}
		if q.AutoDelete {
			problem(".auto_delete", "a queue of type %s stays: remove the line, or write type: classic", q.Type)
		}
	default:
		problem(".type", "%q is unknown: write quorum, classic or stream", q.Type)
	}
	if q.DeliveryLimit != 0 && q.Type != QueueQuorum {
		problem(".delivery_limit", "only a quorum queue has one: remove the line, or write type: quorum")
	}
	switch q.Overflow {
	case "", OverflowDropHead, OverflowRejectPublish, OverflowRejectPublishDLX:
	default:
		problem(".overflow", "%q is unknown: write drop-head, reject-publish or reject-publish-dlx", q.Overflow)
	}
	for below, n := range map[string]int64{
		".message_ttl": int64(q.MessageTTL), ".expires": int64(q.Expires), ".max_length": q.MaxLength, ".delivery_limit": q.DeliveryLimit,
	} {
		if n < 0 {
			problem(below, "must not be negative")
		}
	}
	if q.DeadLetterRoutingKey != "" && q.DeadLetterExchange == "" {
		problem(".dead_letter_exchange", "required where dead_letter_routing_key is set")
	}
	for below, d := range map[string]time.Duration{".message_ttl": q.MessageTTL, ".expires": q.Expires} {
		if d%time.Millisecond != 0 {
			problem(below, "%v is no whole number of milliseconds", d)
		}
	}
	derived := q.derived()
	for name := range q.Arguments {
		if _, twice := derived[name]; twice {
			problem(".arguments."+name, "another setting of the queue says it already: keep one of them")
		}
	}
	if _, err := argumentsOf(path+".arguments", q.Arguments); err != nil {
		problems = append(problems, err)
	}
	for i, b := range q.Bindings {
		at := ".bindings[" + strconv.Itoa(i) + "]"
		for below, text := range map[string]string{".exchange": b.Exchange, ".routing_key": b.RoutingKey} {
			if len(text) > maxShortString {
				problem(at+below, "%d bytes long: AMQP allows at most %d", len(text), maxShortString)
			}
		}
		if b.Exchange == DefaultExchange {
			problem(at+".exchange", "every queue is bound to the exchange without a name already: remove the binding")
		}
		if _, err := argumentsOf(path+at+".arguments", b.Arguments); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

// derived are the arguments that have a setting of their own.
func (q *Queue) derived() amqp.Table {
	table := amqp.Table{"x-queue-type": string(q.Type)}
	for name, n := range map[string]int64{
		"x-message-ttl": q.MessageTTL.Milliseconds(), "x-expires": q.Expires.Milliseconds(),
		"x-max-length": q.MaxLength, "x-max-length-bytes": int64(q.MaxLengthBytes), "x-delivery-limit": q.DeliveryLimit,
	} {
		if n != 0 {
			table[name] = n
		}
	}
	for name, text := range map[string]string{
		"x-overflow": string(q.Overflow), "x-dead-letter-exchange": q.DeadLetterExchange, "x-dead-letter-routing-key": q.DeadLetterRoutingKey,
	} {
		if text != "" {
			table[name] = text
		}
	}
	return table
}

// declareQueue makes a queue and its bindings.
func (c *connection) declareQueue(q *Queue, exchange string) error {
	arguments, err := argumentsOf("arguments", q.Arguments)
	if err != nil {
		return err
	}
	maps.Copy(arguments, q.derived())
	return c.onChannel(func(ch *amqp.Channel) error {
		if _, err := ch.QueueDeclare(q.Name, q.Durable, q.AutoDelete, false, false, arguments); err != nil {
			return err
		}
		for _, b := range q.Bindings {
			arguments, err := argumentsOf("arguments", b.Arguments)
			if err != nil {
				return err
			}
			if err := ch.QueueBind(q.Name, b.RoutingKey, cmp.Or(b.Exchange, exchange), false, arguments); err != nil {
				return fmt.Errorf("bind it to exchange %q: %w", cmp.Or(b.Exchange, exchange), err)
			}
		}
		return nil
	})
}

// topology is what is known of the queues on the present connection; Endpoint.mu guards
// it.
type topology struct {
	declared time.Time // zero: they are to be declared
	reason   string    // why they could not be
	failures int
	due      time.Time // when that is tried again
}

// checkQueues makes the queues if that is due. An error means that the connection has
// ended over it.
func (e *Endpoint) checkQueues(c *connection) error {
	e.mu.Lock()
	due := len(e.config.Queues) > 0 && e.topology.declared.IsZero() && !time.Now().Before(e.topology.due)
	e.mu.Unlock()
	if !due {
		return nil
	}
	for i := range e.config.Queues {
		q := &e.config.Queues[i]
		err := c.declareQueue(q, e.config.Exchange.Name)
		var refusal *amqp.Error
		switch {
		case err == nil:
			continue
		case !errors.As(err, &refusal), c.amqp.IsClosed():
			return fmt.Errorf("declare queue %q: %w", q.Name, err)
		}
		e.queuesFail(fmt.Errorf("%s: %w", q.advice(refusal), brokerError{refusal}))
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.topology.failures > 0 {
		e.log.Info("queues and bindings are as they should be again")
	}
	e.topology = topology{declared: time.Now()}
	e.report()
	return nil
}

func (e *Endpoint) queuesFail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.topology.reason != err.Error() {
		e.log.Warn("a queue cannot be declared", zap.Error(err))
	}
	e.topology.reason = err.Error()
	e.topology.due = broker.Again(&e.topology.failures)
	e.report()
}

// redeclareAfter lies at least between two declarations.
const redeclareAfter = 250 * time.Millisecond

// redeclare makes the queues again soon, since a message found none: somebody may have
// deleted one.
func (e *Endpoint) redeclare() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.topology.declared.IsZero() || time.Since(e.topology.declared) < redeclareAfter {
		return
	}
	e.topology.declared = time.Time{}
	e.wake()
}

// advice says in words what a refusal means and what to do.
func (q *Queue) advice(refusal *amqp.Error) string {
	switch refusal.Code {
	case amqp.NotFound:
		return fmt.Sprintf("declare queue %q: an exchange that it is to be bound to does not exist: create it, or correct bindings", q.Name)
	case amqp.AccessRefused:
		return fmt.Sprintf("declare queue %q: not permitted: grant configure and write for the queue and read for the exchange, or remove it from queues", q.Name)
	case amqp.PreconditionFailed:
		return fmt.Sprintf("queue %q exists otherwise, or does not allow these settings: correct them in queues, or delete the queue", q.Name)
	}
	return fmt.Sprintf("queue %q cannot be declared", q.Name)
}
