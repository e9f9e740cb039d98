package webhook_test

import (
	"bytes"
	"net/http"
	"net/url"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// The official library reads what is sent, in either mode, signed and compressed or not.
func TestCloudEvents(t *testing.T) {
	for _, kind := range []format.Kind{format.CloudEvents, format.CloudEventsBinary} {
		t.Run(string(kind), func(t *testing.T) {
			far := capturing(t)
			sink := sinkWith(t, func(c *webhook.Config) {
				c.URL = setting.NewURL(far.url)
				c.Format = kind
				c.CloudEvents = format.Attributes{Source: "/sms/{{ queue }}", Type: `report.{{ body.ok ? "ok" : "bad" }}`, Subject: `{{ body.to }}`}
				if kind == format.CloudEventsBinary {
					c.Headers = map[string]setting.Secret{"ce-tenant": setting.NewSecret("{{ attempt }} 短 50%")}
				}
			})
			m := message("id 1")
			m.Queue, m.Body = "q", []byte(`{"ok":true,"to":"短信 \"a\" 100%"}`)
			requireDelivered(t, deliver(t, sink, m))
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(far.lastBody()))
			require.NoError(t, err)
			request.Header = far.last().Header
			e, err := cloudevents.NewEventFromHTTPRequest(request)
			require.NoError(t, err)
			require.NoError(t, e.Validate())
			// The library leaves to us what the HTTP binding encodes (3.1.3.2).
			decoded := func(value string) string {
				if kind == format.CloudEventsBinary {
					value, err = url.PathUnescape(value)
					require.NoError(t, err)
				}
				return value
			}
			require.Equal(t, "id 1", decoded(e.ID()))
			require.Equal(t, "/sms/q", decoded(e.Source()))
			require.Equal(t, "report.ok", decoded(e.Type()))
			require.Equal(t, `短信 "a" 100%`, decoded(e.Subject()))
			require.Equal(t, "application/json", e.DataContentType())
			require.JSONEq(t, string(m.Body), string(e.Data()))
			if kind == format.CloudEventsBinary {
				require.Equal(t, "1%20%E7%9F%AD%2050%25", e.Extensions()["tenant"])
			}
		})
	}
}

func TestFormats(t *testing.T) {
	far := capturing(t)
	for _, c := range []struct {
		name       string
		change     func(*webhook.Config)
		body, want string
		content    string
	}{
		{"json", func(c *webhook.Config) { c.Format = format.JSON }, "hi", `"body":"hi"}`, "application/json"},
		{"a body of its own", func(c *webhook.Config) { c.Body = `{"text": "{{ text }}"}` }, "hi", `{"text": "hi"}`, "application/json"},
		{"a content type of its own", func(c *webhook.Config) {
			c.Headers = map[string]setting.Secret{"content-type": setting.NewSecret("text/csv")}
		}, "a,b", "a,b", "text/csv"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := sinkWith(t, func(config *webhook.Config) {
				config.URL = setting.NewURL(far.url)
				c.change(config)
			})
			m := message("1")
			m.Body = []byte(c.body)
			requireDelivered(t, deliver(t, sink, m))
			require.Contains(t, string(far.lastBody()), c.want)
			require.Equal(t, c.content, far.last().Header.Get("Content-Type"))
		})
	}
	t.Run("one that cannot be made", func(t *testing.T) {
		sink := sinkWith(t, func(c *webhook.Config) { c.URL, c.Body = setting.NewURL(far.url), "{{ body.x }}" })
		before := far.count()
		result := deliver(t, sink, message("1"))[0]
		require.Equal(t, relay.Rejected, result.Outcome)
		require.ErrorContains(t, result.Err, "work out the body")
		require.Equal(t, before, far.count())
	})
}

// A message may decide the content type, but not make another kind of event of its event.
func TestContentTypeOfABinaryEvent(t *testing.T) {
	far := capturing(t)
	sink := sinkWith(t, func(c *webhook.Config) {
		c.URL, c.Format = setting.NewURL(far.url), format.CloudEventsBinary
		c.Headers = map[string]setting.Secret{"content-type": setting.NewSecret("{{ text }}")}
	})
	m := message("1")
	m.Body = []byte("text/csv")
	requireDelivered(t, deliver(t, sink, m))
	require.Equal(t, "text/csv", far.last().Header.Get("Content-Type"))
	m.Body = []byte("application/cloudevents+json")
	requireFailure(t, relay.Rejected, format.ReasonInvalid, deliver(t, sink, m)[0])
	require.Equal(t, 1, far.count())
}
