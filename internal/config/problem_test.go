package config_test

import (
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/config"
)

// problems are the lines that text is refused with.
func problems(t *testing.T, text string, env config.Environment) []string {
	t.Helper()
	c, _, err := config.Parse("relay.yaml", []byte(text), env)
	require.Nil(t, c)
	var invalid *config.Error
	require.ErrorAs(t, err, &invalid)
	require.True(t, slices.IsSortedFunc(invalid.Problems, func(a, b config.Problem) int { return a.Line - b.Line }))
	sameInSchema(t, text, invalid.Problems)
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, len(invalid.Problems))
	for i, line := range lines {
		rest, found := strings.CutPrefix(line, "relay.yaml:")
		require.True(t, found, line)
		lines[i] = rest
	}
	return lines
}

// What a user reads who was woken at night: each line says where, what, and what to
// write instead.
func TestProblems(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{
		"SECRET_NUMBER": "4711x", "EMPTY": "", "SINK_NAME": "hunter2",
	}, map[string]string{"/run/number": "31s\n", "/run/binary": "\xff\xfe"})

	for _, test := range []struct {
		name string
		text string
		want []string
	}{
		{"unknown key", with("queue: orders", "queu: orders"), []string{
			`3:5: sources.sms.queu: unknown key: did you mean "queue"?`,
		}},
		{"unknown key at the top", "sorces: {}\n" + with("sources:", "sources:"), []string{
			`1:1: sorces: unknown key: did you mean "sources"?`,
		}},
		{"unknown key like none", with("exchange: sms.events", "exchange: {name: e, colour: red}"), []string{
			`11:25: sinks.events.exchange.colour: unknown key: the keys here are name, type, durable, auto_delete, arguments and declare`,
		}},
		{"unknown key of a sink", with("exchange: sms.events", "exchange: sms.events\n    routing-key: a"), []string{
			`12:5: sinks.events.routing-key: unknown key: did you mean "routing_key"?`,
		}},
		{"unknown key of credentials", with("access_key_id: id", "acess_key_id: id"), []string{
			`5:33: sources.sms.credentials.acess_key_id: unknown key: did you mean "access_key_id"?`,
		}},
		{"wrong types", with("to: events", `batch_size: many
    wait: 30
    pollers: 4
    in_flight: {messages: 1.5, bytes: 64MB}
    paused: yes
    queue: [a]
    body: {a: b}
    redelivery: [5s]
    to: {events: true}`), []string{
			`6:17: sources.sms.batch_size: must be a whole number, as in 16, not "many"`,
			`7:11: sources.sms.wait: must be a duration with its unit, as in 30s, not "30"`,
			`8:14: sources.sms.pollers: must be a mapping, as in {min: 1, max: 4}, not a single value`,
			`9:27: sources.sms.in_flight.messages: must be a whole number, as in 512, not "1.5"`,
			`9:39: sources.sms.in_flight.bytes: not a size: write a whole number with KiB, MiB or GiB, as in 64MiB`,
			`10:13: sources.sms.paused: must be true or false, not "yes"`,
			`11:5: sources.sms.queue: is written twice, first in line 3: keep one`,
			`12:5: sources.sms.body: must be text, not a mapping`,
			`13:5: sources.sms.redelivery: must be a mapping, as in {initial: 5s, max: 1h}, not a list`,
			`14:9: sources.sms.to[0].sink: required: write the name of a sink`,
			`14:10: sources.sms.to[0].events: unknown key: the keys here are sink, required and with`,
		}},
		{"wrong types of a sink", with("exchange: sms.events", `exchange: [a]
    urls: amqps://b
    headers: x
    timeout: 5
    tls: ca.pem
    mandatory:`), []string{
			`11:5: sinks.events.exchange: must be a mapping, as in {type: topic, durable: true, declare: passive}, not a list`,
			`12:11: sinks.events.urls: must be a list, as in [https://host], not a single value`,
			`13:14: sinks.events.headers: must be a mapping, as in {name: name}, not a single value`,
			`14:14: sinks.events.timeout: must be a duration with its unit, as in 5s, not "5"`,
			`15:10: sinks.events.tls: must be a mapping with the keys ca_file, cert_file, key_file, key_password and server_name, not a single value`,
			`16:5: sinks.events.mandatory: has no value: write true or false, or remove the line`,
		}},
		{"wait of 31s", with("to: events", "wait: 31s\n    to: events"), []string{
			`6:11: sources.sms.wait: must be whole seconds from 0s to 30s, not 31s`,
		}},
		{"wait of half a second", with("to: events", "wait: 500ms\n    to: events"), []string{
			`6:11: sources.sms.wait: must be whole seconds from 0s to 30s, not 500ms`,
		}},
		{"batch_size of 17", with("to: events", "batch_size: 17\n    to: events"), []string{
			`6:17: sources.sms.batch_size: must be from 1 to 16, not 17`,
		}},
		{"out of range", "drain_timeout: 0s\nin_flight: {messages: 15, bytes: 1MiB}\nserver: {listen: 8080}\n" + with("to: events", `pollers: {min: 0, max: 0}
    in_flight: {messages: 7, bytes: 511KiB}
    redelivery: {initial: 1ms, max: 13h}
    batch_size: 8
    max_receives: -1
    body: base46
    unwrap: sometimes
    preset: alicom
    to: events`), []string{
			`1:16: drain_timeout: must be longer than 0s, as in 45s`,
			`3:18: server.listen: must be an address with a port, as in ":8080" or "127.0.0.1:8080", not "8080"`,
			`9:20: sources.sms.pollers.min: must be at least 1, not 0`,
			`9:28: sources.sms.pollers.max: must be at least min, which is at least 1, not 0`,
			`10:27: sources.sms.in_flight.messages: must be at least 8, the batch_size, not 7`,
			`10:37: sources.sms.in_flight.bytes: must be at least 512KiB, what 8 messages of 64KiB need, not 511KiB`,
			`11:27: sources.sms.redelivery.initial: must be from 1s to 12h, not 1ms`,
			`11:37: sources.sms.redelivery.max: must be at least initial and at most 12h, not 13h`,
			`13:19: sources.sms.max_receives: must be 0, for never, or more, not -1`,
			`14:11: sources.sms.body: must be auto, base64 or raw, not "base46"; did you mean "base64"?`,
			`15:13: sources.sms.unwrap: must be auto or none, not "sometimes"`,
			`16:13: sources.sms.preset: must be alicom-cn, alicom-intl or none, not "alicom"; did you mean "alicom-cn"?`,
		}},
		{"room of the process", "in_flight: {messages: 15, bytes: 1023KiB}\n" + with("sources:", "sources:"), []string{
			`1:23: in_flight.messages: must be at least 16, the largest batch_size, not 15`,
			`1:34: in_flight.bytes: must be at least 1MiB, what 16 messages of 64KiB need, not 1023KiB`,
		}},
		{"wrong types of a webhook", `sources: {s: {queue: Alicom-Queue-1-SmsUp, credentials: {access_key_id: a, access_key_secret: b, owner_id: me}, to: hook}}
sinks:
  hook:
    type: webhook
    url: [https://h]
    rate_limit: {per_second: fast, burst: .inf}
    signing: {secrets: one}
    concurrency: 99999999999999999999
    network: {allow: 10.0.0.0/8}
    headers: {authorization: {a: b}}
    timeout: ` + strings.Repeat("x", 80) + "\n", []string{
			`1:108: sources.s.credentials.owner_id: must be a whole number, as in 1, not "me"`,
			`5:5: sinks.hook.url: must be a URL, not a list`,
			`6:30: sinks.hook.rate_limit.per_second: must be a number, as in 0.5, not "fast"`,
			`6:43: sinks.hook.rate_limit.burst: must be a whole number, as in 1, not ".inf"`,
			`7:24: sinks.hook.signing.secrets: must be a list, as in [name], not a single value`,
			`8:18: sinks.hook.concurrency: must be a whole number, as in 16, not "99999999999999999999"`,
			`9:22: sinks.hook.network.allow: must be a list, as in [name], not a single value`,
			`10:15: sinks.hook.headers.authorization: must be text, not a mapping`,
			`11:14: sinks.hook.timeout: must be a duration with its unit, as in 10s, not "` + strings.Repeat("x", 60) + `"...`,
		}},
		{"unset variables", with("amqps://rabbitmq.mq:5671/prod", "amqps://${MQ_HOST}/${VHOST}"), []string{
			`10:10: sinks.events.url: the variable MQ_HOST is not set: set it in the environment, or write ${MQ_HOST:-default}`,
			`10:10: sinks.events.url: the variable VHOST is not set: set it in the environment, or write ${VHOST:-default}`,
		}},
		{"missing secret file", with("exchange: sms.events", "exchange: e\n    username: relay\n    password: ${file:/run/secrets/mq}"), []string{
			`13:15: sinks.events.password: ${file:/run/secrets/mq}: there is no such file: create or mount it, or mend the path`,
		}},
		{"bad references", with("exchange: sms.events", "exchange: ${}\n    username: ${a-b}\n    password: ${file:}${file:/run/binary}${X:-${Y}}\n    routing_key: ${X"), []string{
			`11:15: sinks.events.exchange: ${} is not understood: write ${NAME}, ${NAME:-default} or ${file:PATH}, one not inside another, or $${ for a literal ${`,
			`12:15: sinks.events.username: ${a-b} is not understood: write ${NAME}, ${NAME:-default} or ${file:PATH}, one not inside another, or $${ for a literal ${`,
			`13:15: sinks.events.password: ${file:} names no file: write ${file:/run/secrets/NAME}`,
			`13:15: sinks.events.password: ${file:/run/binary}: it is not UTF-8 text`,
			`13:15: sinks.events.password: ${X:-${Y} is not understood: write ${NAME}, ${NAME:-default} or ${file:PATH}, one not inside another, or $${ for a literal ${`,
			`14:18: sinks.events.routing_key: ${ is never closed: write ${NAME}, or $${ for a literal ${`,
		}},
		{"values from outside are not shown", with("to: events", "wait: ${file:/run/number}\n    batch_size: ${SECRET_NUMBER}\n    body: ${SINK_NAME}\n    to: ${SINK_NAME}"), []string{
			`6:11: sources.sms.wait: must be whole seconds from 0s to 30s, not what came from file /run/number`,
			`7:17: sources.sms.batch_size: must be a whole number, as in 16, not what came from environment SECRET_NUMBER`,
			`8:11: sources.sms.body: must be auto, base64 or raw, not what came from environment SINK_NAME`,
			`9:9: sources.sms.to: what came from environment SINK_NAME is the name of no sink: there is events`,
		}},
		{"a route to a sink that is not there", with("to: events", "to: [evnts, elsewhere]"), []string{
			`6:10: sources.sms.to[0]: there is no sink "evnts": did you mean "events"?`,
			`6:17: sources.sms.to[1]: there is no sink "elsewhere": there is events`,
		}},
		{"two routes of one name", with("    to: events\n", "") + `routes:
  - {name: all, from: sms, to: events}
  - {name: all, from: sms, to: events}
`, []string{
			`13:12: routes[1].name: the route in line 12 has this name: choose another`,
		}},
		{"a route of the name that a source's to makes", with("sources:", "sources:") + "routes: [{name: sms, from: sms, to: events}]\n", []string{
			`12:17: routes[0].name: the route that "to" of the source sms makes has this name: choose another`,
		}},
		{"routes", with("    to: events\n", "") + `routes:
  - {name: a, from: [smss, sms, sms], to: [events, {sink: events}, {sink: x, to: y}]}
  - {from: sms, to: []}
  - {name: a b, to: events}
  - to
  - {name: ok, from: sms, too: events}
  - {name: fine, from: sms, to: {required: true}}
`, []string{
			`12:22: routes[0].from[0]: there is no source "smss": did you mean "sms"?`,
			`12:33: routes[0].from[2]: names a source twice: keep one of "sms"`,
			`12:59: routes[0].to[1].sink: names a sink twice: keep one of "events"`,
			`12:75: routes[0].to[2].sink: there is no sink "x": there is events`,
			`12:78: routes[0].to[2].to: unknown key: the keys here are sink, required and with`,
			`13:5: routes[1].name: required: write a name for metrics and logs, as in name: all`,
			`13:17: routes[1].to: required: write the sinks, as in to: [events]`,
			`14:5: routes[2].from: required: write the sources, as in from: [sms]`,
			`14:12: routes[2].name: a name is up to 63 letters, digits, - and _, a letter or digit first, not "a b"`,
			`15:5: routes[3]: must be a mapping with the keys name, from, when and to, not a single value`,
			`16:27: routes[4].too: unknown key: did you mean "to"?`,
			`17:33: routes[5].to[0].sink: required: write the name of a sink`,
		}},
		{"a source without a route", with("    to: events\n", ""), []string{
			`2:3: sources.sms: no route takes its messages: write to: events here, or a route with from: [sms]`,
		}},
		{"nothing but sources and sinks", "sources: {a: }\nsinks: {b: , c: x, d: {}, e: {type: }, f: {type: [a]}}\n", []string{
			`1:11: sources.a.queue: required: write the queue's name`,
			`1:11: sources.a: no route takes its messages: write to: b here, or a route with from: [a]`,
			`2:9: sinks.b: required: its type, amqp091, amqp10, file, mns or webhook, and settings`,
			`2:17: sinks.c: must be a mapping, as in {type: amqp091, ...}, not a single value`,
			`2:20: sinks.d.type: required: write amqp091, amqp10, file, mns or webhook`,
			`2:31: sinks.e.type: has no value: write text, or remove the line`,
			`2:44: sinks.f.type: must be text, not a list`,
		}},
		{"names", "sources: [a]\nsinks:\n  -bad: {type: file, path: a}\n", []string{
			`1:1: sources: must be a mapping of names, as in sources: {events: ...}, not a list`,
			`3:3: sinks.-bad: a name is up to 63 letters, digits, - and _, a letter or digit first, not "-bad"`,
		}},
		{"types of sinks", "sinks: {a: {type: webhok}, b: {type: rabbitmq}, c: {type: amqp1}}\nsources: {}", []string{
			`1:19: sinks.a.type: must be amqp091, amqp10, file, mns or webhook, not "webhok"; did you mean "webhook"?`,
			`1:38: sinks.b.type: must be amqp091, amqp10, file, mns or webhook, not "rabbitmq"`,
			`1:59: sinks.c.type: must be amqp091, amqp10, file, mns or webhook, not "amqp1"; did you mean "amqp10"?`,
			`2:1: sources: required: write at least one source, as in sources: {sms: {queue: ..., to: events}}`,
		}},
		{"without a preset", with(`    endpoint: https://1.mns.cn-hangzhou.aliyuncs.com
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
`, ""), []string{
			`2:3: sources.sms.endpoint: required: write the queue's endpoint, as in https://ACCOUNT.mns.REGION.aliyuncs.com`,
			`2:3: sources.sms.credentials: required: write {type: static, access_key_id: ..., access_key_secret: ...}; only the queues named Alicom-Queue-... have keys by default`,
		}},
		{"an Alicom queue without a type", with(`queue: orders
    endpoint: https://1.mns.cn-hangzhou.aliyuncs.com
    credentials: {type: static,`, "queue: Alicom-Queue-1\n    credentials: {"), []string{
			`4:5: sources.sms.credentials.message_type: required: write what the queue holds, the last part of its name, as in SmsReport`,
		}},
		{"written twice", with("to: events", "to: events\n    to: events"), []string{
			`7:5: sources.sms.to: is written twice, first in line 6: keep one`,
		}},
		{"an unquoted template", with("exchange: sms.events", "exchange: e\n    routing_key: {{ body.biz_id }}"), []string{
			`12:5: sinks.events.routing_key: YAML takes an unquoted {{ for a mapping: put the whole value in single quotes, as in '{{ ... }}'`,
		}},
		{"an unquoted template in a mapping", with("exchange: sms.events", "exchange: e\n    headers: {{ x }}"), []string{
			`12:5: sinks.events.headers: YAML takes an unquoted {{ for a mapping: put the whole value in single quotes, as in '{{ ... }}'`,
		}},
		{"an unquoted template with a colon", with("exchange: sms.events", `exchange: e
    routing_key: sms.{{ body.success ? "ok" : "failed" }}`), []string{
			`12:45: is not YAML: mapping values are not allowed in this context; YAML takes an unquoted {{ for a mapping: put the whole value in single quotes, as in '{{ ... }}'`,
		}},
		{"a password that is YAML", with("exchange: sms.events", "exchange: e\n    username: u\n    password: !hunter2 x"), []string{
			`13:15: sinks.events.password: begins with !, which makes a YAML tag of it: put the value in quotes`,
		}},
		{"a password that is an alias", with("exchange: sms.events", "exchange: e\n    password: *hunter2"), []string{
			`12:15: is not YAML: a value that begins with * stands for an anchor, and there is no such one: put a text in quotes`,
		}},
		{"a password without a space before it", with("exchange: sms.events", "exchange: {name: e, declare:hunter2}"), []string{
			`11:25: sinks.events.exchange.declare: YAML needs a space after the colon`,
		}},
		{"a reference in a flow", with("{type: static, access_key_id: id,", "{type: static, access_key_id: ${ID},"), []string{
			`5:49: is not YAML: did not find expected ',' or '}'; inside { } and [ ] a ${...} must be in double quotes`,
		}},
		{"tabs", "sources:\n\tsms: {}\n", []string{
			`2:1: is not YAML: found character that cannot start any token; YAML is indented with spaces, not with tabs`,
		}},
		{"two documents", with("sources:", "sources:") + "---\nsources: {}\n", []string{
			`12:1: a second document begins here: keep one, and remove the line ---`,
		}},
		{"empty", "# nothing\n", []string{`1:1: is empty: write sources and sinks`}},
		{"null", "~\n", []string{`1:1: is empty: write sources and sinks`}},
		{"a word", "hello\n", []string{`1:1: must be a mapping that holds sources: and sinks:, not a single value`}},
		{"not text", "a: \"\xff\"\n", []string{`1:5: is not YAML: invalid leading UTF-8 octet (value: 255)`}},
		{"an anchor inside itself", "a: &a [*a]\nsources: &s {x: {credentials: &c {base: *c}, to: &t [*t]}}\nsinks: {e: &e {<<: *e, type: file, path: a}}\nlog: &l {<<: [*l, 1]}\ntracing: {<<: 5}\n", []string{
			`1:1: a: unknown key: the keys here are server, log, drain_timeout, reload, ledger, tracing, audit, in_flight, sources, sinks and routes`,
			`2:14: sources.x.queue: required: write the queue's name`,
			`2:18: sources.x.credentials.type: required: write static, mns_token, ram_role_arn, oidc_role_arn, ecs_ram_role, credentials_uri or default`,
			`2:35: sources.x.credentials.base: is inside the anchor that it refers to: write the value out`,
			`2:54: sources.x.to[0]: is inside the anchor that it refers to: write the value out`,
			`4:10: log: << takes mappings only, as in <<: [*a, *b]`,
			`5:11: tracing: << takes a mapping, as in <<: *anchor`,
		}},
		{"control characters", "\"a\\e[2J\\nb\": 1\n" + with("to: events", `to: "\e[2J"`), []string{
			`1:1: a\x1b[2J\nb: unknown key: the keys here are server, log, drain_timeout, reload, ledger, tracing, audit, in_flight, sources, sinks and routes`,
			`7:9: sources.sms.to: there is no sink "\x1b[2J": there is events`,
		}},
		{"everything at once", "log: {level: loud}\n" + with("queue: orders", "queue: orders\n    wait: 31s\n    batch_size: 17\n    sink: events"), []string{
			`1:14: log.level: must be debug, info, warn or error, not "loud"`,
			`5:11: sources.sms.wait: must be whole seconds from 0s to 30s, not 31s`,
			`6:17: sources.sms.batch_size: must be from 1 to 16, not 17`,
			`7:5: sources.sms.sink: unknown key: the keys here are type, preset, endpoint, mode, queue, credentials, batch_size, wait, pollers, in_flight, body, unwrap, guarantee, redelivery, max_receives, dead_letter, dead_letter_limit, unmatched, paused and to`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, problems(t, test.text, env))
		})
	}
}

func TestARoleIsRequired(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{
		`5:5: sources.sms.credentials.role_arn: required: write the role to take on, as in acs:ram::1234567890123456:role/mnsrelay`,
	}, problems(t, with("type: static, ", "type: ram_role_arn, "), environment(nil, nil)))
}

func TestDefaultsMayBeWritten(t *testing.T) {
	t.Parallel()
	parse(t, `server: {admin_token: ""}
reload: {watch: false}
ledger: {type: memory, ttl: 1440m, url: ""}
tracing: {otlp_endpoint: ""}
log:
`+with("    to: events\n", `    guarantee: at_least_once
    max_receives: 0
    dead_letter: ""
    dead_letter_limit: {count: 100, per: 300s}
    unmatched: ""
`)+"routes: [{name: r, from: sms, when: '', to: {sink: events, required: true, with: {}}}]", environment(nil, nil))
}

// A secret shows in no problem, wherever it stands and whatever is wrong with it.
func TestNoProblemShowsASecret(t *testing.T) {
	t.Parallel()
	const secret = "hunter2/#:@\n'\"{{hunter2}}%zz"
	env := environment(map[string]string{"S": secret}, map[string]string{"/s": secret + "\n"})
	for _, reference := range []string{"${S}", "${file:/s}"} {
		paths := []string{
			"server.listen", "server.admin_token", "log.level", "drain_timeout", "in_flight.bytes", "reload.watch", "ledger.ttl", "ledger.url",
			"tracing.otlp_endpoint", "tracing.headers.x", "tracing.sample_ratio", "tracing.tls.key_password",
			"sources.sms.type", "sources.sms.preset", "sources.sms.endpoint", "sources.sms.queue", "sources.sms.batch_size",
			"sources.sms.body", "sources.sms.to", "sources.sms.credentials.type", "sources.sms.credentials.access_key_id",
			"sources.sms.credentials.access_key_secret", "sources.sms.credentials.endpoint", "sources.sms.credentials.region",
			"sources.sms.credentials.message_type",
			"sinks.events.type", "sinks.events.url", "sinks.events.exchange", "sinks.events.exchange.type", "sinks.events.exchange.declare",
			"sinks.events.acknowledge", "sinks.events.timeout", "sinks.events.mandatory", "sinks.events.headers.x", "sinks.events.routing_key",
			"sources.sms.dead_letter", "sources.sms.unmatched", "sources.sms.max_receives", "sources.sms.guarantee",
			"sinks.hook.url", "sinks.hook.headers.x", "sinks.hook.network.allow", "sinks.hook.concurrency", "sinks.log.path",
		}
		for _, path := range paths {
			text := nested(strings.Split(path, "."), reference)
			_, warnings, err := config.Parse("relay.yaml", []byte(text), env)
			require.Error(t, err, path)
			require.NotContains(t, err.Error(), "hunter2", path)
			for _, w := range warnings {
				require.NotContains(t, w.String(), "hunter2", path)
			}
		}
	}
}

// nested is a document with one value, below what a sink's type needs.
func nested(keys []string, value string) string {
	var b strings.Builder
	for i, key := range keys {
		b.WriteString(strings.Repeat("  ", i) + key + ":")
		if i == len(keys)-1 {
			b.WriteString(" \"" + value + "\"")
		}
		b.WriteString("\n")
		if i == 1 && keys[0] == "sinks" && keys[2] != "type" {
			b.WriteString("    type: " + map[string]string{"events": "amqp091", "hook": "webhook", "log": "file"}[key] + "\n")
		}
	}
	return b.String()
}

func TestFilesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	env := config.Environment{
		Lookup: func(string) (string, bool) { return "", false },
		ReadFile: func(path string) ([]byte, error) {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrPermission}
		},
	}
	require.Equal(t, []string{
		`12:18: sinks.events.routing_key: ${file:/s}: this process may not read it: give its user the permission`,
	}, problems(t, with("exchange: sms.events", "exchange: e\n    routing_key: ${file:/s}"), env))
}
