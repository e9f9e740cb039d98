package config_test

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/config"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/internal/sink/file"
	"mnsrelay/internal/sink/webhook"
)

var update = flag.Bool("update", false, "write the golden files anew")

// environment has these variables and files and no others.
func environment(variables, files map[string]string) config.Environment {
	return config.Environment{
		Lookup: func(name string) (string, bool) {
			value, found := variables[name]
			return value, found
		},
		ReadFile: func(path string) ([]byte, error) {
			content, found := files[path]
			if !found {
				return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
			}
			return []byte(content), nil
		},
	}
}

// usual is an environment in which every example loads.
func usual() config.Environment {
	return environment(map[string]string{
		"ALIBABA_CLOUD_ACCESS_KEY_ID":     "LTAI-example",
		"ALIBABA_CLOUD_ACCESS_KEY_SECRET": "key-secret",
		"HOOK_TOKEN":                      "hook-token",
	}, map[string]string{
		"/run/secrets/rabbitmq/password":        "p/a#s:s@w\"o r'd\n",
		"/run/secrets/aliyun/access-key-secret": "file-secret\n",
		"/run/secrets/admin-token":              "0123456789abcdef\n",
		"/run/secrets/redis/password":           "redis-secret\n",
		"/run/secrets/audit-hash":               "0123456789abcdef0123456789abcdef\n",
		"/run/secrets/apsaramq/username":        "MjphbXFwOmNuLXh4eHg=\n",
		"/run/secrets/apsaramq/password":        "QkY5RkM=\n",
		"/run/secrets/artemis/password":         "artemis-secret\n",
		"/run/secrets/service-bus/key":          "c2VydmljZS1idXMta2V5/+A=\n",
		"/run/secrets/relay-tls/tls.crt":        pairs()[0].cert,
		"/run/secrets/relay-tls/tls.key":        pairs()[0].key,
	})
}

// parse loads what must load, without a warning unless a part of each is expected.
func parse(t *testing.T, text string, env config.Environment, expected ...string) *config.Config {
	t.Helper()
	c, warnings, err := config.Parse("relay.yaml", []byte(text), env)
	require.NoError(t, err)
	if value, is := document(text); is {
		require.Empty(t, refused(value), "the schema accepts what the decoder does")
	}
	if len(expected) == 0 {
		require.Empty(t, warnings)
	}
	for i, w := range warnings {
		require.Contains(t, w.Message, expected[min(i, len(expected)-1)])
	}
	return c
}

// with is a configuration that works, with one part replaced.
func with(old, replacement string) string {
	const working = `sources:
  sms:
    queue: orders
    endpoint: https://1.mns.cn-hangzhou.aliyuncs.com
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
    to: events
sinks:
  events:
    type: amqp091
    url: amqps://rabbitmq.mq:5671/prod
    exchange: sms.events
`
	if !strings.Contains(working, old) {
		panic("no such part: " + old)
	}
	return strings.Replace(working, old, replacement, 1)
}

func TestEveryExampleLoads(t *testing.T) {
	t.Parallel()
	examples, err := filepath.Glob("../../configs/*.yaml")
	require.NoError(t, err)
	names := make([]string, len(examples))
	for i := range examples {
		names[i] = filepath.Base(examples[i])
	}
	require.Subset(t, names, []string{ // those that the documentation points at
		"sms-reports.yaml", "sms-reports-webhook.yaml", "oss-events.yaml", "routing.yaml", "dead-letters.yaml", "everything.yaml",
		"amqp091-cluster.yaml", "amqp091-apsaramq.yaml", "amqp10.yaml", "azure-service-bus.yaml", "shadow.yaml",
	})
	for _, path := range examples {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(string(text), "# yaml-language-server: $schema=mnsrelay.schema.json\n"), "editors find the schema")
			c := parse(t, string(text), usual())
			printed := parse(t, string(c.YAML()), usual(), "is shorter than 16 characters") // as *** is
			require.Equal(t, withoutComments(c.YAML()), withoutComments(printed.YAML()), "what is printed loads as the same")
		})
	}
}

// Every key there is has a line in the example, a default or a comment at least.
func TestTheExampleOfEverythingHasEveryKey(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../configs/everything.yaml")
	require.NoError(t, err)
	c := parse(t, string(text), usual())

	var root yaml.Node
	require.NoError(t, yaml.Load(c.YAML(), &root))
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		if n.Kind == yaml.MappingNode {
			for i := 0; i < len(n.Content); i += 2 {
				require.Regexp(t, `(?m)^[ #-]*`+n.Content[i].Value+`:`, string(text))
			}
		}
		for _, child := range n.Content {
			walk(child)
		}
	}
	walk(&root)
}

func TestTheLeastIsEnough(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../configs/sms-reports.yaml")
	require.NoError(t, err)
	c := parse(t, string(text), usual())

	require.Len(t, c.Sources, 1)
	s := c.Sources[0]
	require.Equal(t, "sms", s.Name)
	require.Equal(t, "mns", s.Type)
	require.Equal(t, credentials.PresetAlicomCN, s.Preset)
	require.Equal(t, "https://1943695596114318.mns.cn-hangzhou.aliyuncs.com", s.Endpoint.Reveal())
	require.Equal(t, credentials.TypeMNSToken, s.Credentials.Type)
	require.Equal(t, "SmsReport", s.Credentials.MessageType)
	require.Equal(t, "cn-hangzhou", s.Credentials.Region)
	require.Equal(t, "https://dybaseapi.aliyuncs.com", s.Credentials.Endpoint.Reveal())
	require.Equal(t, 2*time.Minute, s.Credentials.RefreshBefore)
	require.Equal(t, credentials.TypeDefault, s.Credentials.Base.Type)
	require.Equal(t, 16, s.BatchSize)
	require.Equal(t, 30*time.Second, s.Wait)
	require.Equal(t, config.Pollers{Min: 1, Max: 4}, s.Pollers)
	require.Equal(t, config.InFlight{Messages: 512, Bytes: 64 * setting.MiB}, s.InFlight)
	require.Equal(t, 45*time.Second, c.DrainTimeout)

	require.Len(t, c.Routes, 1)
	require.Equal(t, "sms", c.Routes[0].Name)
	require.Equal(t, config.Names{"sms"}, c.Routes[0].From)
	require.Equal(t, config.Targets{{Sink: "events", Required: true}}, c.Routes[0].To)

	require.Len(t, c.Sinks, 1)
	events, is := c.Sinks[0].Settings.(*amqp091.Config)
	require.True(t, is)
	require.Equal(t, `p/a#s:s@w"o r'd`, events.Password.Reveal(), "one newline at the end is dropped")
	require.Equal(t, "sms.events", events.Exchange.Name)
	require.Equal(t, "topic", events.Exchange.Type, "the short form leaves the rest as it is")
	require.Len(t, c.Digest, 64)
}

func TestQueueNamesSelectPresets(t *testing.T) {
	t.Parallel()
	for queue, want := range map[string]struct{ preset, endpoint, messageType, region string }{
		"Alicom-Queue-1-SmsUp":          {"alicom-cn", "https://1943695596114318.mns.cn-hangzhou.aliyuncs.com", "SmsUp", "cn-hangzhou"},
		"Alicom-Queue-1-GlobeSmsReport": {"alicom-intl", "https://1493622401794734.mns.ap-southeast-1.aliyuncs.com", "GlobeSmsReport", "ap-southeast-1"},
	} {
		c := parse(t, with(`queue: orders
    endpoint: https://1.mns.cn-hangzhou.aliyuncs.com
    credentials: {type: static, access_key_id: id, access_key_secret: secret}`, "queue: "+queue), usual())
		s := c.Sources[0]
		require.Equal(t, want.preset, s.Preset)
		require.Equal(t, want.endpoint, s.Endpoint.Reveal())
		require.Equal(t, want.messageType, s.Credentials.MessageType)
		require.Equal(t, want.region, s.Credentials.Region)
	}
}

// What was written wins over a preset, key by key.
func TestPresetsGiveWay(t *testing.T) {
	t.Parallel()
	c := parse(t, with("queue: orders", "queue: Alicom-Queue-1-SmsUp"), usual())
	s := c.Sources[0]
	require.Equal(t, "alicom-cn", s.Preset)
	require.Equal(t, "https://1.mns.cn-hangzhou.aliyuncs.com", s.Endpoint.Reveal())
	require.Equal(t, credentials.Config{Type: credentials.TypeStatic, AccessKeyID: setting.NewSecret("id").AsWritten(), AccessKeySecret: setting.NewSecret("secret").AsWritten()}, s.Credentials)
}

func TestPresetsCanBeNamedOrRefused(t *testing.T) {
	t.Parallel()
	text := with(`queue: orders
    endpoint: https://1.mns.cn-hangzhou.aliyuncs.com
    credentials: {type: static,`, `queue: copy
    preset: alicom-intl
    credentials: {message_type: SmsReport, endpoint: "http://127.0.0.1:9",`)
	s := parse(t, text, environment(nil, nil)).Sources[0]
	require.Equal(t, "https://1493622401794734.mns.ap-southeast-1.aliyuncs.com", s.Endpoint.Reveal())
	require.Equal(t, "http://127.0.0.1:9", s.Credentials.Endpoint.Reveal())
	require.Equal(t, "ap-southeast-1", s.Credentials.Region)
	require.Nil(t, s.Credentials.Base, "the keys are written")

	s = parse(t, with("queue: orders", "queue: Alicom-Queue-1-SmsUp\n    preset: none"), usual()).Sources[0]
	require.Equal(t, "none", s.Preset)
	require.Empty(t, s.Credentials.MessageType)
}

// A region that is not the preset's has its own endpoint.
func TestAnOwnRegionHasItsOwnEndpoint(t *testing.T) {
	t.Parallel()
	s := parse(t, with(`queue: orders
    endpoint: https://1.mns.cn-hangzhou.aliyuncs.com
    credentials: {type: static,`, `queue: Alicom-Queue-1-SmsUp
    credentials: {region: ap-southeast-1,`), environment(nil, nil)).Sources[0]
	require.Equal(t, "https://dybaseapi.ap-southeast-1.aliyuncs.com", s.Credentials.Endpoint.Reveal())
}

func TestTheOrderOfTheFileIsKept(t *testing.T) {
	t.Parallel()
	source := "{queue: q, endpoint: 'https://h', credentials: {type: static, access_key_id: i, access_key_secret: s}"
	c, _, err := config.Parse("relay.yaml", []byte("sinks:\n  z: {type: file, path: a}\n  a: {type: file, path: b}\nsources:\n  y: "+source+"}\n  b: "+source+
		", to: [a, z]}\nroutes: [{name: r, from: [b, y], to: z}, {name: o, from: y, to: {sink: a}}]"), usual())
	require.NoError(t, err)
	require.Equal(t, []string{"z", "a"}, []string{c.Sinks[0].Name, c.Sinks[1].Name})
	require.Equal(t, []string{"y", "b"}, []string{c.Sources[0].Name, c.Sources[1].Name})
	require.Equal(t, []string{"r", "o", "b"}, []string{c.Routes[0].Name, c.Routes[1].Name, c.Routes[2].Name})
	require.Equal(t, config.Targets{{Sink: "a", Required: true}, {Sink: "z", Required: true}}, c.Routes[2].To)
	require.Equal(t, config.Names{"y"}, c.Routes[1].From)
	require.Equal(t, &file.Config{Path: "b"}, c.Sinks[1].Settings)
}

func TestAnchorsAndMergeKeys(t *testing.T) {
	t.Parallel()
	c := parse(t, `sources:
  a: &base
    queue: orders
    endpoint: https://h.example.com
    credentials: &keys {type: static, access_key_id: id, access_key_secret: secret}
    wait: 5s
    to: &out [out]
  b:
    <<: [*base, {wait: 6s, batch_size: 3}]
    queue: other
  c:
    queue: third
    endpoint: https://h.example.com
    credentials: {<<: *keys, access_key_id: own}
    to: *out
sinks:
  out: {type: file, path: "-"}
`, environment(nil, nil))
	require.Equal(t, "other", c.Sources[1].Queue, "what is written in the mapping wins")
	require.Equal(t, 5*time.Second, c.Sources[1].Wait, "the first of those merged wins")
	require.Equal(t, 3, c.Sources[1].BatchSize)
	require.Equal(t, "own", c.Sources[2].Credentials.AccessKeyID.Reveal())
	require.Equal(t, "secret", c.Sources[2].Credentials.AccessKeySecret.Reveal())
}

func TestExpansion(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{
		"WAIT": "7s", "SIZE": "5", "YES": "true", "EMPTY": "", "ROOM": "2MiB",
		"HARD": "a: b\n'\"#{}[] ${SIZE}", "MIN": "2",
	}, map[string]string{"/secret": "s3cr/t\n", "/two": "x\n\n", "/crlf": "y\r\n", "/none": "z"})

	s := parse(t, with("to: events", `wait: ${WAIT}
    batch_size: "${SIZE}"
    paused: ${YES}
    in_flight: {bytes: "${ROOM}", messages: "${SIZE}${EMPTY}0"}
    pollers: {min: "${MIN}", max: "${MAX:-3}"}
    redelivery: {initial: "${EMPTY:-9s}"}
    to: events`), env).Sources[0]
	require.Equal(t, 7*time.Second, s.Wait, "the type of the setting decides")
	require.Equal(t, 5, s.BatchSize)
	require.True(t, s.Paused)
	require.Equal(t, config.InFlight{Messages: 50, Bytes: 2 * setting.MiB}, s.InFlight)
	require.Equal(t, config.Pollers{Min: 2, Max: 3}, s.Pollers)
	require.Equal(t, 9*time.Second, s.Redelivery.Initial, "a variable that is empty counts as unset where there is a default")

	for written, want := range map[string]string{
		`${HARD}`:                   "a: b\n'\"#{}[] ${SIZE}", // what was put in is not read again
		`$${SIZE}`:                  "${SIZE}",
		`$$${SIZE}`:                 "$${SIZE}",
		`'a$SIZE $ $$'`:             "a$SIZE $ $$",
		`x-${file:/secret}-${SIZE}`: "x-s3cr/t-5",
		`${file:/two}`:              "x\n",
		`${file:/crlf}`:             "y",
		`${file:/none}`:             "z",
		`${NOPE:-a:-b}`:             "a:-b",
		`${NOPE:-}x`:                "x",
		`007`:                       "007", // a number where a text is meant stays as written
		`1e3`:                       "1e3",
		`yes`:                       "yes",
		`2024-01-01`:                "2024-01-01",
		`"${EMPTY}${EMPTY}literal"`: "literal",
		"|\n      two\n      lines": "two\nlines\n",
		`"tab\tquote\" ${SIZE}"`:    "tab\tquote\" 5",
		`'{{}}${NOPE:-}'`:           "{{}}",
	} {
		text := with("exchange: sms.events", "exchange: sms.events\n    username: u\n    password: "+written)
		c, _, err := config.Parse("relay.yaml", []byte(text), env)
		require.NoError(t, err, written)
		events, is := c.Sinks[0].Settings.(*amqp091.Config)
		require.True(t, is)
		require.Equal(t, want, events.Password.Reveal(), written)
	}
}

// What is put into the user info of a URL cannot end it.
func TestUserInfoIsEncoded(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{
		"USER": "re:lay", "PASSWORD": "p/a#s?s@w%o r+d", "HOST": "rabbit", "PORT": "5671", "VHOST": "a/b",
		"WHOLE": "amqps://u:p%2F@h:1/v",
	}, map[string]string{"/pw": "ü/@\n"})
	for written, want := range map[string]string{
		"amqps://${USER}:${PASSWORD}@${HOST}:${PORT}/${VHOST}": "amqps://re%3Alay:p%2Fa%23s%3Fs%40w%25o%20r%2Bd@rabbit:5671/a/b",
		"amqps://${USER}:${file:/pw}@h/":                       "amqps://re%3Alay:%C3%BC%2F%40@h/",
		"amqps://u:${X:-a@b/c}@h/":                             "amqps://u:a%40b%2Fc@h/",
		"${WHOLE}":                                             "amqps://u:p%2F@h:1/v",
		"amqps://${HOST}/v":                                    "amqps://rabbit/v",
	} {
		c := parse(t, with("amqps://rabbitmq.mq:5671/prod", `"`+written+`"`), env)
		events, is := c.Sinks[0].Settings.(*amqp091.Config)
		require.True(t, is)
		require.Equal(t, want, events.URL.Reveal(), written)
	}
}

// Where nothing is set for the default chain, it is said what remains; roles take what ACK
// sets in a pod.
func TestCredentialsFromTheEnvironment(t *testing.T) {
	t.Parallel()
	text := []byte(with(`queue: orders
    endpoint: https://1.mns.cn-hangzhou.aliyuncs.com
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
`, "queue: Alicom-Queue-1-SmsUp\n"))
	_, warnings, err := config.Parse("relay.yaml", text, environment(nil, nil))
	require.NoError(t, err)
	require.Len(t, warnings, 1)
	require.Contains(t, warnings[0].Message, "no keys are set in the environment")
	_, warnings, err = config.Parse("relay.yaml", text, environment(map[string]string{"ALIBABA_CLOUD_OIDC_TOKEN_FILE": "/token"}, nil))
	require.NoError(t, err)
	require.Empty(t, warnings)

	c, _, err := config.Parse("relay.yaml", []byte(with("{type: static, access_key_id: id, access_key_secret: secret}", "{type: oidc_role_arn}")), environment(map[string]string{
		"ALIBABA_CLOUD_OIDC_TOKEN_FILE": "/token", "ALIBABA_CLOUD_ROLE_ARN": "acs:ram::1:role/relay", "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": "acs:ram::1:oidc-provider/ack",
	}, nil))
	require.NoError(t, err)
	require.Equal(t, "/token", c.Sources[0].Credentials.OIDCTokenFile)
	require.Equal(t, "https://sts.aliyuncs.com", c.Sources[0].Credentials.Endpoint.Reveal())
	require.Regexp(t, `role_arn: "acs:ram::1:role/relay" +# environment ALIBABA_CLOUD_ROLE_ARN`, string(c.YAML()))
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	_, warnings, err := config.Parse("relay.yaml", []byte(`server: {listen: ":0"}
sources:
  a:
    queue: orders
    endpoint: http://mns.example.com
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
    to: hook
  b:
    queue: orders
    endpoint: http://mns.example.com
    credentials:
      type: mns_token
      message_type: SmsReport
      endpoint: http://dybaseapi.example.com
      access_key_id: id
      access_key_secret: secret
  local:
    queue: orders
    endpoint: http://[::1]:8081
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
    to: out
routes:
  - {name: all, from: [a, b, local], to: [hook]}
sinks:
  hook: {type: webhook, url: "http://hooks.example.com"}
  out: {type: file, path: "-"}
  unused: {type: file, path: "-"}
`), environment(nil, nil))
	require.NoError(t, err)
	lines := make([]string, len(warnings))
	for i, w := range warnings {
		lines[i] = w.String()
	}
	require.Equal(t, []string{
		`relay.yaml:1:18: server.listen: port 0 is another port with each start: probes will not find it`,
		`relay.yaml:5:15: sources.a.endpoint: is http://: messages and tokens cross the network unencrypted; write https://`,
		`relay.yaml:7:9: sources.a.to: the route all takes the source a to this sink too: each message is delivered twice`,
		`relay.yaml:9:12: sources.b.queue: the source a receives from it too: each gets a part of the messages`,
		`relay.yaml:10:15: sources.b.endpoint: is http://: messages and tokens cross the network unencrypted; write https://`,
		`relay.yaml:14:17: sources.b.credentials.endpoint: is http://: keys and tokens travel unencrypted; write https://`,
		`relay.yaml:25:30: sinks.hook.url: is http://: messages and headers travel unencrypted; write https://`,
		`relay.yaml:27:3: sinks.unused: no route leads to it, and no source has it for its dead letters`,
	}, lines)
}

// withoutComments drops what tells where a value came from.
func withoutComments(text []byte) string {
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		before, _, _ := strings.Cut(line, "  # ")
		lines[i] = strings.TrimRight(before, " ")
	}
	return strings.Join(lines, "\n")
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, got, 0o600))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestPrintingTellsWhereValuesCameFrom(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{
		"ALIBABA_CLOUD_ACCESS_KEY_ID": "LTAI-example", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "hunter2",
		"HOOK_TOKEN": "hunter2", "QUEUE": "orders",
	}, map[string]string{"/run/password": "hunter2\n"})
	text, err := os.ReadFile("testdata/print.yaml")
	require.NoError(t, err)
	c, _, err := config.Parse("print.yaml", text, env)
	require.NoError(t, err)
	require.NotContains(t, string(c.YAML()), "hunter2")
	golden(t, "print.golden", c.YAML())
}

// A text stays the same text whatever it looks like, for this parser and for others.
func TestPrintingOddTexts(t *testing.T) {
	t.Parallel()
	for _, odd := range []string{
		"yes", "No", "null", "~", "true", "1e3", "0x1", "007", ".inf", "2024-01-01", " a", "a ", "a: b", "a:", "- a", "#a", "a #b", "*a", "&a", "!a", "@a", "%a",
		"'a'", `"a"`, `a\b`, "a\nb", "\t", "\u0085\u2028\u2029\ufeff\u007f\u0080", "é漢🙂", "${A}", "$${A}", "$$", "30s", "64MiB", "https://h:1/p", "{}", "[]", "<<",
		strings.Repeat("long ", 50),
	} {
		c := parse(t, with("sms.events", "sms.events\n    routing_key: ${ODD}"), environment(map[string]string{"ODD": odd}, nil))
		again := parse(t, string(c.YAML()), environment(nil, nil))
		events, is := again.Sinks[0].Settings.(*amqp091.Config)
		require.True(t, is)
		require.Equal(t, odd, events.RoutingKey)

		var other struct {
			Sinks map[string]map[string]any `yaml:"sinks"`
		}
		require.NoError(t, yaml.Load(c.YAML(), &other))
		require.Equal(t, strings.ReplaceAll(odd, "${", "$${"), other.Sinks["events"]["routing_key"])
	}
}

func TestLoad(t *testing.T) {
	t.Setenv("RELAY_TEST_PASSWORD", "hunter2")
	dir := t.TempDir()
	path := filepath.Join(dir, "relay.yaml")
	secret := filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, []byte("from file\n"), 0o600))
	text := with("exchange: sms.events", "exchange: sms.events\n    username: ${file:"+secret+"}\n    password: ${RELAY_TEST_PASSWORD}")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))

	c, _, err := config.Load(path)
	require.NoError(t, err)
	events, is := c.Sinks[0].Settings.(*amqp091.Config)
	require.True(t, is)
	require.Equal(t, "from file", events.Username)
	require.Equal(t, "hunter2", events.Password.Reveal())

	missing := filepath.Join(dir, "nope.yaml")
	_, _, err = config.Load(missing)
	var invalid *config.Error
	require.ErrorAs(t, err, &invalid)
	require.EqualError(t, err, missing+": cannot be read: there is no such file: create or mount it, or mend the path")

	_, _, err = config.Load(dir)
	require.EqualError(t, err, dir+": cannot be read: it is a folder: write the path of a file")

	stdin, err := os.Open(path)
	require.NoError(t, err)
	defer func(old *os.File) { os.Stdin = old }(os.Stdin)
	os.Stdin = stdin
	t.Setenv("RELAY_TEST_PASSWORD", "")
	require.NoError(t, os.Unsetenv("RELAY_TEST_PASSWORD"))
	_, _, err = config.Load("-")
	require.EqualError(t, err, "stdin:13:15: sinks.events.password: the variable RELAY_TEST_PASSWORD is not set: set it in the environment, or write ${RELAY_TEST_PASSWORD:-default}")
	require.NoError(t, stdin.Close())

	require.NoError(t, os.WriteFile(path, []byte("reload: {watch: true}\n"+with("sources:", "sources:")), 0o600))
	_, _, err = config.Load(path)
	require.NoError(t, err)
	stdin, err = os.Open(path)
	require.NoError(t, err)
	os.Stdin = stdin
	_, _, err = config.Load("-")
	require.EqualError(t, err, "stdin:1:17: reload.watch: standard input is read only once: read the configuration from a file, or remove the line")
	require.NoError(t, stdin.Close())

	large := filepath.Join(dir, "large")
	require.NoError(t, os.WriteFile(large, make([]byte, 1<<20+1), 0o600))
	_, _, err = config.Load(large)
	require.EqualError(t, err, large+": cannot be read: it is larger than 1 MiB")
}

// Reload compares what was loaded: nothing in it may depend on the time or the order
// of a map.
func TestParsingTwiceGivesTheSame(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../configs/everything.yaml")
	require.NoError(t, err)
	first, second := parse(t, string(text), usual()), parse(t, string(text), usual())
	require.Equal(t, string(first.YAML()), string(second.YAML()))
	require.Equal(t, first.Digest, second.Digest)
	for _, s := range first.Sources {
		require.Equal(t, first.SourceFingerprint(s.Name), second.SourceFingerprint(s.Name))
	}
	for _, s := range first.Sinks {
		require.Equal(t, first.SinkFingerprint(s.Name), second.SinkFingerprint(s.Name))
	}
	require.Equal(t, first.ServerFingerprint(), second.ServerFingerprint())
	require.Equal(t, first.LedgerFingerprint(), second.LedgerFingerprint())
	require.Equal(t, first.TracingFingerprint(), second.TracingFingerprint())
	i := slices.IndexFunc(first.Sinks, func(s config.Sink) bool { return s.Name == "hook" })
	hook, is := first.Sinks[i].Settings.(*webhook.Config)
	require.True(t, is)
	require.Equal(t, "hook-token", hook.BearerToken.Reveal())
}
