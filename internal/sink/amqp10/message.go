package amqp10

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	amqp "github.com/Azure/go-amqp"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// maxProperties is how many bytes the texts beside the body may have in a message.
const maxProperties = 64 << 10

// Properties are those of the message (AMQP 1.0: 3.2.4) and of its header (3.2.1) beside id
// and time. Each may hold {{ }} templates and is left out where it comes to nothing.
type Properties struct {
	// Subject says what the message is about; Azure Service Bus calls it label.
	Subject string `yaml:"subject"`
	// To is where the message goes to, for brokers and receivers that look at it.
	To string `yaml:"to"`
	// ReplyTo is where an answer goes to.
	ReplyTo string `yaml:"reply_to"`
	// ContentType is by default what the body is: application/json, text/plain or
	// application/octet-stream. An event as JSON has that of events whatever this says.
	ContentType string `yaml:"content_type"`
	// ContentEncoding is how the body is encoded, such as gzip; ASCII.
	ContentEncoding string `yaml:"content_encoding"`
	// CorrelationID says what the message belongs to.
	CorrelationID string `yaml:"correlation_id"`
	// GroupID keeps messages together, as a session of Azure Service Bus does.
	GroupID string `yaml:"group_id"`
	// UserID is who sends, which some brokers check.
	UserID string `yaml:"user_id"`
	// Priority is a whole number, 0 to 255; 4 is the usual one.
	Priority string `yaml:"priority"`
	// TTL is after what time in a queue the broker drops the message: a duration, or a
	// whole number of milliseconds; at most 4294967295 ms.
	TTL string `yaml:"ttl"`
}

// property is one of them, compiled.
type property struct {
	name, source string
	value        *expr.Template
	set          func(m *amqp.Message, text string) error
}

// compile reports every problem at once, joined.
func (p *Properties) compile() ([]property, error) {
	var (
		compiled []property
		problems []error
	)
	for _, property := range []property{
		{name: "subject", source: p.Subject, set: text(func(p *amqp.MessageProperties) **string { return &p.Subject })},
		{name: "to", source: p.To, set: text(func(p *amqp.MessageProperties) **string { return &p.To })},
		{name: "reply_to", source: p.ReplyTo, set: text(func(p *amqp.MessageProperties) **string { return &p.ReplyTo })},
		{name: "content_type", source: p.ContentType, set: symbol(func(p *amqp.MessageProperties) **string { return &p.ContentType })},
		{name: "content_encoding", source: p.ContentEncoding, set: symbol(func(p *amqp.MessageProperties) **string { return &p.ContentEncoding })},
		{name: "correlation_id", source: p.CorrelationID, set: func(m *amqp.Message, text string) error {
			m.Properties.CorrelationID = text
			return nil
		}},
		{name: "group_id", source: p.GroupID, set: text(func(p *amqp.MessageProperties) **string { return &p.GroupID })},
		{name: "user_id", source: p.UserID, set: func(m *amqp.Message, text string) error {
			m.Properties.UserID = []byte(text)
			return nil
		}},
		{name: "priority", source: p.Priority, set: setPriority},
		{name: "ttl", source: p.TTL, set: setTTL},
	} {
		path := "properties." + property.name
		template, err := expr.CompileSetting(path, property.source)
		switch {
		case err != nil:
			problems = append(problems, err)
			continue
		case template.Literal() && template.Sample("") == "":
			continue
		case template.Literal():
			if err := property.set(newMessage(), template.Sample("")); err != nil {
				problems = append(problems, setting.Problemf(path, "%v", err))
			}
		}
		property.value = template
		compiled = append(compiled, property)
	}
	return compiled, errors.Join(problems...)
}

func newMessage() *amqp.Message {
	return &amqp.Message{Header: &amqp.MessageHeader{}, Properties: &amqp.MessageProperties{}}
}

func text(of func(p *amqp.MessageProperties) **string) func(m *amqp.Message, text string) error {
	return func(m *amqp.Message, text string) error {
		*of(m.Properties) = &text
		return nil
	}
}

// symbol sets a text that the wire wants to be ASCII (AMQP 1.0: 1.6.21).
func symbol(of func(p *amqp.MessageProperties) **string) func(m *amqp.Message, text string) error {
	return func(m *amqp.Message, text string) error {
		for i := range len(text) {
			if text[i] >= utf8.RuneSelf {
				return errors.New("must be ASCII")
			}
		}
		*of(m.Properties) = &text
		return nil
	}
}

func setPriority(m *amqp.Message, text string) error {
	priority, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		return errors.New("must be a whole number from 0 to 255")
	}
	m.Header.Priority = uint8(priority)
	return nil
}

func setTTL(m *amqp.Message, text string) error {
	ms, err := strconv.ParseInt(text, 10, 64)
	ttl := time.Duration(ms) * time.Millisecond
	if err != nil {
		ttl, err = time.ParseDuration(text)
		ms = ttl.Milliseconds()
	}
	if err != nil || ms < 1 || ms > math.MaxUint32 {
		return errors.New("must be a duration from 1ms on, as in 10m, or a whole number of milliseconds, at most 4294967295")
	}
	m.Header.TTL = ttl
	return nil
}

// value is an application property or annotation that is compiled.
type value struct {
	name      string
	extension bool // of an event
	typed     *expr.Typed
}

// compileProperties compiles the application properties, and finds texts of extensions that
// are none.
func (s *Settings) compileProperties() ([]value, error) {
	values, err := compileValues(applicationProperties, s.ApplicationProperties)
	problems := []error{err}
	for i := range values {
		v := &values[i]
		v.extension = s.Format == format.CloudEventsBinary && strings.HasPrefix(v.name, broker.EventPrefix)
		if text, is := s.ApplicationProperties[v.name].Any().(string); is && v.extension && v.typed.Literal() {
			if _, err := format.Extension(text); err != nil {
				problems = append(problems, setting.Problemf(applicationProperties+"."+v.name, "%v", err))
			}
		}
	}
	return values, errors.Join(problems...)
}

// compileValues reports every problem at once, joined.
func compileValues(path string, written map[string]setting.Value) ([]value, error) {
	var (
		values   []value
		problems []error
	)
	for _, name := range slices.Sorted(maps.Keys(written)) {
		if name == "" || !utf8.ValidString(name) {
			problems = append(problems, setting.Problemf(path, "a name is empty or no UTF-8 text"))
			continue
		}
		typed, err := expr.CompileTyped(path+"."+name, written[name])
		if err != nil {
			problems = append(problems, err)
			continue
		}
		values = append(values, value{name: name, typed: typed})
	}
	return values, errors.Join(problems...)
}

// prepare works out the address of a message and the message itself. It finds what the
// library or the broker would refuse. Its error holds nothing of the message.
func (s *Sink) prepare(m *relay.Message) (address string, message *amqp.Message, err error) {
	var in *expr.Input // literals need none
	if s.varies {
		in = expr.Of(m)
	}
	if address, err = s.address.Render(in); err != nil {
		return "", nil, fmt.Errorf("work out the address: %w", err)
	}
	if address == "" {
		return "", nil, invalid("the address", errors.New("it is empty"))
	}
	message = newMessage()
	message.Header.Durable = s.settings.Durable
	message.Header.Priority = usualPriority
	message.Properties.MessageID = m.ID
	enqueued := m.EnqueuedAt
	message.Properties.CreationTime = &enqueued
	size := len(address)
	n, err := s.setProperties(message, in)
	if err != nil {
		return "", nil, err
	}
	size += n
	payload, err := s.format.Format(m)
	if err != nil {
		return "", nil, err
	}
	message.Data = [][]byte{payload.Body}
	contentType := ""
	if configured := message.Properties.ContentType; configured != nil {
		contentType = *configured
	}
	if contentType, err = payload.ContentTypeOr(contentType); err != nil {
		return "", nil, err
	}
	message.Properties.ContentType = &contentType

	if n, err = s.setApplicationProperties(message, payload.Attributes, in); err != nil {
		return "", nil, err
	}
	size += n
	if n, err = s.setAnnotations(message, in); err != nil {
		return "", nil, err
	}
	size += n
	if size > maxProperties {
		return "", nil, invalid("address, properties and annotations", fmt.Errorf("%d bytes long, at most %d fit", size, maxProperties))
	}
	for name, text := range m.Headers {
		if _, own := message.ApplicationProperties[name]; own && relay.IsTraceHeader(name) {
			continue // the configuration's own
		}
		message.ApplicationProperties[name] = text
	}
	message.ApplicationProperties[relay.HeaderAttempt] = int64(m.Attempt)
	if !utf8.ValidString(m.ID) || !utf8.ValidString(address) {
		return "", nil, invalid("the message id or the address", errNoText)
	}
	return address, message, nil
}

// setProperties works out the properties, and gives how many bytes they have.
func (s *Sink) setProperties(message *amqp.Message, in *expr.Input) (size int, err error) {
	for _, property := range s.properties {
		text, err := property.value.Render(in)
		if err != nil {
			return 0, fmt.Errorf("work out the property %s: %w", property.name, err)
		}
		if text == "" {
			continue
		}
		size += len(text)
		if err := property.set(message, text); err != nil {
			return 0, invalid("the property "+property.name, err)
		}
		if !utf8.ValidString(text) {
			return 0, invalid("the property "+property.name, errNoText)
		}
	}
	return size, nil
}

// setApplicationProperties sets the attributes of an event and works out what is configured,
// which wins, and gives how many bytes they have.
func (s *Sink) setApplicationProperties(message *amqp.Message, attributes []format.Attribute, in *expr.Input) (size int, err error) {
	message.ApplicationProperties = make(map[string]any, len(s.values)+len(attributes)+maxRelayProperties)
	for _, a := range attributes {
		// The time, too, is text, which every reader has to take (binding, 3.1.3.2): JMS has no
		// properties that are timestamps.
		message.ApplicationProperties[broker.EventPrefix+a.Name] = a.Value
		size += len(broker.EventPrefix) + len(a.Name) + len(a.Value)
	}
	for _, v := range s.values {
		rendered, n, err := v.render(in)
		if err != nil {
			return 0, fmt.Errorf("work out the application property %s: %w", v.name, err)
		}
		if size += n; rendered != nil {
			message.ApplicationProperties[v.name] = rendered
		}
	}
	return size, nil
}

// setAnnotations works out the annotations, and gives how many bytes they have.
func (s *Sink) setAnnotations(message *amqp.Message, in *expr.Input) (size int, err error) {
	if len(s.annotations) > 0 {
		message.Annotations = make(amqp.Annotations, len(s.annotations))
	}
	for _, v := range s.annotations {
		rendered, n, err := v.render(in)
		if err != nil {
			return 0, fmt.Errorf("work out the annotation %s: %w", v.name, err)
		}
		if size += n; rendered != nil {
			message.Annotations[amqp.Symbol(v.name)] = rendered
		}
	}
	return size, nil
}

const (
	// usualPriority is that of a message that says nothing of it (AMQP 1.0: 3.2.1).
	usualPriority = 4
	// maxRelayProperties is how many the relay itself sends, of a dead letter that is traced.
	maxRelayProperties = 11
)

var errNoText = errors.New("it is not UTF-8 text")

func invalid(what string, err error) error {
	return relay.Fail(reasonInvalidProperty, fmt.Errorf("%s: %w", what, err))
}

// render gives the value for a message, and how many bytes its texts have.
func (v *value) render(in *expr.Input) (rendered any, size int, err error) {
	if rendered, err = v.typed.Render(in); err != nil {
		return nil, 0, err
	}
	if v.extension && rendered != nil {
		if rendered, err = format.Extension(rendered); err != nil {
			return nil, 0, relay.Fail(reasonInvalidProperty, err)
		}
	}
	size, err = textSize(rendered)
	return rendered, len(v.name) + size, err
}

// textSize counts the bytes of texts, which have to be UTF-8.
func textSize(v any) (size int, err error) {
	switch v := v.(type) {
	case string:
		if !utf8.ValidString(v) {
			return 0, relay.Fail(reasonInvalidProperty, errNoText)
		}
		return len(v), nil
	case []byte:
		return len(v), nil
	case []any:
		for i := range v {
			n, err := textSize(v[i])
			if err != nil {
				return 0, err
			}
			size += n
		}
	case map[string]any:
		for name := range v {
			n, err := textSize(v[name])
			if err != nil {
				return 0, err
			}
			size += len(name) + n
		}
	}
	return size, nil
}
