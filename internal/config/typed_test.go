package config_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/amqp091"
)

// What has types of its own keeps the type it was written with; what comes from outside is
// text; what came from a file is printed nowhere.
func TestValuesThatKeepTheirType(t *testing.T) {
	t.Parallel()
	text := with("exchange: sms.events", `exchange: sms.events
    password: ${file:/pw}
    username: relay
    queues:
      - name: sms
        message_ttl: 1h
        bindings: [{routing_key: a.#}, {exchange: other, arguments: {x-match: all, n: 3}}]
      - {name: old, type: classic, durable: false}
    properties: {priority: 5, expiration: 90s}
    headers:
      text: a
      quoted: "5"
      number: 5
      negative: -7
      fraction: 0.5
      whole: 2.0
      yes: true
      at: 2026-03-01T09:30:00Z
      from-outside: ${NUMBER}
      secret: ${file:/pw}
      secrets: [a, {b: "c ${file:/pw}"}]
      list: [a, 1, "{{ id }}"]
      table: {n: 1, deep: {b: false}}
      empty: {}`)
	env := environment(map[string]string{"NUMBER": "12"}, map[string]string{"/pw": "hunter2"})
	c := parse(t, text, env)
	events, is := c.Sinks[0].Settings.(*amqp091.Config)
	require.True(t, is)
	got := map[string]any{}
	for name, value := range events.Headers {
		got[name] = value.Any()
		require.Equal(t, strings.Contains(name, "secret") || name == "from-outside", value.Secret(), name)
	}
	require.Equal(t, map[string]any{
		"text": "a", "quoted": "5", "number": int64(5), "negative": int64(-7), "fraction": 0.5, "whole": 2.0, "yes": true,
		"at": time.Date(2026, time.March, 1, 9, 30, 0, 0, time.UTC), "from-outside": "12", "secret": "hunter2", "secrets": []any{"a", map[string]any{"b": "c hunter2"}},
		"list": []any{"a", int64(1), "{{ id }}"}, "table": map[string]any{"n": int64(1), "deep": map[string]any{"b": false}},
		"empty": map[string]any{},
	}, got)
	require.Equal(t, amqp091.Properties{Priority: "5", Expiration: "90s"}, events.Properties)
	require.Equal(t, []amqp091.Queue{
		{
			Name: "sms", Type: "quorum", Durable: true, MessageTTL: time.Hour,
			Bindings: []amqp091.Binding{
				{RoutingKey: "a.#"},
				{Exchange: "other", Arguments: map[string]setting.Value{"x-match": setting.NewValue("all"), "n": setting.NewValue(3)}},
			},
		},
		{Name: "old", Type: "classic"},
	}, events.Queues)
	require.Equal(t, setting.FileSecret("hunter2", "/pw"), events.Password)

	printed := string(c.YAML())
	require.NotContains(t, printed, "hunter2")
	require.Contains(t, printed, `from-outside: "12"`)
	again := parse(t, printed, env, "is shorter than 16 characters", "***")
	require.Equal(t, withoutComments(c.YAML()), withoutComments(again.YAML()))

	// Another type is another configuration, though it looks alike.
	other := parse(t, strings.Replace(text, `quoted: "5"`, `quoted: 5`, 1), env)
	require.NotEqual(t, c.SinkFingerprint("events"), other.SinkFingerprint("events"))
	require.Equal(t, c.SinkFingerprint("events"), parse(t, text, env).SinkFingerprint("events"))
}

func TestProblemsOfValuesThatKeepTheirType(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		`headers: {a: }`:                                    "12:15: sinks.events.headers.a: has no value: write one, or remove the line",
		`headers: {a: {{ id }}}`:                            "12:15: sinks.events.headers.a: YAML takes an unquoted {{ for a mapping",
		`headers: {a: [1, {b: "${NONE}"}]}`:                 "12:26: sinks.events.headers.a[1].b: the variable NONE is not set",
		`headers: {a: 99999999999999999999}`:                `12:18: sinks.events.headers.a: "99999999999999999999" is out of range`,
		`headers: {a: 9999999999999999999}`:                 `12:18: sinks.events.headers.a: "9999999999999999999" is out of range`,
		`headers: {a: {b: 1, b: 2}}`:                        "12:25: sinks.events.headers.a.b: is written twice",
		`headers: {a: &x [*x]}`:                             "is inside the anchor that it refers to",
		`headers: {CC: key}`:                                "12:19: sinks.events.headers.CC: the broker takes it for more routing keys",
		`queues: [{nme: q}]`:                                `did you mean "name"?`,
		`queues: [{name: q, bindings: {a: b}}]`:             "sinks.events.queues[0].bindings: must be a list",
		`queues: [{name: q, type: quorum, durable: false}]`: "12:47: sinks.events.queues[0].durable: a queue of type quorum is durable",
	} {
		got := strings.Join(problems(t, with("exchange: sms.events", "exchange: sms.events\n    "+line), environment(nil, nil)), "\n")
		require.Contains(t, got, want, line)
	}
}
