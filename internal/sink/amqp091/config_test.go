package amqp091_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
)

func valid() *amqp091.Config {
	c := amqp091.Defaults()
	c.URL = setting.NewURL("amqp://127.0.0.1")
	c.Exchange.Name = "x"
	return c
}

func TestDefaults(t *testing.T) {
	c := amqp091.Defaults()
	require.Equal(t, amqp091.Exchange{Type: "topic", Durable: true, Declare: amqp091.DeclarePassive}, c.Exchange)
	require.True(t, c.Persistent)
	require.True(t, c.Mandatory)
	require.Equal(t, amqp091.UnroutableRetry, c.Unroutable)
	require.Equal(t, amqp091.AcknowledgeConfirm, c.Acknowledge)
	require.Equal(t, 10*time.Second, c.Timeout)
	require.NoError(t, valid().Validate())
}

func TestExchangeShortForm(t *testing.T) {
	c := amqp091.Defaults()
	require.NoError(t, c.Exchange.UnmarshalText([]byte("sms.events")))
	require.Equal(t, amqp091.Exchange{Name: "sms.events", Type: "topic", Durable: true, Declare: amqp091.DeclarePassive}, c.Exchange)
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("l", 256)
	urls := func(urls ...string) func(*amqp091.Config) {
		return func(c *amqp091.Config) {
			c.URL = setting.URL{}
			for _, u := range urls {
				c.URLs = append(c.URLs, setting.NewURL(u))
			}
		}
	}
	for name, c := range map[string]struct {
		change func(*amqp091.Config)
		want   []string // the problems' paths with the beginning of their messages; none: valid
	}{
		"nothing set":          {func(c *amqp091.Config) { *c = *amqp091.Defaults() }, []string{"url: required", "exchange: required"}},
		"several URLs":         {urls("amqp://a", "amqps://b:5671/prod", "amqp://c/%2F?heartbeat=30"), nil},
		"url and urls":         {func(c *amqp091.Config) { c.URLs = []setting.URL{c.URL} }, []string{"urls: url is set too"}},
		"another scheme":       {urls("amqp://a", "http://b"), []string{"urls[1]: the scheme must be amqp:// or amqps://"}},
		"no host":              {urls("amqp://:5672"), []string{"urls[0]: the host is missing"}},
		"port 0":               {urls("amqp://a:0"), []string{"urls[0]: the port must be 1 to 65535"}},
		"a port too high":      {urls("amqp://a:65536"), []string{"urls[0]: the port must be 1 to 65535"}},
		"a password with /":    {urls("amqp://u:s3cr/et@a"), []string{"urls[0]: not a URL; special characters"}},
		"a password with #":    {urls("amqp://u:s3cr#et@a"), []string{"urls[0]: not a URL; special characters"}},
		"a fragment":           {urls("amqp://a/v#s3cr"), []string{"urls[0]: there is a # in it"}},
		"a long vhost":         {urls("amqp://a/" + long), []string{"urls[0]: the vhost is 256 bytes long"}},
		"an unknown parameter": {urls("amqp://a?cacertfile=/s3cr"), []string{"urls[0]: the query may hold heartbeat"}},
		"heartbeat 0":          {urls("amqp://a?heartbeat=0"), []string{"urls[0]: heartbeat must be 1 to 300"}},
		"heartbeat in words":   {urls("amqp://a?heartbeat=2s"), []string{"urls[0]: heartbeat must be 1 to 300"}},
		"no username":          {func(c *amqp091.Config) { c.Password = setting.NewSecret("s3cr") }, []string{"username: required"}},
		"no password":          {func(c *amqp091.Config) { c.Username = "u" }, []string{"password: required"}},
		"credentials twice": {func(c *amqp091.Config) {
			c.URL = setting.NewURL("amqp://u:s3cr@a")
			c.Username = "u"
			c.Password = setting.NewSecret("s3cr")
		}, []string{"url: holds credentials"}},
		"a certificate without a key": {func(c *amqp091.Config) { c.URL = setting.NewURL("amqps://a"); c.TLS.CertFile = "f" }, []string{"tls: cert_file and key_file"}},
		"tls without amqps":           {func(c *amqp091.Config) { c.TLS.CAFile = "f" }, []string{"tls: no URL is encrypted"}},
		"a long exchange":             {func(c *amqp091.Config) { c.Exchange.Name = long }, []string{"exchange.name: 256 bytes"}},
		"no exchange type":            {func(c *amqp091.Config) { c.Exchange.Type = "" }, []string{"exchange.type: empty"}},
		"a plugin's exchange type":    {func(c *amqp091.Config) { c.Exchange.Type = "x-delayed-message" }, nil},
		"another declare":             {func(c *amqp091.Config) { c.Exchange.Declare = "yes" }, []string{`exchange.declare: "yes" is unknown`}},
		"a long routing key":          {func(c *amqp091.Config) { c.RoutingKey = long }, []string{"routing_key: 256 bytes"}},
		"templates": {func(c *amqp091.Config) {
			c.RoutingKey = `sms.{{ body.success ? "ok" : "failed" }}`
			c.Headers = map[string]string{"h": "{{ id }}"}
		}, nil},
		"templates that are misspelt": {func(c *amqp091.Config) {
			c.RoutingKey = "{{ bdy.x }}.{{ idd }}"
			c.Headers = map[string]string{"h": "a{{ id"}
		}, []string{
			`routing_key: at character 4: there is no variable "bdy"`, `routing_key: at character 16: there is no variable "idd"`,
			`headers.h: at character 2: "{{" without its "}}"`,
		}},
		"a long routing key in a template":    {func(c *amqp091.Config) { c.RoutingKey = long + "{{ id }}" }, []string{"routing_key: 256 bytes"}},
		"a long routing key in an expression": {func(c *amqp091.Config) { c.RoutingKey = "{{ '" + long + "' }}" }, []string{"routing_key: 256 bytes"}},
		"a template for the exchange":         {func(c *amqp091.Config) { c.Exchange.Name = "{{ source }}" }, []string{"exchange.name: the same for every message"}},
		"a nameless header":                   {func(c *amqp091.Config) { c.Headers = map[string]string{"": "v"} }, []string{"headers: a header has no name"}},
		"a long header name":                  {func(c *amqp091.Config) { c.Headers = map[string]string{long: "v"} }, []string{"headers: the name"}},
		"a header of our own":                 {func(c *amqp091.Config) { c.Headers = map[string]string{"X-MnsRelay-Source": "v"} }, []string{"headers.X-MnsRelay-Source: the relay sets"}},
		"a header that is no list":            {func(c *amqp091.Config) { c.Headers = map[string]string{"CC": "v", "BCC": "v"} }, []string{"headers.BCC: the broker takes", "headers.CC: the broker takes"}},
		"headers that fill a frame":           {func(c *amqp091.Config) { c.Headers = map[string]string{"h": strings.Repeat("v", 64<<10)} }, []string{"headers: 65537 bytes"}},
		"unroutable: drop":                    {func(c *amqp091.Config) { c.Unroutable = "drop" }, nil},
		"unroutable: dead_letter":             {func(c *amqp091.Config) { c.Unroutable = "dead_letter" }, nil},
		"dead letters that nobody tells of":   {func(c *amqp091.Config) { c.Unroutable = "dead_letter"; c.Mandatory = false }, []string{"unroutable: without mandatory"}},
		"unroutable: else":                    {func(c *amqp091.Config) { c.Unroutable = "else" }, []string{`unroutable: "else" is unknown`}},
		"acknowledge: transaction":            {func(c *amqp091.Config) { c.Acknowledge = "transaction" }, []string{`acknowledge: "transaction" is not supported yet`}},
		"acknowledge: reply":                  {func(c *amqp091.Config) { c.Acknowledge = "reply" }, []string{`acknowledge: "reply" is not supported yet`}},
		"acknowledge: none":                   {func(c *amqp091.Config) { c.Acknowledge = "none" }, []string{`acknowledge: "none" is not supported yet`}},
		"acknowledge: else":                   {func(c *amqp091.Config) { c.Acknowledge = "else" }, []string{`acknowledge: "else" is unknown`}},
		"timeout 0":                           {func(c *amqp091.Config) { c.Timeout = 0 }, []string{"timeout: 0s is out of range"}},
		"timeout 11m":                         {func(c *amqp091.Config) { c.Timeout = 11 * time.Minute }, []string{"timeout: 11m0s is out of range"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := valid()
			c.change(config)
			problems := flatten(config.Validate())
			require.Len(t, problems, len(c.want), "%v", problems)
			for i, problem := range problems {
				var p *setting.Problem
				require.ErrorAs(t, problem, &p)
				require.True(t, strings.HasPrefix(problem.Error(), c.want[i]), "%q begins with %q", problem, c.want[i])
				require.NotContains(t, fmt.Sprintf("%v %+v", problem, problem), "s3cr")
			}
			_, err := config.Open(deps(t))
			require.Equal(t, len(c.want) == 0, err == nil, "Open: %v", err)
		})
	}
}

// flatten gives the errors that errors.Join joined.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}
