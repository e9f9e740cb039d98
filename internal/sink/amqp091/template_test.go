package amqp091_test

import (
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/sink/amqp091"
	"mnsrelay/test/broker"
)

func TestTemplates(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.RoutingKey = `sms.{{ body.success ? "ok" : "failed" }}.{{ queue }}`
	c.Headers = headers(map[string]any{
		"x-dedupe-key": "{{ body.biz_id }}",
		"x-number":     "n={{ body.n }}",
		"x-missing":    "{{ body.?missing }}",
		"x-team":       "billing",
		"x-braces":     `{{ "{{" }}`,
	})
	r := run(t, c)
	r.Await(relay.Up)

	ms := relaytest.Messages("m", 3, 0)
	for i, body := range []string{
		`{"success": true, "biz_id": "b^1", "n": 12345678901234567890}`,
		`{"success": false, "biz_id": "短信\n2", "n": 1.10}`,
		`{"success": true, "biz_id": 3, "n": true}`,
	} {
		ms[i].Body, ms[i].Queue = []byte(body), "q"
	}
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, ms))

	got := map[string]amqp.Delivery{}
	for _, d := range in.take() {
		got[d.MessageId] = d
	}
	for id, want := range map[string]struct {
		key    string
		dedupe any
		number string
	}{
		"m-0": {"sms.ok.q", "b^1", "12345678901234567890"},
		"m-1": {"sms.failed.q", "短信\n2", "1.10"},
		"m-2": {"sms.ok.q", int64(3), "true"},
	} {
		require.Equal(t, want.key, got[id].RoutingKey)
		require.Equal(t, amqp.Table{
			"x-dedupe-key":         want.dedupe,
			"x-number":             "n=" + want.number,
			"x-team":               "billing",
			"x-braces":             "{{",
			relay.HeaderSource:     "sms",
			relay.HeaderAttempt:    int64(1),
			relay.HeaderEnqueuedAt: "2026-03-01T09:30:00.045Z",
			relay.HeaderBody:       "raw",
		}, got[id].Headers)
	}
}

// What a message makes of a template can fail that message, and no other on the
// connection; no value is told.
func TestTemplatesThatFailRejectTheirMessage(t *testing.T) {
	in := newInbox(t, broker.URL(t))
	c := in.config()
	c.RoutingKey = "sms.{{ body.key }}"
	c.Headers = headers(map[string]any{"h": "{{ body.header }}", "x-team": "billing"})
	r := run(t, c)
	r.Await(relay.Up)

	ms := relaytest.Messages("m", 16, 0)
	for i := range ms {
		ms[i].Body = []byte(`{"key": "k", "header": "v"}`)
	}
	want := map[int]string{}
	for i, bad := range []struct{ body, reason string }{
		{"hunter2", "expression"},
		{`{"header": "hunter2"}`, "expression"},
		{`{"key": "hunter2"}`, "expression"},
		{`{"key": {"hunter2": 1}, "header": ["hunter2"]}`, ""}, // JSON is text
		{`{"key": "` + strings.Repeat("hunter2", 36) + `", "header": ""}`, "invalid_property"},
		{`{"key": "` + strings.Repeat("h", 251) + `", "header": ""}`, ""}, // 255 bytes
		{`{"key": "` + strings.Repeat("短", 84) + `", "header": ""}`, "invalid_property"},
		{`{"key": "", "header": "` + strings.Repeat("h", 64<<10-26) + `"}`, ""},
		{`{"key": "", "header": "` + strings.Repeat("h", 64<<10-25) + `"}`, "invalid_property"},
	} {
		ms[i].Body = []byte(bad.body)
		want[i] = bad.reason
	}
	for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
		if want[i] == "" {
			require.NoError(t, result.Err, "message %d", i)
			require.Equal(t, relay.Delivered, result.Outcome)
			continue
		}
		require.Equal(t, relay.Rejected, result.Outcome, "message %d: %v", i, result.Err)
		require.Equal(t, want[i], relay.ReasonOf(result.Err))
		require.NotContains(t, result.Err.Error(), "hunter2")
	}
	require.Equal(t, relay.Up, r.Await(relay.Up).State)
	relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, ms[15:]))
	require.NotContains(t, r.Logged(), "hunter2")
}

func TestUnroutablePolicies(t *testing.T) {
	for policy, want := range map[amqp091.Unroutable]struct {
		outcome relay.Outcome
		reason  string
	}{
		amqp091.UnroutableRetry:      {relay.Retry, "unroutable"},
		amqp091.UnroutableDeadLetter: {relay.Rejected, "unroutable"},
		amqp091.UnroutableDrop:       {relay.Delivered, ""},
	} {
		t.Run(string(policy), func(t *testing.T) {
			in := newInbox(t, broker.URL(t))
			in.with(func(ch *amqp.Channel) {
				require.NoError(t, ch.QueueUnbind(in.queue, "#", in.exchange, nil))
				require.NoError(t, ch.QueueBind(in.queue, "sms.ok", in.exchange, false, nil))
			})
			c := in.config()
			c.RoutingKey = "sms.{{ body.to }}"
			c.Unroutable = policy
			r := run(t, c)
			r.Await(relay.Up)
			ms := relaytest.Messages("m", 100, 0)
			for i := range ms {
				ms[i].Body = []byte([]string{`{"to": "ok"}`, `{"to": "hunter2"}`}[i%2])
			}
			for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
				if i%2 == 0 || want.reason == "" {
					require.NoError(t, result.Err)
					require.Equal(t, relay.Delivered, result.Outcome)
					continue
				}
				require.Equal(t, want.outcome, result.Outcome)
				require.Equal(t, want.reason, relay.ReasonOf(result.Err))
				require.NotContains(t, result.Err.Error(), "hunter2")
			}
			require.Len(t, in.ids(), 50)
			require.Equal(t, relay.Up, r.Await(relay.Up).State)

			said := r.Log.FilterMessageSnippet("dropped").All()
			if policy != amqp091.UnroutableDrop {
				require.Empty(t, said)
				return
			}
			require.Len(t, said, 6, "the 1st, 2nd, 4th ... 32nd of 50")
			require.EqualValues(t, 32, said[5].ContextMap()["dropped"])
		})
	}
}
