package mns_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	sink "mnsrelay/internal/sink/mns"
)

func text(body string) relay.Message { return relay.Message{ID: body, Source: "s", Body: []byte(body)} }

func requireResult(t *testing.T, want relay.Outcome, reason string, r relay.Result) {
	t.Helper()
	require.Equal(t, want, r.Outcome, "%v", r.Err)
	if reason == "" {
		require.NoError(t, r.Err)
		return
	}
	require.Equal(t, reason, relay.ReasonOf(r.Err), "%v", r.Err)
}

func TestRawBodiesGoAsTheyWere(t *testing.T) {
	wasBase64 := map[string]string{relay.AttributeBody: relay.BodyBase64}
	for _, c := range []struct {
		name   string
		body   mns.BodyEncoding
		m      relay.Message
		want   string
		reason string
	}{
		{"auto, text", mns.BodyAuto, text("<a>&\r\n短"), "<a>&\r\n短", ""},
		{"auto, was base64", mns.BodyAuto, relay.Message{Body: []byte("text"), Attributes: wasBase64}, "dGV4dA==", ""},
		{"auto, binary", mns.BodyAuto, text("a\x00\xff"), "YQD/", ""},
		{"base64", mns.BodyBase64, text("text"), "dGV4dA==", ""},
		{"raw", mns.BodyRaw, relay.Message{Body: []byte("text"), Attributes: wasBase64}, "text", ""},
		{"raw, binary", mns.BodyRaw, text("a\x00\xff"), "", "not_text"},
		{"64 KiB", mns.BodyAuto, text(strings.Repeat("a", 64<<10)), strings.Repeat("a", 64<<10), ""},
		{"a byte more", mns.BodyAuto, text(strings.Repeat("a", 64<<10+1)), "", "too_large"},
		{"too large as base64 only", mns.BodyBase64, text(strings.Repeat("a", 50<<10)), "", "too_large"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, url := startServer(t, emulator.QueueConfig{})
			s := run(t, open(t, url, func(conf *sink.Config) { conf.Body = c.body }), relay.Up)
			results := deliver(t, s, text("before"), c.m, text("after"))
			requireResult(t, relay.Delivered, "", results[0])
			requireResult(t, relay.Delivered, "", results[2])
			want := []string{"before", c.want, "after"}
			if c.body == mns.BodyBase64 {
				want[0], want[2] = "YmVmb3Jl", "YWZ0ZXI="
			}
			if c.reason != "" {
				requireResult(t, relay.Rejected, c.reason, results[1])
				want = []string{want[0], want[2]}
			} else {
				requireResult(t, relay.Delivered, "", results[1])
			}
			require.ElementsMatch(t, want, (&reader{url: url}).bodies(t))
		})
	}
}

func TestDeadLettersGoInEnvelopesAlways(t *testing.T) {
	_, url := startServer(t, emulator.QueueConfig{})
	s := run(t, open(t, url, nil), relay.Up) // format raw
	dead, large := text("why"), text(strings.Repeat("x", 50<<10))
	dead.Dead = &relay.DeadLetter{Reason: "max_receives", Error: "status 500", Sink: "hook", First: time.Now(), Last: time.Now()}
	large.Dead = dead.Dead
	results := deliver(t, s, dead, large, text("plain"))
	requireResult(t, relay.Delivered, "", results[0])
	requireResult(t, relay.Rejected, "too_large", results[1])
	requireResult(t, relay.Delivered, "", results[2])

	bodies := (&reader{url: url}).bodies(t)
	require.Len(t, bodies, 2)
	require.Contains(t, bodies, "plain")
	for _, body := range bodies {
		if body == "plain" {
			continue
		}
		e, is, err := mns.ReadEnvelope([]byte(body))
		require.NoError(t, err)
		require.True(t, is)
		require.Equal(t, "why", string(e.Body))
		require.Equal(t, "max_receives", e.Reason)
		require.Equal(t, "hook", e.Sink)
	}
}

func TestARouteHasItsOwnSettings(t *testing.T) {
	_, url := startServer(t, emulator.QueueConfig{})
	endpoint := open(t, url, nil)
	run(t, endpoint, relay.Up)
	s, err := endpoint.Bind(func(settings any) error {
		settings.(*sink.Settings).Format = sink.FormatEnvelope
		return nil
	})
	require.NoError(t, err)
	requireResult(t, relay.Delivered, "", deliver(t, s, text("x"))[0])
	_, is, err := mns.ReadEnvelope([]byte((&reader{url: url}).bodies(t)[0]))
	require.NoError(t, err)
	require.True(t, is)

	_, err = endpoint.Bind(func(settings any) error {
		settings.(*sink.Settings).Timeout = 0
		return nil
	})
	require.ErrorContains(t, err, "timeout")
}

func TestRequestsAreAsFewAsMNSAllows(t *testing.T) {
	for _, c := range []struct {
		messages, size int
		requests       int64
	}{{16, 10, 1}, {17, 10, 2}, {40, 10, 3}, {16, 4 << 10, 1}, {16, 4<<10 + 1, 2}, {3, 64 << 10, 3}} {
		t.Run(fmt.Sprintf("%d of %d bytes", c.messages, c.size), func(t *testing.T) {
			server, url := startServer(t, emulator.QueueConfig{})
			s := run(t, open(t, url, nil), relay.Up)
			ms := make([]relay.Message, c.messages)
			for i := range ms {
				ms[i] = text(strings.Repeat("x", c.size))
			}
			for _, r := range deliver(t, s, ms...) {
				requireResult(t, relay.Delivered, "", r)
			}
			require.Equal(t, c.requests, server.Requests()[emulator.OpSend]["OK"])
			stats, _ := server.QueueStats(queueName)
			require.EqualValues(t, c.messages, stats.Sent)
		})
	}
}

// A queue may take less than 64 KiB, and refuses a whole request for one body.
func TestOneThatIsRefusedDoesNotHoldUpItsNeighbours(t *testing.T) {
	server, url := startServer(t, emulator.QueueConfig{MaximumMessageSize: 1024})
	endpoint := open(t, url, nil)
	s := run(t, endpoint, relay.Up)
	results := deliver(t, s, text("a"), text(strings.Repeat("x", 2000)), text("b"))
	requireResult(t, relay.Delivered, "", results[0])
	requireResult(t, relay.Rejected, "refused", results[1])
	requireResult(t, relay.Delivered, "", results[2])
	requireResult(t, relay.Rejected, "refused", deliver(t, s, text(strings.Repeat("x", 2000)))[0])
	stats, _ := server.QueueStats(queueName)
	require.EqualValues(t, 2, stats.Sent)
	health, _ := endpoint.Health()
	require.Equal(t, relay.Up, health.State, "a message that is refused says nothing about the queue")
}

func TestOfARequestThatWasTakenInPartOnlyTheRestIsTriedAgain(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = fmt.Fprint(w, `<Queue><ActiveMessages>0</ActiveMessages></Queue>`)
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = fmt.Fprint(w, `<Messages xmlns="http://mns.aliyuncs.com/doc/v1/">`+
			`<Message><MessageId>1</MessageId></Message>`+
			`<Message><ErrorCode>InternalError</ErrorCode><ErrorMessage>try again</ErrorMessage></Message>`+
			`<Message><ErrorCode>InvalidArgument</ErrorCode><ErrorMessage>never</ErrorMessage></Message>`+
			`</Messages>`)
	}))
	defer server.Close()
	endpoint := open(t, server.URL, nil)
	s := run(t, endpoint, relay.Up)
	results := deliver(t, s, text("a"), text("b"), text("c"))
	requireResult(t, relay.Delivered, "", results[0])
	requireResult(t, relay.Retry, "server", results[1])
	requireResult(t, relay.Rejected, "refused", results[2])
	health, _ := endpoint.Health()
	require.Equal(t, relay.Up, health.State)
}

// An answer that is lost leaves the messages in the queue and not confirmed: they are
// sent again.
func TestALostAnswerIsARetry(t *testing.T) {
	server, url := startServer(t, emulator.QueueConfig{})
	fault(t, server, emulator.Fault{Operation: emulator.OpSend, Connection: emulator.DropAfter, Count: 1})
	endpoint := open(t, url, nil)
	s := run(t, endpoint, relay.Up)
	requireResult(t, relay.Retry, "network", deliver(t, s, text("a"))[0])
	requireResult(t, relay.Delivered, "", deliver(t, s, text("a"))[0])
	require.Equal(t, []string{"a", "a"}, (&reader{url: url}).bodies(t))
}

func TestKeysThatMayOnlySendAreEnough(t *testing.T) {
	server, url := startServer(t, emulator.QueueConfig{})
	fault(t, server, emulator.Fault{Operation: emulator.OpAttributes, Status: http.StatusForbidden, Code: "AccessDenied"})
	endpoint := open(t, url, nil)
	s := run(t, endpoint, relay.Up)
	requireResult(t, relay.Delivered, "", deliver(t, s, text("a"))[0])

	// The first send tells what the attributes cannot.
	fault(t, server, emulator.Fault{Operation: emulator.OpSend, Status: http.StatusNotFound, Code: "QueueNotExist", Count: 2})
	requireResult(t, relay.Retry, "not_found", deliver(t, s, text("b"))[0])
	await(t, endpoint, relay.Probe)
	requireResult(t, relay.Retry, "not_found", deliver(t, s, text("b"))[0])
	health, _ := endpoint.Health()
	require.NotEqual(t, relay.Up, health.State)
	await(t, endpoint, relay.Probe)
	requireResult(t, relay.Delivered, "", deliver(t, s, text("b"))[0])
	health, _ = endpoint.Health()
	require.Equal(t, relay.Up, health.State)
}

func TestDownSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		name, words string
		spoil       func(*testing.T, *emulator.Server)
	}{
		{"no such queue", "; create the queue, or check the endpoint and the name", func(t *testing.T, s *emulator.Server) {
			t.Helper()
			require.True(t, s.DeleteQueue(queueName))
		}},
		{"keys that do not match", "SignatureDoesNotMatch", func(t *testing.T, s *emulator.Server) {
			t.Helper()
			fault(t, s, emulator.Fault{Status: http.StatusForbidden, Code: "SignatureDoesNotMatch"})
		}},
		{"a gateway", "502 Bad Gateway, not an answer of MNS", func(t *testing.T, s *emulator.Server) {
			t.Helper()
			fault(t, s, emulator.Fault{Status: http.StatusBadGateway, Body: "<html>"})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server, url := startServer(t, emulator.QueueConfig{})
			c.spoil(t, server)
			endpoint := open(t, url, nil)
			run(t, endpoint, relay.Down)
			require.Eventually(t, func() bool {
				health, _ := endpoint.Health()
				return strings.Contains(health.Reason, c.words)
			}, 5*time.Second, 5*time.Millisecond, c.words)
			server.ClearFaults()
			require.NoError(t, server.CreateQueue(queueName, emulator.QueueConfig{}))
			await(t, endpoint, relay.Up) // no message was refused: there is nothing to probe
		})
	}
	t.Run("keys that may not send", func(t *testing.T) {
		server, url := startServer(t, emulator.QueueConfig{})
		require.NoError(t, server.SetPolicy(emulator.PolicyReceiveDelete))
		endpoint := open(t, url, nil)
		s := run(t, endpoint, relay.Up)
		requireResult(t, relay.Retry, "auth", deliver(t, s, text("a"))[0])
		health, _ := endpoint.Health()
		require.NotEqual(t, relay.Up, health.State)
		if health.State == relay.Down {
			require.Contains(t, health.Reason, "allow the keys mns:SendMessage on the queue")
		}
		require.NoError(t, server.SetPolicy(emulator.PolicyFull))
		await(t, endpoint, relay.Probe)
		requireResult(t, relay.Delivered, "", deliver(t, s, text("a"))[0])
	})
}

// tokenConfig makes the queue of an Alicom message type, whose credential is a token.
func tokenConfig(url string) func(*sink.Config) {
	return func(c *sink.Config) {
		c.Credentials = credentials.Config{
			Type: credentials.TypeMNSToken, MessageType: "SmsReport", Region: "cn-hangzhou", Endpoint: setting.NewURL(url),
			AccessKeyID: setting.NewSecret(emulator.DemoAccessKeyID), AccessKeySecret: setting.NewSecret(emulator.DemoAccessKeySecret),
		}
	}
}

func TestARefusedTokenIsReplaced(t *testing.T) {
	server, url := startServer(t, emulator.QueueConfig{})
	endpoint := open(t, url, tokenConfig(url))
	s := run(t, endpoint, relay.Up)
	requireResult(t, relay.Delivered, "", deliver(t, s, text("a"))[0])
	require.Equal(t, 1, server.RevokeTokens())
	requireResult(t, relay.Retry, "auth", deliver(t, s, text("b"))[0])
	require.Eventually(t, func() bool {
		return deliver(t, s, text("b"))[0].Outcome == relay.Delivered
	}, 10*time.Second, 20*time.Millisecond)
	require.EqualValues(t, 2, server.Requests()[emulator.OpToken]["OK"])
}

func TestDownUntilTheFirstCredential(t *testing.T) {
	server, url := startServer(t, emulator.QueueConfig{})
	fault(t, server, emulator.Fault{Operation: emulator.OpToken, Status: http.StatusOK, Code: "isv.NO_PERMISSION"})
	endpoint := open(t, url, tokenConfig(url))
	s := run(t, endpoint, relay.Down)
	requireResult(t, relay.Retry, "no_keys", deliver(t, s, text("a"))[0])
	require.Eventually(t, func() bool {
		health, _ := endpoint.Health()
		return health.State == relay.Down && strings.Contains(health.Reason, "there is no credential: ") && strings.Contains(health.Reason, "isv.NO_PERMISSION")
	}, 10*time.Second, 10*time.Millisecond)
	server.ClearFaults()
	deadline := time.Now().Add(15 * time.Second)
	for deliver(t, s, text("a"))[0].Outcome != relay.Delivered {
		require.True(t, time.Now().Before(deadline))
		<-time.After(20 * time.Millisecond)
	}
	await(t, endpoint, relay.Up)
}

func TestTheTimeoutOfARouteBoundsItsDeliveries(t *testing.T) {
	server, url := startServer(t, emulator.QueueConfig{})
	fault(t, server, emulator.Fault{Operation: emulator.OpSend, Delay: emulator.Duration(30 * time.Second)})
	endpoint := open(t, url, func(c *sink.Config) { c.Timeout = 10 * time.Minute })
	run(t, endpoint, relay.Up)
	s, err := endpoint.Bind(func(settings any) error {
		settings.(*sink.Settings).Timeout = 50 * time.Millisecond
		return nil
	})
	require.NoError(t, err)
	began := time.Now()
	requireResult(t, relay.Retry, "timeout", deliver(t, s, text("a"))[0])
	require.Less(t, time.Since(began), 5*time.Second)

	// The end of a lease is not the queue's fault.
	patient, err := endpoint.Bind(nil)
	require.NoError(t, err)
	await(t, endpoint, relay.Probe)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var result relay.Result
	patient.Deliver(ctx, []relay.Message{text("a")}, func(_ int, r relay.Result) { result = r })
	requireResult(t, relay.Retry, "canceled", result)
	health, _ := endpoint.Health()
	require.Equal(t, relay.Probe, health.State)
}
