// Package config reads the one file that configures the relay.
//
// The file is YAML, read strictly: a key that is not known, a value of the wrong type
// and a setting that cannot work are refused, all of them at once, each with its line
// and with what to write instead. The way of a file:
//
//	parse    YAML into nodes that know their line and column
//	decode   nodes into the Config structs, by reflection over their yaml tags; scalars
//	         are expanded (${ENV}, ${ENV:-default}, ${file:PATH}) after parsing, so
//	         that a secret with a quote, a colon or a newline stays one value
//	derive   what a preset or the name of a queue implies, where nothing was written
//	check    what needs more than one setting; each package that owns a Config checks
//	         its own part, conditions are compiled, and what a route sets otherwise for a
//	         sink is tried on it
//
// Where each value came from is remembered on the way: problems point at it, and YAML
// prints the effective configuration with it, secrets as ***.
package config

import (
	"time"

	"mnsrelay/internal/audit"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/ledger"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink"
)

// Config is a checked configuration with every default and derived value in place.
// Nothing in it changes once Load has returned it.
type Config struct {
	Server Server `yaml:"server"`
	Log    Log    `yaml:"log"`
	// DrainTimeout is how long a stop waits for what is in flight: more than 0.
	DrainTimeout time.Duration `yaml:"drain_timeout" schema:"positive"`
	Reload       Reload        `yaml:"reload"`
	// Ledger remembers which sink has confirmed which message.
	Ledger  ledger.Config `yaml:"ledger"`
	Tracing Tracing       `yaml:"tracing"`
	// Audit writes down what became of each message.
	Audit audit.Config `yaml:"audit"`
	// InFlight is room: how much all sources together may have between receive and settle. Messages
	// that are settled, and on their way to targets with required: false alone, may be half as much again.
	InFlight InFlight `yaml:"in_flight"`
	// Sources are the queues that messages come from, by name.
	Sources Sources `yaml:"sources" schema:"required"`
	// Sinks are where messages go to, by name.
	Sinks Sinks `yaml:"sinks" schema:"required"`
	// Routes say which messages of which sources go to which sinks. All that match apply.
	// A source with `to` has one more, which stands behind those of the file.
	Routes Routes `yaml:"routes"`

	// Digest is the SHA-256 of the file's text in hex: it tells one version of the
	// file from another, not one value of a secret from another.
	Digest string `yaml:"-"`

	// origins says where values came from, by path.
	origins map[string]string
	// hidden holds, by path, what came from a file into a setting: a secret.
	hidden map[string][]string
	// concealed are the values from files and from the environment that Conceal replaces.
	concealed []string
	// settings holds, by the path of a `with`, a pointer to the sink's per-message
	// settings as the route has them.
	settings map[string]any
}

// Server is the HTTP side: probes, API, metrics, status page.
type Server struct {
	// Listen is the address, host:port or :port.
	Listen string `yaml:"listen"`
	// AdminListen is an address of its own for what needs the admin token; empty: that of
	// Listen. All the rest, the status page too, is served at both.
	AdminListen string `yaml:"admin_listen"`
	// AdminToken opens the endpoints that change something; unset, they answer 403.
	AdminToken setting.Secret `yaml:"admin_token"`
	// TLS is the certificate of both addresses. Its files are read again when they change.
	TLS setting.ServerTLS `yaml:"tls"`
}

// Log is what is logged and how.
type Log struct {
	// Level is how much is logged: debug, info, warn or error.
	Level string `yaml:"level" schema:"enum=debug|info|warn|error"`
	// Format is how a line is written: json or console.
	Format string `yaml:"format" schema:"enum=json|console"`
}

// Reload says when the file is read again.
type Reload struct {
	// Watch reads it when it changes; SIGHUP and the API do always.
	Watch bool `yaml:"watch"`
}

// Tracing says where traces go: by OTLP over HTTP.
type Tracing struct {
	// OTLPEndpoint is the collector's URL, as http://collector:4318; empty: no traces. One
	// without a path gets that of OTLP, /v1/traces.
	OTLPEndpoint setting.URL `yaml:"otlp_endpoint"`
	// Headers are sent with every request, such as the collector's key.
	Headers map[string]setting.Secret `yaml:"headers"`
	// SampleRatio is how many of the traces that begin here are recorded, 0 to 1. Of a
	// message that belongs to a trace its sender has decided.
	SampleRatio float64 `yaml:"sample_ratio" schema:"min=0,max=1"`
	// TLS is for an endpoint of https.
	TLS setting.TLS `yaml:"tls"`
}

// InFlight is room: how much may be between receive and settle.
type InFlight struct {
	// Messages is how many: at least a batch.
	Messages int `yaml:"messages" schema:"min=1"`
	// Bytes is how long their bodies are together: at least 64KiB for each message of a batch.
	Bytes setting.Size `yaml:"bytes"`
}

// Sources are in the order of the file.
type Sources []Source

// Source is one MNS queue and how it is received.
type Source struct {
	// Name is its key under sources.
	Name string `yaml:"-"`

	// Type is what kind of queue it is: mns.
	Type string `yaml:"type" schema:"enum=mns"`
	// Preset is what the values that were not written come from: alicom-cn,
	// alicom-intl or none.
	Preset string `yaml:"preset" schema:"enum=alicom-cn|alicom-intl|none"`
	// Endpoint is the URL of the MNS server.
	Endpoint setting.URL `yaml:"endpoint"`
	// Mode is relay, or shadow: look into the queue without taking anything, and show what
	// would be sent.
	Mode string `yaml:"mode" schema:"enum=relay|shadow"`
	// Queue is its name. That of an Alicom queue implies a preset.
	Queue string `yaml:"queue" schema:"required"`
	// Credentials say whose keys sign the requests.
	Credentials credentials.Config `yaml:"credentials"`
	// BatchSize is how many messages one receive asks for, 1 to 16.
	BatchSize int `yaml:"batch_size" schema:"min=1,max=16"`
	// Wait is how long a receive waits at the server for a message: whole seconds,
	// 0 to 30 s.
	Wait     time.Duration `yaml:"wait"`
	Pollers  Pollers       `yaml:"pollers"`
	InFlight InFlight      `yaml:"in_flight"`
	// Body is how the body is encoded in the queue: auto, base64 or raw.
	Body string `yaml:"body" schema:"enum=auto|base64|raw"`
	// Unwrap is what becomes of a topic's notification: auto, its message; none, nothing.
	Unwrap string `yaml:"unwrap" schema:"enum=auto|none"`
	// Guarantee is what holds when something fails: at_least_once, or at_most_once, where a
	// message is deleted before it is delivered, and lost where that fails.
	Guarantee  string     `yaml:"guarantee" schema:"enum=at_least_once|at_most_once"`
	Redelivery Redelivery `yaml:"redelivery"`
	// MaxReceives is after how many receives a message that fails is dead-lettered; 0: never.
	// It is more than 0 only where there is a DeadLetter, and 16 there unless it is written.
	MaxReceives int `yaml:"max_receives" schema:"min=0"`
	// DeadLetter names the sink that takes dead letters; empty: the queue keeps what fails.
	// It is none of those that a route takes the source to.
	DeadLetter string `yaml:"dead_letter"`
	// DeadLetterLimit pauses the source when more is dead-lettered.
	DeadLetterLimit Limit `yaml:"dead_letter_limit"`
	// Unmatched is what becomes of a message that no route takes: delete, dead_letter
	// or retain; empty only where every message has a route.
	Unmatched string `yaml:"unmatched" schema:"enum=|delete|dead_letter|retain"`
	// Paused keeps the source from receiving.
	Paused bool `yaml:"paused"`
	// To makes a route of the source's name, without a condition: one sink or several.
	To Targets `yaml:"to"`
}

// AtMostOnce tells whether a message is deleted before it is delivered.
func (s *Source) AtMostOnce() bool { return s.Guarantee == atMostOnce }

// Shadow tells whether the source only looks.
func (s *Source) Shadow() bool { return s.Mode == modeShadow }

// Decoder gives what unwraps and decodes the messages of the source.
func (s *Source) Decoder() *mns.Decoder {
	return &mns.Decoder{Body: mns.BodyEncoding(s.Body), Unwrap: s.Unwrap == "auto"}
}

// Pollers is how many receives of one source run at once.
type Pollers struct {
	// Min is how many there are as soon as there are messages; an idle queue has one. 1 or more.
	Min int `yaml:"min" schema:"min=1"`
	// Max is how many there are under backlog: Min or more.
	Max int `yaml:"max" schema:"min=1"`
}

// Redelivery is how long a message that failed stays invisible: Initial, then double
// that with each receive, up to Max.
type Redelivery struct {
	// Initial is how long after the first receive: 1s to 12h.
	Initial time.Duration `yaml:"initial" schema:"positive"`
	// Max is how long at most: Initial to 12h.
	Max time.Duration `yaml:"max" schema:"positive"`
}

// Limit is a count in a stretch of time.
type Limit struct {
	// Count is how many: 1 or more.
	Count int `yaml:"count" schema:"min=1"`
	// Per is the time in which they are counted: more than 0.
	Per time.Duration `yaml:"per" schema:"positive"`
}

// Sinks are in the order of the file.
type Sinks []Sink

// Sink is one destination.
type Sink struct {
	// Name is its key under sinks.
	Name string
	// Type is one of sink.Types.
	Type string
	// Settings are those of the type, checked.
	Settings sink.Config
}

// Routes are in the order of the file.
type Routes []Route

// Route says which messages of which sources go to which sinks.
type Route struct {
	// Name is for metrics and logs: up to 63 letters, digits, - and _, a letter or digit first.
	Name string `yaml:"name" schema:"required,name"`
	// From names the sources, one or several.
	From Names `yaml:"from" schema:"required"`
	// When is the condition, in CEL; empty: every message.
	When string `yaml:"when"`
	// To names the sinks, one or several.
	To Targets `yaml:"to" schema:"required"`
	// Match is When, compiled; nil: every message. Its error is a *relay.Failure.
	Match func(*relay.Message) (bool, error) `yaml:"-"`

	path string // of what it was written as: "routes[0]", or "sources.NAME" for a `to`
}

// Target is one sink of a route, whose endpoint's Bind has accepted what With says.
type Target struct {
	// Sink is its name.
	Sink string `yaml:"sink" schema:"required"`
	// Required sinks hold up the delete until they have confirmed; others never do.
	Required bool `yaml:"required"`
	// With is what the route sets otherwise for the sink, but for what belongs to the connection.
	With relay.Overrides `yaml:"with"`
}

// Names is a list of names; a single one may be written without brackets.
type Names []string

// Targets is a list of targets; a single one, and each in the list, may be written as
// the name of its sink.
type Targets []Target

// Problem is one thing wrong with the file.
type Problem struct {
	// File is the name it was read by.
	File string
	// Line and Column count from 1; both are 0 where the file could not be read.
	Line, Column int
	// Path is the setting's path, dotted, list indexes in brackets; empty where the
	// text is not YAML.
	Path string
	// Message says what is wrong and what to write instead. It holds no secret.
	Message string
}

// Warning is something that works and is probably not meant.
type Warning Problem

// Error holds every problem of a file, in the order of its lines. A command that gets
// it exits with 2.
type Error struct{ Problems []Problem }
