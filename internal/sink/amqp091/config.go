package amqp091

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// maxShortString is how many bytes a short string holds: exchange, routing key,
// message id and header names (AMQP 0-9-1: 4.2.5.3). A longer one does not fail
// the message, it ends the whole connection.
const maxShortString = 255

// Config holds the settings of one sink of type amqp091. Settings may be set
// otherwise by a route; the rest belongs to the connection that all routes share.
type Config struct {
	// URL is the broker, as amqp[s]://[user:password@]host[:port][/vhost]; a vhost
	// with special characters is percent-encoded, %2F is the vhost "/", which is
	// also the default. The query may hold heartbeat=SECONDS. Set url or urls.
	URL setting.URL `yaml:"url" schema:"or=urls"`
	// URLs are the nodes of one cluster, tried in turn from a random one on.
	URLs []setting.URL `yaml:"urls"`
	// Vhost is for all URLs, and sent as it is; a URL may hold one instead.
	Vhost string `yaml:"vhost"`
	// Username and Password are sent as they are, so that special characters need
	// no encoding; a URL may hold them instead. A password that comes from a file is
	// read again on each connect.
	Username string         `yaml:"username"`
	Password setting.Secret `yaml:"password"`
	// SASL is how the broker learns who we are.
	SASL SASL `yaml:"sasl"`
	// TLS is for amqps URLs.
	TLS setting.TLS `yaml:"tls"`
	// ConnectionName is what the broker lists the connection as; empty: the instance
	// and the sink. At most 255 bytes.
	ConnectionName string `yaml:"connection_name"`
	// Heartbeat is asked of the broker: whole seconds, 1s to 5m. A peer that is silent
	// for 1.5 times as long is taken for dead.
	Heartbeat time.Duration `yaml:"heartbeat" schema:"positive"`
	// DialTimeout bounds the name lookup and the TCP connection to one host, over all its
	// addresses, and ConnectTimeout all of it, from DNS through TCP and TLS to the opened vhost: more than 0, at most 2m.
	DialTimeout    time.Duration `yaml:"dial_timeout" schema:"positive"`
	ConnectTimeout time.Duration `yaml:"connect_timeout" schema:"positive"`
	// Queues are made, with their bindings, on each connect.
	Queues []Queue `yaml:"queues"`

	Settings `yaml:",inline"`
}

// Settings are those that a route may set otherwise.
type Settings struct {
	// Exchange is where messages are published to; its name is required.
	Exchange Exchange `yaml:"exchange" schema:"required"`
	// RoutingKey is at most 255 bytes and may hold {{ }} templates; a message whose key
	// gets longer is rejected.
	RoutingKey string `yaml:"routing_key"`
	// Config says what of a message is sent. In binary mode the attributes of an event are
	// headers named cloudEvents_ and the attribute, and a header of the configuration that is
	// named so is an extension.
	format.Config `yaml:",inline"`
	// Headers are added to those that the relay sends, which begin with x-mnsrelay-.
	// They have the type they are written with: text, number, bool, timestamp, list or
	// table. Texts may hold {{ }} templates; one that is a single {{ }} has the type of
	// its value, and without a value the header is left out.
	Headers map[string]setting.Value `yaml:"headers"`
	// Properties are those of AMQP beside the headers.
	Properties Properties `yaml:"properties"`
	// Persistent asks the broker to write messages to disk before it confirms
	// (delivery mode 2).
	Persistent bool `yaml:"persistent"`
	// Mandatory asks the broker to give a message back that no queue would get;
	// without it such a message is confirmed and gone.
	Mandatory bool `yaml:"mandatory"`
	// Unroutable is what becomes of a message that was given back. It has no meaning
	// without Mandatory.
	Unroutable Unroutable `yaml:"unroutable"`
	// Acknowledge is what counts as delivered.
	Acknowledge Acknowledge `yaml:"acknowledge"`
	// Reply is for acknowledge: reply.
	Reply Reply `yaml:"reply"`
	// Timeout is how long the messages that are handed over together may take
	// until the last of them is confirmed: more than 0, at most 10m.
	Timeout time.Duration `yaml:"timeout" schema:"positive"`
}

// Unroutable is what becomes of a message that no queue would get.
type Unroutable string

// The values of Unroutable.
const (
	// UnroutableRetry keeps it in its own queue until a queue is bound for it.
	UnroutableRetry Unroutable = "retry"
	// UnroutableDeadLetter rejects it.
	UnroutableDeadLetter Unroutable = "dead_letter"
	// UnroutableDrop takes it for delivered.
	UnroutableDrop Unroutable = "drop"
)

// Acknowledge is what counts as delivered.
type Acknowledge string

// The values of Acknowledge.
const (
	// AcknowledgeConfirm waits for the publisher confirm of each message.
	AcknowledgeConfirm Acknowledge = "confirm"
	// AcknowledgeTransaction publishes what is handed over together in a transaction and
	// waits for its commit: for brokers without confirms. It is no atomicity.
	AcknowledgeTransaction Acknowledge = "transaction"
	// AcknowledgeReply waits for the answer of the consumer to each message.
	AcknowledgeReply Acknowledge = "reply"
	// AcknowledgeNone waits for nothing: what was written to the connection counts as
	// delivered, and is lost where the broker does not take it.
	AcknowledgeNone Acknowledge = "none"
)

// SASL is how the broker learns who we are.
type SASL string

// The values of SASL.
const (
	// SASLPlain sends user name and password.
	SASLPlain SASL = "plain"
	// SASLExternal leaves it to the client certificate.
	SASLExternal SASL = "external"
)

// Defaults is a Config with every default set.
func Defaults() *Config {
	return &Config{
		SASL:           SASLPlain,
		Heartbeat:      6 * time.Second, // which finds a silent broker within Timeout
		DialTimeout:    5 * time.Second,
		ConnectTimeout: 10 * time.Second,
		Settings: Settings{
			Exchange:    Exchange{Type: "topic", Durable: true, Declare: DeclarePassive},
			Config:      format.Defaults(),
			Persistent:  true,
			Mandatory:   true,
			Unroutable:  UnroutableRetry,
			Acknowledge: AcknowledgeConfirm,
			Reply:       Reply{Timeout: time.Minute, InFlight: 256},
			Timeout:     10 * time.Second,
		},
	}
}

// Validate reports every problem at once, joined, each a *setting.Problem with a
// path below the sink.
func (c *Config) Validate() error {
	_, problems := c.targets()
	return errors.Join(problems, c.validateConnection(), c.validateQueues(), c.Settings.Validate(), c.checkTransaction(&c.Settings))
}

// Warnings reports what is accepted and may not be meant, each a *setting.Problem.
func (c *Config) Warnings() []error {
	if c.Acknowledge != AcknowledgeTransaction {
		return nil
	}
	return []error{setting.Problemf("acknowledge", "RabbitMQ answers a commit though a quorum queue has refused a message of it (overflow: reject-publish): such a message would be lost; write confirm where the broker has publisher confirms")}
}

// Open makes the endpoint of a validated Config. It opens no connection and starts
// no goroutine: Endpoint.Run does.
func (c *Config) Open(deps relay.SinkDeps) (relay.Endpoint, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	targets, err := c.targets()
	if err != nil {
		return nil, err
	}
	return newEndpoint(c, targets, deps), nil
}

// Validate reports every problem at once, as Config.Validate does.
func (s *Settings) Validate() error {
	var problems []error
	problem := func(path, text string, args ...any) {
		problems = append(problems, setting.Problemf(path, text, args...))
	}

	problems = append(problems, s.Exchange.validate())
	key, err := expr.CompileSetting("routing_key", s.RoutingKey)
	if err != nil {
		problems = append(problems, err)
	} else if n := len(key.Sample("")); n > maxShortString {
		problem("routing_key", "%d bytes long: AMQP allows at most %d", n, maxShortString)
	}
	_, err = s.Formatter()
	problems = append(problems, err)
	_, err = s.compileHeaders()
	problems = append(problems, err)
	_, err = s.Properties.compile()
	problems = append(problems, err, s.CheckContentType("properties.content_type", s.Properties.ContentType), s.Reply.validate())

	switch s.Unroutable {
	case UnroutableRetry, UnroutableDrop:
	case UnroutableDeadLetter:
		if !s.Mandatory {
			problem("unroutable", "without mandatory the broker does not tell of such a message: set mandatory to true")
		}
	default:
		problem("unroutable", "%q is unknown: write retry, dead_letter or drop", s.Unroutable)
	}
	switch s.Acknowledge {
	case AcknowledgeConfirm, AcknowledgeTransaction:
	case AcknowledgeReply:
		if s.Properties.CorrelationID != "" {
			problem("properties.correlation_id", "acknowledge: reply sets it itself, to tell the answers apart: remove it")
		}
	case AcknowledgeNone:
		if s.Unroutable == UnroutableDeadLetter {
			problem("unroutable", "with acknowledge: none nobody waits to hear of such a message: write retry or drop, or acknowledge: confirm")
		}
	default:
		problem("acknowledge", "%q is unknown: write confirm, transaction, reply or none", s.Acknowledge)
	}
	if s.Timeout <= 0 || s.Timeout > 10*time.Minute {
		problem("timeout", "%v is out of range: write more than 0s and at most 10m", s.Timeout)
	}
	return errors.Join(problems...)
}

// validateConnection looks at what belongs to the connection, but for the URLs.
func (c *Config) validateConnection() error {
	var problems []error
	problem := func(path, text string, args ...any) {
		problems = append(problems, setting.Problemf(path, text, args...))
	}
	switch c.SASL {
	case SASLPlain:
	case SASLExternal:
		if c.TLS.CertFile == "" {
			problem("sasl", "external takes the user from the client certificate: set tls.cert_file and tls.key_file")
		}
	default:
		problem("sasl", "%q is unknown: write plain or external", c.SASL)
	}
	for path, text := range map[string]string{"vhost": c.Vhost, "connection_name": c.ConnectionName} {
		if len(text) > maxShortString {
			problem(path, "%d bytes long: at most %d fit", len(text), maxShortString)
		}
	}
	if c.Heartbeat < time.Second || c.Heartbeat > maxHeartbeat || c.Heartbeat%time.Second != 0 {
		problem("heartbeat", "%v is out of range: write whole seconds from 1s to %v", c.Heartbeat, maxHeartbeat)
	}
	for path, d := range map[string]time.Duration{"dial_timeout": c.DialTimeout, "connect_timeout": c.ConnectTimeout} {
		if d <= 0 || d > maxConnectTimeout {
			problem(path, "%v is out of range: write more than 0s and at most %v", d, maxConnectTimeout)
		}
	}
	return errors.Join(problems...)
}

// The longest that may be set.
const (
	maxHeartbeat      = 5 * time.Minute
	maxConnectTimeout = 2 * time.Minute
)

// DeadLetters names the setting that sends messages to the dead-letter sink of their
// source on purpose; empty: none does.
func (s *Settings) DeadLetters() string {
	if s.Unroutable == UnroutableDeadLetter {
		return "unroutable"
	}
	return ""
}

// target is one broker, with what is said to it.
type target struct {
	broker.Address

	vhost     string
	sasl      SASL
	heartbeat time.Duration
}

// targets reads the URLs. Its errors are problems and hold no part of a URL's user
// info.
func (c *Config) targets() ([]target, error) {
	var targets []target
	urls, paths, problem := broker.OneOf(c.URL, c.URLs)
	problems := []error{problem, setting.Credentials(c.Username, c.Password), c.TLS.Validate("tls")}
	report := func(path, text string, args ...any) {
		problems = append(problems, setting.Problemf(path, text, args...))
	}
	if len(urls) == 0 {
		report("url", "required: write amqp://host:5672/vhost or amqps://host:5671/vhost")
	}
	secure := false
	for i, u := range urls {
		t, err := readTarget(u)
		if err != nil {
			report(paths[i], "%v", err)
			continue
		}
		secure = secure || t.Secure
		t.sasl = c.SASL
		t.heartbeat = cmp.Or(t.heartbeat, c.Heartbeat)
		if c.Vhost != "" && t.vhost != "" {
			report(paths[i], "holds a vhost, and vhost is set too: write it in one place")
		}
		t.vhost = cmp.Or(t.vhost, c.Vhost, "/")
		switch {
		case c.SASL == SASLExternal:
			if t.Username != "" || c.Username != "" {
				report(paths[i], "sasl: external takes the user from the client certificate: remove user name and password")
			}
			if !t.Secure {
				report(paths[i], "sasl: external needs a client certificate, and so amqps://")
			}
		case c.Username != "" && t.Username != "":
			report(paths[i], "holds credentials, and username is set too: write them in one place")
		case c.Username != "":
			t.Username, t.Password = c.Username, c.Password
		case t.Username == "":
			// What RabbitMQ allows on loopback out of the box; elsewhere it refuses.
			t.Username, t.Password = "guest", setting.NewSecret("guest")
		}
		targets = append(targets, t)
	}
	if c.TLS != (setting.TLS{}) && !secure && len(targets) == len(urls) && len(urls) > 0 {
		report("tls", "no URL is encrypted: write amqps:// or leave tls out")
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return targets, nil
}

// readTarget takes u apart. Its errors never quote it.
func readTarget(u setting.URL) (target, error) {
	address, parsed, err := broker.ReadURL(u)
	if err != nil {
		return target{}, err
	}
	// The path "//" and "/%2F" both are the vhost "/"; "/a/b" is the vhost "a/b".
	t := target{Address: address, vhost: strings.TrimPrefix(parsed.Path, "/")}
	if len(t.vhost) > maxShortString {
		return target{}, fmt.Errorf("the vhost is %d bytes long: AMQP allows at most %d", len(t.vhost), maxShortString)
	}
	query, err := url.ParseQuery(parsed.RawQuery)
	if err != nil {
		return target{}, errors.New("the query cannot be read")
	}
	for name, values := range query {
		if name != "heartbeat" {
			return target{}, errors.New("the query may hold heartbeat=SECONDS only; certificates belong under tls")
		}
		seconds, err := strconv.Atoi(values[len(values)-1])
		if err != nil || seconds < 1 || time.Duration(seconds)*time.Second > maxHeartbeat {
			return target{}, errors.New("heartbeat must be 1 to 300, in seconds")
		}
		t.heartbeat = time.Duration(seconds) * time.Second
	}
	return t, nil
}
