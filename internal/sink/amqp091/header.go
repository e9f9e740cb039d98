package amqp091

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"mnsrelay/internal/broker"
	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/setting"
)

// maxHeaders is how many bytes the headers of the configuration may have in a message, as
// they are encoded. All of a message's properties go in one frame, which a broker limits
// to 128 KiB unless it was set otherwise, and end the connection if they do not fit.
const maxHeaders = 64 << 10

// relayHeaders is how the names of the relay's own headers begin.
const relayHeaders = "x-mnsrelay-"

// headers are those of the configuration.
type headers struct {
	// fixed are the same for every message, ready for the library, and size what they
	// take.
	fixed amqp.Table
	size  int
	// varying are those that each message decides.
	varying []header
}

// header is one whose value each message decides.
type header struct {
	name      string
	extension bool // of an event
	value     *expr.Typed
}

// compileHeaders reports every problem at once, joined.
func (s *Settings) compileHeaders() (*headers, error) {
	written := s.Headers
	h := &headers{fixed: amqp.Table{}}
	var problems []error
	problem := func(path, text string, args ...any) {
		problems = append(problems, setting.Problemf(path, text, args...))
	}
	for _, name := range slices.Sorted(maps.Keys(written)) {
		path := "headers." + name
		switch {
		case name == "":
			problem("headers", "a header has no name")
			continue
		case len(name) > maxShortString:
			problem("headers", "the name %.20q... is %d bytes long: AMQP allows at most %d", name, len(name), maxShortString)
			continue
		case strings.HasPrefix(strings.ToLower(name), relayHeaders):
			problem(path, "the relay sets this header itself: choose another name")
			continue
		}
		if rest, found := broker.CutEventPrefix(name); found {
			if err := s.CheckExtension(path, broker.EventPrefix, rest); err != nil {
				problems = append(problems, err)
				continue
			}
		}
		extension := s.Format == format.CloudEventsBinary && strings.HasPrefix(name, broker.EventPrefix)
		value, err := expr.CompileTyped(path, written[name])
		if err != nil {
			problems = append(problems, err)
			continue
		}
		// What is wrong with the names of a table shows before there is a message.
		sample, err := wireValue(written[name].Any())
		if _, isText := sample.(string); err == nil && extension && !isText {
			_, err = format.Extension(sample)
		}
		if err == nil && isKeys(name) {
			if _, is := sample.([]any); !is {
				err = errKeys
			}
		}
		if err == nil && value.Literal() {
			if sample, err = value.Render(nil); err == nil {
				sample, err = headerValue(name, extension, sample)
			}
		}
		if err != nil {
			problem(path, "%v", err)
			continue
		}
		if !value.Literal() {
			h.varying = append(h.varying, header{name, extension, value})
			continue
		}
		h.fixed[name] = sample
		h.size += entrySize(name, sample)
	}
	if h.size > maxHeaders {
		problem("headers", "%d bytes long: at most %d fit", h.size, maxHeaders)
	}
	return h, errors.Join(problems...)
}

// isKeys tells whether the broker takes a header for more routing keys.
func isKeys(name string) bool { return name == "CC" || name == "BCC" }

var errKeys = fmt.Errorf("the broker takes it for more routing keys: write a list of texts of at most %d bytes", maxShortString)

// headerValue gives the value of a header as the library writes it.
func headerValue(name string, extension bool, value any) (any, error) {
	if extension {
		return format.Extension(value)
	}
	wire, err := wireValue(value)
	if err != nil || !isKeys(name) {
		return wire, err
	}
	// Anything else makes RabbitMQ close the channel.
	keys, is := wire.([]any)
	if !is {
		return nil, errKeys
	}
	for _, key := range keys {
		if text, is := key.(string); !is || len(text) > maxShortString {
			return nil, errKeys
		}
	}
	return keys, nil
}

// wireValue makes the library's types of what setting.Value and expr.Typed give. Its
// error holds nothing of a value.
func wireValue(value any) (any, error) {
	switch v := value.(type) {
	case float64:
		if math.IsInf(v, 0) || math.IsNaN(v) {
			return nil, errors.New("a number that is infinite or none: the broker ends the connection over it")
		}
	case []any:
		list := make([]any, len(v))
		for i := range v {
			var err error
			if list[i], err = wireValue(v[i]); err != nil {
				return nil, err
			}
		}
		return list, nil
	case map[string]any:
		table := make(amqp.Table, len(v))
		for name := range v {
			if len(name) > maxShortString {
				return nil, fmt.Errorf("a name in it is %d bytes long: AMQP allows at most %d", len(name), maxShortString)
			}
			inner, err := wireValue(v[name])
			if err != nil {
				return nil, err
			}
			table[name] = inner
		}
		return table, nil
	}
	return value, nil
}

// entrySize is what a header takes in a frame (AMQP 0-9-1: 4.2.5).
func entrySize(name string, value any) int { return 1 + len(name) + valueSize(value) }

func valueSize(value any) int {
	const kind, length = 1, 4
	switch v := value.(type) {
	case string:
		return kind + length + len(v)
	case []byte:
		return kind + length + len(v)
	case bool:
		return kind + 1
	case int64, float64, time.Time:
		return kind + 8
	case []any:
		size := kind + length
		for i := range v {
			size += valueSize(v[i])
		}
		return size
	case amqp.Table:
		size := kind + length
		for name, inner := range v {
			size += entrySize(name, inner)
		}
		return size
	}
	return kind // nothing: a null in a list
}
