package relay

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

// Masked stands in a Preview for what is secret.
const Masked = "***"
