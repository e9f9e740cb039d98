package amqp10_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/document"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/sink/amqp10"
	"mnsrelay/test/amqppeer"
)

// Only a message that the broker has accepted is delivered: every other outcome has a
// result and a reason of its own, and silence ends with the timeout.
func TestOnlyAcceptedIsDelivered(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		for address, want := range map[string]struct {
			outcome relay.Outcome
			reason  string
			text    string
		}{
			"accept":               {outcome: relay.Delivered},
			"reject":               {relay.Rejected, "rejected", "amqp:resource-limit-exceeded full"},
			"release":              {relay.Retry, "released", ""},
			"modify":               {relay.Retry, "modified", ""},
			"modify-undeliverable": {relay.Rejected, "undeliverable_here", ""},
			"settle":               {relay.Retry, "no_outcome", ""},
			"silent":               {relay.Retry, "outcome_timeout", "within 500ms"},
		} {
			t.Run(address, func(t *testing.T) {
				c := config(p, address)
				c.Timeout = 500 * time.Millisecond
				r := run(t, c)
				r.Await(relay.Up)
				began := time.Now()
				for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages(address, 16, 10)) {
					require.Equal(t, want.outcome, result.Outcome, "message %d: %v", i, result.Err)
					if want.reason == "" {
						require.NoError(t, result.Err)
						continue
					}
					require.Equal(t, want.reason, relay.ReasonOf(result.Err))
					require.ErrorContains(t, result.Err, want.text)
					require.NotErrorIs(t, result.Err, relay.ErrSinkDown)
				}
				require.Less(t, time.Since(began), 2*time.Second)
				health, _ := r.Endpoint.Health()
				require.Equal(t, relay.Up, health.State, "an outcome is no outage")
			})
		}
	})
}

// A message whose outcome does not come holds up its own result only.
func TestAHungOutcomeHoldsUpItsOwnMessageOnly(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, `{{ body.silent ? "silent" : "accept" }}`)
		c.Timeout = 2 * time.Second
		r := run(t, c)
		r.Await(relay.Up)
		ms := relaytest.Messages("m", 40, 0)
		for i := range ms {
			ms[i].Body = fmt.Appendf(nil, `{"silent": %t}`, i%10 == 0)
		}
		began := time.Now()
		took := make([]time.Duration, len(ms))
		results := make([]relay.Result, len(ms))
		var mu sync.Mutex
		r.Sink.Deliver(t.Context(), ms, func(i int, result relay.Result) {
			mu.Lock()
			defer mu.Unlock()
			took[i], results[i] = time.Since(began), result
		})
		for i := range ms {
			if i%10 == 0 {
				relaytest.RequireReason(t, "outcome_timeout", results[i])
				continue
			}
			require.Equal(t, relay.Delivered, results[i].Outcome, "%v", results[i].Err)
			require.Less(t, took[i], c.Timeout/2)
		}
	})
}

// A link that the broker ends is attached again, and what was under way on it is no
// delivery. The links to other addresses are unharmed.
func TestADetachedLinkIsAttachedAgain(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		r := run(t, config(p, "accept"))
		r.Await(relay.Up)
		detached := bind(t, r, func(s *amqp10.Settings) { s.Address = "detach" })
		// It is looked at in a moment.
		require.Eventually(t, func() bool {
			result := relaytest.Deliver(t.Context(), t, detached, relaytest.Messages("first", 1, 10))[0]
			return relay.ReasonOf(result.Err) != "address_unavailable"
		}, patience, 10*time.Millisecond)
		for attached := 1; attached <= 3; attached++ {
			require.Eventually(t, func() bool { return p.Attached("detach") >= attached }, patience, 5*time.Millisecond, "attached again")
			sent := len(p.Messages())
			require.Eventually(t, func() bool {
				relaytest.RequireReason(t, "link_detached", relaytest.Deliver(t.Context(), t, detached, relaytest.Messages("d", 1, 10))[0])
				return len(p.Messages()) > sent
			}, patience, 20*time.Millisecond, "sent on the new link")
			relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)))
		}
		require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len(), "the connection stood")
	})
}

// An address that the broker refuses is told of, and tried again; it does not harm the others.
func TestAnAddressThatIsRefused(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "refuse")
		r := run(t, c)
		health := r.AwaitReason(relay.Down, `address "refuse" does not exist: create it, or correct address: amqp:not-found`)
		require.Equal(t, relay.Down, health.State)
		relaytest.RequireReason(t, "address_unavailable", relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 1, 10))[0])
		other := bind(t, r, func(s *amqp10.Settings) { s.Address = `{{ body.to }}` })
		ms := relaytest.Messages("m", 16, 0)
		for i := range ms {
			ms[i].Body = fmt.Appendf(nil, `{"to": "%s"}`, []string{"accept", "refuse-hunter2"}[i%2])
		}
		for i, result := range relaytest.Deliver(t.Context(), t, other, ms) {
			if i%2 == 0 {
				require.Equal(t, relay.Delivered, result.Outcome, "%v", result.Err)
				continue
			}
			relaytest.RequireReason(t, "address_unavailable", result)
			require.NotContains(t, result.Err.Error(), "hunter2")
		}
		require.NotContains(t, r.Logged(), "hunter2")
		require.Equal(t, 1, strings.Count(r.Logged(), "address cannot be used"), "said once: %s", r.Logged())
	})
}

// Without credit nothing is sent, nothing is delivered, and nothing grows: the messages
// wait for their time, and the sink is down until one of them gets through.
func TestWithoutCreditItIsBounded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "nocredit")
		c.Timeout = 300 * time.Millisecond
		r := run(t, c)
		r.Await(relay.Up)
		began := time.Now()
		var work sync.WaitGroup
		for n := range 8 {
			work.Go(func() {
				for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages(strconv.Itoa(n), 16, 10)) {
					require.Equal(t, relay.Retry, result.Outcome)
					require.Contains(t, []string{"no_credit", "outcome_timeout"}, relay.ReasonOf(result.Err))
				}
			})
		}
		work.Wait()
		require.Less(t, time.Since(began), 2*time.Second)
		r.AwaitReason(relay.Down, "granted no credit")
		r.AwaitReason(relay.Probe, "granted no credit")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		relaytest.RequireReason(t, "cancelled", relaytest.Deliver(ctx, t, r.Sink, relaytest.Messages("m", 1, 10))[0])
		require.Empty(t, p.Messages())
	})
}

// An address that takes nothing beside one that works leaves the sink up, and its messages have not
// failed: they are held.
func TestAnAddressWithoutCreditIsNotTheWholeSink(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "accept")
		c.Timeout = 300 * time.Millisecond
		r := run(t, c)
		full := bind(t, r, func(s *amqp10.Settings) { s.Address = "nocredit" })
		r.Await(relay.Up)
		for range 2 { // the second is not even sent
			result := relaytest.Deliver(t.Context(), t, full, relaytest.Messages("m", 1, 10))[0]
			relaytest.RequireReason(t, "no_credit", result)
			require.ErrorIs(t, result.Err, relay.ErrSinkDown)
		}
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("n", 1, 10)))
		health, _ := r.Endpoint.Health()
		require.Equal(t, relay.Up, health.State)
	})
}

// A peer that goes away in the middle of a window: nothing of it counts as delivered, no
// try has failed, and all of it arrives when the peer is back.
func TestThePeerGoesInTheMiddleOfAWindow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "silent")
		c.Timeout = time.Minute
		r := run(t, c)
		for round := range 3 {
			r.Await(relay.Up)
			var (
				results []relay.Result
				work    sync.WaitGroup
				mu      sync.Mutex
				early   []relay.Result // before the peer was killed
			)
			work.Go(func() {
				results = relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 64, 10))
				mu.Lock()
				defer mu.Unlock()
				early = results
			})
			require.Eventually(t, func() bool {
				mu.Lock()
				defer mu.Unlock()
				require.Empty(t, early, "round %d", round)
				return len(p.Messages()) >= 64*(round+1)
			}, patience, 5*time.Millisecond)
			p.Kill()
			work.Wait()
			for _, result := range results {
				relaytest.RequireReason(t, "connection_lost", result)
				require.ErrorIs(t, result.Err, relay.ErrSinkDown)
			}
			r.Await(relay.Down)
			p.Start()
			accepting := time.Now()
			r.Await(relay.Up)
			require.Less(t, time.Since(accepting), 2*time.Second, "from accepting to connected")
		}
	})
}

// A connection that the peer cuts at a message takes nothing for delivered.
func TestTheConnectionIsCut(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		r := run(t, config(p, "drop"))
		for range 5 {
			r.Await(relay.Up)
			for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 16, 10)) {
				require.Equal(t, relay.Retry, result.Outcome, "%v", result.Err)
				require.ErrorIs(t, result.Err, relay.ErrSinkDown)
			}
		}
	})
}

// A peer that stops reading, with the TCP window full, is given up after the time that a
// write may take.
func TestAStalledPeer(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "accept")
		c.Timeout = time.Minute // so that it is not what ends Deliver
		c.IdleTimeout = 2 * time.Second
		r := run(t, c)
		r.Await(relay.Up)
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("warm", 16, 10)))
		p.Pause()
		began := time.Now()
		for _, result := range relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 100, 64<<10)) {
			relaytest.RequireReason(t, "connection_lost", result)
		}
		require.Less(t, time.Since(began), 7*time.Second)
		r.Await(relay.Down)
		p.Resume()
		r.Await(relay.Up)
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("again", 16, 10)))
	})
}

// What is sent as settled counts as delivered when it is written, whatever becomes of it.
func TestSettled(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "reject")
		c.Settle = amqp10.SettleSettled
		r := run(t, c)
		r.Await(relay.Up)
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages("m", 100, 10)))
		for _, m := range awaitMessages(t, p, 100) {
			require.True(t, m.Settled)
		}
	})
}

// Every peer sees the same bytes and properties, with their types.
func TestMessagesAreTheSameForEveryPeer(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, time.March, 1, 9, 30, 0, 0, time.UTC)
	bodies := [][]byte{nil, []byte("plain"), []byte(`{"n": 7}`), {0, 1, 0xff, 0xfe}, []byte(strings.Repeat("短信", 20_000))}
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		c := config(p, "accept.{{ source }}")
		c.ApplicationProperties = values(map[string]any{
			"text": "短信", "number": 5, "fraction": 0.5, "yes": true, "at": at,
			"attempt": "{{ attempt }}", "id": "<{{ id }}>", "none": "{{ attributes.?none }}", "bytes": "{{ bytes(id) }}",
		})
		c.MessageAnnotations = values(map[string]any{"x-opt-partition-key": "{{ id }}", "x-opt-list": []any{1, "a"}})
		c.Properties = amqp10.Properties{
			Subject: "{{ source }}.report", To: "to", ReplyTo: "back", ContentEncoding: "identity", CorrelationID: "c-{{ id }}",
			GroupID: "g", UserID: "relay", Priority: "7", TTL: "10m",
		}
		r := run(t, c)
		r.Await(relay.Up)
		ms := relaytest.Messages("m", len(bodies), 0)
		for i := range ms {
			ms[i].Body = bodies[i]
			ms[i].Attempt = i + 1
			ms[i].Attributes = map[string]string{relay.AttributeBody: relay.BodyBase64}
		}
		relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, ms))
		got := awaitMessages(t, p, len(bodies))
		require.Len(t, got, len(bodies))
		for i, m := range got {
			require.Equal(t, string(bodies[i]), string(m.Body()))
			require.Equal(t, "accept.sms", m.Address)
			require.Equal(t, document.ContentType(ms[i].Body), m.ContentType)
			require.Equal(t, ms[i].EnqueuedAt.UnixMilli(), m.CreationTime)
			require.Equal(t, []any{
				fmt.Sprintf("m-%d", i), true, 7, int64(600_000), "sms.report", "to", "back", "identity", fmt.Sprintf("c-m-%d", i), "g", "relay", false,
			}, []any{
				m.ID, m.Durable, m.Priority, m.TTL, m.Subject, m.To, m.ReplyTo, m.ContentEncoding, m.CorrelationID, m.GroupID, m.UserID, m.Settled,
			})
			requireJSON(t, map[string]any{
				"text": pair("string", "短信"), "number": pair("long", 5), "fraction": pair("double", 0.5), "yes": pair("bool", true),
				"at": pair("timestamp", at.UnixMilli()), "attempt": pair("long", i+1), "id": pair("string", fmt.Sprintf("<m-%d>", i)),
				"bytes":                binary(fmt.Appendf(nil, "m-%d", i)),
				relay.HeaderSource:     pair("string", "sms"),
				relay.HeaderAttempt:    pair("long", i+1),
				relay.HeaderEnqueuedAt: pair("string", "2026-03-01T09:30:00.045Z"),
				relay.HeaderBody:       pair("string", "base64"),
			}, m.Properties)
			requireJSON(t, map[string]any{
				"x-opt-partition-key": pair("string", fmt.Sprintf("m-%d", i)),
				"x-opt-list":          pair("list", []any{pair("long", 1), pair("string", "a")}),
			}, m.Annotations)
		}
	})
}

// requireJSON compares values by their JSON.
func requireJSON(t *testing.T, want, got any) {
	t.Helper()
	w, err := json.Marshal(want)
	require.NoError(t, err)
	g, err := json.Marshal(got)
	require.NoError(t, err)
	require.JSONEq(t, string(w), string(g))
}

// What a message makes of a template can fail that message, and no other; no value is told.
func TestInvalidPropertiesRejectTheirMessage(t *testing.T) {
	t.Parallel()
	p := amqppeer.Start(t, amqppeer.Proton)
	long := strings.Repeat("hunter2", 10_000)
	for name, set := range map[string]func(c *amqp10.Config){
		"address": func(c *amqp10.Config) { c.Address = `{{ body.bad ? "" : "accept" }}` },
		"subject": func(c *amqp10.Config) { c.Properties.Subject = `{{ body.bad ? text : "s" }}` },
		"property": func(c *amqp10.Config) {
			c.ApplicationProperties = values(map[string]any{"p": `{{ body.bad ? text : "s" }}`})
		},
		"annotation": func(c *amqp10.Config) {
			c.MessageAnnotations = values(map[string]any{"p": `{{ body.bad ? text : "s" }}`})
		},
		"priority":    func(c *amqp10.Config) { c.Properties.Priority = `{{ body.bad ? 256 : 9 }}` },
		"ttl":         func(c *amqp10.Config) { c.Properties.TTL = `{{ body.bad ? "soon" : "1h" }}` },
		"symbol":      func(c *amqp10.Config) { c.Properties.ContentType = `{{ body.bad ? "短信" : "text/plain" }}` },
		"expression":  func(c *amqp10.Config) { c.Properties.GroupID = `{{ body.bad ? body.hunter2 : "g" }}` },
		"control":     func(c *amqp10.Config) { c.Properties.Subject = `{{ body.bad ? "a\x00b\r\n" : "s" }}` },
		"odd address": func(c *amqp10.Config) { c.Address = `{{ body.bad ? "accept/\r\n#?短" : "accept" }}` },
	} {
		t.Run(name, func(t *testing.T) {
			c := config(p, "accept")
			set(c)
			r := run(t, c)
			r.Await(relay.Up)
			ms := relaytest.Messages("m", 64, 0)
			for i := range ms {
				ms[i].Body = []byte(`{"bad": false}`)
				if i%8 == 3 {
					ms[i].Body = fmt.Appendf(nil, `{"bad": true, "filler": "%s"}`, long)
				}
			}
			for i, result := range relaytest.Deliver(t.Context(), t, r.Sink, ms) {
				if i%8 != 3 || name == "control" || name == "odd address" {
					require.NoError(t, result.Err, "message %d", i)
					require.Equal(t, relay.Delivered, result.Outcome)
					continue
				}
				require.Equal(t, relay.Rejected, result.Outcome, "message %d: %v", i, result.Err)
				require.Contains(t, []string{"invalid_property", "expression"}, relay.ReasonOf(result.Err))
				require.NotContains(t, result.Err.Error(), "hunter2hunter2")
			}
			require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len(), "the connection stood: %s", r.Logged())
		})
	}
}

// Addresses that messages decide do not make the links grow without end.
func TestLinksAreBounded(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, p *amqppeer.Peer) {
		t.Helper()
		r := run(t, config(p, "accept.{{ id }}"))
		r.Await(relay.Up)
		var work sync.WaitGroup
		for n := range 4 {
			work.Go(func() {
				relaytest.RequireDelivered(t, relaytest.Deliver(t.Context(), t, r.Sink, relaytest.Messages(strconv.Itoa(n), 60, 10)))
			})
		}
		work.Wait()
		require.Len(t, ids(p), 240)
		require.Equal(t, 1, r.Log.FilterMessage("connected to the broker").Len())
	})
}
