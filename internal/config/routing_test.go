package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/config"
	"mnsrelay/internal/ledger"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/internal/sink/webhook"
)

// routed is a configuration that works, with lines of the source and routes of one's own.
func routed(source, routes string) string {
	const working = `sources:
  sms:
    queue: orders
    endpoint: https://1.mns.cn-hangzhou.aliyuncs.com
    credentials: {type: static, access_key_id: id, access_key_secret: secret}
    SOURCE
sinks:
  events: {type: amqp091, url: "amqps://rabbitmq.mq:5671/prod", exchange: sms.events, headers: {by: relay}}
  hook: {type: webhook, url: "https://hooks.example.com/sms"}
  dead: {type: file, path: dead.jsonl}
routes:
  ROUTES
`
	return strings.NewReplacer("SOURCE", source, "ROUTES", routes).Replace(working)
}

const all = "- {name: all, from: sms, to: events}"

func TestProblemsOfRoutes(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{"WORD": "hunter2", "SINK": "elsewhere"}, map[string]string{"/s": "hunter2 +"})
	for _, test := range []struct {
		name string
		text string
		want []string
	}{
		{"a condition that is no CEL", routed("unmatched: delete", "- {name: a, from: sms, to: events, when: 'body.success = false'}"), []string{
			`12:58: routes[0].when: "=" is no operator: write "=="`,
		}},
		{"several things wrong with a condition", routed("unmatched: delete", "- {name: a, from: sms, to: events, when: 'bdy.x == 1 && txt.contains(\"y\")'}"), []string{
			`12:45: routes[0].when: there is no variable "bdy": did you mean "body"?`,
			`12:59: routes[0].when: there is no variable "txt": did you mean "text"?`,
		}},
		{"a condition that is a number", routed("unmatched: delete", "- {name: a, from: sms, to: events, when: attempt}"), []string{
			`12:44: routes[0].when: a condition must be true or false, and this is of type int: compare it with something`,
		}},
		{"a condition that is a mapping", routed("unmatched: delete", "- {name: a, from: sms, to: events, when: {{ body.success }}}"), []string{
			`12:38: routes[0].when: YAML takes an unquoted {{ for a mapping: put the whole value in single quotes, as in '{{ ... }}'`,
		}},
		{"a condition in braces", routed("unmatched: delete", "- {name: a, from: sms, to: events, when: '{{ body.success }}'}"), []string{
			`12:44: routes[0].when: is an expression as a whole, without {{ and }}: write body.success`,
		}},
		{"a condition from outside is not shown", routed("unmatched: delete", "- {name: a, from: sms, to: events, when: '${WORD}.x == 1 && ${file:/s}'}"), []string{
			`12:44: routes[0].when: is no valid expression with what came from environment WORD and file /s in it: write all of it here to be told why`,
		}},
		{"only conditions and no unmatched", routed("paused: true", "- {name: a, from: sms, to: events, when: body.a}\n  - {name: b, from: sms, to: hook, when: body.b}"), []string{
			`2:3: sources.sms.unmatched: required, as every route of the source has a condition: write delete, dead_letter or retain, for what none of them takes`,
		}},
		{"an unmatched that is not there", routed("unmatched: deadletter", "- {name: a, from: sms, to: events, when: body.a}"), []string{
			`6:16: sources.sms.unmatched: must be delete, dead_letter or retain, not "deadletter"; did you mean "dead_letter"?`,
		}},
		{"unmatched into a dead letter that is not there", routed("unmatched: dead_letter", "- {name: a, from: sms, to: events, when: body.a}"), []string{
			`6:16: sources.sms.unmatched: needs a sink for dead letters: write dead_letter too, or retain`,
		}},
		{"a dead letter that is not there", routed("dead_letter: dea", all), []string{
			`6:18: sources.sms.dead_letter: there is no sink "dea": did you mean "dead"?`,
		}},
		{"a dead letter from outside that is not there", routed("dead_letter: ${SINK}", all), []string{
			`6:18: sources.sms.dead_letter: what came from environment SINK is the name of no sink: there are events, hook and dead`,
		}},
		{"a dead letter that a route leads to", routed("dead_letter: hook", "- {name: all, from: sms, to: [events, {sink: hook, required: false}]}"), []string{
			`6:18: sources.sms.dead_letter: the route all takes the source to this sink too, which would be asked again for what it has refused: write a sink of its own`,
		}},
		{"a dead letter that to leads to", routed("to: events\n    dead_letter: events", "- {name: all, from: sms, to: hook}"), []string{
			`7:18: sources.sms.dead_letter: "to" takes the source to this sink too, which would be asked again for what it has refused: write a sink of its own`,
		}},
		{"unroutable into a dead letter that is not there", strings.Replace(routed("paused: true", all), "headers:", "unroutable: dead_letter, headers:", 1), []string{
			`8:99: sinks.events.unroutable: dead_letter needs a sink for dead letters, and the source sms has none: write dead_letter there, or retry here`,
		}},
		{"unroutable of a route into a dead letter that is not there", routed("paused: true", "- {name: all, from: sms, to: {sink: events, with: {unroutable: dead_letter}}}"), []string{
			`12:66: routes[0].to[0].with.unroutable: dead_letter needs a sink for dead letters, and the source sms has none: write dead_letter there, or retry here`,
		}},
		{"templates", strings.Replace(routed("paused: true", all), "headers: {", "routing_key: 'a.{{ txt }}.{{ id + 1 }}', headers: {b: '${WORD} {{ x }}', ", 1), []string{
			`8:106: sinks.events.routing_key: there is no variable "txt": did you mean "text"?`,
			`8:119: sinks.events.routing_key: found no matching overload for + applied to '(string, int)'`,
			`8:141: sinks.events.headers.b: is no valid expression with what came from environment WORD in it: write all of it here to be told why`,
		}},
		{"a template of a route", routed("to: {sink: events, with: {headers: {a: \"é {{ bdy.x }}\"}}}", "[]"), []string{
			`6:50: sources.sms.to[0].with.headers.a: there is no variable "bdy": did you mean "body"?`,
		}},
		{"a sink that is the source's own queue", strings.Replace(routed("to: [back, other]\n    dead_letter: round", "[]"), "sinks:\n", `sinks:
  back: &back {type: mns, endpoint: "https://1.mns.cn-hangzhou.aliyuncs.com/", queue: orders, credentials: {type: static, access_key_id: id, access_key_secret: secret}}
  round: {<<: *back, format: envelope}
  other: {<<: *back, queue: other}
`, 1), []string{
			`6:10: sources.sms.to[0]: sends into the queue that the source sms receives from, where messages would go round for ever: write another sink`,
			`7:18: sources.sms.dead_letter: sends into the queue that the source sms receives from, where messages would go round for ever: write another sink`,
		}},
		{"max_receives without a dead letter", routed("max_receives: 5", all), []string{
			`6:19: sources.sms.max_receives: has a meaning with a dead_letter only, for without one the queue keeps what fails: write dead_letter too, or remove it`,
		}},
		{"max_receives of what is received once", routed("max_receives: 5\n    dead_letter: dead\n    guarantee: at_most_once", all), []string{
			`6:19: sources.sms.max_receives: has no meaning with guarantee: at_most_once, where a message is received once: remove it`,
		}},
		{"limits of dead letters", routed("dead_letter: dead\n    dead_letter_limit: {count: 0, per: 0s}\n    max_receives: -1", all), []string{
			`7:32: sources.sms.dead_letter_limit.count: must be at least 1, not 0`,
			`7:40: sources.sms.dead_letter_limit.per: must be longer than 0s, as in 5m`,
			`8:19: sources.sms.max_receives: must be 0, for never, or more, not -1`,
		}},
		{"a guarantee that is not there", routed("guarantee: exactly_once", all), []string{
			`6:16: sources.sms.guarantee: must be at_least_once or at_most_once, not "exactly_once"`,
		}},
		{"with that is no mapping", routed("paused: true", "- {name: all, from: sms, to: {sink: hook, with: 3s}}"), []string{
			`12:51: routes[0].to[0].with: must be a mapping, as in {timeout: 3s}, not a single value`,
		}},
		{"with of a list", routed("paused: true", "- {name: all, from: sms, to: {sink: hook, with: [timeout]}}"), []string{
			`12:45: routes[0].to[0].with: must be a mapping, as in {timeout: 3s}, not a list`,
		}},
		{"with a key that is not there", routed("paused: true", "- {name: all, from: sms, to: [{sink: hook, with: {timout: 3s, colour: red}}]}"), []string{
			`12:53: routes[0].to[0].with.timout: unknown key: did you mean "timeout"?`,
			`12:65: routes[0].to[0].with.colour: unknown key: the keys here are method, format, body, cloudevents, batch, compression, headers, timeout and retry`,
		}},
		{"with values that do not fit", routed("paused: true", "- {name: all, from: sms, to: [{sink: events, with: {timeout: 3, mandatory: maybe, exchange: [a], declare: none, headers: {CC: x}}}]}"), []string{
			`12:64: routes[0].to[0].with.timeout: must be a duration with its unit, as in 3s, not "3"`,
			`12:78: routes[0].to[0].with.mandatory: must be true or false, not "maybe"`,
			`12:85: routes[0].to[0].with.exchange: must be a mapping, as in {name: sms.events, type: topic, durable: true, declare: passive}, not a list`,
			`12:100: routes[0].to[0].with.declare: unknown key: the keys here are exchange, routing_key, format, body, cloudevents, headers, properties, persistent, mandatory, unroutable, acknowledge, reply and timeout`,
			`12:129: routes[0].to[0].with.headers.CC: the broker takes it for more routing keys: write a list of texts of at most 255 bytes`,
		}},
		{"with values that the sink refuses", routed("to: [{sink: hook, with: {timeout: 11m}}, {sink: events, with: {exchange: {declare: maybe}, routing_key: "+strings.Repeat("k", 256)+"}}]", "[]"), []string{
			`6:39: sources.sms.to[0].with.timeout: is 11m0s; write a duration above 0s, at most 10m0s`,
			`6:88: sources.sms.to[1].with.exchange.declare: "maybe" is unknown: write none, passive or active`,
			`6:109: sources.sms.to[1].with.routing_key: 256 bytes long: AMQP allows at most 255`,
		}},
		{"with what belongs to the connection", routed("paused: true", `- name: all
    from: sms
    to:
      - sink: events
        with: {url: "amqp://x", urls: [], username: u, password: p, tls: {}, type: amqp091}
      - sink: hook
        with: {url: "https://${WORD}", concurrency: 1, network: {}}
      - sink: dead
        with: {path: other, timeout: 3s}`), []string{
			`16:16: routes[0].to[0].with.url: belongs to the sink events as a whole, whose connections all routes share: remove it, or write another sink`,
			`16:33: routes[0].to[0].with.urls: belongs to the sink events as a whole, whose connections all routes share: remove it, or write another sink`,
			`16:43: routes[0].to[0].with.username: belongs to the sink events as a whole, whose connections all routes share: remove it, or write another sink`,
			`16:56: routes[0].to[0].with.password: belongs to the sink events as a whole, whose connections all routes share: remove it, or write another sink`,
			`16:69: routes[0].to[0].with.tls: belongs to the sink events as a whole, whose connections all routes share: remove it, or write another sink`,
			`16:78: routes[0].to[0].with.type: belongs to the sink events as a whole, whose connections all routes share: remove it, or write another sink`,
			`18:16: routes[0].to[1].with.url: belongs to the sink hook as a whole, whose connections all routes share: remove it, or write another sink`,
			`18:40: routes[0].to[1].with.concurrency: belongs to the sink hook as a whole, whose connections all routes share: remove it, or write another sink`,
			`18:56: routes[0].to[1].with.network: belongs to the sink hook as a whole, whose connections all routes share: remove it, or write another sink`,
			`20:16: routes[0].to[2].with.path: belongs to the sink dead as a whole, whose connections all routes share: remove it, or write another sink`,
			`20:29: routes[0].to[2].with.timeout: unknown key: a sink of type file has nothing that a route may set otherwise`,
		}},
		{"with an unquoted template", routed("paused: true", "- {name: all, from: sms, to: [{sink: events, with: {routing_key: {{ body.x }}, headers: {{ y }}}}, {sink: hook, with: {{ z }}}]}"), []string{
			`12:55: routes[0].to[0].with.routing_key: YAML takes an unquoted {{ for a mapping: put the whole value in single quotes, as in '{{ ... }}'`,
			`12:82: routes[0].to[0].with.headers: YAML takes an unquoted {{ for a mapping: put the whole value in single quotes, as in '{{ ... }}'`,
			`12:115: routes[0].to[1].with: YAML takes an unquoted {{ for a mapping: put the whole value in single quotes, as in '{{ ... }}'`,
		}},
		{"with itself", routed("paused: true", "- {name: all, from: sms, to: [&t {sink: events, with: &w {headers: {a: *w, b: *t}, timeout: \"${NONE}\"}}]}"), []string{
			`12:51: routes[0].to[0].with.headers.b.with: is inside the anchor that it refers to: write the value out`,
			`12:71: routes[0].to[0].with.headers.a: is inside the anchor that it refers to: write the value out`,
			`12:95: routes[0].to[0].with.timeout: the variable NONE is not set: set it in the environment, or write ${NONE:-default}`,
		}},
		{"what is wrong with a sink comes before what a route makes of it", strings.Replace(
			routed("paused: true", "- {name: all, from: sms, to: {sink: hook, with: {timeout: 11m}}}"), "https://hooks", "ftp://hooks", 1), []string{
			`9:30: sinks.hook.url: has the scheme "ftp"; write https:// or http://`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, test.want, problems(t, test.text, env))
		})
	}
}

func TestProblemsOfTheProcess(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{"TYPE": "hunter2"}, map[string]string{"/pw": "hunter2\n\n", "/url": "redis://u:hunter2@h/x"})
	for text, want := range map[string]string{
		`server: {admin_token: "a b"}`:                                  `1:23: server.admin_token: must be visible ASCII characters without spaces, since it is sent in a header, as openssl rand -hex 32 makes it`,
		`server: {admin_token: "${file:/pw}"}`:                          `1:23: server.admin_token: must be visible ASCII characters without spaces, since it is sent in a header, as openssl rand -hex 32 makes it`,
		`ledger: {type: file}`:                                          `1:16: ledger.type: must be memory or redis, not "file"`,
		`ledger: {type: "${TYPE}"}`:                                     `1:16: ledger.type: must be memory or redis, not what came from environment TYPE`,
		`ledger: {type: redis}`:                                         `1:1: ledger.url: is missing; write where Redis is, as in rediss://user:password@redis:6379/0`,
		`ledger: {url: "redis://h"}`:                                    `1:15: ledger.url: has a meaning for type: redis only: remove it`,
		`ledger: {ttl: 169h}`:                                           `1:15: ledger.ttl: is 169h0m0s; write a time from 1s to 168h0m0s`,
		`ledger: {max_entries: 5}`:                                      `1:10: ledger.max_entries: unknown key: the keys here are type, ttl and url`,
		`reload: {watch: sometimes}`:                                    `1:17: reload.watch: must be true or false, not "sometimes"`,
		`ledger: {type: redis, url: "http://u:hunter2@h"}`:              `1:28: ledger.url: must begin with redis:// or, with TLS, rediss://`,
		`ledger: {type: redis, url: "${file:/url}"}`:                    `1:28: ledger.url: has a path that is not the number of a database: write redis://host:6379/0`,
		`audit: {to: nowhere}`:                                          `1:13: audit.to: there is no sink "nowhere": there are events and log`,
		`audit: {to: events}`:                                           `1:13: audit.to: must be log or a sink of type file, and "events" is of type amqp091`,
		`audit: {key: "{{ id }}"}`:                                      `1:1: audit.to: is missing, so nothing is audited: write log, or the name of a file sink`,
		`audit: {to: log, hash_secret: hunter2}`:                        `1:31: audit.hash_secret: has a meaning with a key only: write key too, or remove it`,
		`audit: {to: log, key: "{{ boddy.x }}"}`:                        `1:27: audit.key: there is no variable "boddy": did you mean "body"?`,
		`tracing: {otlp_endpoint: "h:4318"}`:                            `1:26: tracing.otlp_endpoint: not a complete URL: write scheme://host, as in http://otel:4318`,
		`tracing: {sample_ratio: 0.5}`:                                  `1:25: tracing.sample_ratio: has a meaning with otlp_endpoint only: write that too, or remove it`,
		`tracing: {headers: {key: hunter2}}`:                            `1:11: tracing.headers: has a meaning with otlp_endpoint only: write that too, or remove it`,
		`tracing: {tls: {ca_file: /ca.pem}}`:                            `1:11: tracing.tls: has a meaning with otlp_endpoint only: write that too, or remove it`,
		`tracing: {otlp_endpoint: "grpc://h:4317"}`:                     `1:26: tracing.otlp_endpoint: must begin with http:// or https://: traces go by OTLP over HTTP, whose port is 4318, and not by gRPC`,
		`tracing: {otlp_endpoint: "http://u:hunter2@h"}`:                `1:26: tracing.otlp_endpoint: must have no user name, query or fragment: write what proves who you are under tracing.headers`,
		`tracing: {otlp_endpoint: "http://h/?key=hunter2"}`:             `1:26: tracing.otlp_endpoint: must have no user name, query or fragment: write what proves who you are under tracing.headers`,
		`tracing: {otlp_endpoint: "http://h", tls: {ca_file: /ca.pem}}`: `1:38: tracing.tls: the endpoint is http://, which has no TLS: write https://, or remove it`,
		`tracing: {tls: {cert_file: /cert.pem}}`:                        `1:11: tracing.tls: cert_file and key_file belong together: write both`,
		`tracing: {sample_ratio: 1.5}`:                                  `1:25: tracing.sample_ratio: must be from 0 to 1, not 1.5`,
		`tracing: {sample_ratio: .nan}`:                                 `1:25: tracing.sample_ratio: must be a number, as in 1, not ".nan"`,
		`tracing: {sample_ratio: -0.1}`:                                 `1:25: tracing.sample_ratio: must be from 0 to 1, not -0.1`,
		`tracing: {headers: {"a key": hunter2}}`:                        `1:11: tracing.headers: HTTP does not allow the name "a key"; use letters, digits and -`,
		`tracing: {headers: {key: "hunter2\n"}}`:                        `1:26: tracing.headers.key: has a line break or another control character in its value`,
		`tracing: {endpoint: "http://h"}`:                               `1:11: tracing.endpoint: unknown key: did you mean "otlp_endpoint"?`,
		`in_flight: {messages: 15, bytes: 1MiB}`:                        `1:23: in_flight.messages: must be at least 16, the largest batch_size, not 15`,
	} {
		require.Equal(t, []string{want}, problems(t, text+"\n"+with("sources:", "sources:"), env), text)
	}
}

// An expression is where its character is, however YAML writes it.
func TestPlacesOfExpressions(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ when, want string }{
		"plain":                    {`id == "1" && bdy.x`, `13:24`},
		"plain, with a comment":    {`bdy.x # bdy`, `13:11`},
		"plain, over lines":        {"id == \"1\" &&\n        id != id ||\n\n      bdy.x", `16:7`},
		"single quotes":            {`'id == "é" && bdy.x'`, `13:25`},
		"doubled single quotes":    {`'id == ''a'' || bdy.x'`, `13:27`},
		"double quotes":            {`"id == 'a' && bdy.x"`, `13:25`},
		"escapes":                  {`"id \x3d= \"\u00e9\U0001F642\" &&\n\tbdy.x"`, `13:48`},
		"double quotes over lines": {"\"id ==\n        \\\"a\\\" \\\n     && bdy.x\"", `15:9`},
		"literal":                  {"|\n      id == 'a' &&\n\n        bdy.x", `16:9`},
		"literal with a header":    {"|2- # bdy\n       bdy.x &&\n      id == id", `14:8`},
		"folded":                   {">-\n      id == 'a'\n      && bdy.x\n", `15:10`},
		"white space at the front": {`"  bdy.x"`, `13:14`},
		"an anchor":                {`&a bdy.x`, `13:14`},
		"a tag":                    {`!!str bdy.x`, `13:17`},
		"the end":                  {`"id =="`, `13:17`},
		"the end of a block":       {"|\n      id ==\n", `14:12`},
		"carriage returns":         {"|\r\n      id == id &&\r\n      bdy.x\r", `15:7`},
		"a dollar":                 {`id == "$${" && bdy.x`, `13:11`},
		"a default":                {`id == "${NONE:-x}" && bdy.x`, `13:11`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := routed("unmatched: delete", "- name: a\n    when: "+test.when+"\n    from: sms\n    to: events")
			got := problems(t, text, environment(nil, nil))
			require.Len(t, got, 1)
			place, message, _ := strings.Cut(got[0], ": routes[0].when: ")
			require.Equal(t, test.want, place)
			elsewhere := strings.Contains(test.when, "$")
			require.Equal(t, elsewhere, strings.Contains(message, "at character "), message)
		})
	}
}

// An alias is wrong where the expression is written.
func TestAnExpressionBehindAnAliasIsWhereItIsWritten(t *testing.T) {
	t.Parallel()
	require.Equal(t, []string{
		`12:61: routes[0].when: there is no variable "bdy": did you mean "body"?`,
		`12:61: routes[1].when: there is no variable "bdy": did you mean "body"?`,
	}, problems(t, routed("unmatched: delete", `- {name: a, from: sms, to: events, when: &w "id == '1' && bdy.x"}
  - {name: b, from: sms, to: hook, when: *w}`), environment(nil, nil)))
}

func TestConditionsSeeMessages(t *testing.T) {
	t.Parallel()
	c := parse(t, routed("unmatched: retain", `- {name: failed, from: sms, to: events, when: 'body.success == ${WANTED:-false} && queue == "orders"'}
  - {name: rest, from: sms, to: [hook, dead], when: "!body.?success.hasValue()"}`), environment(nil, nil), "no route")
	require.Equal(t, "retain", c.Sources[0].Unmatched)
	for body, want := range map[string][]bool{
		`{"success": false}`: {true, false},
		`{"success": true}`:  {false, false},
		`{}`:                 nil,
	} {
		var got []bool
		for _, r := range c.Routes {
			matched, err := r.Match(&relay.Message{Queue: "orders", Body: []byte(body)})
			if err != nil {
				require.ErrorAs(t, err, new(*relay.Failure))
				got = nil
				break
			}
			got = append(got, matched)
		}
		require.Equal(t, want, got, body)
	}
	require.Nil(t, parse(t, routed("paused: true", all), environment(nil, nil), "no route").Routes[0].Match)
}

func TestOverridesGoOverTheSettingsOfTheSink(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{"KEY": "k"}, map[string]string{"/token": "hunter2"})
	c := parse(t, routed("paused: true", `- name: all
    from: sms
    to:
      - sink: events
        required: false
        with: &w {routing_key: "${KEY}", headers: {x: y}, exchange: other, timeout: 3s}
      - {sink: hook, with: {headers: {authorization: "${file:/token}"}}}
      - {sink: dead, with: }
  - {name: twin, from: sms, when: "false", to: {sink: events, with: *w}}`), env, "twice")
	to := c.Routes[0].To
	require.False(t, to[0].Required)
	require.True(t, to[1].Required)
	require.Nil(t, to[2].With, "nothing is nothing")

	events, is := c.Sinks[0].Settings.(*amqp091.Config)
	require.True(t, is)
	for _, with := range []relay.Overrides{to[0].With, to[0].With, c.Routes[1].To[0].With} {
		settings := events.Settings
		require.NoError(t, with(&settings))
		want := events.Settings
		want.RoutingKey, want.Timeout, want.Exchange.Name = "k", 3*time.Second, "other"
		want.Headers = map[string]setting.Value{"by": setting.NewValue("relay"), "x": setting.NewValue("y")}
		require.Equal(t, want, settings)
	}
	require.Equal(t, map[string]setting.Value{"by": setting.NewValue("relay")}, events.Headers, "the sink's own stay as they are")

	var hook webhook.Settings
	require.NoError(t, to[1].With(&hook))
	require.Equal(t, webhook.Settings{Headers: map[string]setting.Secret{"authorization": setting.FileSecret("hunter2", "/token")}}, hook)

	// What does not fit is an error, whoever asks.
	require.EqualError(t, to[1].With(&struct {
		Timeout time.Duration `yaml:"timeout"`
	}{}), `relay.yaml:18:29: routes[0].to[1].with.headers: belongs to the sink hook as a whole, whose connections all routes share: remove it, or write another sink`)

	require.NotContains(t, string(c.YAML()), "hunter2")
	require.Contains(t, withoutComments(c.YAML()), `
      - sink: events
        required: false
        with:
          exchange:
            name: other
          routing_key: k
          headers:
            x: "y"
          timeout: 3s
      - sink: hook
        required: true
        with:
          headers:
            authorization: "***"
      - sink: dead
        required: true
`)
}

// A file is read once for one configuration: what replaces it meanwhile belongs to the
// next one.
func TestAConfigurationSeesOneValueOfAFile(t *testing.T) {
	t.Parallel()
	reads := 0
	env := config.Environment{
		Lookup: func(string) (string, bool) { return "", false },
		ReadFile: func(string) ([]byte, error) {
			reads++
			return []byte(strings.Repeat("x", reads)), nil
		},
	}
	c := parse(t, routed("to: {sink: events, with: {routing_key: '${file:/s}', headers: {a: '${file:/s}'}}}", "[]"), env, "no route")
	for range 2 {
		var settings amqp091.Settings
		require.NoError(t, c.Routes[0].To[0].With(&settings))
		require.Equal(t, "x", settings.RoutingKey)
		require.Equal(t, "x", settings.Headers["a"].Any())
	}
	require.Equal(t, 1, reads)
}

func TestDeadLettersHaveDefaults(t *testing.T) {
	t.Parallel()
	env := environment(nil, nil)
	for source, want := range map[string]struct {
		receives int
		origin   string
	}{
		"paused: true":                                   {0, "default"},
		"dead_letter: dead":                              {16, "default with a dead_letter"},
		"dead_letter: dead\n    max_receives: 3":         {3, "relay.yaml:7"},
		"dead_letter: dead\n    max_receives: 0":         {0, "relay.yaml:7"},
		"dead_letter: ''":                                {0, "default"},
		"dead_letter: dead\n    guarantee: at_most_once": {0, "default"},
	} {
		c := parse(t, routed(source, all), env, "")
		require.Equal(t, want.receives, c.Sources[0].MaxReceives, source)
		require.Regexp(t, `(?m)^    max_receives: [0-9]+ +# `+want.origin+`$`, string(c.YAML()), source)
	}
	c := parse(t, routed("dead_letter: dead\n    dead_letter_limit: {count: 7}\n    unmatched: dead_letter", strings.Replace(all, "all,", "all, when: body.x,", 1)), env, "no route")
	require.Equal(t, config.Limit{Count: 7, Per: 5 * time.Minute}, c.Sources[0].DeadLetterLimit)
	require.Equal(t, "dead", c.Sources[0].DeadLetter)
	require.Equal(t, "dead_letter", c.Sources[0].Unmatched)
}

func TestTheLedger(t *testing.T) {
	t.Parallel()
	text := "ledger: {type: redis, url: 'rediss://:${file:/pw}@redis:6380/2', ttl: 2h}\nreload: {watch: true}\nserver: {listen: 127.0.0.1:8080, admin_token: '${file:/pw}0123456789'}\n"
	c := parse(t, text+with("sources:", "sources:"), environment(nil, map[string]string{"/pw": "hunter2\n"}))
	require.Equal(t, ledger.Config{Type: ledger.TypeRedis, TTL: 2 * time.Hour, URL: setting.NewURL("rediss://:hunter2@redis:6380/2"), MaxEntries: ledger.Defaults().MaxEntries}, c.Ledger)
	require.True(t, c.Reload.Watch)
	require.Equal(t, "hunter20123456789", c.Server.AdminToken.Reveal())
	require.NotContains(t, string(c.YAML()), "hunter2")

	require.Equal(t, ledger.Defaults(), parse(t, with("sources:", "sources:"), environment(nil, nil)).Ledger)
}

func TestWarningsOfRoutes(t *testing.T) {
	t.Parallel()
	env := environment(map[string]string{"TOKEN": ""}, nil)
	for _, test := range []struct {
		name string
		text string
		want []string
	}{
		{"no sink is required", routed("to: [{sink: dead, required: false}]", "- {name: all, from: sms, to: [{sink: events, required: false}, {sink: hook, required: false}]}"), []string{
			`6:5: sources.sms.to: no sink of the route is required: a message is deleted whether or not one of them has confirmed it`,
			`12:28: routes[0].to: no sink of the route is required: a message is deleted whether or not one of them has confirmed it`,
		}},
		{"unmatched where all match", routed("unmatched: retain\n    dead_letter: dead", all+"\n  - {name: b, from: sms, to: hook, when: body.b}"), []string{
			`6:16: sources.sms.unmatched: has no effect: the route all has no condition and takes every message`,
		}},
		{"a limit without a dead letter", routed("dead_letter_limit: {per: 1m}", "- {name: all, from: sms, to: [events, hook, dead]}"), []string{
			`6:5: sources.sms.dead_letter_limit: has no effect without a dead_letter`,
		}},
		{"a dead letter of what is sent once", routed("dead_letter: dead\n    guarantee: at_most_once", "- {name: all, from: sms, to: [events, hook]}"), []string{
			`6:18: sources.sms.dead_letter: takes only what cannot be decoded or routed: with guarantee: at_most_once a message whose delivery fails is gone by then`,
		}},
		{"twice, if both match", routed("to: dead", "- {name: all, from: sms, to: events}\n  - {name: b, from: sms, to: [events, hook], when: body.b}\n  - {name: c, from: sms, to: [hook], when: body.b}"), []string{
			`13:31: routes[1].to[0]: the route all takes the source sms to this sink too: what both take is delivered twice`,
		}},
		{"the process", "server: {admin_token: secret, listen: 127.0.0.1:8080}\nledger: {ttl: 30m}\n" + with("sources:", "sources:"), []string{
			`1:23: server.admin_token: is shorter than 16 characters, so it can be guessed; openssl rand -hex 32 makes one that cannot`,
			`2:15: ledger.ttl: is shorter than the redelivery.max of the source sms: what comes again later goes to the sinks that have it, too`,
		}},
		{"traces by gRPC", "tracing: {otlp_endpoint: 'http://otel:4317'}\n" + with("sources:", "sources:"), []string{
			`1:26: tracing.otlp_endpoint: 4317 is the port of gRPC, OTLP over HTTP has 4318`,
		}},
		{"traces switched off", "tracing: {otlp_endpoint: '', sample_ratio: 0.5}\n" + with("sources:", "sources:"), nil},
		{"an audit", "audit: {to: log, key: id, hash_secret: short}\n" + with("sources:", "sources:"), []string{
			`1:23: audit.key: is the same for every message: write a template, as in '{{ body.biz_id }}'`,
			`1:40: audit.hash_secret: is shorter than 16 characters, so it can be guessed, and with it every key; openssl rand -hex 32 makes one that cannot`,
		}},
		{"an empty token", "server: {admin_token: '${TOKEN}'}\n" + with("sources:", "sources:"), []string{
			`1:23: server.admin_token: what came from environment TOKEN is empty: the endpoints that change something stay closed`,
		}},
		{"nothing", routed("unmatched: delete\n    guarantee: at_most_once\n    dead_letter_limit: {count: 100}", "- {name: all, from: sms, to: [events, hook, dead], when: body.x}"), nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, warnings, err := config.Parse("relay.yaml", []byte(test.text), env)
			require.NoError(t, err)
			var lines []string
			for _, w := range warnings {
				lines = append(lines, strings.TrimPrefix(w.String(), "relay.yaml:"))
			}
			require.Equal(t, test.want, lines)
		})
	}
}

// What a reload restarts, and nothing else.
func TestFingerprints(t *testing.T) {
	t.Parallel()
	const text = `# one
server: {admin_token: "${TOKEN}0123456789"}
sources:
  a: &a
    queue: orders
    endpoint: https://h.example.com
    credentials: {type: static, access_key_id: id, access_key_secret: "${file:/key}"}
    dead_letter: dead
    unmatched: retain
  b:
    <<: *a
    queue: other
sinks:
  events: {type: amqp091, url: "amqps://u:${file:/mq}@h", exchange: e, headers: {x: y}}
  hook: {type: webhook, url: "https://h", headers: {authorization: "${TOKEN}"}}
  dead: {type: file, path: dead.jsonl}
routes:
  - {name: both, from: [a, b], when: body.x, to: [{sink: events, with: {routing_key: k, headers: {z: z}}}]}
  - {name: own, from: [b], when: body.y, to: {sink: hook}}
`
	prints := func(text string, files map[string]string, token string) map[string]string {
		c, _, err := config.Parse("relay.yaml", []byte(text), environment(map[string]string{"TOKEN": token}, files))
		require.NoError(t, err)
		require.NotContains(t, c.SourceFingerprint("a"), token)
		return map[string]string{
			"a": c.SourceFingerprint("a"), "b": c.SourceFingerprint("b"),
			"events": c.SinkFingerprint("events"), "hook": c.SinkFingerprint("hook"), "dead": c.SinkFingerprint("dead"),
			"server": c.ServerFingerprint(), "ledger": c.LedgerFingerprint(), "tracing": c.TracingFingerprint(),
		}
	}
	files := map[string]string{"/key": "one", "/mq": "two"}
	before := prints(text, files, "hunter2")
	for name, one := range before {
		require.Len(t, one, 64, name)
		for other, another := range before {
			require.True(t, name == other || one != another, "%s is not %s", name, other)
		}
	}
	for _, test := range []struct {
		name, old, new string
		want           []string
	}{
		{"a comment, and lines that move", "# one\n", "\n\n# two\n", nil},
		{"what is not of a pipeline", "# one\n", "in_flight: {messages: 32}\nlog: {level: debug}\n", nil},
		{"the order of keys", "{x: y}", "{x: \"y\"}", nil},
		{"a default that is written", "queue: other", "queue: other\n    batch_size: 16", nil},
		{"a sink without a route", "sinks:\n", "sinks:\n  more: {type: file, path: x}\n", nil},
		{"a source of a route", "from: [b]", "from: [b, a]", []string{"a"}},
		{"a setting of a source", "queue: other", "queue: other\n    batch_size: 15", []string{"b"}},
		{"a setting of a sink", "exchange: e", "exchange: f", []string{"a", "b", "events"}},
		{"a map of a sink", "{x: y}", "{x: z}", []string{"a", "b", "events"}},
		{"a dead letter's sink", "dead.jsonl", "other.jsonl", []string{"a", "b", "dead"}},
		{"a condition", "body.y", "body.z", []string{"b"}},
		{"an override", "routing_key: k", "routing_key: l", []string{"a", "b"}},
		{"an override of a map", "{z: z}", "{z: x}", []string{"a", "b"}},
		{"an override that goes", "with: {routing_key: k, headers: {z: z}}", "required: true", []string{"a", "b"}},
		{"the name of a route", "name: own", "name: owned", []string{"b"}},
		{"required", "{sink: hook}", "{sink: hook, required: false}", []string{"b"}},
		{"the audit", "# one\n", "audit: {to: log}\n", []string{"a", "b"}},
		{"the mode", "queue: other", "queue: other\n    mode: shadow", []string{"b"}},
		{"a secret in the file", "0123456789", "0123456788", []string{"server"}},
		{"the ledger", "# one\n", "ledger: {ttl: 20h}\n", []string{"ledger"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			require.Contains(t, text, test.old)
			require.ElementsMatch(t, test.want, changed(before, prints(strings.Replace(text, test.old, test.new, 1), files, "hunter2")))
		})
	}
	require.ElementsMatch(t, []string{"a", "b", "events"}, changed(before, prints(text, map[string]string{"/key": "one", "/mq": "2"}, "hunter2")), "a secret in another file")
	require.ElementsMatch(t, []string{"a", "b"}, changed(before, prints(text, map[string]string{"/key": "1", "/mq": "two"}, "hunter2")))
	require.ElementsMatch(t, []string{"b", "hook", "server"}, changed(before, prints(text, files, "hunter3")), "a variable")

	c := parse(t, with("sources:", "sources:"), environment(nil, nil))
	require.Empty(t, c.SourceFingerprint("nobody"))
	require.Empty(t, c.SinkFingerprint("nobody"))
}

func changed(before, after map[string]string) []string {
	var names []string
	for name := range before {
		if before[name] != after[name] {
			names = append(names, name)
		}
	}
	return names
}

// The audit has a file of its own, and a queue may be looked into beside whoever receives.
func TestTheFileOfAnAudit(t *testing.T) {
	t.Parallel()
	const text = `audit: {to: lines}
sources:
  a: {queue: q, endpoint: "https://h", credentials: &keys {type: static, access_key_id: i, access_key_secret: s}, to: out, dead_letter: dead}
  b: {queue: q, endpoint: "https://h", credentials: *keys, mode: shadow, to: out}
sinks:
  out: {type: file, path: out}
  dead: {type: file, path: dead}
  lines: {type: file, path: lines}
`
	c := parse(t, text, environment(nil, nil))
	require.Equal(t, "lines", c.AuditFile())
	require.True(t, c.Sources[1].Shadow())
	for change, want := range map[[2]string]string{
		{"to: lines}", "to: out}"}:          `1:13: audit.to: is a sink that the route a leads to: write one of its own`,
		{"to: lines}", "to: dead}"}:         `1:13: audit.to: is the dead_letter of the source a too: write a sink of its own`,
		{"path: lines", "path: ./out"}:      `1:13: audit.to: is a sink with the path of out: write a file of its own`,
		{"path: lines", "path: '{{ id }}'"}: `1:13: audit.to: must be a sink with one file, and the path of "lines" holds a {{ }}`,
		{"mode: shadow", "mode: shade"}:     `4:66: sources.b.mode: must be relay or shadow, not "shade"; did you mean "shadow"?`,
	} {
		require.Equal(t, []string{want}, problems(t, strings.Replace(text, change[0], change[1], 1), environment(nil, nil)))
	}
	require.Equal(t, []string{`1:13: audit.to: is the log, and there is a sink of this name: give the sink another`},
		problems(t, strings.NewReplacer("to: lines}", "to: log}", "  lines:", "  log:").Replace(text), environment(nil, nil)))

	for change, want := range map[[2]string]string{
		{"path: dead", "path: ./out"}:     "7:28: sinks.dead.path: the sink out has this file too: whichever comes second finds it locked, and is down; write another path, or use one sink for both",
		{"path: dead", "path: elsewhere"}: "",
	} {
		_, warnings, err := config.Parse("relay.yaml", []byte(strings.Replace(text, change[0], change[1], 1)), environment(nil, nil))
		require.NoError(t, err)
		var lines []string
		for _, w := range warnings {
			if strings.HasSuffix(w.Path, ".path") {
				lines = append(lines, strings.TrimPrefix(w.String(), "relay.yaml:"))
			}
		}
		require.Equal(t, want, strings.Join(lines, "\n"))
	}
}
