package amqp10_test

import (
	"encoding/base64"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	amqp10client "github.com/Azure/go-amqp"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/document"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/test/amqppeer"
)

// farSide is one of the three that see the same.
type farSide struct {
	config   *amqp10.Config
	received func(n int) []amqppeer.Message
}

func farSides() map[string]func(t *testing.T) farSide {
	sides := map[string]func(t *testing.T) farSide{
		"rabbitmq": func(t *testing.T) farSide {
			t.Helper()
			b := newRabbit(t)
			return farSide{b.config(), func(n int) []amqppeer.Message {
				var seen []amqppeer.Message
				for _, m := range b.receive(n) {
					seen = append(seen, shown(m))
				}
				return seen
			}}
		},
	}
	for _, kind := range kinds() {
		sides[string(kind)] = func(t *testing.T) farSide {
			t.Helper()
			p := amqppeer.Start(t, kind)
			return farSide{config(p, "accept"), func(n int) []amqppeer.Message { return awaitMessages(t, p, n) }}
		}
	}
	return sides
}

// shown is a message as the peers show theirs.
func shown(m *amqp10client.Message) amqppeer.Message {
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	p := m.Properties
	id, _ := p.MessageID.(string)
	correlation, _ := p.CorrelationID.(string)
	annotations := map[string]any{}
	for name, value := range m.Annotations {
		if name, is := name.(string); is && strings.HasPrefix(name, "x-opt-") { // others are the broker's own
			annotations[name] = shownValue(value)
		}
	}
	properties := map[string]any{}
	for name, value := range m.ApplicationProperties {
		properties[name] = shownValue(value)
	}
	return amqppeer.Message{
		ID: id, Body64: base64.StdEncoding.EncodeToString(m.GetData()), Durable: m.Header.Durable, Priority: int(m.Header.Priority),
		TTL: m.Header.TTL.Milliseconds(), Subject: text(p.Subject), To: text(p.To), ReplyTo: text(p.ReplyTo), CorrelationID: correlation,
		GroupID: text(p.GroupID), UserID: string(p.UserID), ContentType: text(p.ContentType), ContentEncoding: text(p.ContentEncoding),
		CreationTime: p.CreationTime.UnixMilli(), Properties: properties, Annotations: annotations,
	}
}

func shownValue(value any) []any {
	switch v := value.(type) {
	case bool:
		return pair("bool", v)
	case int64:
		return pair("long", v)
	case float64:
		return pair("double", v)
	case string:
		return pair("string", v)
	case []byte:
		return binary(v)
	case time.Time:
		return pair("timestamp", v.UnixMilli())
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = shownValue(v[i])
		}
		return pair("list", list)
	}
	return pair(fmt.Sprintf("%T", value), fmt.Sprint(value))
}

// RabbitMQ, Qpid Proton and rhea see the same bytes and properties of the same message.
func TestEveryFarSideSeesTheSame(t *testing.T) {
	t.Parallel()
	bodies := map[string][]byte{
		"empty": nil, "text": []byte("plain"), "json": []byte(`{"n": 7}`), "bytes": {0, 1, 0xff, 0xfe},
		"large": []byte(strings.Repeat("短信", 11_000)), "lines": []byte("a\r\nb\x00c"),
	}
	at := time.Date(2026, time.March, 1, 9, 30, 0, 5e6, time.UTC)
	for name, start := range farSides() {
		t.Run(name, func(t *testing.T) {
			side := start(t)
			c := side.config
			c.ApplicationProperties = values(map[string]any{
				"text": "短信", "empty": "", "number": -5, "large": int64(1) << 52, "fraction": 0.5, "yes": true, "no": false, "at": at,
				"attempt": "{{ attempt }}", "mixed": "<{{ id }}>", "bytes": "{{ bytes(id) }}", "none": "{{ attributes.?none }}",
				"long": strings.Repeat("x", 5000),
			})
			c.MessageAnnotations = values(map[string]any{"x-opt-key": "{{ id }}", "x-opt-list": []any{1, "a", true}, "x-opt-at": at})
			c.Properties = amqp10.Properties{
				Subject: "{{ source }}.report", To: "to", ReplyTo: "/amq/queue/back", ContentEncoding: "identity", CorrelationID: "c-{{ id }}",
				GroupID: "g", UserID: "guest", Priority: "7", TTL: "10m",
			}
			r := run(t, c)
			r.Await(relay.Up)
			ids := make([]string, 0, len(bodies))
			for id, body := range bodies {
				ms := relaytest.Messages(id, 1, 0)
				ms[0].ID, ms[0].Body, ms[0].Attempt = id, body, 3
				relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, ms))
				ids = append(ids, id)
			}
			seen := map[string]amqppeer.Message{}
			for _, m := range side.received(len(ids)) {
				seen[m.ID] = m
			}
			require.ElementsMatch(t, ids, keys(seen))
			for id, body := range bodies {
				m := seen[id]
				require.Equal(t, string(body), string(m.Body()), id)
				sent := relay.Message{Body: body}
				m.Address, m.Body64 = "", "" // each has its own; compared above
				requireJSON(t, amqppeer.Message{
					ID: id, Durable: true, Priority: 7, TTL: 600_000, Subject: "sms.report", To: "to", ReplyTo: "/amq/queue/back",
					CorrelationID: "c-" + id, GroupID: "g", UserID: "guest", ContentType: document.ContentType(sent.Body), ContentEncoding: "identity",
					CreationTime: relaytest.Messages("", 1, 0)[0].EnqueuedAt.UnixMilli(),
					Properties: map[string]any{
						"text": pair("string", "短信"), "empty": pair("string", ""), "number": pair("long", -5), "large": pair("long", int64(1)<<52),
						"fraction": pair("double", 0.5), "yes": pair("bool", true), "no": pair("bool", false), "at": pair("timestamp", at.UnixMilli()),
						"attempt": pair("long", 3), "mixed": pair("string", "<"+id+">"), "bytes": binary([]byte(id)),
						"long":             pair("string", strings.Repeat("x", 5000)),
						relay.HeaderSource: pair("string", "sms"), relay.HeaderAttempt: pair("long", 3),
						relay.HeaderEnqueuedAt: pair("string", "2026-03-01T09:30:00.045Z"), relay.HeaderBody: pair("string", "raw"),
					},
					Annotations: map[string]any{
						"x-opt-key":  pair("string", id),
						"x-opt-list": pair("list", []any{pair("long", 1), pair("string", "a"), pair("bool", true)}),
						"x-opt-at":   pair("timestamp", at.UnixMilli()),
					},
				}, m)
			}
		})
	}
}

func keys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range maps.Keys(m) {
		keys = append(keys, key)
	}
	return keys
}
