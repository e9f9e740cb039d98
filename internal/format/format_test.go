package format_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
)

var enqueued = time.Date(2026, 3, 10, 8, 0, 0, 123e6, time.UTC)

func message(body string) *relay.Message {
	return &relay.Message{ID: "id-1", Source: "sms", Queue: "reports", Body: []byte(body), EnqueuedAt: enqueued, Attempt: 2}
}

func formatted(t *testing.T, change func(*format.Config), m *relay.Message) (format.Payload, error) {
	t.Helper()
	c := format.Defaults()
	change(&c)
	f, err := c.Formatter()
	require.NoError(t, err)
	return f.Format(m)
}

func TestBody(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, template, body, want, contentType string
	}{
		{"json", "", `{"a": 1}`, `{"a": 1}`, "application/json"},
		{"text", "", "hello", "hello", "text/plain; charset=utf-8"},
		{"binary", "", "\xff\x00", "\xff\x00", "application/octet-stream"},
		{"empty", "", "", "", "text/plain; charset=utf-8"},
		{"made", `{"id": "{{ id }}", "n": {{ body.a }}}`, `{"a": 1}`, `{"id": "id-1", "n": 1}`, "application/json"},
		{"made of what is not there", `{{ body.b }}`, `{"a": 1}`, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p, err := formatted(t, func(f *format.Config) { f.Body = c.template }, message(c.body))
			if c.contentType == "" {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, string(p.Body))
			require.Equal(t, c.contentType, p.ContentType())
			require.Empty(t, p.Attributes)
		})
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	p, err := formatted(t, func(f *format.Config) { f.Format = format.JSON }, message("hi\n"))
	require.NoError(t, err)
	require.Equal(t, "application/json", p.ContentType())
	require.JSONEq(t, `{"id":"id-1","source":"sms","attempt":2,"enqueued_at":"2026-03-10T08:00:00.123Z","attributes":{},"body":"hi\n"}`, string(p.Body))
	p, err = formatted(t, func(f *format.Config) { f.Format = format.JSON }, message("\xff"))
	require.NoError(t, err)
	require.Contains(t, string(p.Body), `"body_base64":"/w=="`)
}

// The official library reads our events and finds them valid, and their data are what
// came.
func TestCloudEvents(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]string{
		"json": `{"a":[1,2.50,"<x>"]}`, "text": "短信 \"quoted\"\n", "binary": "\xff\x00\xfe", "json that is not UTF-8": "{\"a\":\"\xff\"}", "empty": "", "null": "null", "number": "12345678901234567890",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := formatted(t, func(f *format.Config) {
				f.Format = format.CloudEvents
				f.CloudEvents.Subject = "{{ id }}/短信"
			}, message(body))
			require.NoError(t, err)
			require.Equal(t, "application/cloudevents+json; charset=utf-8", p.ContentType())
			var e event.Event
			require.NoError(t, json.Unmarshal(p.Body, &e))
			require.NoError(t, e.Validate())
			require.Equal(t, "1.0", e.SpecVersion())
			require.Equal(t, "id-1", e.ID())
			require.Equal(t, "mns:/queues/reports", e.Source())
			require.Equal(t, "mnsrelay.message", e.Type())
			require.Equal(t, "id-1/短信", e.Subject())
			require.True(t, enqueued.Equal(e.Time()))
			switch {
			case body == "":
				require.Empty(t, e.Data())
			case e.DataMediaType() == "application/json":
				require.JSONEq(t, body, string(e.Data()))
			default:
				require.Equal(t, body, string(e.Data()))
			}
		})
	}
}

func TestCloudEventsBinary(t *testing.T) {
	t.Parallel()
	p, err := formatted(t, func(f *format.Config) { f.Format, f.Body = format.CloudEventsBinary, `{"n": {{ body.a }}}` }, message(`{"a": 1}`))
	require.NoError(t, err)
	require.Equal(t, `{"n": 1}`, string(p.Body))
	require.Equal(t, "application/json", p.ContentType())
	require.Equal(t, []format.Attribute{
		{Name: "specversion", Value: "1.0"},
		{Name: "id", Value: "id-1"},
		{Name: "time", Value: "2026-03-10T08:00:00.123Z"},
		{Name: "source", Value: "mns:/queues/reports"},
		{Name: "type", Value: "mnsrelay.message"},
	}, p.Attributes)
}

// What would make no event rejects its message, and quotes nothing of it.
func TestAttributesThatMakeNoEvent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*format.Config)
		want   string
	}{
		"no type":           {func(f *format.Config) { f.CloudEvents.Type = "{{ body.type }}" }, "the attribute type comes to nothing"},
		"no URI":            {func(f *format.Config) { f.CloudEvents.Source = "{{ body.source }}" }, "the attribute source comes to what is no URI reference"},
		"control character": {func(f *format.Config) { f.CloudEvents.Subject = "{{ body.subject }}" }, "the attribute subject gets a control character"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := formatted(t, func(f *format.Config) { f.Format = format.CloudEvents; c.change(f) },
				message(`{"type": "", "source": "%zz", "subject": "hunter2\n"}`))
			require.ErrorContains(t, err, c.want)
			require.Equal(t, format.ReasonInvalid, relay.ReasonOf(err))
			require.NotContains(t, err.Error(), "hunter2")
			require.NotContains(t, err.Error(), "%zz")
		})
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*format.Config)
		want   string
	}{
		"another format":  {func(f *format.Config) { f.Format = "xml" }, `format: is "xml"; write body, json, cloudevents or cloudevents_binary`},
		"no source":       {func(f *format.Config) { f.CloudEvents.Source = "" }, "cloudevents.source: is empty"},
		"misspelt":        {func(f *format.Config) { f.Body = "{{ bdy }}" }, `body: at character 4: there is no variable "bdy"`},
		"body within all": {func(f *format.Config) { f.Format, f.Body = format.JSON, "x" }, "body: has no place where format is json"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := format.Defaults()
			c.change(&config)
			_, err := config.Formatter()
			require.ErrorContains(t, err, c.want)
		})
	}
}
