package amqp10_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp10"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	urls := func(urls ...string) func(*amqp10.Config) {
		return func(c *amqp10.Config) {
			c.URL = setting.URL{}
			for _, u := range urls {
				c.URLs = append(c.URLs, setting.NewURL(u))
			}
		}
	}
	for name, c := range map[string]struct {
		change func(*amqp10.Config)
		want   []string // what the problems hold, in order; none: valid
	}{
		"as it is":          {func(*amqp10.Config) {}, nil},
		"nothing set":       {func(c *amqp10.Config) { *c = *amqp10.Defaults() }, []string{"url: required", "address: required"}},
		"several hosts":     {urls("amqp://a", "amqps://b:5671", "amqp://u:p@c"), nil},
		"url and urls":      {func(c *amqp10.Config) { c.URLs = []setting.URL{c.URL} }, []string{"urls: url is set too"}},
		"another scheme":    {urls("amqp://a", "http://b"), []string{"urls[1]: the scheme must be"}},
		"no host":           {urls("amqp://:5672"), []string{"urls[0]: the host is missing"}},
		"port 0":            {urls("amqp://a:0"), []string{"urls[0]: the port must be"}},
		"a path":            {urls("amqp://a/queue"), []string{"urls[0]: there is a path in it"}},
		"a query":           {urls("amqp://a?heartbeat=1"), []string{"urls[0]: there is a query in it"}},
		"a fragment":        {urls("amqp://a#s3cr"), []string{"urls[0]: there is a # in it"}},
		"a password with /": {urls("amqp://u:s3cr/et@a"), []string{"urls[0]: not a URL; special characters"}},
		"half a user":       {urls("amqp://u@a"), []string{"urls[0]: there is a user without a password"}},
		"no password":       {func(c *amqp10.Config) { c.Username = "u" }, []string{"password: required"}},
		"no username":       {func(c *amqp10.Config) { c.Password = setting.NewSecret("s3cr") }, []string{"username: required"}},
		"credentials twice": {func(c *amqp10.Config) {
			c.URL, c.Username, c.Password = setting.NewURL("amqp://u:s3cr@a"), "u", setting.NewSecret("s3cr")
		}, []string{"url: holds credentials"}},
		"plain without a user":  {func(c *amqp10.Config) { c.SASL = "plain" }, []string{"url: sasl: plain needs a user"}},
		"anonymous with a user": {func(c *amqp10.Config) { c.SASL, c.URL = "anonymous", setting.NewURL("amqp://u:s3cr@a") }, []string{"url: sasl: anonymous takes no user"}},
		"another sasl":          {func(c *amqp10.Config) { c.SASL = "scram" }, []string{`sasl: "scram" is unknown`}},
		"external": {func(c *amqp10.Config) {
			c.SASL, c.URL, c.TLS = "external", setting.NewURL("amqps://a"), setting.TLS{CertFile: "c", KeyFile: "k"}
		}, nil},
		"external in the clear":     {func(c *amqp10.Config) { c.SASL = "external" }, []string{"url: sasl: external needs a client certificate", "sasl: external takes the user"}},
		"tls without amqps":         {func(c *amqp10.Config) { c.TLS.CAFile = "f" }, []string{"tls: no URL is encrypted"}},
		"a certificate without key": {func(c *amqp10.Config) { c.URL = setting.NewURL("amqps://a"); c.TLS.CertFile = "f" }, []string{"tls: cert_file and key_file"}},
		"a misspelt address":        {func(c *amqp10.Config) { c.Address = "{{ idd }}" }, []string{`address: at character 4: there is no variable "idd"`}},
		"another settle":            {func(c *amqp10.Config) { c.Settle = "maybe" }, []string{`settle: "maybe" is unknown`}},
		"times": {func(c *amqp10.Config) {
			c.IdleTimeout, c.DialTimeout, c.ConnectTimeout, c.Timeout = 0, 0, time.Hour, 0
		}, []string{"idle_timeout: 0s", "dial_timeout: 0s", "connect_timeout: 1h", "timeout: 0s"}},
		"properties": {func(c *amqp10.Config) {
			c.Properties = amqp10.Properties{Priority: "256", TTL: "0s", Subject: "{{ idd }}", ContentType: "短"}
		}, []string{`properties.subject: at character 4`, "properties.content_type: must be ASCII", "properties.priority: must be", "properties.ttl: must be"}},
		"application properties": {func(c *amqp10.Config) {
			c.ApplicationProperties = values(map[string]any{"X-MnsRelay-Source": "a", "list": []any{1}, "m": map[string]any{"a": "{{ idd }}"}, "": 1})
		}, []string{
			"application_properties: a name is empty", "application_properties.m.a: at character 4",
			"application_properties.X-MnsRelay-Source: the relay sets", "application_properties.list: AMQP 1.0 allows", "application_properties.m: AMQP 1.0 allows",
		}},
		"annotations": {func(c *amqp10.Config) {
			c.MessageAnnotations = values(map[string]any{"x-opt-a": []any{1}, "短": 1})
		}, []string{"message_annotations.短: the name of an annotation"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := amqp10.Defaults()
			config.URL = setting.NewURL("amqp://127.0.0.1")
			config.Address = "q"
			c.change(config)
			problems := flatten(config.Validate())
			require.Len(t, problems, len(c.want), "%v", problems)
			for i, problem := range problems {
				var p *setting.Problem
				require.ErrorAs(t, problem, &p)
				require.Contains(t, problem.Error(), c.want[i])
				require.NotContains(t, problem.Error(), "s3cr")
			}
			if len(c.want) > 0 {
				_, err := config.Open(deps())
				require.Error(t, err)
			}
		})
	}
}

// flatten takes joined errors apart.
func flatten(err error) (all []error) {
	if err == nil {
		return nil
	}
	if joined, is := err.(interface{ Unwrap() []error }); is {
		for _, err := range joined.Unwrap() {
			all = append(all, flatten(err)...)
		}
		return all
	}
	return []error{err}
}
