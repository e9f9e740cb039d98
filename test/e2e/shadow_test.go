package e2e_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/setting"
	"mnsrelay/test/broker"
)

// fixed are the keys of a puller that is none of the relay's.
type fixed struct{ keys credentials.Keys }

func (f fixed) Current() (credentials.Keys, error) { return f.keys, nil }
func (f fixed) Refused(credentials.Keys)           {}

// count gives the requests of one operation so far, whatever their answers.
func count(server *emulator.Server, op emulator.Op) (total int64) {
	for _, n := range server.Requests()[op] {
		total += n
	}
	return total
}

// The first day: beside an old puller the relay looks and takes nothing, in the queue or at
// the broker, and says what it would send. Switched by a reload, it delivers everything.
func TestShadowModeTakesNothingAndThenRelays(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 2 * time.Second})
	b := newInbox(t, broker.URL(t))
	audited := filepath.Join(t.TempDir(), "audit.jsonl")
	exchange := b.exchange + ".declared"
	configuration := strings.Replace(toRabbitMQ(url, queue, b, "    mode: shadow"), "exchange: "+b.exchange,
		"exchange: {name: "+exchange+", declare: active}", 1) + `
  lines: {type: file, path: "` + audited + `"}
audit: {to: lines, key: '{{ body.biz_id }}'}
`
	sent := send(t, server, queue, 12, 0)
	file := newConfigFile(t, configuration)
	begun := time.Now()
	r := runRelay(t, file.path)
	eventually(t, 10*time.Second, "all were seen", func() bool {
		s := r.source().Shadow
		return s != nil && s.Seen == uint64(len(sent))
	})
	status := r.status()
	source := status.Sources[0]
	require.Equal(t, api.SourceStateShadow, source.State)
	require.Empty(t, source.Reason)
	require.Equal(t, uint64(len(sent)), source.Shadow.WouldDeliver)
	require.Zero(t, source.Shadow.WouldDeadLetter+source.Shadow.WouldDelete+source.Shadow.WouldRetain)
	require.Len(t, source.Shadow.Previews, len(sent))
	for _, p := range source.Shadow.Previews {
		require.Contains(t, sent, p.MessageId)
		require.Equal(t, 1, p.Attempt)
		require.Equal(t, []api.WouldDeliver{{Route: "sms", Sink: "events", Target: exchange}}, p.Deliveries)
	}
	eventually(t, 10*time.Second, "the queue tells how many it has", func() bool {
		q := r.source().QueueMessages
		return q != nil && q.Active != nil && *q.Active == int64(len(sent))
	})
	seen := source.Shadow.Previews[0]
	code, body := r.get("/api/v1/messages/" + seen.MessageId)
	require.Equal(t, http.StatusOK, code)
	var message api.MessageState
	require.NoError(t, json.Unmarshal([]byte(body), &message))
	require.Equal(t, []api.MessagePreview{{Source: "sms", Preview: seen}}, message.Previews)
	code, _ = r.get("/readyz")
	require.Equal(t, http.StatusOK, code)
	for _, sink := range status.Sinks {
		if sink.Name == "events" {
			require.Equal(t, api.SinkStateIdle, sink.State)
		}
	}
	code, body = r.get("/api/v1/sources/sms")
	require.Equal(t, http.StatusOK, code)
	require.NotContains(t, body, "13900001234", "no body is shown")
	_, metrics := r.get("/metrics")
	require.Contains(t, metrics, `mnsrelay_shadow_messages_total{source="sms"} 12`)
	require.Contains(t, metrics, `mnsrelay_shadow_deliveries_total{route="sms",sink="events",source="sms"} 12`)
	for _, absent := range []string{"mnsrelay_messages_received_total{", "mnsrelay_messages_delivered_total{", "mnsrelay_in_flight_messages{", `mnsrelay_sink_up{sink="events"}`} {
		require.NotContains(t, metrics, absent)
	}

	// The old puller receives each for the first time.
	puller, err := mns.NewQueue(mns.Config{Name: "old", Endpoint: url, Queue: queue}, mns.Deps{
		Credentials: fixed{credentials.Keys{AccessKeyID: keyID, AccessKeySecret: setting.NewSecret(keySecret)}},
	})
	require.NoError(t, err)
	defer puller.Close()
	deliveries, err := puller.BatchReceive(t.Context(), 16, 0)
	require.NoError(t, err)
	require.Len(t, deliveries, len(sent))
	for _, d := range deliveries {
		require.Equal(t, 1, d.Attempt, "a look is no receive")
	}
	taken := deliveries[0]
	_, err = puller.BatchDelete(t.Context(), []string{taken.Receipt})
	require.NoError(t, err)
	delete(sent, taken.ID)

	// Looked at again, with the leases of the old puller over, they are not told of again.
	looks := count(server, emulator.OpPeek)
	eventually(t, 25*time.Second, "another look, at visible messages", func() bool {
		return count(server, emulator.OpPeek) > looks && r.source().Shadow.Head == len(sent)
	})
	require.Equal(t, uint64(12), r.source().Shadow.Seen)
	require.LessOrEqual(t, count(server, emulator.OpPeek), 2+int64(time.Since(begun)/(10*time.Second)), "a look every ten seconds")
	require.Equal(t, int64(1), count(server, emulator.OpReceive), "the old puller's")
	require.Equal(t, int64(1), count(server, emulator.OpDelete), "the old puller's")
	require.Zero(t, count(server, emulator.OpVisibility))
	conn, err := amqp.Dial(b.url)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	require.NoError(t, err)
	require.Error(t, ch.ExchangeDeclarePassive(exchange, "topic", true, false, false, false, nil), "nothing is declared")
	lines := auditLines(t, audited)
	require.Len(t, lines, 12)
	for _, line := range lines {
		require.Equal(t, "would_deliver", line.Audit)
		require.Equal(t, exchange, line.Target)
		require.NotEmpty(t, line.Key)
	}

	// The day after.
	b.start()
	file.write(strings.Replace(toRabbitMQ(url, queue, b, "    mode: relay"), "mode: relay", "mode: relay\n    wait: 1s", 1) + `
  lines: {type: file, path: "` + audited + `"}
audit: {to: lines, key: '{{ body.biz_id }}'}
`)
	require.NoError(t, r.Signal(syscall.SIGHUP))
	eventually(t, 20*time.Second, "everything is delivered and deleted", func() bool { return left(t, server, queue) == 0 })
	eventually(t, 5*time.Second, "everything has arrived", func() bool { n, _ := b.counts(); return n == len(sent) })
	b.requireAll(sent)
	require.Nil(t, r.source().Shadow)
	require.Equal(t, api.SourceStateRunning, r.source().State)
	require.True(t, r.source().Balance.Exact)
	delivered := map[string]bool{} // a slow machine delivers twice what has leases of two seconds
	for _, line := range auditLines(t, audited) {
		if line.Audit == "delivered" {
			delivered[line.MessageID] = true
		}
	}
	require.Len(t, delivered, len(sent))
	for id := range sent {
		require.True(t, delivered[id], "message %s has no line", id)
	}
	require.Zero(t, r.end(syscall.SIGTERM))
}

// A token that may only receive and delete cannot look: that is said once, with what to do,
// and keeps nobody from anything.
func TestShadowModeSaysWhereTheTokenMayNotPeek(t *testing.T) {
	t.Parallel()
	server, url, queue := startEmulator(t, emulator.Config{TokenPolicy: emulator.PolicyReceiveDelete}, emulator.QueueConfig{})
	send(t, server, queue, 3, 0)
	r := startRelay(t, toWebhook(url, queue, "http://127.0.0.1:1/", "    mode: shadow"))
	eventually(t, 10*time.Second, "said in the status", func() bool { return strings.Contains(r.source().Reason, "may not peek") })
	s := r.source()
	require.Equal(t, api.SourceStateShadow, s.State)
	require.Contains(t, s.Reason, "mns:PeekMessage")
	code, _ := r.get("/readyz")
	require.Equal(t, http.StatusOK, code)
	require.Equal(t, 1, strings.Count(r.log(), "may not peek"))
	require.Equal(t, int64(1), count(server, emulator.OpPeek))
	require.Zero(t, count(server, emulator.OpReceive))
	require.Zero(t, s.Shadow.Seen)
	require.Zero(t, r.end(syscall.SIGTERM))
}

// auditLine is a line of an audit, read without the relay's own code.
type auditLine struct {
	Time, Audit, Source, Route, Sink, Target, Reason, Key string
	MessageID                                             string `json:"message_id"`
	KeyHash                                               string `json:"key_hash"`
	Attempt                                               int
	Duration                                              float64
}

// auditLines reads an audit, of which each line must be whole.
func auditLines(t *testing.T, path string) (lines []auditLine) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for one := range strings.Lines(string(text)) {
		var line auditLine
		require.NoError(t, json.Unmarshal([]byte(one), &line), one)
		lines = append(lines, line)
	}
	return lines
}
