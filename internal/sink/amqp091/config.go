package amqp091

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// maxShortString is how many bytes a short string holds: exchange, routing key,
// message id and header names (AMQP 0-9-1: 4.2.5.3). A longer one does not fail
// the message, it ends the whole connection.
const maxShortString = 255

// maxHeaders is how many bytes the names and values of headers may have. They go in
// one frame, which a broker limits to 128 KiB, and end the connection if they do not
// fit.
const maxHeaders = 64 << 10

// Config holds the settings of one sink of type amqp091. Settings may be set
// otherwise by a route; the rest belongs to the connection that all routes share.
type Config struct {
	// URL is the broker, as amqp[s]://[user:password@]host[:port][/vhost]; a vhost
	// with special characters is percent-encoded, %2F is the vhost "/", which is
	// also the default. The query may hold heartbeat=SECONDS. Set URL or URLs.
	URL setting.URL `yaml:"url"`
	// URLs are the nodes of one cluster, tried in turn.
	URLs []setting.URL `yaml:"urls"`
	// Username and Password are sent as they are, so that special characters need
	// no encoding; a URL may hold them instead.
	Username string         `yaml:"username"`
	Password setting.Secret `yaml:"password"`
	// TLS is for amqps URLs.
	TLS setting.TLS `yaml:"tls"`

	Settings `yaml:",inline"`
}

// Settings are those that a route may set otherwise.
type Settings struct {
	// Exchange is where messages are published to; its name is required.
	Exchange Exchange `yaml:"exchange"`
	// RoutingKey is at most 255 bytes and may hold {{ }} templates; a message whose key
	// gets longer is rejected.
	RoutingKey string `yaml:"routing_key"`
	// Headers are added to those that the relay sends, which begin with x-mnsrelay-.
	// Values may hold {{ }} templates and are always text.
	Headers map[string]string `yaml:"headers"`
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
	// Timeout is how long the messages that are handed over together may take
	// until the last of them is confirmed: more than 0, at most 10m.
	Timeout time.Duration `yaml:"timeout"`
}

// Exchange names an exchange and says what it is expected to be. In YAML a string
// is its name.
type Exchange struct {
	Name    string  `yaml:"name"`
	Type    string  `yaml:"type"`
	Durable bool    `yaml:"durable"`
	Declare Declare `yaml:"declare"`
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
	// exists with another type or durability.
	DeclareActive Declare = "active"
)

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
	AcknowledgeConfirm     Acknowledge = "confirm"
	AcknowledgeTransaction Acknowledge = "transaction"
	AcknowledgeReply       Acknowledge = "reply"
	AcknowledgeNone        Acknowledge = "none"
)

// Defaults is a Config with every default set.
func Defaults() *Config {
	return &Config{Settings: Settings{
		Exchange:    Exchange{Type: "topic", Durable: true, Declare: DeclarePassive},
		Persistent:  true,
		Mandatory:   true,
		Unroutable:  UnroutableRetry,
		Acknowledge: AcknowledgeConfirm,
		Timeout:     10 * time.Second,
	}}
}

// Validate reports every problem at once, joined, each a *setting.Problem with a
// path below the sink.
func (c *Config) Validate() error {
	_, problems := c.targets()
	return errors.Join(problems, c.Settings.Validate())
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
	problem := func(path, format string, args ...any) {
		problems = append(problems, setting.Problemf(path, format, args...))
	}
	// sample is the text of a template whose values are empty.
	sample := func(path, source string) string {
		template, err := expr.CompileSetting(path, source)
		if err != nil {
			problems = append(problems, err)
			return ""
		}
		return template.Sample("")
	}

	switch name := s.Exchange.Name; {
	case name == "":
		problem("exchange", "required: write the name of the exchange to publish to")
	case len(name) > maxShortString:
		problem("exchange.name", "%d bytes long: AMQP allows at most %d", len(name), maxShortString)
	case strings.Contains(name, "{{"):
		problem("exchange.name", "the same for every message, so {{ }} has no meaning here: write it in routing_key, or a route for each exchange")
	}
	switch {
	case s.Exchange.Type == "":
		problem("exchange.type", "empty: write topic, direct, fanout, headers or the name of a plugin's type")
	case len(s.Exchange.Type) > maxShortString:
		problem("exchange.type", "%d bytes long: AMQP allows at most %d", len(s.Exchange.Type), maxShortString)
	}
	switch s.Exchange.Declare {
	case DeclareNone, DeclarePassive, DeclareActive:
	default:
		problem("exchange.declare", "%q is unknown: write none, passive or active", s.Exchange.Declare)
	}

	if key := sample("routing_key", s.RoutingKey); len(key) > maxShortString {
		problem("routing_key", "%d bytes long: AMQP allows at most %d", len(key), maxShortString)
	}
	size := 0
	for _, name := range slices.Sorted(maps.Keys(s.Headers)) {
		path := "headers." + name
		size += len(name) + len(sample(path, s.Headers[name]))
		switch {
		case name == "":
			problem("headers", "a header has no name")
		case len(name) > maxShortString:
			problem("headers", "the name %.20q... is %d bytes long: AMQP allows at most %d", name, len(name), maxShortString)
		case strings.HasPrefix(strings.ToLower(name), relayHeaders):
			problem(path, "the relay sets this header itself: choose another name")
		case strings.EqualFold(name, "CC"), strings.EqualFold(name, "BCC"):
			problem(path, "the broker takes CC and BCC for lists of routing keys: choose another name")
		}
	}
	if size > maxHeaders {
		problem("headers", "%d bytes long: at most %d fit", size, maxHeaders)
	}

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
	case AcknowledgeConfirm:
	case AcknowledgeTransaction, AcknowledgeReply, AcknowledgeNone:
		problems = append(problems, setting.NotSupportedYet("acknowledge", strconv.Quote(string(s.Acknowledge))))
	default:
		problem("acknowledge", "%q is unknown: write confirm, transaction, reply or none", s.Acknowledge)
	}
	if s.Timeout <= 0 || s.Timeout > 10*time.Minute {
		problem("timeout", "%v is out of range: write more than 0s and at most 10m", s.Timeout)
	}
	return errors.Join(problems...)
}

// DeadLetters names the setting that sends messages to the dead-letter sink of their
// source on purpose; empty: none does.
func (s *Settings) DeadLetters() string {
	if s.Unroutable == UnroutableDeadLetter {
		return "unroutable"
	}
	return ""
}

// relayHeaders is how the names of the relay's own headers begin.
const relayHeaders = "x-mnsrelay-"

// target is one broker address, taken apart.
type target struct {
	address   string // host:port, safe to show
	host      string
	secure    bool
	vhost     string
	username  string
	password  setting.Secret
	heartbeat time.Duration
}

// targets reads the URLs. Its errors are problems and hold no part of a URL's user
// info.
func (c *Config) targets() ([]target, error) {
	type entry struct {
		path string
		url  setting.URL
	}
	var (
		entries  []entry
		targets  []target
		problems []error
	)
	switch {
	case !c.URL.IsZero() && len(c.URLs) > 0:
		problems = append(problems, setting.Problemf("urls", "url is set too: write one of them"))
	case !c.URL.IsZero():
		entries = append(entries, entry{"url", c.URL})
	case len(c.URLs) == 0:
		problems = append(problems, setting.Problemf("url", "required: write amqp://host:5672/vhost or amqps://host:5671/vhost"))
	}
	for i, u := range c.URLs {
		entries = append(entries, entry{fmt.Sprintf("urls[%d]", i), u})
	}
	if c.Username == "" && !c.Password.IsZero() {
		problems = append(problems, setting.Problemf("username", "required where password is set"))
	}
	if c.Username != "" && c.Password.IsZero() {
		problems = append(problems, setting.Problemf("password", "required where username is set"))
	}
	if err := c.TLS.Validate("tls"); err != nil {
		problems = append(problems, err)
	}

	secure := false
	for _, e := range entries {
		t, err := readTarget(e.url)
		if err != nil {
			problems = append(problems, setting.Problemf(e.path, "%v", err))
			continue
		}
		secure = secure || t.secure
		switch {
		case c.Username != "" && t.username != "":
			problems = append(problems, setting.Problemf(e.path, "holds credentials, and username is set too: write them in one place"))
		case c.Username != "":
			t.username, t.password = c.Username, c.Password
		case t.username == "":
			// What RabbitMQ allows on loopback out of the box; elsewhere it refuses.
			t.username, t.password = "guest", setting.NewSecret("guest")
		}
		targets = append(targets, t)
	}
	if c.TLS != (setting.TLS{}) && !secure && len(targets) == len(entries) && len(entries) > 0 {
		problems = append(problems, setting.Problemf("tls", "no URL is encrypted: write amqps:// or leave tls out"))
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return targets, nil
}

// readTarget takes u apart. Its errors never quote it.
func readTarget(u setting.URL) (target, error) {
	parsed, err := u.Parse()
	if err != nil {
		return target{}, err
	}
	t := target{host: parsed.Hostname(), vhost: "/", heartbeat: defaultHeartbeat}
	port := parsed.Port()
	switch parsed.Scheme {
	case "amqp":
		port = cmp.Or(port, "5672")
	case "amqps":
		t.secure = true
		port = cmp.Or(port, "5671")
	default:
		return target{}, errors.New("the scheme must be amqp:// or amqps://")
	}
	if t.host == "" {
		return target{}, errors.New("the host is missing")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return target{}, errors.New("the port must be 1 to 65535")
	}
	t.address = net.JoinHostPort(t.host, port)
	if vhost := strings.TrimPrefix(parsed.Path, "/"); vhost != "" {
		t.vhost = vhost
	}
	// The path "//" and "/%2F" both are the vhost "/"; "/a/b" is the vhost "a/b".
	if len(t.vhost) > maxShortString {
		return target{}, fmt.Errorf("the vhost is %d bytes long: AMQP allows at most %d", len(t.vhost), maxShortString)
	}
	if parsed.User != nil {
		t.username = parsed.User.Username()
		password, _ := parsed.User.Password()
		t.password = setting.NewSecret(password)
	}
	if parsed.Fragment != "" {
		return target{}, errors.New("there is a # in it: percent-encode it as %23, or use the username and password settings")
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
		if err != nil || seconds < 1 || seconds > 300 {
			return target{}, errors.New("heartbeat must be 1 to 300, in seconds")
		}
		t.heartbeat = time.Duration(seconds) * time.Second
	}
	return t, nil
}
