package amqp10

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Config holds the settings of one sink of type amqp10. Settings may be set otherwise by
// a route; the rest belongs to the connection that all routes share.
type Config struct {
	// URL is the broker, as amqp[s]://[user:password@]host[:port]. Set url or urls.
	URL setting.URL `yaml:"url" schema:"or=urls"`
	// URLs are the hosts of one broker, tried in turn from a random one on.
	URLs []setting.URL `yaml:"urls"`
	// Username and Password are sent as they are, so that special characters need no
	// encoding; a URL may hold them instead. A password that comes from a file is read
	// again on each connect.
	Username string         `yaml:"username"`
	Password setting.Secret `yaml:"password"`
	// SASL is how the broker learns who we are; empty: plain where there is a user name,
	// and otherwise anonymous.
	SASL SASL `yaml:"sasl"`
	// TLS is for amqps URLs.
	TLS setting.TLS `yaml:"tls"`
	// ContainerID is what the broker knows us by (AMQP 1.0: 2.7.1); empty: the instance
	// and the sink.
	ContainerID string `yaml:"container_id"`
	// Hostname is what we ask the broker for; empty: the URL's host. Some take it for
	// the name of a virtual host: RabbitMQ for one that begins with "vhost:".
	Hostname string `yaml:"hostname"`
	// IdleTimeout is how long the broker may be silent: 1s to 10m.
	IdleTimeout time.Duration `yaml:"idle_timeout" schema:"positive"`
	// DialTimeout bounds the name lookup and the TCP connection to one host, over all its
	// addresses, and ConnectTimeout all of it, from DNS through TCP, TLS and SASL to the opened connection: more than 0, at
	// most 2m.
	DialTimeout    time.Duration `yaml:"dial_timeout" schema:"positive"`
	ConnectTimeout time.Duration `yaml:"connect_timeout" schema:"positive"`

	Settings `yaml:",inline"`
}

// Settings are those that a route may set otherwise.
type Settings struct {
	// Address is the target that messages are sent to, as the broker names its queues
	// and topics. It may hold {{ }} templates.
	Address string `yaml:"address" schema:"required"`
	// Durable asks the broker to keep messages over a restart (AMQP 1.0: 3.2.1).
	Durable bool `yaml:"durable"`
	// Settle says what counts as delivered.
	Settle Settle `yaml:"settle"`
	// Config says what of a message is sent. In binary mode the attributes of an event are
	// application properties named cloudEvents_ and the attribute, and one of the
	// configuration that is named so is an extension.
	format.Config `yaml:",inline"`
	// ApplicationProperties are added to those that the relay sends, which begin with
	// x-mnsrelay-. They have the type they are written with: text, number, bool or
	// timestamp. Texts may hold {{ }} templates; one that is a single {{ }} has the type of
	// its value, and without a value the property is left out.
	ApplicationProperties map[string]setting.Value `yaml:"application_properties"`
	// MessageAnnotations are for the broker, such as x-opt-...; names are ASCII. Lists and
	// mappings are allowed too.
	MessageAnnotations map[string]setting.Value `yaml:"message_annotations"`
	// Properties are those of the message beside its id and its time.
	Properties Properties `yaml:"properties"`
	// Timeout is how long the messages that are handed over together may take until the
	// last of them is settled: more than 0, at most 10m.
	Timeout time.Duration `yaml:"timeout" schema:"positive"`
}

// SASL is how the broker learns who we are.
type SASL string

// The values of SASL.
const (
	// SASLPlain sends user name and password.
	SASLPlain SASL = "plain"
	// SASLExternal leaves it to the client certificate.
	SASLExternal SASL = "external"
	// SASLAnonymous says nothing.
	SASLAnonymous SASL = "anonymous"
)

// Settle says what counts as delivered.
type Settle string

// The values of Settle.
const (
	// SettleUnsettled waits until the broker has accepted each message.
	SettleUnsettled Settle = "unsettled"
	// SettleSettled sends messages as settled: what was written to the connection
	// counts as delivered, and is lost where the broker does not take it.
	SettleSettled Settle = "settled"
)

// The longest that may be set.
const (
	maxIdleTimeout    = 10 * time.Minute
	maxConnectTimeout = 2 * time.Minute
	maxTimeout        = 10 * time.Minute
)

// The settings of which one holds many values, as paths.
const (
	applicationProperties = "application_properties"
	annotations           = "message_annotations"
)

// relayProperties is how the names of the relay's own application properties begin.
const relayProperties = "x-mnsrelay-"

// Defaults is a Config with every default set.
func Defaults() *Config {
	return &Config{
		IdleTimeout:    30 * time.Second,
		DialTimeout:    5 * time.Second,
		ConnectTimeout: 10 * time.Second,
		Settings: Settings{
			Durable: true,
			Settle:  SettleUnsettled,
			Config:  format.Defaults(),
			Timeout: 10 * time.Second,
		},
	}
}

// Validate reports every problem at once, joined, each a *setting.Problem with a
// path below the sink.
func (c *Config) Validate() error {
	_, problems := c.targets()
	return errors.Join(problems, c.validateConnection(), c.Settings.Validate())
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

// validateConnection looks at what belongs to the connection, but for the URLs.
func (c *Config) validateConnection() error {
	var problems []error
	problem := func(path, text string, args ...any) {
		problems = append(problems, setting.Problemf(path, text, args...))
	}
	switch c.SASL {
	case "", SASLPlain, SASLAnonymous:
	case SASLExternal:
		if c.TLS.CertFile == "" {
			problem("sasl", "external takes the user from the client certificate: set tls.cert_file and tls.key_file")
		}
	default:
		problem("sasl", "%q is unknown: write plain, external or anonymous", c.SASL)
	}
	if c.IdleTimeout < time.Second || c.IdleTimeout > maxIdleTimeout {
		problem("idle_timeout", "%v is out of range: write 1s to %v", c.IdleTimeout, maxIdleTimeout)
	}
	if c.DialTimeout <= 0 || c.DialTimeout > maxConnectTimeout {
		problem("dial_timeout", "%v is out of range: write more than 0s and at most %v", c.DialTimeout, maxConnectTimeout)
	}
	if c.ConnectTimeout <= 0 || c.ConnectTimeout > maxConnectTimeout {
		problem("connect_timeout", "%v is out of range: write more than 0s and at most %v", c.ConnectTimeout, maxConnectTimeout)
	}
	return errors.Join(problems...)
}

// Validate reports every problem at once, as Config.Validate does.
func (s *Settings) Validate() error {
	var problems []error
	problem := func(path, text string, args ...any) {
		problems = append(problems, setting.Problemf(path, text, args...))
	}
	if s.Address == "" {
		problem("address", "required: write the address of a queue or topic, as the broker names it")
	} else if _, err := expr.CompileSetting("address", s.Address); err != nil {
		problems = append(problems, err)
	}
	switch s.Settle {
	case SettleUnsettled, SettleSettled:
	default:
		problem("settle", "%q is unknown: write unsettled or settled", s.Settle)
	}
	_, err := s.Formatter()
	problems = append(problems, err)
	_, err = s.compileProperties()
	problems = append(problems, err)
	for _, name := range slices.Sorted(maps.Keys(s.ApplicationProperties)) {
		path := applicationProperties + "." + name
		if strings.HasPrefix(strings.ToLower(name), relayProperties) {
			problem(path, "the relay sets this property itself: choose another name")
		}
		switch s.ApplicationProperties[name].Any().(type) {
		case []any, map[string]any:
			problem(path, "AMQP 1.0 allows texts, numbers, booleans and timestamps here, and no lists or mappings")
		}
		if rest, found := broker.CutEventPrefix(name); found {
			problems = append(problems, s.CheckExtension(path, broker.EventPrefix, rest))
		}
	}
	_, err = compileValues(annotations, s.MessageAnnotations)
	problems = append(problems, err)
	for _, name := range slices.Sorted(maps.Keys(s.MessageAnnotations)) {
		path := annotations + "." + name
		if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			problem(path, "the name of an annotation is printable ASCII without spaces")
		}
		if _, found := broker.CutEventPrefix(name); found && s.isEvent() {
			problem(path, "is no part of an event: write extensions under %s, with format: cloudevents_binary", applicationProperties)
		}
	}
	_, err = s.Properties.compile()
	problems = append(problems, err, s.CheckContentType("properties.content_type", s.Properties.ContentType))
	if s.Timeout <= 0 || s.Timeout > maxTimeout {
		problem("timeout", "%v is out of range: write more than 0s and at most %v", s.Timeout, maxTimeout)
	}
	return errors.Join(problems...)
}

// isEvent tells whether messages are sent as events.
func (s *Settings) isEvent() bool {
	return s.Format == format.CloudEvents || s.Format == format.CloudEventsBinary
}

// clone gives a copy that shares nothing that overrides could write to.
func (s *Settings) clone() Settings {
	c := *s
	c.ApplicationProperties = maps.Clone(s.ApplicationProperties)
	c.MessageAnnotations = maps.Clone(s.MessageAnnotations)
	return c
}

// target is one broker, with how it learns who we are.
type target struct {
	broker.Address

	sasl SASL
}

// targets reads the URLs. Its errors are problems and hold no part of a URL's user info.
func (c *Config) targets() ([]target, error) {
	var targets []target
	urls, paths, problem := broker.OneOf(c.URL, c.URLs)
	problems := []error{problem, setting.Credentials(c.Username, c.Password), c.TLS.Validate("tls")}
	report := func(path, text string, args ...any) {
		problems = append(problems, setting.Problemf(path, text, args...))
	}
	if len(urls) == 0 {
		report("url", "required: write amqp://host:5672 or amqps://host:5671")
	}
	secure := false
	for i, u := range urls {
		t, err := readTarget(u)
		if err != nil {
			report(paths[i], "%v", err)
			continue
		}
		secure = secure || t.Secure
		if c.Username != "" && t.Username != "" {
			report(paths[i], "holds credentials, and username is set too: write them in one place")
		}
		if c.Username != "" {
			t.Username, t.Password = c.Username, c.Password
		}
		t.sasl = cmp.Or(c.SASL, SASLAnonymous)
		if c.SASL == "" && t.Username != "" {
			t.sasl = SASLPlain
		}
		switch {
		case t.sasl == SASLPlain && t.Username == "":
			report(paths[i], "sasl: plain needs a user: set username and password")
		case t.sasl != SASLPlain && t.Username != "":
			report(paths[i], "sasl: %s takes no user name: remove it and the password, or write sasl: plain", t.sasl)
		case t.sasl == SASLExternal && !t.Secure:
			report(paths[i], "sasl: external needs a client certificate, and so amqps://")
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
	switch {
	case err != nil:
		return target{}, err
	case strings.Trim(parsed.Path, "/") != "":
		return target{}, errors.New("there is a path in it: where messages go to belongs into address, and a virtual host into hostname")
	case parsed.RawQuery != "":
		return target{}, errors.New("there is a query in it: timeouts and certificates have settings of their own")
	case address.Username != "" && address.Password.IsZero():
		return target{}, errors.New("there is a user without a password in it: write user:password@, or use the username and password settings")
	}
	return target{Address: address}, nil
}
