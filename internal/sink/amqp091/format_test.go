package amqp091_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/document"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

// readEvent has the official library read the event in a message.
func readEvent(t *testing.T, d amqp.Delivery) *event.Event {
	t.Helper()
	return relaytest.ReadAMQPEvent(t, d.ContentType, d.Headers, d.Body)
}

func bodies() map[string]string {
	return map[string]string{
		"json": `{"to":"短信 \"a\" 100%","ok":true}`, "text": "短信\r\n", "binary": "\xff\x00\xfe", "empty": "", "null": "null", "number": "12345678901234567890",
	}
}

// The official library reads what a queue of RabbitMQ gives, in either mode.
func TestCloudEvents(t *testing.T) {
	for _, kind := range []format.Kind{format.CloudEvents, format.CloudEventsBinary} {
		t.Run(string(kind), func(t *testing.T) {
			in := newInbox(t, broker.URL(t))
			c := in.config()
			c.Format = kind
			c.CloudEvents = format.Attributes{Source: "/sms/{{ queue }}", Type: "report.{{ source }}", Subject: `{{ attributes.?to }}`}
			c.Headers = headers(map[string]any{"x-team": "billing"})
			if kind == format.CloudEvents {
				c.Properties.ContentType = "text/csv" // which readers would take for binary mode
			} else {
				c.Headers = headers(map[string]any{
					"x-team": "billing", "cloudEvents_tenant": "{{ id }} 短", "cloudEvents_attempt": "{{ attempt }}", "cloudEvents_paid": true,
					"cloudEvents_phone": int64(13800000000), "cloudEvents_rate": 0.5, "cloudEvents_none": "{{ attributes.?none }}",
				})
			}
			r := run(t, c)
			r.Await(relay.Up)
			var ms []relay.Message
			for name, body := range bodies() {
				m := relaytest.Messages(name, 1, 0)[0]
				m.Queue, m.Body, m.Attributes = "q", []byte(body), map[string]string{"to": `短信 "a" 100%`}
				ms = append(ms, m)
			}
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, ms))
			taken := in.take()
			require.Len(t, taken, len(ms))
			for _, d := range taken {
				i := slices.IndexFunc(ms, func(m relay.Message) bool { return m.ID == d.MessageId })
				require.NotEqual(t, -1, i)
				e := readEvent(t, d)
				require.Equal(t, ms[i].ID, e.ID())
				require.Equal(t, "/sms/q", e.Source())
				require.Equal(t, "report.sms", e.Type())
				require.Equal(t, `短信 "a" 100%`, e.Subject())
				require.True(t, ms[i].EnqueuedAt.Truncate(time.Millisecond).Equal(e.Time()), "%v", e.Time())
				require.Equal(t, "billing", d.Headers["x-team"])
				require.Equal(t, "sms", d.Headers[relay.HeaderSource])
				if len(ms[i].Body) > 0 {
					require.Equal(t, document.ContentType(ms[i].Body), e.DataContentType())
				}
				if kind == format.CloudEventsBinary {
					require.Equal(t, string(ms[i].Body), string(d.Body))
					require.Equal(t, document.ContentType(ms[i].Body), d.ContentType)
					require.Equal(t, map[string]any{
						"tenant": ms[i].ID + " 短", "attempt": int32(1), "paid": true, "phone": "13800000000", "rate": "0.5",
					}, e.Extensions())
					continue
				}
				require.Equal(t, "application/cloudevents+json; charset=utf-8", d.ContentType)
				require.NotContains(t, d.Headers, "cloudEvents_id")
				if json.Valid(ms[i].Body) {
					require.JSONEq(t, string(ms[i].Body), string(e.Data()))
				} else {
					require.Equal(t, string(ms[i].Body), string(e.Data()))
				}
			}
		})
	}
}

// A route sends another format than its sink.
func TestFormats(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.Format, c.CloudEvents.Type = format.CloudEventsBinary, "of.the.sink"
	r := run(t, c)
	r.Await(relay.Up)
	for _, route := range []struct {
		name                 string
		with                 func(*amqp091.Settings)
		body, want, contents string
		events               int // how many attributes there are
	}{
		{"as the sink", func(*amqp091.Settings) {}, "hi", "hi", "text/plain; charset=utf-8", 5},
		{"another type", func(s *amqp091.Settings) { s.CloudEvents.Subject = "s" }, "hi", "hi", "text/plain; charset=utf-8", 6},
		{"the body", func(s *amqp091.Settings) { s.Format = format.Body }, "hi", "hi", "text/plain; charset=utf-8", 0},
		{"another body", func(s *amqp091.Settings) {
			s.Format, s.Body = format.Body, `{"text": "{{ text }}"}`
		}, "hi", `{"text": "hi"}`, "application/json", 0},
		{"all of it", func(s *amqp091.Settings) { s.Format = format.JSON }, "hi", `"body":"hi"}`, "application/json", 0},
		{"a content type of its own", func(s *amqp091.Settings) {
			s.Format, s.Properties.ContentType = format.JSON, "application/x-ndjson"
		}, "hi", `"body":"hi"}`, "application/x-ndjson", 0},
	} {
		t.Run(route.name, func(t *testing.T) {
			sink, err := r.Endpoint.Bind(func(settings any) error {
				route.with(settings.(*amqp091.Settings)) //nolint:forcetypeassert // A panic tells.
				return nil
			})
			require.NoError(t, err)
			m := relaytest.Messages(strings.ReplaceAll(route.name, " ", "-"), 1, 0)[0]
			m.Body = []byte(route.body)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, sink, []relay.Message{m}))
			d := in.take()[0]
			require.Contains(t, string(d.Body), route.want)
			require.Equal(t, route.contents, d.ContentType)
			attributes := 0
			for name := range d.Headers {
				if strings.HasPrefix(name, "cloudEvents_") {
					attributes++
				}
			}
			require.Equal(t, route.events, attributes)
		})
	}
	_, err := r.Endpoint.Bind(func(settings any) error {
		settings.(*amqp091.Settings).Format = "xml" //nolint:forcetypeassert // A panic tells.
		return nil
	})
	require.ErrorContains(t, err, `format: is "xml"`)
}

// What a message makes of an event can fail that message, and no other; what arrives is an
// event that the official library reads, with what the message says.
func TestHostileEvents(t *testing.T) {
	texts := []string{
		"plain", "", "短信 \U0001f600", "%zz", "a\x00b\r\n", "\x7f", "\xff\xfe", "a\u2028\ufeffb", "\ufdd0", "hunter2\x01", `"}{[]`, "application/cloudevents+json",
		strings.Repeat("x", 256), strings.Repeat("hunter2", 10_000),
	}
	for _, kind := range []format.Kind{format.CloudEvents, format.CloudEventsBinary} {
		t.Run(string(kind), func(t *testing.T) {
			in := newInbox(t, broker.URL(t))
			c := in.config()
			c.Format = kind
			c.CloudEvents = format.Attributes{Source: "/sms/{{ text }}", Type: "{{ text }}", Subject: "{{ text }}"}
			if kind == format.CloudEventsBinary {
				c.Headers = headers(map[string]any{"cloudEvents_said": "{{ text }}"})
				c.Properties.ContentType = `{{ text.startsWith("application/") ? text : "text/plain" }}`
			}
			r := run(t, c)
			r.Await(relay.Up)
			ms := relaytest.Messages("m", 2*len(texts), 0)
			for i := range ms {
				ms[i].Body = []byte("text/plain")
				if i%2 == 0 {
					ms[i].Body = []byte(texts[i/2])
				}
			}
			rejected := map[string]bool{}
			for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
				if result.Outcome == relay.Rejected && i%2 == 0 {
					require.Equal(t, "invalid_property", relay.ReasonOf(result.Err))
					require.NotContains(t, result.Err.Error(), "hunter2")
					require.NotContains(t, result.Err.Error(), "zz")
					rejected[ms[i].ID] = true
					continue
				}
				require.NoError(t, result.Err, "message %d", i)
				require.Equal(t, relay.Delivered, result.Outcome)
			}
			arrived := map[string]bool{}
			for _, d := range in.take() {
				arrived[d.MessageId] = true
				var i int
				_, err := fmt.Sscanf(d.MessageId, "m-%d", &i)
				require.NoError(t, err)
				e := readEvent(t, d)
				text := string([]rune(string(ms[i].Body))) // what is no UTF-8 becomes U+FFFD in an expression
				require.Equal(t, text, e.Type())
				require.Equal(t, text, e.Subject())
				if kind == format.CloudEventsBinary {
					require.Equal(t, text, e.Extensions()["said"])
				}
			}
			for i := range ms {
				require.NotEqual(t, rejected[ms[i].ID], arrived[ms[i].ID], "message %d", i)
			}
			for i, text := range texts {
				want := slices.Contains([]int{1, 3, 4, 5, 8, 9}, i) || kind == format.CloudEventsBinary && (i == 11 || i == 13)
				require.Equal(t, want, rejected[ms[2*i].ID], "%.20q", text)
			}
			require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len(), "the connection stood: %s", r.Logged())
			require.NotContains(t, r.Logged(), "hunter2")
		})
	}
}

// The attributes count among the headers, to the byte.
func TestAttributesHaveTheRoomOfHeaders(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.Format, c.CloudEvents.Subject = format.CloudEventsBinary, "{{ text }}"
	r := run(t, c)
	r.Await(relay.Up)
	const most = 64 << 10
	m := relaytest.Messages("m", 1, 0)[0]
	m.Body = []byte("x")
	m.Queue = "q"
	size := 0 // of all attributes, each with its name and 6 bytes for lengths and type
	for name, value := range map[string]string{
		"specversion": "1.0", "id": m.ID, "time": m.EnqueuedAtText(), "source": "mns:/queues/q", "type": "mnsrelay.message", "subject": "",
	} {
		size += len("cloudEvents_"+name) + len(value) + 6
	}
	ms := []relay.Message{m, m, m}
	ms[1].ID, ms[1].Body = "n-0", []byte(strings.Repeat("x", most-size))
	ms[2].ID, ms[2].Body = "o-0", []byte(strings.Repeat("x", most-size+1))
	results := relaytest.Deliver(t.Context(), t, r.Sink, ms)
	relaytest.RequireDelivered(t, results[:2])
	require.Equal(t, relay.Rejected, results[2].Outcome)
	require.Equal(t, "invalid_property", relay.ReasonOf(results[2].Err))
	require.ErrorContains(t, results[2].Err, "the headers: 65537 bytes long, at most 65536 fit")
	require.Equal(t, map[string]int{"m-0": 1, "n-0": 1}, in.ids())
}

func TestProblemsOfFormats(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*amqp091.Config)
		want   []string
	}{
		"an unknown one": {func(c *amqp091.Config) { c.Format = "xml" }, []string{`format: is "xml"`}},
		"templates that are misspelt": {func(c *amqp091.Config) {
			c.Body = "{{ bdy }}"
			c.CloudEvents = format.Attributes{Source: "{{ idd }}", Subject: "{{"}
		}, []string{"body: at character 4", "cloudevents.source: at character 4", "cloudevents.type: is empty", "cloudevents.subject: at character 1"}},
		"what the relay sets": {func(c *amqp091.Config) {
			c.Format, c.Headers = format.CloudEventsBinary, headers(map[string]any{"cloudEvents_id": "a", "cloudEvents_datacontenttype": "b", "cloudEvents_tenant": "c"})
		}, []string{"headers.cloudEvents_datacontenttype: is an attribute that the relay sets", "headers.cloudEvents_id: is an attribute"}},
		"names of no extension": {func(c *amqp091.Config) {
			c.Format, c.Headers = format.CloudEventsBinary, headers(map[string]any{"cloudEvents_": "a", "cloudEvents:x": "b", "cloudEvents_My-Id": "c", "cloudEvents_data": "d"})
		}, []string{
			"headers.cloudEvents:x: names no extension", "headers.cloudEvents_: names no", "headers.cloudEvents_My-Id: names no", "headers.cloudEvents_data: names no",
		}},
		"values of no extension": {func(c *amqp091.Config) {
			c.Format, c.Headers = format.CloudEventsBinary, headers(map[string]any{"cloudEvents_a": []any{"a"}, "cloudEvents_b": map[string]any{"a": "{{ id }}"}, "cloudEvents_c": "a\nb"})
		}, []string{
			"headers.cloudEvents_a: an extension of an event is text", "headers.cloudEvents_b: an extension", "headers.cloudEvents_c: gets a control character",
		}},
		"extensions where there are none": {func(c *amqp091.Config) {
			c.Format, c.Headers = format.CloudEvents, headers(map[string]any{"cloudEvents_tenant": "a", "cloudEvents:id": "b"})
		}, []string{"headers.cloudEvents:id: is no part of an event", "headers.cloudEvents_tenant: is no part"}},
		"the wrong mode": {func(c *amqp091.Config) {
			c.Format, c.Properties.ContentType = format.CloudEventsBinary, "Application/CloudEvents+json"
		}, []string{"properties.content_type: is that of an event as JSON"}},
		"another content type": {func(c *amqp091.Config) { c.Format, c.Properties.ContentType = format.CloudEvents, "text/csv" }, nil},
		"an event by hand": {func(c *amqp091.Config) {
			c.Headers = headers(map[string]any{"cloudEvents_id": "{{ id }}", "cloudEvents:type": "a"})
			c.Properties.ContentType = "application/cloudevents+json"
		}, nil},
		"similar names": {func(c *amqp091.Config) {
			c.Format, c.Headers = format.CloudEvents, headers(map[string]any{"cloudEvents": "a", "cloudEventsID": "b", "cloudevents_id": "c"})
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			config := valid()
			c.change(config)
			problems := flatten(config.Validate())
			require.Len(t, problems, len(c.want), "%v", problems)
			for i, problem := range problems {
				require.True(t, strings.HasPrefix(problem.Error(), c.want[i]), "%q begins with %q", problem, c.want[i])
			}
		})
	}
}

// previewed is how a preview shows what came out of a queue.
func previewed(d amqp.Delivery) map[string]any {
	fields := map[string]any{
		"exchange": d.Exchange, "routing_key": d.RoutingKey, "persistent": d.DeliveryMode == amqp.Persistent,
		"properties.timestamp": d.Timestamp.UTC(),
	}
	for name, value := range map[string]string{
		"message_id": d.MessageId, "content_type": d.ContentType, "content_encoding": d.ContentEncoding, "type": d.Type, "app_id": d.AppId,
		"user_id": d.UserId, "correlation_id": d.CorrelationId, "reply_to": d.ReplyTo, "expiration": d.Expiration,
	} {
		if value != "" {
			fields["properties."+name] = value
		}
	}
	if d.Priority > 0 {
		fields["properties.priority"] = int64(d.Priority)
	}
	for name, value := range d.Headers {
		fields["headers."+name] = plain(value)
	}
	return fields
}

func plain(value any) any {
	switch v := value.(type) {
	case time.Time:
		return v.UTC()
	case []byte:
		return string(v)
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = plain(v[i])
		}
		return list
	case amqp.Table:
		table := map[string]any{}
		for name := range v {
			table[name] = plain(v[name])
		}
		return table
	}
	return value
}

// A preview, made without a connection, is what arrives.
func TestPreview(t *testing.T) {
	at := time.Date(2026, time.March, 1, 9, 30, 0, 0, time.UTC)
	for name, change := range map[string]func(*amqp091.Config){
		"the least": func(c *amqp091.Config) { c.Mandatory = false },
		"much": func(c *amqp091.Config) {
			c.RoutingKey = "sms.{{ body.n }}"
			c.Persistent = false
			c.Headers = headers(map[string]any{
				"text": "短信", "n": "{{ body.n }}", "rate": 0.5, "at": at, "bytes": "{{ bytes(id) }}", "none": "{{ body.?none }}",
				"table": map[string]any{"list": []any{1, "{{ id }}", at, map[string]any{"yes": true}}}, "CC": []any{"copy.{{ id }}"},
			})
			c.Properties = amqp091.Properties{
				ContentType: "text/csv", ContentEncoding: "identity", Priority: "{{ body.n }}", Expiration: "10m", Type: "sms.{{ source }}",
				AppID: "relay", UserID: "guest", CorrelationID: "c-{{ id }}",
			}
		},
		"json":       func(c *amqp091.Config) { c.Format = format.JSON },
		"structured": func(c *amqp091.Config) { c.Format = format.CloudEvents },
		"binary": func(c *amqp091.Config) {
			c.Format, c.CloudEvents.Subject, c.Body = format.CloudEventsBinary, "{{ body.n }}", "n={{ body.n }}"
			c.Headers = headers(map[string]any{"cloudEvents_n": "{{ body.n }}", "cloudEvents_at": at, "cloudEvents_large": int64(math.MaxInt64)})
		},
		"nothing awaited": func(c *amqp091.Config) { c.Acknowledge = amqp091.AcknowledgeNone },
	} {
		t.Run(name, func(t *testing.T) {
			in := newInbox(t, broker.URL(t))
			c := in.config()
			change(c)
			m := relaytest.Messages("m", 1, 0)[0]
			m.Queue, m.Body, m.Attempt = "q", []byte(`{"n": 7}`), 3
			m.Trace = relay.ParseTraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=b c%d")
			require.NotNil(t, m.Trace)
			endpoint, err := c.Open(deps(t))
			require.NoError(t, err)
			sink, err := endpoint.Bind(nil)
			require.NoError(t, err)
			preview := requirePreview(t, sink, &m)

			r := run(t, c)
			r.Await(relay.Up)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, []relay.Message{m}))
			require.Equal(t, preview, requirePreview(t, r.Sink, &m), "with a connection")
			d := in.take()[0]
			want := previewed(d)
			want["mandatory"] = c.Mandatory && c.Acknowledge != amqp091.AcknowledgeNone
			require.Equal(t, want, fieldsOf(t, preview))
			require.Equal(t, string(d.Body), string(preview.Body))
		})
	}
}

func requirePreview(t *testing.T, sink relay.Sink, m *relay.Message) relay.Preview {
	t.Helper()
	previewer, is := sink.(relay.Previewer)
	require.True(t, is)
	preview, err := previewer.Preview(m)
	require.NoError(t, err)
	return preview
}

// fieldsOf gives the fields by name, each once, those of headers in order.
func fieldsOf(t *testing.T, p relay.Preview) map[string]any {
	t.Helper()
	fields := map[string]any{}
	var names []string
	for _, f := range p.Fields {
		require.NotContains(t, fields, f.Name)
		fields[f.Name] = f.Value
		if strings.HasPrefix(f.Name, "headers.") {
			names = append(names, f.Name)
		}
	}
	require.True(t, slices.IsSorted(names), "%v", names)
	return fields
}

// A preview fails where the message would be rejected, with the same error.
func TestPreviewOfWhatIsRejected(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.RoutingKey = "sms.{{ body.key }}"
	c.Properties.UserID = "{{ body.user }}"
	c.Format, c.CloudEvents.Type = format.CloudEventsBinary, "{{ body.type }}"
	c.Headers = headers(map[string]any{"cloudEvents_list": "{{ body.list }}"})
	r := run(t, c)
	r.Await(relay.Up)
	endpoint, err := c.Open(deps(t))
	require.NoError(t, err)
	sink, err := endpoint.Bind(nil)
	require.NoError(t, err)
	for why, body := range map[string]string{
		"work out the routing key":                    `{}`,
		"not the user that":                           `{"key": "a", "user": "hunter2", "type": "t", "list": 1}`,
		"the attribute type comes to no":              `{"key": "a", "user": "guest", "type": "", "list": 1}`,
		"the routing key: 300 bytes":                  `{"key": "` + strings.Repeat("hunter2", 296/7) + `ab", "user": "guest", "type": "t", "list": 1}`,
		"the header cloudEvents_list: gets a control": `{"key": "a", "user": "guest", "type": "t", "list": "hunter2\u0000"}`,
	} {
		m := relaytest.Messages("m", 1, 0)[0]
		m.Body = []byte(body)
		result := relaytest.Deliver(t.Context(), t, r.Sink, []relay.Message{m})[0]
		require.Equal(t, relay.Rejected, result.Outcome, body)
		_, err := sink.(relay.Previewer).Preview(&m) //nolint:forcetypeassert // A panic tells.
		require.EqualError(t, err, result.Err.Error())
		require.ErrorContains(t, err, why)
		require.NotContains(t, err.Error(), "hunter2")
	}
	require.Empty(t, in.take())
}

// The consumer of acknowledge: reply sees the preview, but for the address that the broker
// makes of the one for replies.
func TestPreviewOfReplies(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.Acknowledge = amqp091.AcknowledgeReply
	c.Reply.Timeout = 100 * time.Millisecond // nobody answers
	r := run(t, c)
	r.Await(relay.Up)
	m := relaytest.Messages("m", 1, 0)[0]
	m.Queue = "q"
	preview := requirePreview(t, r.Sink, &m)
	relaytest.RequireReason(t, "reply_timeout", relaytest.Deliver(t.Context(), t, r.Sink, []relay.Message{m})[0])
	want, got := previewed(in.take()[0]), fieldsOf(t, preview)
	require.True(t, strings.HasPrefix(fmt.Sprint(want["properties.reply_to"]), fmt.Sprint(got["properties.reply_to"])))
	want["properties.reply_to"], want["mandatory"] = got["properties.reply_to"], true
	require.Equal(t, want, got)
}

// What a file was put into is not shown.
func TestPreviewHidesSecrets(t *testing.T) {
	c := valid()
	c.Headers = headers(map[string]any{"open": "a", "token": "hunter2"})
	c.Headers["token"] = c.Headers["token"].AsSecret()
	endpoint, err := c.Open(deps(t))
	require.NoError(t, err)
	sink, err := endpoint.Bind(nil)
	require.NoError(t, err)
	fields := fieldsOf(t, requirePreview(t, sink, &relaytest.Messages("m", 1, 0)[0]))
	require.Equal(t, []any{"a", relay.Masked}, []any{fields["headers.open"], fields["headers.token"]})
}
