package mns_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/setting"
	sink "mnsrelay/internal/sink/mns"
)

func valid() *sink.Config {
	c := sink.Defaults()
	c.Endpoint = setting.NewURL("https://1234.mns.cn-hangzhou.aliyuncs.com")
	c.Queue = "dead-letters"
	c.Credentials = credentials.Config{Type: credentials.TypeStatic, AccessKeyID: setting.NewSecret("id"), AccessKeySecret: setting.NewSecret("secret")}
	return c
}

func TestValidate(t *testing.T) {
	require.NoError(t, valid().Validate())
	require.Empty(t, valid().Warnings())
	for _, c := range []struct {
		name   string
		change func(*sink.Config)
		want   string // the first words; empty: valid
	}{
		{"no endpoint", func(c *sink.Config) { c.Endpoint = setting.URL{} }, "endpoint: required"},
		{"no URL", func(c *sink.Config) { c.Endpoint = setting.NewURL("localhost:80") }, "endpoint: is no http or https URL"},
		{"no queue", func(c *sink.Config) { c.Queue = "" }, "queue: required"},
		{"no queue's name", func(c *sink.Config) { c.Queue = "a/b" }, "queue: no queue's name"},
		{"no credentials", func(c *sink.Config) { c.Credentials = credentials.Config{} }, "credentials.type: required"},
		{"half a key", func(c *sink.Config) { c.Credentials.AccessKeySecret = setting.Secret{} }, "credentials.access_key_secret: required"},
		{"a base that is none", func(c *sink.Config) {
			c.Credentials = credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport", Base: &credentials.Config{Type: credentials.TypeMNSToken}}
		}, "credentials.base.type: "},
		{"a token", func(c *sink.Config) {
			c.Credentials = credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport"}
		}, ""},
		{"no format", func(c *sink.Config) { c.Format = "json" }, `format: is "json"; write raw or envelope`},
		{"no encoding", func(c *sink.Config) { c.Body = "hex" }, `body: is "hex"; write auto, base64 or raw`},
		{"an encoding of envelopes", func(c *sink.Config) { c.Format, c.Body = sink.FormatEnvelope, mns.BodyRaw }, "body: has no meaning"},
		{"an envelope", func(c *sink.Config) { c.Format = sink.FormatEnvelope }, ""},
		{"no timeout", func(c *sink.Config) { c.Timeout = 0 }, "timeout: is 0s; write a duration above 0s"},
		{"a timeout too long", func(c *sink.Config) { c.Timeout = time.Hour }, "timeout: is 1h0m0s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := valid()
			c.change(config)
			err := config.Validate()
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			_, is := findProblem(err)
			require.True(t, is, "%v", err)
			require.Contains(t, err.Error(), c.want)
		})
	}
}

// findProblem takes apart what is joined: every leaf must be a *setting.Problem.
func findProblem(err error) (problems []*setting.Problem, all bool) {
	if joined, is := err.(interface{ Unwrap() []error }); is {
		all = true
		for _, err := range joined.Unwrap() {
			more, is := findProblem(err)
			problems, all = append(problems, more...), all && is
		}
		return problems, all
	}
	p, is := err.(*setting.Problem) //nolint:errorlint // the leaf itself
	return append(problems, p), is
}

func TestWarnings(t *testing.T) {
	c := valid()
	c.Endpoint = setting.NewURL("http://mns.example.com")
	c.Credentials = credentials.Config{Type: credentials.TypeMNSToken, MessageType: "X", Endpoint: setting.NewURL("http://tokens.example.com")}
	require.NoError(t, c.Validate())
	warnings := c.Warnings()
	require.Len(t, warnings, 2)
	require.ErrorContains(t, warnings[0], "endpoint: is http://: messages and signatures travel unencrypted")
	require.ErrorContains(t, warnings[1], "credentials.endpoint: is http://")
	c.Endpoint = setting.NewURL("http://127.0.0.1:8090")
	require.Len(t, c.Warnings(), 1)
}
