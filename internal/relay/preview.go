package relay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"
)

// Previewer is a Sink that tells what it would send, without a connection.
type Previewer interface {
	// Preview fails where Deliver would reject the message, with the same error.
	Preview(m *Message) (Preview, error)
}

// Preview is what a sink would send for one message. Nothing in it is a secret of the
// configuration: those are Masked.
type Preview struct {
	// Fields are what goes along with the body, in the order of interest to a reader.
	Fields []Field
	Body   []byte
}

// Field is one value beside the body.
type Field struct {
	// Name is that of the setting which decides the value, as in routing_key or
	// headers.x-tenant; of what no setting decides, the name on the wire.
	Name string
	// Value is a string, a bool, an int64, a float64, a time.Time, or a list or a map
	// of such.
	Value any
}

// JSON writes the value, the one form in which people, programs and tests see it. A time is
// RFC 3339 in UTC and milliseconds, in a list or map, too.
func (f Field) JSON() []byte {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if encoder.Encode(plain(f.Value)) != nil { // a number that JSON has not
		_ = encoder.Encode(fmt.Sprint(f.Value))
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// plain gives a value with texts for times.
func plain(v any) any {
	switch v := v.(type) {
	case time.Time:
		return v.UTC().Format(EnqueuedAtFormat)
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = plain(v[i])
		}
		return list
	case map[string]any:
		members := make(map[string]any, len(v))
		for name := range v {
			members[name] = plain(v[name])
		}
		return members
	}
	return v
}

// Masked stands in a Preview for what is secret.
const Masked = "***"
