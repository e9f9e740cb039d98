package webhook_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/document"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// hall takes batches of bodies like {"id": "1"} and answers as it is told.
type hall struct {
	*server

	mu      sync.Mutex
	batches [][]string // the ids of each request
	answer  func(w http.ResponseWriter, ids []string)
}

func newHall(t *testing.T, answer func(w http.ResponseWriter, ids []string)) *hall {
	t.Helper()
	h := &hall{answer: answer}
	h.server = start(t, func(w http.ResponseWriter, req *http.Request) {
		var bodies []struct {
			ID string `json:"id"`
		}
		data, err := io.ReadAll(req.Body)
		if err != nil || json.Unmarshal(data, &bodies) != nil {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		ids := make([]string, len(bodies))
		for i := range bodies {
			ids[i] = bodies[i].ID
		}
		h.mu.Lock()
		h.batches = append(h.batches, ids)
		h.mu.Unlock()
		if h.answer != nil {
			h.answer(w, ids)
		}
	})
	return h
}

func (h *hall) taken() [][]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.batches)
}

func (h *hall) sink(t *testing.T, batch webhook.Batch) relay.Sink {
	t.Helper()
	return sinkWith(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(h.url)
		if batch.MaxBytes == 0 {
			batch.MaxBytes = setting.MiB
		}
		c.Batch = batch
	})
}

func numbered(from, to int) []relay.Message {
	var ms []relay.Message
	for i := from; i <= to; i++ {
		ms = append(ms, message(strconv.Itoa(i)))
	}
	return ms
}

func ids(from, to int) []string {
	var all []string
	for i := from; i <= to; i++ {
		all = append(all, strconv.Itoa(i))
	}
	return all
}

// Batches pass the suite of all sinks: what arrives is in the bodies of requests.
func TestBatchConformance(t *testing.T) {
	relaytest.TestSink(t, relaytest.SinkHarness{
		Start:    func(t *testing.T) relaytest.FarSide { t.Helper(); return batchFarSide(t) },
		Timeout:  timeout,
		Recovery: probe,

		OnlyDelivery: []string{"answers 503", "does not answer", "hangs"},
	})
}

func batchFarSide(t *testing.T) relaytest.FarSide {
	t.Helper()
	var mu sync.Mutex
	var got []relaytest.Arrival
	var otherwise http.HandlerFunc
	set := func(h http.HandlerFunc) {
		mu.Lock()
		defer mu.Unlock()
		otherwise = h
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if other := otherwise; other != nil {
			mu.Unlock()
			defer mu.Lock()
			other(w, req)
			return
		}
		arrived, err := unpacked(req)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		got = append(got, arrived...)
	}))
	t.Cleanup(server.Close)
	proxy := relaytest.NewProxy(t, server.Listener.Addr().String())
	return relaytest.FarSide{
		Endpoint: open(t, func(c *webhook.Config) {
			c.URL = setting.NewURL("http://" + proxy.Addr())
			c.Format = format.JSON
			c.Batch = webhook.Batch{MaxMessages: 7, MaxBytes: 100 * setting.KiB, Linger: 5 * time.Millisecond}
		}),
		Arrived: func(*testing.T) []relaytest.Arrival {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(got)
		},
		Break: map[string]func(){
			"refuses":         proxy.Refuse,
			"hangs":           proxy.Hang,
			"does not answer": func() { set(silent) },
			"answers 503": func() {
				set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
			},
		},
		Mend: func() {
			set(nil)
			proxy.Mend()
		},
	}
}

// unpacked gives the messages of a request in the form of the file sink.
func unpacked(req *http.Request) (arrived []relaytest.Arrival, err error) {
	var messages []struct {
		ID         string            `json:"id"`
		Source     string            `json:"source"`
		Attempt    int               `json:"attempt"`
		EnqueuedAt string            `json:"enqueued_at"`
		Attributes map[string]string `json:"attributes"`
		Body       *string           `json:"body"`
		BodyBase64 []byte            `json:"body_base64"`
	}
	if err := json.NewDecoder(req.Body).Decode(&messages); err != nil {
		return nil, err
	}
	for _, m := range messages {
		headers := arrivalHeaders(req.Header) // of one that goes alone
		headers[relay.HeaderSource], headers[relay.HeaderAttempt] = m.Source, strconv.Itoa(m.Attempt)
		body := m.BodyBase64
		if m.Body != nil {
			body = []byte(*m.Body)
		}
		encoding := m.Attributes["body"]
		if encoding == "" {
			encoding = relay.BodyRaw
		}
		headers[relay.HeaderEnqueuedAt], headers[relay.HeaderBody] = m.EnqueuedAt, encoding
		arrived = append(arrived, relaytest.Arrival{ID: m.ID, Body: body, ContentType: document.ContentType(body), Headers: headers})
	}
	return arrived, nil
}

// Messages of several calls share a request, which is sent when it is full, or when its
// first message has waited long enough.
func TestBatchGathers(t *testing.T) {
	t.Run("until it is full", func(t *testing.T) {
		far := newHall(t, nil)
		sink := far.sink(t, webhook.Batch{MaxMessages: 8, Linger: 10 * time.Second})
		began := time.Now()
		var calls sync.WaitGroup
		for call := range 4 {
			calls.Go(func() { requireDelivered(t, deliver(t, sink, numbered(call*4, call*4+3)...)) })
		}
		calls.Wait()
		require.Less(t, time.Since(began), 5*time.Second, "what is full does not wait")
		taken := far.taken()
		require.Len(t, taken, 2)
		require.Len(t, taken[0], 8)
		require.ElementsMatch(t, ids(0, 15), append(slices.Clone(taken[0]), taken[1]...))
	})
	t.Run("for the linger", func(t *testing.T) {
		far := newHall(t, nil)
		sink := far.sink(t, webhook.Batch{MaxMessages: 8, Linger: 200 * time.Millisecond})
		began := time.Now()
		requireDelivered(t, deliver(t, sink, numbered(1, 3)...))
		require.GreaterOrEqual(t, time.Since(began), 200*time.Millisecond)
		require.Equal(t, [][]string{ids(1, 3)}, far.taken())
	})
	t.Run("not without a linger", func(t *testing.T) {
		far := newHall(t, nil)
		sink := far.sink(t, webhook.Batch{MaxMessages: 8})
		requireDelivered(t, deliver(t, sink, numbered(1, 10)...))
		require.ElementsMatch(t, [][]string{ids(1, 8), ids(9, 10)}, far.taken(), "what came together goes together")
	})
}

func TestBatchIsBoundedByBytes(t *testing.T) {
	far := newHall(t, nil)
	sink := far.sink(t, webhook.Batch{MaxMessages: 100, MaxBytes: setting.KiB})
	ms := numbered(1, 5)
	for i := range ms {
		ms[i].Body = []byte(fmt.Sprintf(`{"id":"%d","x":"%s"}`, i+1, strings.Repeat("x", 400)))
	}
	ms[2].Body = []byte(fmt.Sprintf(`{"id":"3","x":"%s"}`, strings.Repeat("x", 5000)))
	requireDelivered(t, deliver(t, sink, ms...))
	require.ElementsMatch(t, [][]string{{"1", "2"}, {"3"}, {"4", "5"}}, far.taken())
}

func TestBatchFormats(t *testing.T) {
	ms := numbered(1, 3)
	ms[1].Body = []byte("短 \"text\"")
	ms[2].Body = []byte("\xff\x00")
	post := func(t *testing.T, change func(c *webhook.Config)) (results []relay.Result, contentType string, body []byte) {
		t.Helper()
		far := capturing(t)
		results = deliver(t, sinkWith(t, func(c *webhook.Config) {
			c.URL = setting.NewURL(far.url)
			c.Batch = webhook.Batch{MaxMessages: 8, MaxBytes: setting.MiB}
			change(c)
		}), ms...)
		return results, far.last().Header.Get("Content-Type"), far.lastBody()
	}

	t.Run("body", func(t *testing.T) {
		results, contentType, body := post(t, func(*webhook.Config) {})
		requireDelivered(t, results[:2])
		requireFailure(t, relay.Rejected, "invalid_property", results[2])
		require.JSONEq(t, `[{"id":"1"},"短 \"text\""]`, string(body))
		require.Equal(t, "application/json", contentType)
	})
	t.Run("template", func(t *testing.T) {
		results, _, body := post(t, func(c *webhook.Config) { c.Body = `{"n": "{{ id }}"}` })
		requireDelivered(t, results)
		require.JSONEq(t, `[{"n":"1"},{"n":"2"},{"n":"3"}]`, string(body))
	})
	t.Run("json", func(t *testing.T) {
		results, contentType, body := post(t, func(c *webhook.Config) { c.Format = format.JSON })
		requireDelivered(t, results)
		require.Contains(t, string(body), `"body_base64":"/wA="`)
		require.True(t, json.Valid(body))
		require.Equal(t, "application/json", contentType)
	})
	t.Run("cloudevents", func(t *testing.T) {
		results, contentType, body := post(t, func(c *webhook.Config) {
			c.Format = format.CloudEvents
			c.Headers = map[string]setting.Secret{"content-type": setting.NewSecret("text/plain")}
		})
		requireDelivered(t, results)
		require.Equal(t, "application/cloudevents-batch+json; charset=utf-8", contentType)
		var events []event.Event
		require.NoError(t, json.Unmarshal(body, &events))
		require.Len(t, events, 3)
		for i := range events {
			require.NoError(t, events[i].Validate())
			require.Equal(t, ms[i].ID, events[i].ID())
			if i != 1 { // JSON has texts in quotes, and the library keeps them
				require.Equal(t, string(ms[i].Body), string(events[i].Data()))
			}
		}
	})
}

// A request has an id, a signature and a source, and where it holds one message, what that
// has beside its body.
func TestBatchHeaders(t *testing.T) {
	far := capturing(t)
	sink := sinkWith(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Batch = webhook.Batch{MaxMessages: 8, MaxBytes: setting.MiB}
		c.Signing.Secrets = []setting.Secret{setting.NewSecret(secret('n'))}
		c.Headers = map[string]setting.Secret{"x-tenant": setting.NewSecret("a")}
		c.Compression = "gzip"
	})
	verifier, err := standard.NewWebhook(secret('n'))
	require.NoError(t, err)
	requireDelivered(t, deliver(t, sink, numbered(1, 3)...))
	h := far.last().Header
	require.NoError(t, verifier.Verify(gunzip(t, far.lastBody()), h))
	require.Equal(t, "sms", h.Get(relay.HeaderSource))
	require.Empty(t, h.Get(relay.HeaderAttempt))
	require.Equal(t, "a", h.Get("x-tenant"))
	id := h.Get("webhook-id")
	requireDelivered(t, deliver(t, sink, numbered(1, 3)...))
	require.Equal(t, id, far.last().Header.Get("webhook-id"), "the same messages have the same id")
	requireDelivered(t, deliver(t, sink, numbered(1, 2)...))
	require.NotEqual(t, id, far.last().Header.Get("webhook-id"))

	dead := message("4")
	dead.Dead = &relay.DeadLetter{Reason: "rejected", Error: "why"}
	far.server.mu.Lock()
	before := len(far.requests)
	far.server.mu.Unlock()
	requireDelivered(t, deliver(t, sink, message("1"), dead, message("2")))
	far.server.mu.Lock()
	defer far.server.mu.Unlock()
	reasons := map[string]int{}
	for _, req := range far.requests[before:] {
		reasons[req.Header.Get(relay.HeaderDeadReason)]++
	}
	require.Equal(t, map[string]int{"": 2, "rejected": 1}, reasons, "a dead letter goes alone")
}

// The receiver may tell of each message, by id or by place.
func TestBatchResults(t *testing.T) {
	var text string
	far := newHall(t, func(w http.ResponseWriter, _ []string) { _, _ = io.WriteString(w, text) })
	sink := far.sink(t, webhook.Batch{MaxMessages: 8})
	type result struct {
		outcome relay.Outcome
		reason  string
		after   time.Duration
	}
	delivered := result{outcome: relay.Delivered}
	for _, c := range []struct {
		name, text string
		want       []result
	}{
		{"nothing", "", []result{delivered, delivered, delivered}},
		{"some text", "ok", []result{delivered, delivered, delivered}},
		{"no results", `{"status": "ok"}`, []result{delivered, delivered, delivered}},
		{
			"by id", `{"results": [{"id": "3", "ok": true}, {"id": "1", "error": "busy\r\nX: 1", "retry_after": 30}, {"id": "2", "error": "no", "reject": true}]}`,
			[]result{{relay.Retry, "receiver_failed", 30 * time.Second}, {relay.Rejected, "receiver_rejected", 0}, delivered},
		},
		{
			"by place", `{"results": [{"index": 2, "error": "x"}, {"index": 0, "ok": true}, {"index": 1, "ok": true}, {"index": -1, "ok": true}]}`,
			[]result{delivered, delivered, {relay.Retry, "receiver_failed", 0}},
		},
		{
			"of some", `{"results": [{"id": "2", "ok": true}, {"id": "of another", "ok": true}]}`,
			[]result{{relay.Retry, "unanswered", 0}, delivered, {relay.Retry, "unanswered", 0}},
		},
		{
			"of none", `{"results": []}`,
			[]result{{relay.Retry, "unanswered", 0}, {relay.Retry, "unanswered", 0}, {relay.Retry, "unanswered", 0}},
		},
		{
			"that contradict", `{"results": [{"id": "1", "ok": true, "error": "x"}, {"id": "2", "ok": true, "reject": true}, {"id": "3"}]}`,
			[]result{{relay.Retry, "receiver_failed", 0}, {relay.Rejected, "receiver_rejected", 0}, {relay.Retry, "receiver_failed", 0}},
		},
		{
			"for ever", `{"results": [{"id": "1", "error": "x", "retry_after": 1e300}, {"id": "2", "error": "x", "retry_after": -5}, {"id": "3", "ok": true}]}`,
			[]result{{relay.Retry, "receiver_failed", time.Hour}, {relay.Retry, "receiver_failed", 0}, delivered},
		},
		{
			"of another form", `{"results": {"1": "ok"}}`,
			[]result{{relay.Retry, "answer_invalid", 0}, {relay.Retry, "answer_invalid", 0}, {relay.Retry, "answer_invalid", 0}},
		},
		{
			"cut", `{"results": [{"id": "1", "ok": true}`,
			[]result{{relay.Retry, "answer_invalid", 0}, {relay.Retry, "answer_invalid", 0}, {relay.Retry, "answer_invalid", 0}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			text = c.text
			for i, r := range deliver(t, sink, numbered(1, 3)...) {
				require.Equal(t, c.want[i].after, r.RetryAfter)
				if c.want[i].reason == "" {
					require.Equal(t, relay.Delivered, r.Outcome)
					continue
				}
				requireFailure(t, c.want[i].outcome, c.want[i].reason, r)
				require.NotContains(t, r.Err.Error(), "\n")
			}
		})
	}
	text = `{"results": [{"id": "1", "error": "` + strings.Repeat("短", 1000) + `"}]}`
	require.Less(t, len(deliver(t, sink, message("1"))[0].Err.Error()), 400)
}

// What could hold results and cannot be read takes no message, and one entry that is not as it
// should be spoils no other.
func TestBatchResultsThatLie(t *testing.T) {
	var text, encoding string
	far := newHall(t, func(w http.ResponseWriter, _ []string) {
		if encoding != "" {
			w.Header().Set("Content-Encoding", encoding)
		}
		_, _ = io.WriteString(w, text)
	})
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Batch = webhook.Batch{MaxMessages: 8, MaxBytes: setting.MiB}
	})
	webhook.NeverOpen(endpoint)
	run(t, endpoint)
	sink := bind(t, endpoint)
	const failed, delivered, invalid = "receiver_failed", "", "answer_invalid"
	for _, c := range []struct {
		name, text, encoding string
		want                 [2]string // reasons
	}{
		{"after a byte order mark", "\ufeff" + `{"results": [{"index": 0, "ok": true}, {"index": 1, "error": "x"}]}`, "", [2]string{delivered, failed}},
		{"after a byte order mark and spaces", " \ufeff\r\n" + `{"results": [{"index": 0, "ok": true}, {"index": 1, "error": "x"}]}`, "", [2]string{delivered, failed}},
		{"as a list", `[{"index": 0, "error": "x"}]`, "", [2]string{invalid, invalid}},
		{"compressed", "\x1f\x8b whatever", "gzip", [2]string{invalid, invalid}},
		{"compressed nothing", "", "gzip", [2]string{delivered, delivered}},
		{"not compressed, as it says", `ok`, "Identity", [2]string{delivered, delivered}},
		{"twice, then well", `{"results": [{"id": "1", "error": "x"}, {"id": "1", "ok": true}, {"id": "2", "ok": true}, {"index": 1, "reject": true}]}`, "", [2]string{failed, "receiver_rejected"}},
		{"results twice", `{"results": [{"id": "1", "error": "x"}], "results": []}`, "", [2]string{invalid, invalid}},
		{"results and null", `{"results": [{"id": "1", "error": "x"}], "results": null}`, "", [2]string{invalid, invalid}},
		{"null", `{"results": null}`, "", [2]string{invalid, invalid}},
		{"in capitals", `{"Results": [{"ID": "1", "OK": true}, {"Id": "2", "Error": "x"}]}`, "", [2]string{delivered, failed}},
		{"numbers", `{"results": [0]}`, "", [2]string{invalid, invalid}},
		{"too many", `{"results": [{}, {}, {}, {}, {}]}`, "", [2]string{invalid, invalid}},
		{"and more", `{"results": [{"index": 0, "ok": true}, {"index": 1, "ok": true}]} {}`, "", [2]string{invalid, invalid}},
		{"of the wrong end", `{"results": [{"index": 0, "ok": true}}`, "", [2]string{invalid, invalid}},
		{"after something else", `{"status": {"a": [1, {"results": 1}]}, "results": [{"index": 0, "ok": true}, {"index": 1, "error": "x"}]}`, "", [2]string{delivered, failed}},
		{"ids of its own", `{"results": [{"id": "", "index": 0, "ok": true}, {"id": "db-77", "index": 1, "ok": true}]}`, "", [2]string{delivered, delivered}},
		{"ids that are numbers", `{"results": [{"id": 1, "ok": true}, {"id": 2, "ok": true}]}`, "", [2]string{delivered, delivered}},
		{"places that are texts", `{"results": [{"index": "0", "ok": true}, {"index": 1.0, "ok": true}, {"index": 1e99, "error": "x"}, {"index": "x"}]}`, "", [2]string{delivered, delivered}},
		{"errors of another type", `{"results": [{"index": 0, "ok": true, "error": null}, {"index": 1, "ok": false, "error": {"code": 7}, "retry_after": "30"}]}`, "", [2]string{delivered, failed}},
		{"no errors of another type", `{"results": [{"index": 0, "ok": true, "error": false}, {"index": 1, "ok": "true", "error": ""}]}`, "", [2]string{delivered, delivered}},
		{"an odd delay", `{"results": [{"index": 0, "error": "x", "retry_after": "NaN"}, {"index": 1, "ok": [true], "retry_after": {}}]}`, "", [2]string{failed, failed}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, encoding = c.text, c.encoding
			for i, r := range deliver(t, sink, numbered(1, 2)...) {
				if c.want[i] == delivered {
					requireDelivered(t, []relay.Result{r})
					continue
				}
				require.Equal(t, c.want[i], relay.ReasonOf(r.Err), "%v", r.Err)
				require.NotEqual(t, relay.Delivered, r.Outcome)
				if strings.Contains(c.text, `"30"`) {
					require.Equal(t, 30*time.Second, r.RetryAfter)
					require.ErrorContains(t, r.Err, `{"code": 7}`)
				}
			}
		})
	}
}

// A receiver that repeats what it was sent brings no secret into the log, and what is shown of
// its words cannot play tricks with a terminal.
func TestBatchResultsHideSecrets(t *testing.T) {
	for name, change := range map[string]func(c *webhook.Config){
		"token": func(c *webhook.Config) { c.BearerToken = setting.NewSecret("hunter2-token") },
		"user":  func(c *webhook.Config) { c.Username, c.Password = "u", setting.NewSecret("hunter2-password") },
	} {
		t.Run(name, func(t *testing.T) {
			var header http.Header
			far := start(t, func(w http.ResponseWriter, req *http.Request) {
				header = req.Header.Clone()
				_, token, _ := strings.Cut(header.Get("Authorization"), " ")
				_, signature, _ := strings.Cut(header.Get("webhook-signature"), ",")
				said := strings.Join([]string{"no", header.Get("Authorization"), token, signature, header.Get("x-key"), "hunter2-password", "\x1b[31m\u202egnp\u200b ok"}, " ")
				_ = json.NewEncoder(w).Encode(map[string]any{"results": []any{map[string]any{"index": 0, "error": said}}})
			})
			sink := sinkWith(t, func(c *webhook.Config) {
				c.URL = setting.NewURL(far.url)
				c.Batch = webhook.Batch{MaxMessages: 2, MaxBytes: setting.MiB}
				c.Headers = map[string]setting.Secret{"x-key": setting.NewSecret("key hunter2-key")}
				c.Signing.Secrets = []setting.Secret{setting.NewSecret(secret('n'))}
				change(c)
			})
			r := deliver(t, sink, message("1"))[0]
			requireFailure(t, relay.Retry, "receiver_failed", r)
			_, signature, _ := strings.Cut(header.Get("webhook-signature"), ",")
			_, token, _ := strings.Cut(header.Get("Authorization"), " ")
			for _, secret := range []string{signature, token, "hunter2-key"} {
				require.NotEmpty(t, secret)
				require.NotContains(t, r.Err.Error(), secret)
			}
			require.NotContains(t, r.Err.Error(), map[string]string{"token": "hunter2-token", "user": "hunter2-password"}[name])
			require.NotContains(t, r.Err.Error(), "\x1b")
			require.Contains(t, r.Err.Error(), "***")
			require.Contains(t, r.Err.Error(), "[31mgnp ok")
		})
	}
}

// What a receiver says of messages says nothing against itself: it has answered.
func TestBatchResultsAreNoOutage(t *testing.T) {
	far := newHall(t, func(w http.ResponseWriter, ids []string) {
		_, _ = fmt.Fprintf(w, `{"results": [{"id": %q, "error": "poison"}]}`, ids[0])
	})
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Batch = webhook.Batch{MaxMessages: 4, MaxBytes: setting.MiB}
	})
	run(t, endpoint)
	sink := bind(t, endpoint)
	for range 10 {
		results := deliver(t, sink, numbered(1, 2)...)
		requireFailure(t, relay.Retry, "receiver_failed", results[0])
		requireFailure(t, relay.Retry, "unanswered", results[1])
		health, _ := endpoint.Health()
		require.Equal(t, relay.Up, health.State)
	}
	require.Len(t, far.taken(), 10)
}

// A batch that is refused for good is taken apart until it is known for which message.
func TestBatchIsTakenApart(t *testing.T) {
	t.Run("one that nobody takes", func(t *testing.T) {
		far := newHall(t, func(w http.ResponseWriter, ids []string) {
			if slices.Contains(ids, "5") {
				w.WriteHeader(http.StatusUnprocessableEntity)
			}
		})
		sink := far.sink(t, webhook.Batch{MaxMessages: 16})
		for i, r := range deliver(t, sink, numbered(0, 15)...) {
			if i == 5 {
				requireFailure(t, relay.Rejected, "status_4xx", r)
				continue
			}
			requireDelivered(t, []relay.Result{r})
		}
		require.Len(t, far.taken(), 9, "16, and then two each of 8, 4, 2 and 1")
	})
	t.Run("too many", func(t *testing.T) {
		far := newHall(t, func(w http.ResponseWriter, ids []string) {
			if len(ids) > 4 {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
			}
		})
		requireDelivered(t, deliver(t, far.sink(t, webhook.Batch{MaxMessages: 16}), numbered(1, 16)...))
	})
	t.Run("not when redirected", func(t *testing.T) {
		far := newHall(t, func(w http.ResponseWriter, _ []string) { w.WriteHeader(http.StatusFound) })
		for _, r := range deliver(t, far.sink(t, webhook.Batch{MaxMessages: 16}), numbered(1, 16)...) {
			requireFailure(t, relay.Rejected, "status_3xx", r)
		}
		require.Len(t, far.taken(), 1)
	})
	t.Run("no further than the receiver goes", func(t *testing.T) {
		far := newHall(t, func(w http.ResponseWriter, ids []string) {
			switch {
			case len(ids) == 16 || slices.Contains(ids, "1"):
				w.WriteHeader(http.StatusBadRequest)
			case slices.Contains(ids, "2"):
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})
		results := deliver(t, far.sink(t, webhook.Batch{MaxMessages: 16}), numbered(1, 16)...)
		requireFailure(t, relay.Rejected, "status_4xx", results[0])
		for _, r := range results[1:] {
			requireFailure(t, relay.Retry, "status_5xx", r)
		}
		require.Equal(t, [][]string{ids(1, 16), ids(1, 8), ids(1, 4), ids(1, 2), ids(1, 1), ids(2, 2)}, far.taken())
	})
}

// What is known of a message is said while the others are still sent, that does not go on for
// ever, and not against what the receiver asked for.
func TestBatchIsTakenApartInTime(t *testing.T) {
	t.Run("results at once", func(t *testing.T) {
		known := make(chan struct{})
		far := newHall(t, func(w http.ResponseWriter, ids []string) {
			switch {
			case len(ids) == 2:
				w.WriteHeader(http.StatusBadRequest)
			case ids[0] == "2":
				select {
				case <-known:
				case <-time.After(timeout / 2):
					w.WriteHeader(http.StatusBadGateway)
				}
			}
		})
		var results [2]relay.Result
		far.sink(t, webhook.Batch{MaxMessages: 2}).Deliver(t.Context(), numbered(1, 2), func(i int, r relay.Result) {
			if results[i] = r; i == 0 {
				close(known)
			}
		})
		requireDelivered(t, results[:])
	})
	t.Run("not for ever", func(t *testing.T) {
		const each = 30 * time.Millisecond
		far := newHall(t, func(w http.ResponseWriter, _ []string) {
			<-time.After(each)
			w.WriteHeader(http.StatusBadRequest)
		})
		sink := sinkWith(t, func(c *webhook.Config) {
			c.URL, c.Timeout = setting.NewURL(far.url), 10*each
			c.Batch = webhook.Batch{MaxMessages: 256, MaxBytes: setting.MiB}
		})
		began := time.Now()
		reasons := map[string]int{}
		for _, r := range deliver(t, sink, numbered(1, 256)...) {
			reasons[r.Outcome.String()+" "+relay.ReasonOf(r.Err)]++
		}
		require.Less(t, time.Since(began), 10*time.Second, "to send all of 511 requests takes 15 s")
		require.NotZero(t, reasons["rejected status_4xx"])
		require.NotZero(t, reasons["retry timeout"])
		require.Len(t, reasons, 2)
	})
	t.Run("not when the receiver wants to be left alone", func(t *testing.T) {
		var other relay.Sink
		far := newHall(t, nil)
		far.answer = func(w http.ResponseWriter, ids []string) {
			if len(ids) == 1 {
				w.Header().Set("Retry-After", "3600")
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			deliver(t, other, message("99"))
			w.WriteHeader(http.StatusBadRequest)
		}
		endpoint := open(t, func(c *webhook.Config) {
			c.URL = setting.NewURL(far.url)
			c.Batch = webhook.Batch{MaxMessages: 16, MaxBytes: setting.MiB}
		})
		run(t, endpoint)
		other = bind(t, endpoint)
		for _, r := range deliver(t, bind(t, endpoint), numbered(1, 16)...) {
			requireFailure(t, relay.Retry, "held", r)
			require.ErrorIs(t, r.Err, relay.ErrSinkDown)
		}
		require.Equal(t, [][]string{ids(1, 16), {"99"}}, far.taken())
	})
	t.Run("not for those who have left", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		far := newHall(t, func(w http.ResponseWriter, ids []string) {
			if len(ids) == 4 {
				cancel()
				w.WriteHeader(http.StatusBadRequest)
			}
		})
		sink := far.sink(t, webhook.Batch{MaxMessages: 4, Linger: 10 * time.Second})
		joined := make(chan struct{})
		var calls sync.WaitGroup
		calls.Go(func() {
			close(joined)
			sink.Deliver(ctx, numbered(1, 2), func(_ int, r relay.Result) { requireFailure(t, relay.Retry, "stopped", r) })
		})
		<-joined
		<-time.After(50 * time.Millisecond) // they are in it
		requireDelivered(t, deliver(t, sink, numbered(3, 4)...))
		calls.Wait()
		for _, ids := range far.taken()[1:] {
			require.NotContains(t, ids, "1")
			require.NotContains(t, ids, "2")
		}
	})
}

// What fails again and again is soon alone, so that the others arrive.
func TestRedeliveredMessagesShareLess(t *testing.T) {
	far := newHall(t, nil)
	sink := far.sink(t, webhook.Batch{MaxMessages: 16})
	for attempt, most := range map[int]int{1: 16, 2: 4, 3: 1, 100: 1} {
		ms := numbered(1, 16)
		for i := range ms {
			ms[i].Attempt = attempt
		}
		before := len(far.taken())
		requireDelivered(t, deliver(t, sink, ms...))
		taken := far.taken()[before:]
		require.Len(t, taken, 16/most, "attempt %d", attempt)
		for _, ids := range taken {
			require.Len(t, ids, most)
		}
	}
	mixed := numbered(1, 4)
	mixed[2].Attempt = 9
	before := len(far.taken())
	requireDelivered(t, deliver(t, sink, mixed...))
	require.ElementsMatch(t, [][]string{{"1", "2"}, {"3"}, {"4"}}, far.taken()[before:])
}

// A batch that fails is one failure: the circuit does not open for its length.
func TestBatchIsOneFailure(t *testing.T) {
	far := newHall(t, func(w http.ResponseWriter, _ []string) { w.WriteHeader(http.StatusBadGateway) })
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Batch = webhook.Batch{MaxMessages: 16, MaxBytes: setting.MiB}
	})
	run(t, endpoint)
	sink := bind(t, endpoint)
	for range 4 {
		for _, r := range deliver(t, sink, numbered(1, 16)...) {
			requireFailure(t, relay.Retry, "status_5xx", r)
		}
		health, _ := endpoint.Health()
		require.Equal(t, relay.Up, health.State)
	}
	deliver(t, sink, numbered(1, 16)...)
	health, _ := endpoint.Health()
	require.Equal(t, relay.Down, health.State)
	for _, r := range deliver(t, sink, numbered(1, 16)...) {
		requireFailure(t, relay.Retry, "circuit_open", r)
	}
	require.Len(t, far.taken(), 5)
}

// A call that ends leaves its batch; the others' messages go without its own.
func TestCallsLeaveABatch(t *testing.T) {
	t.Run("one of two", func(t *testing.T) {
		far := newHall(t, nil)
		sink := far.sink(t, webhook.Batch{MaxMessages: 3, Linger: 10 * time.Second})
		ctx, cancel := context.WithCancel(t.Context())
		var left relay.Result
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			sink.Deliver(ctx, []relay.Message{message("1")}, func(_ int, r relay.Result) { left = r })
		}()
		other := make(chan []relay.Result)
		go func() { other <- deliver(t, sink, message("2")) }()
		<-time.After(50 * time.Millisecond) // both are in it
		cancel()
		<-gone
		requireFailure(t, relay.Retry, "stopped", left)
		requireDelivered(t, deliver(t, sink, message("3")))
		requireDelivered(t, <-other)
		require.Len(t, far.taken(), 1)
		require.ElementsMatch(t, []string{"2", "3"}, far.taken()[0])
	})
	t.Run("all", func(t *testing.T) {
		far := newHall(t, nil)
		sink := far.sink(t, webhook.Batch{MaxMessages: 3, Linger: 10 * time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		began := time.Now()
		sink.Deliver(ctx, numbered(1, 2), func(_ int, r relay.Result) { requireFailure(t, relay.Retry, "stopped", r) })
		require.Less(t, time.Since(began), 5*time.Second)
		requireDelivered(t, deliver(t, sink, numbered(3, 5)...))
		require.Equal(t, [][]string{ids(3, 5)}, far.taken())
	})
	t.Run("while it is sent", func(t *testing.T) {
		reached, released := make(chan struct{}), make(chan struct{})
		far := start(t, func(_ http.ResponseWriter, req *http.Request) {
			_, _ = io.Copy(io.Discard, req.Body)
			close(reached)
			<-req.Context().Done()
			close(released)
		})
		sink := sinkWith(t, func(c *webhook.Config) {
			c.URL, c.Timeout = setting.NewURL(far.url), time.Minute
			c.Batch = webhook.Batch{MaxMessages: 3, MaxBytes: setting.MiB}
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-reached
			cancel()
		}()
		sink.Deliver(ctx, numbered(1, 3), func(_ int, r relay.Result) { requireFailure(t, relay.Retry, "stopped", r) })
		<-released
	})
	t.Run("when the relay stops", func(t *testing.T) {
		far := newHall(t, nil)
		endpoint := open(t, func(c *webhook.Config) {
			c.URL = setting.NewURL(far.url)
			c.Batch = webhook.Batch{MaxMessages: 3, MaxBytes: setting.MiB, Linger: 10 * time.Second}
		})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- endpoint.Run(ctx) }()
		time.AfterFunc(50*time.Millisecond, cancel)
		began := time.Now()
		requireFailure(t, relay.Retry, "stopped", deliver(t, bind(t, endpoint), message("1"))[0])
		require.NoError(t, <-ended)
		require.Less(t, time.Since(began), 5*time.Second)
		require.Empty(t, far.taken())
	})
}

func TestBatchSettings(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(c *webhook.Config)
		want   string
	}{
		{"none", func(c *webhook.Config) { c.Batch.MaxMessages = 0 }, "batch.max_messages: is 0; write a number from 1, which is no batch, to 256"},
		{"too many", func(c *webhook.Config) { c.Batch.MaxMessages = 257 }, "batch.max_messages: is 257"},
		{"too few bytes", func(c *webhook.Config) { c.Batch.MaxBytes = 1 }, "batch.max_bytes: is 1; write a size from 1KiB to 64MiB"},
		{"too long", func(c *webhook.Config) { c.Batch.Linger = time.Minute }, "batch.linger: is 1m0s; write a duration from 0s to 10s"},
		{"headers of an event", func(c *webhook.Config) { c.Batch.MaxMessages, c.Format = 2, format.CloudEventsBinary }, "format: is cloudevents_binary, whose attributes are headers"},
		{"a URL that varies", func(c *webhook.Config) {
			c.Batch.MaxMessages, c.URL = 2, setting.NewURL("http://127.0.0.1/{{ id }}")
		}, "batch.max_messages: is more than 1, and url has a {{ }}"},
		{"a header that varies", func(c *webhook.Config) {
			c.Batch.MaxMessages, c.Headers = 2, map[string]setting.Secret{"x-id": setting.NewSecret("{{ id }}")}
		}, "headers.x-id: has a {{ }}, and the messages of a batch share their headers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := webhook.Defaults()
			config.URL = setting.NewURL("https://hooks.example.com/")
			config.Network.Allow = []string{"127.0.0.0/8"}
			require.NoError(t, config.Validate())
			c.change(config)
			require.ErrorContains(t, config.Validate(), c.want)
		})
	}
	// A route may ask for what the sink's URL forbids.
	endpoint := open(t, func(c *webhook.Config) { c.URL = setting.NewURL("http://127.0.0.1:1/{{ id }}") })
	_, err := endpoint.Bind(func(settings any) error {
		settings.(*webhook.Settings).Batch.MaxMessages = 2
		return nil
	})
	require.ErrorContains(t, err, "url has a {{ }}")
}
