package amqp091

import (
	"maps"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"mnsrelay/internal/relay"
)

// Address is part of relay.Addressed: the exchange.
func (s *Sink) Address() string { return s.exchange.Name }

// Preview is part of relay.Previewer. Times are in whole seconds, as AMQP has them. The
// correlation id of acknowledge: reply is that of the first message on a channel.
func (s *Sink) Preview(m *relay.Message) (relay.Preview, error) {
	key, p, err := s.prepare(s.endpoint.limits(), m, amqp.Table{})
	if err != nil {
		return relay.Preview{}, err
	}
	if s.replies != nil {
		p.ReplyTo, p.CorrelationId = directReplyTo, correlationID(m.ID, 1)
	}
	fields := []relay.Field{
		{Name: "exchange", Value: s.exchange.Name},
		{Name: "routing_key", Value: key},
		{Name: "mandatory", Value: s.settings.Mandatory && s.settings.Acknowledge != AcknowledgeNone},
		{Name: "persistent", Value: s.settings.Persistent},
	}
	for _, property := range []struct{ name, value string }{
		{"message_id", p.MessageId},
		{"content_type", p.ContentType},
		{"content_encoding", p.ContentEncoding},
		{"type", p.Type},
		{"app_id", p.AppId},
		{"user_id", p.UserId},
		{"correlation_id", p.CorrelationId},
		{"reply_to", p.ReplyTo},
		{"expiration", p.Expiration},
	} {
		if property.value != "" {
			fields = append(fields, relay.Field{Name: "properties." + property.name, Value: property.value})
		}
	}
	if p.Priority > 0 { // 0 is not sent
		fields = append(fields, relay.Field{Name: "properties.priority", Value: int64(p.Priority)})
	}
	if !p.Timestamp.IsZero() {
		fields = append(fields, relay.Field{Name: "properties.timestamp", Value: shown(p.Timestamp)})
	}
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		value := shown(p.Headers[name])
		if s.settings.Headers[name].Secret() {
			value = relay.Masked
		}
		fields = append(fields, relay.Field{Name: "headers." + name, Value: value})
	}
	return relay.Preview{Fields: fields, Body: p.Body}, nil
}

// limits are those of the connection; without one, what the configuration tells.
func (e *Endpoint) limits() limits {
	if c := e.connection.Load(); c != nil {
		return c.limits
	}
	username := e.targets[0].Username
	for i := range e.targets {
		if e.targets[i].Username != username {
			return limits{}
		}
	}
	return limits{username: username}
}

// shown gives the value of a header in the types of a relay.Field.
func shown(value any) any {
	switch v := value.(type) {
	case []byte:
		return string(v)
	case time.Time:
		return v.Truncate(time.Second).UTC()
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = shown(v[i])
		}
		return list
	case amqp.Table:
		members := make(map[string]any, len(v))
		for name := range v {
			members[name] = shown(v[name])
		}
		return members
	}
	return value
}
