package amqp091_test

import (
	"errors"
	"fmt"
	"math"
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

func queue(name string) amqp091.Queue {
	q := amqp091.Queue{Name: name}
	q.SetDefaults()
	return q
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
			c.Headers = headers(map[string]any{"h": "{{ id }}"})
		}, nil},
		"templates that are misspelt": {func(c *amqp091.Config) {
			c.RoutingKey = "{{ bdy.x }}.{{ idd }}"
			c.Headers = headers(map[string]any{"h": "a{{ id"})
		}, []string{
			`routing_key: at character 4: there is no variable "bdy"`, `routing_key: at character 16: there is no variable "idd"`,
			`headers.h: at character 2: "{{" without its "}}"`,
		}},
		"a long routing key in a template":    {func(c *amqp091.Config) { c.RoutingKey = long + "{{ id }}" }, []string{"routing_key: 256 bytes"}},
		"a long routing key in an expression": {func(c *amqp091.Config) { c.RoutingKey = "{{ '" + long + "' }}" }, []string{"routing_key: 256 bytes"}},
		"a template for the exchange":         {func(c *amqp091.Config) { c.Exchange.Name = "{{ source }}" }, []string{"exchange.name: the same for every message"}},
		"a nameless header":                   {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"": "v"}) }, []string{"headers: a header has no name"}},
		"a long header name":                  {func(c *amqp091.Config) { c.Headers = headers(map[string]any{long: "v"}) }, []string{"headers: the name"}},
		"a header of our own":                 {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"X-MnsRelay-Source": "v"}) }, []string{"headers.X-MnsRelay-Source: the relay sets"}},
		"a header that is no list":            {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"CC": "v", "BCC": "v"}) }, []string{"headers.BCC: the broker takes", "headers.CC: the broker takes"}},
		"headers that fill a frame":           {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"h": strings.Repeat("v", 64<<10)}) }, []string{"headers: 65543 bytes"}},
		"unroutable: drop":                    {func(c *amqp091.Config) { c.Unroutable = "drop" }, nil},
		"unroutable: dead_letter":             {func(c *amqp091.Config) { c.Unroutable = "dead_letter" }, nil},
		"dead letters that nobody tells of":   {func(c *amqp091.Config) { c.Unroutable = "dead_letter"; c.Mandatory = false }, []string{"unroutable: without mandatory"}},
		"unroutable: else":                    {func(c *amqp091.Config) { c.Unroutable = "else" }, []string{`unroutable: "else" is unknown`}},
		"acknowledge: transaction":            {func(c *amqp091.Config) { c.Acknowledge = "transaction" }, nil},
		"acknowledge: reply":                  {func(c *amqp091.Config) { c.Acknowledge = "reply" }, nil},
		"acknowledge: none":                   {func(c *amqp091.Config) { c.Acknowledge = "none" }, nil},
		"acknowledge: else":                   {func(c *amqp091.Config) { c.Acknowledge = "else" }, []string{`acknowledge: "else" is unknown`}},
		"dead letters with acknowledge: none": {func(c *amqp091.Config) { c.Acknowledge, c.Unroutable = "none", "dead_letter" }, []string{"unroutable: with acknowledge: none"}},
		"a reply's own correlation id":        {func(c *amqp091.Config) { c.Acknowledge, c.Properties.CorrelationID = "reply", "{{ id }}" }, []string{"properties.correlation_id: acknowledge: reply sets it"}},
		"a reply without time":                {func(c *amqp091.Config) { c.Acknowledge, c.Reply = "reply", amqp091.Reply{} }, []string{"reply.timeout: 0s is out", "reply.in_flight: 0 is out"}},
		"a list of further keys":              {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"CC": []any{"a", "{{ id }}"}}) }, nil},
		"a list of what are no keys":          {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"CC": []any{"a", 1}}) }, []string{"headers.CC: the broker takes it for more"}},
		"a table in a header": {func(c *amqp091.Config) {
			c.Headers = headers(map[string]any{"h": map[string]any{"n": 1, "t": "{{ id }}"}})
		}, nil},
		"a long name in a table":     {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"h": map[string]any{long: 1}}) }, []string{"headers.h: a name in it is 256 bytes"}},
		"a misspelt name in a table": {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"h": map[string]any{"t": "{{ idd }}"}}) }, []string{`headers.h.t: at character 4: there is no variable "idd"`}},
		"properties": {func(c *amqp091.Config) {
			c.Properties = amqp091.Properties{
				ContentType: "text/csv", ContentEncoding: "gzip", Priority: "5", Expiration: "10m", Type: "{{ source }}",
				AppID: "mnsrelay", UserID: "guest", CorrelationID: "{{ id }}",
			}
		}, nil},
		"properties that cannot be": {func(c *amqp091.Config) {
			c.Properties = amqp091.Properties{ContentType: long, Priority: "256", Expiration: "-1s", Type: "{{ idd }}"}
		}, []string{
			"properties.content_type: 256 bytes", "properties.priority: must be a whole number from 0 to 255", "properties.expiration: must be a duration",
			`properties.type: at character 4: there is no variable "idd"`,
		}},
		"an expiration in words":      {func(c *amqp091.Config) { c.Properties.Expiration = "soon" }, []string{"properties.expiration: must be"}},
		"an expiration of months":     {func(c *amqp091.Config) { c.Properties.Expiration = "4294967296" }, []string{"properties.expiration: must be"}},
		"the exchange without a name": {func(c *amqp091.Config) { c.Exchange.Name = amqp091.DefaultExchange }, nil},
		"made without a name": {func(c *amqp091.Config) { c.Exchange.Name, c.Exchange.Declare = amqp091.DefaultExchange, "active" }, []string{
			"exchange.declare: the exchange without a name is always there",
		}},
		"a vhost of its own":   {func(c *amqp091.Config) { c.Vhost = "a b" }, nil},
		"a vhost twice":        {func(c *amqp091.Config) { c.Vhost = "a"; c.URL = setting.NewURL("amqp://a/b") }, []string{"url: holds a vhost, and vhost is set too"}},
		"a long name":          {func(c *amqp091.Config) { c.ConnectionName = long }, []string{"connection_name: 256 bytes"}},
		"a heartbeat too fast": {func(c *amqp091.Config) { c.Heartbeat = 1500 * time.Millisecond }, []string{"heartbeat: 1.5s is out of range"}},
		"no time to dial":      {func(c *amqp091.Config) { c.DialTimeout = 0 }, []string{"dial_timeout: 0s is out of range"}},
		"no time to connect":   {func(c *amqp091.Config) { c.ConnectTimeout = time.Hour }, []string{"connect_timeout: 1h0m0s is out of range"}},
		"another sasl":         {func(c *amqp091.Config) { c.SASL = "scram" }, []string{`sasl: "scram" is unknown`}},
		"external": {func(c *amqp091.Config) {
			c.SASL, c.URL, c.TLS = "external", setting.NewURL("amqps://a"), setting.TLS{CertFile: "c", KeyFile: "k"}
		}, nil},
		"external without a certificate": {func(c *amqp091.Config) { c.SASL, c.URL = "external", setting.NewURL("amqps://a") }, []string{"sasl: external takes the user from the client certificate: set"}},
		"external in the clear": {func(c *amqp091.Config) {
			c.SASL, c.URL, c.URLs = "external", setting.URL{}, []setting.URL{setting.NewURL("amqp://a"), setting.NewURL("amqps://u:p@a")}
			c.TLS = setting.TLS{CertFile: "c", KeyFile: "k"}
		}, []string{"urls[0]: sasl: external needs a client certificate, and so amqps", "urls[1]: sasl: external takes the user from the client certificate: remove"}},
		"queues": {func(c *amqp091.Config) {
			q := queue("q")
			q.MessageTTL, q.MaxLength, q.Overflow, q.DeadLetterExchange, q.DeadLetterRoutingKey = time.Hour, 1000, "reject-publish", "x.dead", "k"
			q.Arguments = headers(map[string]any{"x-quorum-initial-group-size": 3})
			q.Bindings = []amqp091.Binding{{RoutingKey: "sms.#"}, {Exchange: "y", Arguments: headers(map[string]any{"x-match": "all"})}}
			c.Queues = []amqp091.Queue{q, {Name: "r", Type: "classic", AutoDelete: true}}
		}, nil},
		"queues that cannot be": {func(c *amqp091.Config) {
			nameless, twice, wrong := queue(""), queue("q"), queue("w")
			wrong.Durable, wrong.AutoDelete, wrong.Overflow, wrong.DeadLetterRoutingKey = false, true, "block", "k"
			wrong.Arguments = headers(map[string]any{"x-queue-type": "classic"})
			wrong.Bindings = []amqp091.Binding{{Exchange: amqp091.DefaultExchange}}
			c.Queues = []amqp091.Queue{nameless, twice, twice, wrong, {Name: "t", Type: "tree", DeliveryLimit: 1}}
		}, []string{
			"queues[0].name: required", "queues[2].name: \"q\" is written twice", "queues[3].durable: a queue of type quorum", "queues[3].auto_delete: ",
			"queues[3].overflow: \"block\" is unknown", "queues[3].dead_letter_exchange: required", "queues[3].arguments.x-queue-type: another setting",
			"queues[3].bindings[0].exchange: every queue", "queues[4].type: \"tree\" is unknown", "queues[4].delivery_limit: only a quorum queue",
		}},
		"a transaction that hides refusals": {func(c *amqp091.Config) {
			c.Acknowledge = "transaction"
			c.Queues = []amqp091.Queue{queue("q")}
			c.Queues[0].Overflow = "reject-publish"
		}, []string{"acknowledge: a commit does not tell that the quorum queue \"q\" has refused"}},
		"a queue that refuses openly": {func(c *amqp091.Config) {
			c.Acknowledge = "transaction"
			c.Queues = []amqp091.Queue{{Name: "q", Type: "classic", Overflow: "reject-publish"}}
		}, nil},
		"less than a millisecond": {func(c *amqp091.Config) {
			c.Queues = []amqp091.Queue{queue("q")}
			c.Queues[0].MessageTTL = 100 * time.Microsecond
		}, []string{"queues[0].message_ttl: 100µs is no whole number"}},
		"an infinite header":   {func(c *amqp091.Config) { c.Headers = headers(map[string]any{"h": math.Inf(1)}) }, []string{"headers.h: a number that is infinite"}},
		"an infinite argument": {func(c *amqp091.Config) { c.Exchange.Arguments = headers(map[string]any{"h": math.NaN()}) }, []string{"exchange.arguments.h: a number that is infinite"}},
		"bound to no exchange": {func(c *amqp091.Config) {
			c.Exchange.Name = amqp091.DefaultExchange
			c.Queues = []amqp091.Queue{queue("q")}
			c.Queues[0].Bindings = []amqp091.Binding{{RoutingKey: "k"}, {Exchange: "x"}}
		}, []string{"queues[0].bindings[0].exchange: required"}},
		"timeout 0":   {func(c *amqp091.Config) { c.Timeout = 0 }, []string{"timeout: 0s is out of range"}},
		"timeout 11m": {func(c *amqp091.Config) { c.Timeout = 11 * time.Minute }, []string{"timeout: 11m0s is out of range"}},
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

// A transaction is warned of, and a route cannot choose one where it would lose messages.
func TestTransactionsAreWarnedOf(t *testing.T) {
	c := valid()
	require.Empty(t, c.Warnings())
	c.Queues = []amqp091.Queue{queue("q")}
	c.Queues[0].Overflow = amqp091.OverflowRejectPublish
	endpoint, err := c.Open(deps(t))
	require.NoError(t, err)
	_, err = endpoint.Bind(func(settings any) error {
		s, ok := settings.(*amqp091.Settings)
		require.True(t, ok)
		s.Acknowledge = amqp091.AcknowledgeTransaction
		return nil
	})
	require.ErrorContains(t, err, "acknowledge: a commit does not tell")
	c.Acknowledge = amqp091.AcknowledgeTransaction
	require.Len(t, c.Warnings(), 1)
}
