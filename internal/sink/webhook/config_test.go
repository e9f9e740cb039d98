package webhook_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

func TestConfig(t *testing.T) {
	header := func(name, value string) func(*webhook.Config) {
		return func(c *webhook.Config) { c.Headers = map[string]setting.Secret{name: setting.NewSecret(value)} }
	}
	to := func(url string) func(*webhook.Config) {
		return func(c *webhook.Config) { c.URL = setting.NewURL(url) }
	}
	allow := func(networks ...string) func(*webhook.Config) {
		return func(c *webhook.Config) { c.Network.Allow = networks }
	}
	limited := func(perSecond float64, burst int) func(*webhook.Config) {
		return func(c *webhook.Config) { c.RateLimit = webhook.RateLimit{PerSecond: perSecond, Burst: burst} }
	}
	signing := func(secrets ...string) func(*webhook.Config) {
		return func(c *webhook.Config) {
			for _, s := range secrets {
				c.Signing.Secrets = append(c.Signing.Secrets, setting.NewSecret(s))
			}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*webhook.Config)
		want   string // empty: valid
	}{
		{"defaults", func(*webhook.Config) {}, ""},
		{"no URL", to(""), "url: is missing"},
		{"another scheme", to("ftp://hooks.example.com"), `url: has the scheme "ftp"`},
		{"no scheme", to("hooks.example.com/sms"), "url: not a complete URL"},
		{"no host", to("https://:443/"), "url: has no host"},
		{"port 0", to("https://hooks.example.com:0/"), "url: has the port 0"},
		{"port 65536", to("https://hooks.example.com:65536/"), "url: has the port 65536"},
		{"a fragment", to("https://hooks.example.com/#x"), "url: has a fragment"},
		{"a space in the query", to("https://hooks.example.com/?a=b c"), "url: has a query with a space"},
		{"a template", to(`https://u:p@hooks.example.com:8443/{{ body.a ? "x" : "y" }}/b?c={{ string(7 % 5) }}`), ""},
		{"a template in the query only", to("https://hooks.example.com?a={{ id }}"), ""},
		{"a template for the host", to("https://{{ body.host }}/x"), "url: has a {{ }} before its path"},
		{"a template that ends the host", to("https://hooks.example.com{{ body.path }}"), "url: has a {{ }} before its path"},
		{"a template for the scheme", to("{{ body.scheme }}://hooks.example.com/"), "url: has a {{ }} before its path"},
		{"a template for everything", to("{{ body.url }}"), "url: has a {{ }} before its path"},
		{"a template that is misspelt", to("https://hooks.example.com/{{ bdy.x }}"), `url: at character 30: there is no variable "bdy": did you mean "body"?`},
		{"a template and a fragment", to("https://hooks.example.com/{{ id }}#x"), "url: has a fragment"},
		{"a template and a path that goes up", to("https://hooks.example.com/a/../{{ id }}"), "url: has . or .. in its path"},
		{"a template that is a constant", to(`https://hooks.example.com/{{ ".." }}/`), "url: has . or .. in its path"},
		{"a template and a private address", to("https://10.0.0.1/{{ id }}"), `url: 10.0.0.1 is not an address of the public internet`},
		{"user info", to("https://u:p@hooks.example.com/"), ""},
		{"user info and authorization", func(c *webhook.Config) {
			to("https://u:p@hooks.example.com/")(c)
			header("Authorization", "Bearer x")(c)
		}, "has user info in url and headers.Authorization: each would be sent as authorization; keep one"},
		{"a private address", to("https://10.0.0.1/"), `url: 10.0.0.1 is not an address of the public internet`},
		{"a private address that is allowed", func(c *webhook.Config) { to("https://10.0.0.1/")(c); allow("10.0.0.0/8")(c) }, ""},

		{"a header", header("authorization", "Bearer x"), ""},
		{"a content type", header("content-type", "application/cloudevents+json"), ""},
		{"a header's name", header("x y", "1"), `headers: has the name "x y"`},
		{"a header without a name", header("", "1"), `headers: has the name ""`},
		{"a line break in a header", header("x-a", "1\r\nx-b: 2"), "headers.x-a: has a line break"},
		{"a template in a header", header("x-a", "Bearer {{ body.?token }}"), ""},
		{"a template in a header that is misspelt", header("x-a", "a {{ id"), `headers.x-a: at character 3: "{{" without its "}}"`},
		{"a line break beside a template", header("x-a", "{{ id }}\n"), "headers.x-a: has a line break"},
		{"a header of one hop", header("Connection", "close"), "headers.Connection: is set by the relay or by HTTP itself"},
		{"the host", header("host", "a"), "headers.host: is set by"},
		{"the length", header("Content-Length", "1"), "headers.Content-Length: is set by"},
		{"the transfer", header("transfer-encoding", "chunked"), "headers.transfer-encoding: is set by"},
		{"the id", header("Webhook-Id", "1"), "headers.Webhook-Id: is set by"},
		{"the relay's headers", header("X-Mnsrelay-Source", "1"), "headers.X-Mnsrelay-Source: is set by"},
		{"one header twice", func(c *webhook.Config) {
			c.Headers = map[string]setting.Secret{"x-a": setting.NewSecret("1"), "X-A": setting.NewSecret("2")}
		}, `headers.x-a: is the same header as "X-A"`},

		{"no timeout", func(c *webhook.Config) { c.Timeout = 0 }, "timeout: is 0s"},
		{"a negative timeout", func(c *webhook.Config) { c.Timeout = -1 }, "timeout: is -1ns"},
		{"an endless timeout", func(c *webhook.Config) { c.Timeout = time.Hour }, "timeout: is 1h0m0s"},
		{"no concurrency", func(c *webhook.Config) { c.Concurrency = 0 }, "concurrency: is 0"},
		{"too much concurrency", func(c *webhook.Config) { c.Concurrency = 4097 }, "concurrency: is 4097"},
		{"a network", allow("10.0.0.0/8", "fd00::/8"), ""},
		{"no network", allow("10.0.0.0/8", "10.0.0.1"), `network.allow[1]: "10.0.0.1" is not a network`},
		{"a mapped network", allow("::ffff:10.0.0.0/104"), "network.allow[0]: \"::ffff:10.0.0.0/104\" is an IPv4 network written as IPv6"},

		{"signing", signing("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"), ""},
		{"a secret that is not base64", signing("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz", "hunter2!"), "signing.secrets[1]: is not base64; write whsec_"},
		{"a short secret", signing("whsec_aHVudGVyMg=="), "signing.secrets[0]: has 7 bytes; a secret has 24 to 64"},
		{"an asymmetric key", signing("whsk_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz"), "signing.secrets[0]: is a key of asymmetric signatures (v1a)"},
		{"a user", func(c *webhook.Config) { c.Username, c.Password = "u", setting.NewSecret("p") }, ""},
		{"a user without a password", func(c *webhook.Config) { c.Username = "u" }, "password: required where username is set"},
		{"a user with a colon", func(c *webhook.Config) { c.Username, c.Password = "u:v", setting.NewSecret("p") }, "username: has a colon"},
		{"a token", func(c *webhook.Config) { c.BearerToken = setting.NewSecret("abc.def-_~+/=") }, ""},
		{"a token of two lines", func(c *webhook.Config) { c.BearerToken = setting.NewSecret("a\nb") }, "bearer_token: is empty, or has a space, a line break"},
		{"a token and a user", func(c *webhook.Config) {
			c.Username, c.Password, c.BearerToken = "u", setting.NewSecret("p"), setting.NewSecret("t")
		}, "has username and bearer_token: each would be sent as authorization"},
		{"a certificate without a key", func(c *webhook.Config) { c.TLS.CertFile = "x" }, "tls: cert_file and key_file belong together"},
		{"an extension", func(c *webhook.Config) { c.Format = format.CloudEventsBinary; header("ce-tenant", "x")(c) }, ""},
		{"an attribute as a header", func(c *webhook.Config) { c.Format = format.CloudEventsBinary; header("CE-Type", "x")(c) }, "headers.CE-Type: is an attribute that the relay sets"},
		{"an extension of JSON", func(c *webhook.Config) { c.Format = format.CloudEvents; header("ce-tenant", "x")(c) }, "headers.ce-tenant: is no part of an event that is sent as JSON"},
		{"an extension with another name", func(c *webhook.Config) { c.Format = format.CloudEventsBinary; header("ce-My_Ext", "x")(c) }, "headers.ce-My_Ext: names no extension of an event; write ce- and then lower-case letters and digits"},
		{"the content type of an event", func(c *webhook.Config) {
			c.Format = format.CloudEventsBinary
			header("content-type", "Application/CloudEvents+json")(c)
		}, "headers.content-type: is that of an event as JSON"},
		{"another method", func(c *webhook.Config) { c.Method = "GET" }, `method: is "GET"; write POST, PUT or PATCH`},
		{"another compression", func(c *webhook.Config) { c.Compression = "zstd" }, `compression: is "zstd"; write none or gzip`},
		{"a rate limit", limited(0.5, 0), ""},
		{"a rate limit with a burst", limited(100, 10), ""},
		{"a negative rate", limited(-1, 0), "rate_limit.per_second: is -1; write a number from 0.01 to 1000000"},
		{"an endless rate", limited(math.Inf(1), 0), "rate_limit.per_second: is +Inf"},
		{"no rate at all", limited(math.NaN(), 0), "rate_limit.per_second: is NaN"},
		{"a negative burst", limited(1, -1), "rate_limit.burst: is -1"},
		{"a burst of nothing", limited(0, 5), "rate_limit.burst: there is no limit that it could exceed"},
		{"retry", func(c *webhook.Config) {
			c.Retry = webhook.Retry{MaxAttempts: 20, Initial: time.Millisecond, Max: 5 * time.Minute}
		}, ""},
		{"no retry", func(c *webhook.Config) { c.Retry.MaxAttempts = 1 }, ""},
		{"no attempt", func(c *webhook.Config) { c.Retry.MaxAttempts = 0 }, "retry.max_attempts: is 0; write a number from 1"},
		{"too many attempts", func(c *webhook.Config) { c.Retry.MaxAttempts = 21 }, "retry.max_attempts: is 21"},
		{"no pause", func(c *webhook.Config) { c.Retry.Initial = 0 }, "retry.initial: is 0s"},
		{"a pause that shrinks", func(c *webhook.Config) { c.Retry.Max = 100 * time.Millisecond }, "retry.max: is 100ms"},
		{"an endless pause", func(c *webhook.Config) { c.Retry.Max = time.Hour }, "retry.max: is 1h0m0s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := webhook.Defaults()
			config.URL = setting.NewURL("https://hooks.example.com/sms")
			c.change(config)
			err := config.Validate()
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, c.want)
			require.Len(t, problems(t, err), 1)
		})
	}
}

func TestEveryProblemIsReportedAtOnceAndNoSecret(t *testing.T) {
	c := webhook.Defaults()
	c.URL = setting.NewURL("ftp://user:hunter2@hooks.example.com?key=hunter2")
	c.Headers = map[string]setting.Secret{"x-a": setting.NewSecret("hunter2\n"), "host": setting.NewSecret("hunter2")}
	c.Timeout, c.Concurrency = 0, 0
	c.Network.Allow = []string{"x", "y"}
	err := c.Validate()
	require.Len(t, problems(t, err), 7)
	require.NotContains(t, err.Error(), "hunter2")
}

// problems takes a joined error apart; every part has to be a *setting.Problem.
func problems(t *testing.T, err error) (all []*setting.Problem) {
	t.Helper()
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, part := range joined.Unwrap() {
			all = append(all, problems(t, part)...)
		}
		return all
	}
	var problem *setting.Problem
	require.ErrorAs(t, err, &problem)
	return append(all, problem)
}

func TestWarnings(t *testing.T) {
	for url, want := range map[string]int{
		"https://hooks.example.com": 0,
		"http://hooks.example.com":  1,
		"http://10.0.0.1":           1,
		"http://localhost:8080":     0,
		"http://127.0.0.1:8080":     0,
		"http://[::1]:8080":         0,
		"not a URL":                 0,
	} {
		c := webhook.Defaults()
		c.URL = setting.NewURL(url)
		require.Len(t, c.Warnings(), want, url)
		for _, warning := range c.Warnings() {
			require.ErrorContains(t, warning, "unencrypted")
		}
	}
}

func TestRouteSettings(t *testing.T) {
	receiver := start(t, accept)
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(receiver.url)
		c.Headers = map[string]setting.Secret{"x-a": setting.NewSecret("sink"), "x-b": setting.NewSecret("sink")}
	})
	run(t, endpoint)
	_, err := endpoint.Bind(func(settings any) error {
		settings.(*webhook.Settings).Timeout = 0
		return nil
	})
	require.ErrorContains(t, err, "timeout: is 0s")

	routed, err := endpoint.Bind(func(settings any) error {
		s := settings.(*webhook.Settings)
		require.Equal(t, timeout, s.Timeout)
		s.Headers["x-b"] = setting.NewSecret("route")
		s.Headers["x-c"] = setting.NewSecret("route")
		s.Retry.MaxAttempts = 1
		s.Timeout = time.Second
		return nil
	})
	require.NoError(t, err)
	require.Equal(t, relay.Retries{Attempts: 1, Initial: 200 * time.Millisecond, Max: 5 * time.Second, Timeout: time.Second}, routed.(relay.Retrier).Retries())
	plain, err := endpoint.Bind(nil)
	require.NoError(t, err)
	require.Equal(t, relay.Retries{Attempts: 3, Initial: 200 * time.Millisecond, Max: 5 * time.Second, Timeout: timeout}, plain.(relay.Retrier).Retries())

	for _, c := range []struct {
		sink relay.Sink
		want string
	}{{routed, "sink route route"}, {plain, "sink sink "}} {
		require.Equal(t, relay.Delivered, deliver(t, c.sink, message("1"))[0].Outcome)
		h := receiver.last().Header
		require.Equal(t, c.want, strings.Join([]string{h.Get("x-a"), h.Get("x-b"), h.Get("x-c")}, " "))
	}
}
