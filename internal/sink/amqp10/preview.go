package amqp10

import (
	"maps"
	"slices"
	"time"

	amqp "github.com/Azure/go-amqp"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Address is part of relay.Addressed: the address, which may hold {{ }}.
func (s *Sink) Address() string { return s.settings.Address }

// Preview is part of relay.Previewer. Times are in milliseconds, as AMQP has them.
func (s *Sink) Preview(m *relay.Message) (relay.Preview, error) {
	address, message, err := s.prepare(m)
	if err != nil {
		return relay.Preview{}, err
	}
	p := message.Properties
	fields := []relay.Field{
		{Name: "address", Value: address},
		{Name: "durable", Value: message.Header.Durable},
		{Name: "properties.message_id", Value: p.MessageID},
		{Name: "properties.creation_time", Value: shown(*p.CreationTime)},
	}
	for _, property := range []struct {
		name  string
		value *string
	}{
		{"content_type", p.ContentType},
		{"content_encoding", p.ContentEncoding},
		{"subject", p.Subject},
		{"to", p.To},
		{"reply_to", p.ReplyTo},
		{"group_id", p.GroupID},
	} {
		if property.value != nil {
			fields = append(fields, relay.Field{Name: "properties." + property.name, Value: *property.value})
		}
	}
	if p.CorrelationID != nil {
		fields = append(fields, relay.Field{Name: "properties.correlation_id", Value: p.CorrelationID})
	}
	if p.UserID != nil {
		fields = append(fields, relay.Field{Name: "properties.user_id", Value: shown(p.UserID)})
	}
	fields = append(fields, relay.Field{Name: "properties.priority", Value: int64(message.Header.Priority)})
	if ttl := message.Header.TTL; ttl != 0 {
		fields = append(fields, relay.Field{Name: "properties.ttl", Value: ttl.Milliseconds()})
	}
	for _, name := range slices.Sorted(maps.Keys(message.ApplicationProperties)) {
		fields = append(fields, field(applicationProperties, name, message.ApplicationProperties[name], s.settings.ApplicationProperties[name]))
	}
	for _, v := range s.annotations { // by name
		if value, found := message.Annotations[amqp.Symbol(v.name)]; found {
			fields = append(fields, field(annotations, v.name, value, s.settings.MessageAnnotations[v.name]))
		}
	}
	return relay.Preview{Fields: fields, Body: message.GetData()}, nil
}

func field(path, name string, value any, written setting.Value) relay.Field {
	f := relay.Field{Name: path + "." + name, Value: shown(value)}
	if written.Secret() {
		f.Value = relay.Masked
	}
	return f
}

// shown gives a value in the types of a relay.Field.
func shown(value any) any {
	switch v := value.(type) {
	case []byte:
		return string(v)
	case time.Time:
		return v.Truncate(time.Millisecond).UTC()
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = shown(v[i])
		}
		return list
	case map[string]any:
		members := make(map[string]any, len(v))
		for name := range v {
			members[name] = shown(v[name])
		}
		return members
	}
	return value
}
