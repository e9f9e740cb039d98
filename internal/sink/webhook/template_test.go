package webhook_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// templated runs an endpoint with templates that posts to far.
func templated(t *testing.T, far *server, path string, headers map[string]string) relay.Sink {
	t.Helper()
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(strings.Replace(far.url, "http://", "http://user:password@", 1) + path)
		c.Headers = map[string]setting.Secret{}
		for name, value := range headers {
			c.Headers[name] = setting.NewSecret(value)
		}
	})
	run(t, endpoint)
	return bind(t, endpoint)
}

func TestTemplates(t *testing.T) {
	far := start(t, accept)
	sink := templated(t, far, "/v1/{{ body.tenant }}/{{ source }}?id={{ id }}&n={{ body.n }}&fixed={{ 1 }}", map[string]string{
		"x-tenant":     "tenant {{ body.tenant }}",
		"x-missing":    "{{ body.?missing }}",
		"x-literal":    `a {{ "{{" }}`,
		"content-type": `{{ body.n > 1.0 ? "application/x-big" : "application/x-small" }}`,
	})
	m := message("7-a b&c")
	m.Body = []byte(`{"tenant": "a/b?c#d%2e..\\ 短", "n": 1.10}`)
	result := deliver(t, sink, m)[0]
	require.NoError(t, result.Err)

	got := far.last()
	require.Equal(t, "/v1/a%2Fb%3Fc%23d%252e..%5C%20%E7%9F%AD/sms?id=7-a+b%26c&n=1.10&fixed=1", got.RequestURI)
	require.Equal(t, "7-a b&c", got.URL.Query().Get("id"))
	require.Equal(t, far.url, "http://"+got.Host)
	user, password, _ := got.BasicAuth()
	require.Equal(t, "user password", user+" "+password)
	require.Equal(t, "application/x-big", got.Header.Get("content-type"))
	require.Equal(t, `tenant a/b?c#d%2e..\ 短`, got.Header.Get("x-tenant"))
	require.Equal(t, []string{""}, got.Header.Values("x-missing"))
	require.Equal(t, "a {{", got.Header.Get("x-literal"))

	// Each message its own.
	m.Body = []byte(`{"tenant": "x", "n": 1}`)
	require.NoError(t, deliver(t, sink, m)[0].Err)
	require.Equal(t, "/v1/x/sms?id=7-a+b%26c&n=1&fixed=1", far.last().RequestURI)
	require.Equal(t, "application/x-small", far.last().Header.Get("content-type"))
	require.Equal(t, []string{"tenant x"}, far.last().Header.Values("x-tenant"))
}

// What a message makes impossible rejects it and nothing else: nothing is sent, no value
// is told, and the circuit stays closed.
func TestTemplatesThatFailRejectTheirMessage(t *testing.T) {
	far := start(t, accept)
	for _, c := range []struct{ name, path, header, body, reason string }{
		{"no JSON", "/{{ body.x }}", "", "hunter2", "expression"},
		{"a member that is missing", "/{{ body.x }}", "", `{"y": "hunter2"}`, "expression"},
		{"a member that is missing for a header", "/", "{{ body.x }}", `{"y": "hunter2"}`, "expression"},
		{"a line break in a header", "/", "{{ body.x }}", `{"x": "hunter2\r\nx-injected: yes"}`, "invalid_property"},
		{"a newline in a header", "/", "a{{ body.x }}", `{"x": "hunter2\n"}`, "invalid_property"},
		{"a NUL in a header", "/", "{{ body.x }}", `{"x": "hunter2\u0000"}`, "invalid_property"},
		{"a header that is too long", "/", "{{ body.x }}", `{"x": "` + strings.Repeat("hunter2", 3<<10) + `"}`, "invalid_property"},
		{"a URL that is too long", "/{{ body.x }}", "", `{"x": "` + strings.Repeat("hunter2", 2<<10) + `"}`, "invalid_property"},
		{"up", "/{{ body.x }}/hunter2", "", `{"x": ".."}`, "invalid_property"},
		{"here", "/a/{{ body.x }}", "", `{"x": "."}`, "invalid_property"},
		{"up by two values", "/a/{{ body.x }}{{ body.x }}/b", "", `{"x": "."}`, "invalid_property"},
		{"up within a value", "/a/{{ body.x }}", "", `{"x": "../hunter2"}`, "invalid_property"},
		{"up by a backslash", "/a/{{ body.x }}", "", `{"x": "a\\..\\hunter2"}`, "invalid_property"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sink := templated(t, far, c.path, map[string]string{"x-a": c.header})
			before := far.count()
			for range 6 { // more than open a circuit
				m := message("1")
				m.Body = []byte(c.body)
				result := deliver(t, sink, m)[0]
				requireFailure(t, relay.Rejected, c.reason, result)
				require.NotContains(t, result.Err.Error(), "hunter2")
			}
			require.Equal(t, before, far.count())
		})
	}
}

// FuzzURL holds that a value can fill its place in the URL and make none.
func FuzzURL(f *testing.F) {
	for _, seed := range []string{"a", "", "..", "../x", "a/b", "?", "#", "%2e%2e", "@evil.example.com", "//evil.example.com", ":80", "\r\nHost: x", "短", "\xff", ";", "&a=b", "+"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		m := message(value)
		got, err := webhook.RenderURL("https://user:password@hooks.example.com:8443/a/{{ id }}/b{{ id }}?x={{ id }}&y=1", &m)
		if err != nil {
			require.Equal(t, "invalid_property", relay.ReasonOf(err))
			return
		}
		require.Equal(t, "https", got.Scheme)
		require.Equal(t, "hooks.example.com:8443", got.Host)
		require.Nil(t, got.User)
		require.Empty(t, got.Fragment)
		require.Equal(t, 3, strings.Count(got.EscapedPath(), "/"), got.EscapedPath())
		require.Equal(t, fmt.Sprintf("/a/%s/b%s", value, value), got.Path)
		query, err := url.ParseQuery(got.RawQuery)
		require.NoError(t, err)
		require.Equal(t, url.Values{"x": {value}, "y": {"1"}}, query)
		for _, r := range got.RequestURI() {
			require.True(t, r > ' ' && r <= '~', "%q in %s", r, got.RequestURI())
		}
	})
}
