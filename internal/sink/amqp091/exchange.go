package amqp091

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// DefaultExchange names the exchange without a name, which leads straight to the queue
// that is called like the routing key. RabbitMQ's management calls it so too.
const DefaultExchange = "amq.default"

// Exchange names an exchange and says what it is expected to be. In YAML a string
// is its name.
type Exchange struct {
	// Name is at most 255 bytes; DefaultExchange is the one without a name.
	Name string `yaml:"name" schema:"required"`
	// Type is the exchange's: `topic`, `direct`, `fanout`, `headers` or the name of a plugin's
	// type, such as x-consistent-hash.
	Type string `yaml:"type" schema:"nonempty"`
	// Durable exchanges outlive a restart of the broker.
	Durable bool `yaml:"durable"`
	// AutoDelete exchanges go with the last queue that was bound to them.
	AutoDelete bool `yaml:"auto_delete"`
	// Arguments are those of the declaration, such as alternate-exchange.
	Arguments map[string]setting.Value `yaml:"arguments"`
	Declare   Declare                  `yaml:"declare"`
}

// UnmarshalText reads the short form, the name alone; the other settings stay.
func (e *Exchange) UnmarshalText(text []byte) error {
	e.Name = string(text)
	return nil
}

// Declare is what is done about an exchange on each connect.
type Declare string

// The values of Declare.
const (
	// DeclareNone does nothing: no right but to write is needed.
	DeclareNone Declare = "none"
	// DeclarePassive checks that the exchange exists. The broker does not compare
	// the type.
	DeclarePassive Declare = "passive"
	// DeclareActive makes the exchange where it is missing, and fails where it
	// exists with another type, durability or arguments.
	DeclareActive Declare = "active"
)

func (e *Exchange) validate() error {
	var problems []error
	problem := func(path, format string, args ...any) {
		problems = append(problems, setting.Problemf(path, format, args...))
	}
	switch name := e.Name; {
	case name == "":
		problem("exchange", "required: write the name of the exchange to publish to, or %s for the one without a name", DefaultExchange)
	case len(name) > maxShortString:
		problem("exchange.name", "%d bytes long: AMQP allows at most %d", len(name), maxShortString)
	case strings.Contains(name, "{{"):
		problem("exchange.name", "the same for every message, so {{ }} has no meaning here: write it in routing_key, or a route for each exchange")
	case name == DefaultExchange && e.Declare == DeclareActive:
		problem("exchange.declare", "the exchange without a name is always there: write none or passive")
	}
	switch {
	case e.Type == "":
		problem("exchange.type", "empty: write topic, direct, fanout, headers or the name of a plugin's type")
	case len(e.Type) > maxShortString:
		problem("exchange.type", "%d bytes long: AMQP allows at most %d", len(e.Type), maxShortString)
	}
	switch e.Declare {
	case DeclareNone, DeclarePassive, DeclareActive:
	default:
		problem("exchange.declare", "%q is unknown: write none, passive or active", e.Declare)
	}
	if _, err := argumentsOf("exchange.arguments", e.Arguments); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// wire is the name as it is published to.
func (e *Exchange) wire() string {
	if e.Name == DefaultExchange {
		return ""
	}
	return e.Name
}

// key is equal for equal exchanges.
func (e *Exchange) key() string {
	key, err := json.Marshal(e)
	if err != nil {
		return e.Name // nothing in it that has no JSON
	}
	return string(key)
}

// argumentsOf gives arguments as the library writes them.
func argumentsOf(path string, arguments map[string]setting.Value) (amqp.Table, error) {
	var problems []error
	table := amqp.Table{}
	for _, name := range slices.Sorted(maps.Keys(arguments)) {
		if len(name) > maxShortString || name == "" {
			problems = append(problems, setting.Problemf(path, "the name %.20q is %d bytes long: AMQP allows 1 to %d", name, len(name), maxShortString))
			continue
		}
		value, err := wireValue(arguments[name].Any())
		if err != nil {
			problems = append(problems, setting.Problemf(path+"."+name, "%v", err))
		}
		table[name] = value
	}
	return table, errors.Join(problems...)
}

// declare does what x.Declare says, on a channel of its own: a refusal closes it.
func (c *connection) declare(x *Exchange) error {
	arguments, err := argumentsOf("exchange.arguments", x.Arguments)
	if err != nil {
		return err
	}
	return c.onChannel(func(ch *amqp.Channel) error {
		declare := ch.ExchangeDeclarePassive
		if x.Declare == DeclareActive {
			declare = ch.ExchangeDeclare
		}
		return declare(x.Name, x.Type, x.Durable, x.AutoDelete, false, false, arguments)
	})
}

// exchange is one that bound sinks publish to.
type exchange struct {
	Exchange

	// proven says that state is Up; it is written under Endpoint.mu.
	proven atomic.Bool
	// refused counts the messages that were refused alone since one was taken.
	refused atomic.Int32
	// The rest is guarded by Endpoint.mu.
	users    int // sinks that are bound to it
	state    relay.State
	cause    string // the name of what is wrong with it
	reason   string // the same in words
	failures int
	due      time.Time // when a Down exchange is tried again
	probe    bool      // only a message can tell whether it works again
}

func newExchange(x Exchange) *exchange {
	return &exchange{Exchange: x, cause: reasonExchange, reason: "not checked yet"}
}

// set is called with Endpoint.mu held.
func (x *exchange) set(state relay.State, cause, reason string) {
	x.state = state
	x.cause = cause
	x.reason = reason
	x.proven.Store(state == relay.Up)
}

// use finds or adds the exchange.
func (e *Endpoint) use(x Exchange) *exchange {
	e.mu.Lock()
	defer e.mu.Unlock()
	found, ok := e.exchanges[x.key()]
	if !ok {
		found = newExchange(x)
		e.exchanges[x.key()] = found
		e.wake()
	}
	found.users++
	maps.DeleteFunc(e.exchanges, func(_ string, x *exchange) bool { return x.users == 0 })
	return found
}

// leave forgets the exchange with the last sink that was bound to it: it is no longer declared,
// nor does it tell of the health. The last of all stays until there is another, for something
// has to.
func (e *Endpoint) leave(x *exchange) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x.users--
	if x.users == 0 && len(e.exchanges) > 1 && e.exchanges[x.key()] == x {
		delete(e.exchanges, x.key())
		e.report()
	}
}

// checkExchanges tries the exchanges that are due. An error means that the connection
// has ended over it.
func (e *Endpoint) checkExchanges(c *connection) error {
	e.mu.Lock()
	var due []*exchange
	now := time.Now()
	for _, x := range e.exchanges {
		switch {
		case x.state != relay.Down || now.Before(x.due):
		case x.probe:
			x.set(relay.Probe, x.cause, x.reason)
		case x.Declare == DeclareNone || x.Name == DefaultExchange:
			x.set(relay.Up, "", "")
		default:
			due = append(due, x)
		}
	}
	e.report()
	e.mu.Unlock()

	for _, x := range due {
		err := c.declare(&x.Exchange)
		var refusal *amqp.Error
		switch {
		case err == nil:
			e.works(x)
		case !errors.As(err, &refusal):
			return fmt.Errorf("declare exchange %q: %w", x.Name, err)
		case c.amqp.IsClosed():
			// As a type that the broker does not know ends it.
			return fmt.Errorf("declare exchange %q of type %q: %w", x.Name, x.Type, brokerError{refusal})
		case refusal.Code == amqp.AccessRefused && x.Declare == DeclarePassive:
			// Some brokers want a right for a mere look. A publish will tell.
			e.log.Info("not allowed to check the exchange, publishing to it unchecked", zap.String("exchange", x.Name))
			e.works(x)
		default:
			_ = e.fails(x, refusal, false) // what it gives is for messages
		}
	}
	return nil
}

// works notes that x can be published to.
func (e *Endpoint) works(x *exchange) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x.state == relay.Up {
		return
	}
	if x.failures > 0 {
		e.log.Info("exchange works again", zap.String("exchange", x.Name))
	}
	x.failures = 0
	x.probe = false
	x.set(relay.Up, "", "")
	e.report()
}

// fails notes that x cannot be published to, and when to try again. With probe only
// a message can tell whether it works again. It gives the failure of the messages.
func (e *Endpoint) fails(x *exchange, refusal *amqp.Error, probe bool) error {
	cause, advice := x.advice(refusal)
	err := fmt.Errorf("%s: %w", advice, brokerError{refusal})
	if refusal.Code == amqp.AccessRefused {
		err = fmt.Errorf("%s (%d)", advice, refusal.Code) // the broker's words may hold a routing key
	}
	failure := relay.Fail(cause, err)
	e.mu.Lock()
	defer e.mu.Unlock()
	if x.state == relay.Down && time.Now().Before(x.due) {
		return failure // another batch has said so
	}
	if err.Error() != x.reason {
		e.log.Warn("exchange cannot be used", zap.String("exchange", x.Name), zap.Error(err))
	}
	x.probe = probe
	x.due = broker.Again(&x.failures)
	x.set(relay.Down, cause, err.Error())
	e.report()
	e.wake()
	return failure
}

// advice names what a refusal means, and says in words what to do.
func (x *exchange) advice(refusal *amqp.Error) (cause, advice string) {
	switch refusal.Code {
	case amqp.NotFound:
		return reasonExchangeMissing, fmt.Sprintf("exchange %q does not exist: create it, or set exchange.declare to active", x.Name)
	case amqp.AccessRefused:
		if x.Declare == DeclareActive {
			return reasonExchangeRefused, fmt.Sprintf("not permitted to use exchange %q: grant configure and write, or only write and set exchange.declare to none", x.Name)
		}
		return reasonExchangeRefused, fmt.Sprintf("not permitted to publish to exchange %q: grant write", x.Name)
	case amqp.PreconditionFailed:
		return reasonExchangeMismatch, fmt.Sprintf("exchange %q exists with another type, durability or arguments: correct exchange.type, durable, auto_delete and arguments", x.Name)
	}
	return reasonExchange, fmt.Sprintf("exchange %q cannot be used", x.Name)
}
