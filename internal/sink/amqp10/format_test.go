package amqp10_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	amqp10client "github.com/Azure/go-amqp"
	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/document"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/test/amqppeer"
)

// readEvent has the official library read the event in a message.
func readEvent(t *testing.T, m *amqp10client.Message) *event.Event {
	t.Helper()
	return relaytest.ReadAMQPEvent(t, *m.Properties.ContentType, m.ApplicationProperties, m.GetData())
}

// bind makes a sink of the running endpoint with settings of a route.
func bind(t *testing.T, r *relaytest.Running, with func(*amqp10.Settings)) relay.Sink {
	t.Helper()
	sink, err := r.Endpoint.Bind(func(settings any) error {
		with(settings.(*amqp10.Settings)) //nolint:forcetypeassert // A panic tells.
		return nil
	})
	require.NoError(t, err)
	return sink
}

// The official library reads what a queue of RabbitMQ gives, in either mode, which are those
// of two routes.
func TestCloudEvents(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	c := b.config()
	c.Format = format.CloudEvents
	c.Properties.ContentType = "text/csv" // which readers would take for binary mode
	c.CloudEvents = format.Attributes{Source: "/sms/{{ queue }}", Type: "report.{{ source }}", Subject: `{{ attributes.?to }}`}
	r := run(t, c)
	r.Await(relay.Up)
	binary := bind(t, r, func(s *amqp10.Settings) {
		s.Format, s.Properties.ContentType = format.CloudEventsBinary, ""
		s.ApplicationProperties = values(map[string]any{
			"team": "billing", "cloudEvents_tenant": "{{ id }} 短", "cloudEvents_attempt": "{{ attempt }}", "cloudEvents_paid": true,
			"cloudEvents_phone": int64(13800000000), "cloudEvents_rate": 0.5, "cloudEvents_none": "{{ attributes.?none }}",
		})
	})
	for name, body := range map[string]string{
		"json": `{"to":"短信 \"a\" 100%","ok":true}`, "text": "短信\r\n", "bytes": "\xff\x00\xfe", "empty": "", "null": "null", "number": "12345678901234567890",
	} {
		m := relaytest.Messages(name, 1, 0)[0]
		m.Queue, m.Body, m.Attributes = "q", []byte(body), map[string]string{"to": `短信 "a" 100%`}
		for _, sink := range []relay.Sink{r.Sink, binary} {
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, sink, []relay.Message{m}))
			received := b.receive(1)[0]
			e := readEvent(t, received)
			require.Equal(t, m.ID, e.ID())
			require.Equal(t, "/sms/q", e.Source())
			require.Equal(t, "report.sms", e.Type())
			require.Equal(t, `短信 "a" 100%`, e.Subject())
			require.True(t, m.EnqueuedAt.Truncate(time.Millisecond).Equal(e.Time()), "%v", e.Time())
			require.Equal(t, "sms", received.ApplicationProperties[relay.HeaderSource])
			if body != "" {
				require.Equal(t, document.ContentType(m.Body), e.DataContentType())
			}
			if sink == binary {
				require.Equal(t, body, string(received.GetData()))
				require.Equal(t, document.ContentType(m.Body), *received.Properties.ContentType)
				require.Equal(t, "billing", received.ApplicationProperties["team"])
				require.Equal(t, map[string]any{
					"tenant": m.ID + " 短", "attempt": int32(1), "paid": true, "phone": "13800000000", "rate": "0.5",
				}, e.Extensions())
				continue
			}
			require.Equal(t, "application/cloudevents+json; charset=utf-8", *received.Properties.ContentType)
			require.NotContains(t, received.ApplicationProperties, "cloudEvents_id")
			if json.Valid(m.Body) {
				require.JSONEq(t, body, string(e.Data()))
			} else {
				require.Equal(t, body, string(e.Data()))
			}
		}
	}
}

func TestFormats(t *testing.T) {
	t.Parallel()
	p := amqppeer.Start(t, amqppeer.Proton)
	r := run(t, config(p, "accept"))
	r.Await(relay.Up)
	for i, route := range []struct {
		with           func(*amqp10.Settings)
		want, contents string
	}{
		{func(*amqp10.Settings) {}, "hi", "text/plain; charset=utf-8"},
		{func(s *amqp10.Settings) { s.Body = `{"text": "{{ text }}"}` }, `{"text": "hi"}`, "application/json"},
		{func(s *amqp10.Settings) { s.Format = format.JSON }, `"body":"hi"}`, "application/json"},
		{func(s *amqp10.Settings) { s.Format, s.Properties.ContentType = format.JSON, "text/x" }, `"body":"hi"}`, "text/x"},
		{func(s *amqp10.Settings) { s.Format, s.Properties.ContentType = format.CloudEvents, "text/x" }, `"data":"hi"`, "application/cloudevents+json; charset=utf-8"},
	} {
		m := relaytest.Messages("m", 1, 0)[0]
		m.Body = []byte("hi")
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, bind(t, r, route.with), []relay.Message{m}))
		got := awaitMessages(t, p, i+1)[i]
		require.Contains(t, string(got.Body()), route.want)
		require.Equal(t, route.contents, got.ContentType)
	}
	_, err := r.Endpoint.Bind(func(settings any) error {
		settings.(*amqp10.Settings).Format = "xml" //nolint:forcetypeassert // A panic tells.
		return nil
	})
	require.ErrorContains(t, err, `format: is "xml"`)
}

// What a message makes of an event can fail that message, and no other; what arrives is an
// event that the official library reads, with what the message says.
func TestHostileEvents(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	texts := map[string]bool{ // whether the message arrives in structured mode
		"plain": true, "": false, "短信 \U0001f600": true, "%zz": false, "a\x00b\r\n": false, "\x7f": false, "\xff\xfe": true, "a\u2028\ufeffb": true,
		"\ufdd0": false, "hunter2\x01": false, `"}{[]`: true, "application/cloudevents+json": true, strings.Repeat("hunter2", 10_000): true,
	}
	for _, kind := range []format.Kind{format.CloudEvents, format.CloudEventsBinary} {
		t.Run(string(kind), func(t *testing.T) {
			c := b.config()
			c.Format = kind
			c.CloudEvents = format.Attributes{Source: "/sms/{{ text }}", Type: "{{ text }}", Subject: "{{ text }}"}
			if kind == format.CloudEventsBinary {
				c.ApplicationProperties = values(map[string]any{"cloudEvents_said": "{{ text }}"})
				c.Properties.ContentType = `{{ text.startsWith("application/") ? text : "text/plain" }}`
			}
			r := run(t, c)
			r.Await(relay.Up)
			for text, arrives := range texts {
				if kind == format.CloudEventsBinary && (len(text) > 64<<10 || format.IsEvent(text)) {
					arrives = false
				}
				ms := relaytest.Messages("m", 3, 0)
				for i := range ms {
					ms[i].Body = []byte("beside")
				}
				ms[1].Body = []byte(text)
				results := relaytest.Deliver(t.Context(), t, r.Sink, ms)
				relaytest.RequireDelivered(t, []relay.Result{results[0], results[2]})
				said := []string{"beside", "beside"}
				if arrives {
					relaytest.RequireDelivered(t, results[1:2])
					said = []string{"beside", string([]rune(text)), "beside"} // what is no UTF-8 becomes U+FFFD in an expression
				} else {
					require.Equal(t, relay.Rejected, results[1].Outcome, "%.20q: %v", text, results[1].Err)
					require.Equal(t, "invalid_property", relay.ReasonOf(results[1].Err))
					require.NotContains(t, results[1].Err.Error(), "hunter2")
				}
				for i, m := range b.receive(len(said)) {
					e := readEvent(t, m)
					require.Equal(t, said[i], e.Type())
					require.Equal(t, said[i], e.Subject())
					if kind == format.CloudEventsBinary {
						require.Equal(t, said[i], e.Extensions()["said"])
					}
				}
			}
			require.Zero(t, b.count(b.queue))
			require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len(), "the connection stood: %s", r.Logged())
			require.NotContains(t, r.Logged(), "hunter2")
		})
	}
}

// The attributes count among the properties, to the byte.
func TestAttributesHaveTheRoomOfProperties(t *testing.T) {
	t.Parallel()
	p := amqppeer.Start(t, amqppeer.Proton)
	c := config(p, "accept")
	c.Format, c.CloudEvents.Subject = format.CloudEventsBinary, "{{ text }}"
	r := run(t, c)
	r.Await(relay.Up)
	m := relaytest.Messages("m", 1, 0)[0]
	m.Queue = "q"
	size := len("accept")
	for name, value := range map[string]string{
		"specversion": "1.0", "id": m.ID, "time": m.EnqueuedAtText(), "source": "mns:/queues/q", "type": "mnsrelay.message", "subject": "",
	} {
		size += len("cloudEvents_"+name) + len(value)
	}
	ms := []relay.Message{m, m}
	ms[0].Body = []byte(strings.Repeat("x", 64<<10-size))
	ms[1].Body = []byte(strings.Repeat("x", 64<<10-size+1))
	results := relaytest.Deliver(t.Context(), t, r.Sink, ms)
	relaytest.RequireDelivered(t, results[:1])
	require.Equal(t, relay.Rejected, results[1].Outcome)
	require.ErrorContains(t, results[1].Err, "65537 bytes long, at most 65536 fit")
	require.Len(t, awaitMessages(t, p, 1), 1)
}

func TestProblemsOfFormats(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*amqp10.Config)
		want   []string
	}{
		"an unknown one": {func(c *amqp10.Config) { c.Format = "xml" }, []string{`format: is "xml"`}},
		"templates that are misspelt": {func(c *amqp10.Config) {
			c.Body = "{{ bdy }}"
			c.CloudEvents = format.Attributes{Source: "{{ idd }}", Subject: "{{"}
		}, []string{"body: at character 4", "cloudevents.source: at character 4", "cloudevents.type: is empty", "cloudevents.subject: at character 1"}},
		"what the relay sets": {func(c *amqp10.Config) {
			c.Format, c.ApplicationProperties = format.CloudEventsBinary, values(map[string]any{"cloudEvents_id": "a", "cloudEvents_tenant": "c"})
		}, []string{"application_properties.cloudEvents_id: is an attribute that the relay sets"}},
		"names of no extension": {func(c *amqp10.Config) {
			c.Format, c.ApplicationProperties = format.CloudEventsBinary, values(map[string]any{"cloudEvents_": "a", "cloudEvents:x": "b", "cloudEvents_My-Id": "c"})
		}, []string{
			"application_properties.cloudEvents:x: names no extension", "application_properties.cloudEvents_: names no", "application_properties.cloudEvents_My-Id: names no",
		}},
		"values of no extension": {func(c *amqp10.Config) {
			c.Format, c.ApplicationProperties = format.CloudEventsBinary, values(map[string]any{"cloudEvents_a": []any{"{{ id }}"}, "cloudEvents_c": "a\nb"})
		}, []string{"application_properties.cloudEvents_c: gets a control character", "application_properties.cloudEvents_a: AMQP 1.0 allows texts"}},
		"extensions where there are none": {func(c *amqp10.Config) {
			c.Format, c.ApplicationProperties = format.CloudEvents, values(map[string]any{"cloudEvents_tenant": "a"})
		}, []string{"application_properties.cloudEvents_tenant: is no part of an event"}},
		"annotations": {func(c *amqp10.Config) {
			c.Format, c.MessageAnnotations = format.CloudEventsBinary, values(map[string]any{"cloudEvents_tenant": "a", "x-opt-a": "b"})
		}, []string{"message_annotations.cloudEvents_tenant: is no part of an event: write extensions under application_properties"}},
		"the wrong mode": {func(c *amqp10.Config) {
			c.Format, c.Properties.ContentType = format.CloudEventsBinary, "application/cloudevents-batch+json"
		}, []string{"properties.content_type: is that of an event as JSON"}},
		"an event by hand": {func(c *amqp10.Config) {
			c.ApplicationProperties = values(map[string]any{"cloudEvents_id": "{{ id }}", "cloudEvents:type": "a"})
			c.MessageAnnotations = values(map[string]any{"cloudEvents_id": "a"})
			c.Properties.ContentType = "application/cloudevents+json"
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			config := amqp10.Defaults()
			config.URL, config.Address = setting.NewURL("amqp://127.0.0.1"), "q"
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
func previewed(address string, m *amqp10client.Message) map[string]any {
	p := m.Properties
	fields := map[string]any{
		"address": address, "durable": m.Header.Durable, "properties.message_id": p.MessageID, "properties.creation_time": p.CreationTime.UTC(),
		"properties.priority": int64(m.Header.Priority),
	}
	for name, value := range map[string]*string{
		"content_type": p.ContentType, "content_encoding": p.ContentEncoding, "subject": p.Subject, "to": p.To, "reply_to": p.ReplyTo, "group_id": p.GroupID,
	} {
		if value != nil {
			fields["properties."+name] = *value
		}
	}
	if p.CorrelationID != nil {
		fields["properties.correlation_id"] = p.CorrelationID
	}
	if p.UserID != nil {
		fields["properties.user_id"] = string(p.UserID)
	}
	if m.Header.TTL > 0 {
		fields["properties.ttl"] = m.Header.TTL.Milliseconds()
	}
	for name, value := range m.ApplicationProperties {
		fields["application_properties."+name] = plain(value)
	}
	for name, value := range m.Annotations {
		if name := fmt.Sprint(name); name != "x-exchange" && name != "x-routing-key" { // the broker's own
			fields["message_annotations."+name] = plain(value)
		}
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
	}
	return value
}

// A preview, made without a connection, is what arrives.
func TestPreview(t *testing.T) {
	t.Parallel()
	b := newRabbit(t)
	at := time.Date(2026, time.March, 1, 9, 30, 0, 5e6, time.UTC)
	for name, change := range map[string]func(*amqp10.Config){
		"the least": func(*amqp10.Config) {},
		"much": func(c *amqp10.Config) {
			c.Address = `{{ "/amq/queue/reports" }}`
			c.Durable = false
			c.ApplicationProperties = values(map[string]any{
				"text": "短信", "n": "{{ body.n }}", "rate": 0.5, "at": at, "bytes": "{{ bytes(id) }}", "none": "{{ body.?none }}", "yes": true,
			})
			c.MessageAnnotations = values(map[string]any{"x-opt-b": []any{1, "{{ id }}", at}, "x-opt-a": "{{ id }}", "x-opt-none": "{{ body.?none }}"})
			c.Properties = amqp10.Properties{
				Subject: "s", To: "to", ReplyTo: "/amq/queue/back", ContentType: "text/csv", ContentEncoding: "identity", CorrelationID: "c-{{ id }}",
				GroupID: "g", UserID: "guest", Priority: "{{ body.n }}", TTL: "10m",
			}
		},
		"json":       func(c *amqp10.Config) { c.Format = format.JSON },
		"structured": func(c *amqp10.Config) { c.Format = format.CloudEvents },
		"binary": func(c *amqp10.Config) {
			c.Format, c.CloudEvents.Subject, c.Body = format.CloudEventsBinary, "{{ body.n }}", "n={{ body.n }}"
			c.ApplicationProperties = values(map[string]any{"cloudEvents_n": "{{ body.n }}", "cloudEvents_at": at, "cloudEvents_large": int64(math.MaxInt64)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := b.config()
			change(c)
			m := relaytest.Messages("m", 1, 0)[0]
			m.Queue, m.Body, m.Attempt = "q", []byte(`{"n": 7}`), 3
			m.Trace = relay.ParseTraceContext("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "a=b c%d")
			require.NotNil(t, m.Trace)
			endpoint, err := c.Open(deps())
			require.NoError(t, err)
			sink, err := endpoint.Bind(nil)
			require.NoError(t, err)
			preview, err := sink.(relay.Previewer).Preview(&m) //nolint:forcetypeassert // A panic tells.
			require.NoError(t, err)

			r := run(t, c)
			r.Await(relay.Up)
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, []relay.Message{m}))
			received := b.receive(1)[0]
			require.Equal(t, previewed("/amq/queue/reports", received), fieldsOf(t, preview))
			require.Equal(t, string(received.GetData()), string(preview.Body))
		})
	}
}

// fieldsOf gives the fields by name, each once, those of mappings in order.
func fieldsOf(t *testing.T, p relay.Preview) map[string]any {
	t.Helper()
	fields := map[string]any{}
	names := map[string][]string{}
	for _, f := range p.Fields {
		require.NotContains(t, fields, f.Name)
		fields[f.Name] = f.Value
		setting, name, _ := strings.Cut(f.Name, ".")
		names[setting] = append(names[setting], name)
	}
	require.True(t, slices.IsSorted(names["application_properties"]), "%v", names)
	require.True(t, slices.IsSorted(names["message_annotations"]), "%v", names)
	return fields
}

// A preview fails where the message would be rejected, with the same error.
func TestPreviewOfWhatIsRejected(t *testing.T) {
	t.Parallel()
	p := amqppeer.Start(t, amqppeer.Proton)
	c := config(p, "{{ body.to }}")
	c.Format, c.CloudEvents.Type = format.CloudEventsBinary, "{{ body.type }}"
	c.ApplicationProperties = values(map[string]any{"cloudEvents_said": "{{ body.said }}"})
	r := run(t, c)
	r.Await(relay.Up)
	for why, body := range map[string]string{
		"work out the address":                `{}`,
		"the address":                         `{"to": "", "type": "t", "said": "s"}`,
		"the attribute type comes to nothing": `{"to": "accept", "type": "", "said": "s"}`,
		"work out the application property cloudEvents_said: invalid property: gets a control": `{"to": "accept", "type": "t", "said": "hunter2\u0000"}`,
	} {
		m := relaytest.Messages("m", 1, 0)[0]
		m.Body = []byte(body)
		result := relaytest.Deliver(t.Context(), t, r.Sink, []relay.Message{m})[0]
		require.Equal(t, relay.Rejected, result.Outcome, body)
		_, err := r.Sink.(relay.Previewer).Preview(&m) //nolint:forcetypeassert // A panic tells.
		require.EqualError(t, err, result.Err.Error())
		require.ErrorContains(t, err, why)
		require.NotContains(t, err.Error(), "hunter2")
	}
	require.Empty(t, p.Messages())
}

// What a file was put into is not shown.
func TestPreviewHidesSecrets(t *testing.T) {
	t.Parallel()
	c := amqp10.Defaults()
	c.URL, c.Address = setting.NewURL("amqp://127.0.0.1"), "q"
	c.ApplicationProperties = map[string]setting.Value{"open": setting.NewValue("a"), "token": setting.NewValue("hunter2").AsSecret()}
	c.MessageAnnotations = map[string]setting.Value{"x-opt-token": setting.NewValue("hunter2").AsSecret()}
	endpoint, err := c.Open(deps())
	require.NoError(t, err)
	sink, err := endpoint.Bind(nil)
	require.NoError(t, err)
	preview, err := sink.(relay.Previewer).Preview(&relaytest.Messages("m", 1, 0)[0]) //nolint:forcetypeassert // A panic tells.
	require.NoError(t, err)
	fields := fieldsOf(t, preview)
	require.Equal(t, []any{"a", relay.Masked, relay.Masked},
		[]any{fields["application_properties.open"], fields["application_properties.token"], fields["message_annotations.x-opt-token"]})
}
