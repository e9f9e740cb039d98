package relaytest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"mnsrelay/internal/relay"
)

// SinkHarness is how TestSink handles one kind of sink.
type SinkHarness struct {
	// Start makes a real far side of its own for t and an endpoint, not yet
	// running, that delivers to it.
	Start func(t *testing.T) FarSide
	// Timeout is after how long the endpoints of Start give up on a far side that
	// does not answer. A second is plenty.
	Timeout time.Duration
	// Recovery is how long after FarSide.Mend a delivery may still fail: the
	// longest pause between two tries to connect, and the time that one takes.
	Recovery time.Duration
	// Connected says that the endpoint holds its far side open, as a connection or a
	// file: its health is Down while it cannot, at the latest when a delivery has
	// failed, and Up again when one succeeds.
	Connected bool
	// MaxBody is how many bytes a body may have that the far side takes; 0: at least
	// 64 KiB.
	MaxBody int
	// Lingering are goroutines of a library that nobody can end and that end by
	// themselves, some time after Run.
	Lingering []goleak.Option
	// Untyped says that the far side has no place for a content type.
	Untyped bool
	// OnlyDelivery names the ways to break the far side that nothing but a delivery can
	// find.
	OnlyDelivery []string
}

// FarSide is what a sink delivers to.
type FarSide struct {
	Endpoint relay.Endpoint
	// Arrived gives all that the far side has accepted since Start, in any order.
	Arrived func(t *testing.T) []Arrival
	// Break holds the ways to break the far side, by name: at least one that
	// refuses and, where the sink has a timeout, one that hangs. Afterwards it
	// accepts nothing until Mend.
	Break map[string]func()
	// Mend ends what Break did.
	Mend func()
}

// Arrival is a message as the far side has it.
type Arrival struct {
	// ID is the message's id; where the wire needed it escaped, unescaped again.
	ID   string
	Body []byte
	// Headers hold the values of the relay.Header names.
	Headers     map[string]string
	ContentType string
}

const (
	// margin is what a busy machine may add to any bound.
	margin = 3 * time.Second
	// stuck is when a delivery is given up as one that never returns.
	stuck = time.Minute
)

// TestSink proves that a sink keeps the contract of relay.Sink and relay.Endpoint:
//
//   - done is called exactly once for each message, before Deliver returns;
//   - Delivered is said of nothing that the far side does not have, byte for byte,
//     with its id and headers;
//   - whatever goes wrong with the far side is Retry, in bounded time, with a named
//     reason, and passes by itself when the far side is back;
//   - the end of a context ends Deliver, the end of Run's closes everything.
//
// It looks at every goroutine of the process, so no test may run beside it: do not call
// it from a test that is parallel.
func TestSink(t *testing.T, h SinkHarness) {
	t.Helper()
	for _, c := range []struct {
		promise string
		test    func(*testing.T, SinkHarness)
	}{
		{"a body arrives byte for byte", testBodies},
		{"a dead letter says why it is one", testDeadLetter},
		{"an id arrives as it is, at each redelivery", testIDs},
		{"an empty batch is nothing", testEmptyBatch},
		{"concurrent deliveries all arrive, once", testConcurrent},
		{"nothing is delivered under a context that has ended", testEndedContext},
		{"a far side that fails is a retry and recovers", testBroken},
		{"a far side that fails at the start is waited for", testBrokenAtStart},
		{"the end of a context ends a delivery", testCancelled},
		{"the end of the endpoint closes everything", testEnd},
		{"the end of the endpoint ends a delivery", testEndWhileBroken},
		{"settings of a route that do not fit are refused", testOverrides},
		{"what would be sent is told without a connection", testPreview},
		{"a check finds nothing wrong with a far side that works", testCheck},
		{"a check finds a far side that fails", testCheckBroken},
	} {
		t.Run(c.promise, func(t *testing.T) { c.test(t, h) })
	}
}

func testBodies(t *testing.T, h SinkHarness) {
	most := 64 << 10
	if h.MaxBody > 0 {
		most = h.MaxBody
	}
	binary := make([]byte, most)
	for i := range binary {
		binary[i] = byte(i * 7)
	}
	const (
		json   = "application/json"
		text   = "text/plain; charset=utf-8"
		octets = "application/octet-stream"
	)
	cases := []struct {
		name, contentType string
		body              []byte
	}{
		{"nil", text, nil},
		{"empty", text, []byte{}},
		{"all the binary there is room for", octets, binary},
		{"all the text there is room for", text, bytes.Repeat([]byte("0123456789abcde\n"), most/16)},
		{"JSON", json, []byte("{\"body\": {\"success\": true, \"n\": 12345678901234567890}}\n")},
		{"UTF-8", text, []byte("短信报告 \U0001F4E8 e\u0301 \u2028\u2029")},
		{"XML entities", text, []byte("<a b=\"1\">&amp;&lt;&#10;<![CDATA[ ]]&gt; ]]></a>\r\n\r\n")},
		{"control characters", text, []byte("\x00\x01\x1b\x7f \t\r\n")},
		{"almost UTF-8", octets, []byte("ok \xff\xfe \xc3")},
		{"the far side's own syntax", text, []byte("\r\n\r\nHTTP/1.1 200 OK\r\n\"}\n{\"id\":\"x\"}\n\\")},
	}
	r := start(t, h)
	ms := make([]relay.Message, len(cases))
	for i, c := range cases {
		ms[i] = message(fmt.Sprintf("body-%d", i), c.body)
	}
	ms[2].Attributes = map[string]string{relay.AttributeBody: relay.BodyBase64}

	for _, result := range r.deliver(t.Context(), ms) {
		requireDelivered(t, result)
	}
	arrived := r.byID()
	require.Len(t, arrived, len(ms), "messages that arrived")
	for i, c := range cases {
		require.Len(t, arrived[ms[i].ID], 1, "times that %s arrived", c.name)
		got := arrived[ms[i].ID][0]
		requireSameMessage(t, ms[i], got)
		if !h.Untyped {
			require.Equal(t, c.contentType, got.ContentType, "content type of %s", c.name)
		}
	}
}

func testDeadLetter(t *testing.T, h SinkHarness) {
	r := start(t, h)
	ms := batch("dead", 2)
	first := ms[0].EnqueuedAt
	ms[0].Attempt = 16
	ms[0].Dead = &relay.DeadLetter{
		Reason: "max_receives", Error: "post to https://hooks.example.com: status 5xx: the endpoint answered 503, 100% of the time",
		Sink: "hook", First: first, Last: first.Add(36*time.Hour + 7*time.Millisecond),
	}
	for _, result := range r.deliver(t.Context(), ms) {
		requireDelivered(t, result)
	}
	arrived := r.byID()
	require.Len(t, arrived["dead-0"], 1, "times that the dead letter arrived")
	require.Equal(t, string(ms[0].Body), string(arrived["dead-0"][0].Body))
	require.Equal(t, map[string]string{
		relay.HeaderSource:     "sms-report",
		relay.HeaderAttempt:    "16",
		relay.HeaderEnqueuedAt: "2026-03-01T01:30:00.045Z",
		relay.HeaderBody:       relay.BodyRaw,
		relay.HeaderDeadReason: ms[0].Dead.Reason,
		relay.HeaderDeadError:  ms[0].Dead.Error,
		relay.HeaderDeadSink:   ms[0].Dead.Sink,
		relay.HeaderDeadFirst:  "2026-03-01T01:30:00.045Z",
		relay.HeaderDeadLast:   "2026-03-02T13:30:00.052Z",
	}, arrived["dead-0"][0].Headers)
	require.Len(t, arrived["dead-1"], 1, "times that its neighbour arrived")
	requireSameMessage(t, ms[1], arrived["dead-1"][0])
}

func testIDs(t *testing.T, h SinkHarness) {
	ids := []string{
		"5F290C926D472878-2-14D9529A8FA-200000001",
		"with space, comma; semicolon: colon", " spaces around ", "tab\tin it",
		"100%", "100%25", "a+b", "a/b?c=d#e", `"quoted"\`, "line\r\nx-injected: yes",
		"id-短信-\U0001F4E8", strings.Repeat("x", 200),
	}
	r := start(t, h)
	var ms []relay.Message
	for _, id := range ids {
		ms = append(ms, message(id, []byte("body of "+id)))
	}
	for _, result := range r.deliver(t.Context(), ms) {
		requireDelivered(t, result)
	}
	for i := range ms {
		ms[i].Attempt++
	}
	for _, result := range r.deliver(t.Context(), ms) {
		requireDelivered(t, result)
	}

	arrived := r.byID()
	for _, m := range ms {
		require.Len(t, arrived[m.ID], 2, "times that %q arrived, as what did: %q", m.ID, slices.Sorted(maps.Keys(arrived)))
		for _, got := range arrived[m.ID] {
			require.Equal(t, "body of "+m.ID, string(got.Body))
			require.NotContains(t, got.Headers, "x-injected")
		}
	}
	require.Len(t, arrived, len(ids), "different ids")
}

func testEmptyBatch(t *testing.T, h SinkHarness) {
	r := start(t, h)
	require.Empty(t, r.deliver(t.Context(), nil))
	require.Empty(t, r.deliver(t.Context(), []relay.Message{}))
	require.Empty(t, r.far.Arrived(t))
}

func testConcurrent(t *testing.T, h SinkHarness) {
	const calls, each = 16, 16
	r := start(t, h)
	second, err := r.far.Endpoint.Bind(nil)
	require.NoError(t, err)

	var work sync.WaitGroup
	for call := range calls {
		work.Go(func() {
			sink := r.sink
			if call%2 == 1 {
				sink = second
			}
			ms := batch(fmt.Sprintf("call-%d", call), each)
			for i, result := range deliver(t, t.Context(), sink, ms) {
				if result.Outcome != relay.Delivered {
					t.Errorf("%s: %v: %v", ms[i].ID, result.Outcome, result.Err)
				}
			}
		})
	}
	work.Wait()

	arrived := r.byID()
	require.Len(t, arrived, calls*each, "different messages that arrived")
	for id, times := range arrived {
		require.Len(t, times, 1, "times that %s arrived", id)
	}
}

func testEndedContext(t *testing.T, h SinkHarness) {
	r := start(t, h)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	within(t, margin, "Deliver under a context that has ended", func() {
		for call := range 8 { // what is left to chance shows sooner or later
			for _, result := range r.deliver(ctx, batch(fmt.Sprintf("ended-%d", call), 16)) {
				requireRetry(t, result)
			}
		}
	})
	for _, result := range r.deliver(t.Context(), batch("after", 16)) {
		requireDelivered(t, result)
	}
	require.Len(t, r.byID(), 16, "different messages that arrived")
}

func testBroken(t *testing.T, h SinkHarness) {
	eachBreak(t, h, func(t *testing.T, far FarSide, how string) {
		t.Helper()
		r := run(t, h, far)
		r.eventuallyDelivers(batch("before", 2))
		far.Break[how]()

		for call := range 2 { // a second time, for a state that the first has left behind
			ms := batch(fmt.Sprintf("broken-%d", call), 16)
			within(t, h.Timeout+margin, "Deliver while the far side is broken", func() {
				for _, result := range r.deliver(t.Context(), ms) {
					requireRetry(t, result)
				}
			})
		}
		if h.Connected {
			health := r.awaitHealth("while the far side is broken", func(s relay.State) bool { return s == relay.Down })
			require.NotEmpty(t, health.Reason, "the reason of Down")
		}

		far.Mend()
		r.eventuallyDelivers(batch("mended", 16))
		r.awaitHealth("after a delivery", func(s relay.State) bool { return s == relay.Up })
	})
}

func testBrokenAtStart(t *testing.T, h SinkHarness) {
	eachBreak(t, h, func(t *testing.T, far FarSide, how string) {
		t.Helper()
		far.Break[how]()
		r := run(t, h, far)
		within(t, h.Timeout+margin, "Deliver while the far side is broken", func() {
			for _, result := range r.deliver(t.Context(), batch("broken", 3)) {
				requireRetry(t, result)
			}
		})
		if h.Connected {
			health, _ := far.Endpoint.Health()
			require.Equal(t, relay.Down, health.State)
			require.NotEmpty(t, health.Reason, "the reason of Down")
		}
		far.Mend()
		r.eventuallyDelivers(batch("mended", 3))
	})
}

func testCancelled(t *testing.T, h SinkHarness) {
	eachBreak(t, h, func(t *testing.T, far FarSide, how string) {
		t.Helper()
		r := run(t, h, far)
		r.eventuallyDelivers(batch("before", 1))
		far.Break[how]()

		ctx, cancel := context.WithCancel(t.Context())
		stop := time.AfterFunc(h.Timeout/10, cancel)
		defer stop.Stop()
		began := time.Now()
		for _, result := range r.deliver(ctx, batch("cancelled", 64)) {
			requireRetry(t, result)
		}
		// Not the far side's timeout: the context ends the wait.
		require.Less(t, time.Since(began), h.Timeout, "how long Deliver took")
		far.Mend()
	})
}

func testEnd(t *testing.T, h SinkHarness) {
	r := start(t, h)
	for _, result := range r.deliver(t.Context(), batch("before", 16)) {
		requireDelivered(t, result)
	}
	r.end()
	within(t, margin, "Deliver after the end", func() {
		for _, result := range r.deliver(t.Context(), batch("after", 16)) {
			requireRetry(t, result)
		}
	})
	health, _ := r.far.Endpoint.Health()
	require.Equal(t, relay.Down, health.State, "health after the end")
}

func testEndWhileBroken(t *testing.T, h SinkHarness) {
	eachBreak(t, h, func(t *testing.T, far FarSide, how string) {
		t.Helper()
		r := run(t, h, far)
		r.eventuallyDelivers(batch("before", 1))
		far.Break[how]()

		var work sync.WaitGroup
		for call := range 4 {
			work.Go(func() {
				for _, result := range deliver(t, t.Context(), r.sink, batch(fmt.Sprintf("late-%d", call), 16)) {
					if result.Outcome != relay.Retry {
						t.Errorf("%v of a message that cannot have arrived", result.Outcome)
					}
				}
			})
		}
		within(t, h.Timeout+margin, "the end of Run", r.cancel)
		within(t, h.Timeout+margin, "the end of deliveries", work.Wait)
		far.Mend()
	})
}

func testOverrides(t *testing.T, h SinkHarness) {
	far := h.Start(t)
	wrong := errors.New("no such setting")
	_, err := far.Endpoint.Bind(func(any) error { return wrong })
	require.ErrorIs(t, err, wrong)
	_, err = far.Endpoint.Bind(func(any) error { return nil })
	require.NoError(t, err)
}

func testPreview(t *testing.T, h SinkHarness) {
	sink, err := h.Start(t).Endpoint.Bind(nil)
	require.NoError(t, err)
	previewer, can := sink.(relay.Previewer)
	require.True(t, can, "a sink tells what it would send: relay.Previewer")
	addressed, can := sink.(relay.Addressed)
	require.True(t, can, "a sink names what it delivers to: relay.Addressed")
	require.NotEmpty(t, addressed.Address())
	m := message("preview-1", []byte("what is sent"))
	before := clone([]relay.Message{m})[0]
	p, err := previewer.Preview(&m)
	require.NoError(t, err)
	require.True(t, same(before, m), "the message is not changed")
	require.NotEmpty(t, p.Body)
	m.ID = strings.Repeat("x", 10)
	other, err := previewer.Preview(&m)
	require.NoError(t, err)
	require.NotEqual(t, p, other, "each message has an id of its own")
}

func testCheck(t *testing.T, h SinkHarness) {
	far := h.Start(t)
	before := goleak.IgnoreCurrent()
	requireChecked(t, check(t, h, far))
	require.Empty(t, far.Arrived(t), "what a check has sent")
	goleak.VerifyNone(t, append([]goleak.Option{before}, h.Lingering...)...)
}

func testCheckBroken(t *testing.T, h SinkHarness) {
	eachBreak(t, h, func(t *testing.T, far FarSide, how string) {
		t.Helper()
		before := goleak.IgnoreCurrent()
		far.Break[how]()
		findings := check(t, h, far)
		failed := slices.ContainsFunc(findings, func(f relay.Finding) bool { return f.Verdict == relay.Failed })
		require.NotEqual(t, slices.Contains(h.OnlyDelivery, how), failed, "findings: %+v", findings)
		far.Mend()
		require.Empty(t, far.Arrived(t), "what a check has sent")
		goleak.VerifyNone(t, append([]goleak.Option{before}, h.Lingering...)...)
	})
}

// check makes a check of an endpoint that does not run, in bounded time.
func check(t *testing.T, h SinkHarness, far FarSide) (findings []relay.Finding) {
	t.Helper()
	_, err := far.Endpoint.Bind(nil)
	require.NoError(t, err)
	checker, can := far.Endpoint.(relay.Checker)
	require.True(t, can, "an endpoint finds out what would keep it from delivering: relay.Checker")
	ctx, cancel := context.WithTimeout(t.Context(), h.Timeout)
	defer cancel()
	within(t, h.Timeout+margin, "a check", func() { findings = checker.Check(ctx) })
	require.NotEmpty(t, findings)
	for _, f := range findings {
		require.NotEmpty(t, f.What)
		require.NotEmpty(t, f.Text, f.What)
		require.Contains(t, []relay.Verdict{relay.OK, relay.Failed, relay.Unknown}, f.Verdict, f.What)
	}
	return findings
}

// requireChecked demands that something was found to be as it has to be, and nothing to be
// wrong.
func requireChecked(t *testing.T, findings []relay.Finding) {
	t.Helper()
	verdicts := make(map[relay.Verdict]int)
	for _, f := range findings {
		verdicts[f.Verdict]++
	}
	require.Positive(t, verdicts[relay.OK], "findings: %+v", findings)
	require.Zero(t, verdicts[relay.Failed], "findings: %+v", findings)
}

// rig is a running endpoint with a sink.
type rig struct {
	t      *testing.T
	h      SinkHarness
	far    FarSide
	sink   relay.Sink
	cancel context.CancelFunc
	end    func() // cancels and waits until Run has ended
}

// start makes a far side and runs its endpoint until it is up.
func start(t *testing.T, h SinkHarness) *rig {
	t.Helper()
	r := run(t, h, h.Start(t))
	r.awaitHealth("at the start", func(s relay.State) bool { return s == relay.Up })
	return r
}

// run runs the endpoint of a far side until the test ends; nothing of it is left then.
func run(t *testing.T, h SinkHarness, far FarSide) *rig {
	t.Helper()
	before := goleak.IgnoreCurrent()
	sink, err := far.Endpoint.Bind(nil)
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- far.Endpoint.Run(ctx) }()
	end := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			require.NoError(t, err, "what Run returned")
		case <-time.After(h.Timeout + margin):
			require.Fail(t, "Run did not end")
		}
	})
	t.Cleanup(func() {
		end()
		goleak.VerifyNone(t, append([]goleak.Option{before}, h.Lingering...)...)
	})
	return &rig{t: t, h: h, far: far, sink: sink, cancel: cancel, end: end}
}

// eachBreak runs a test for each way to break a far side, each with its own.
func eachBreak(t *testing.T, h SinkHarness, test func(t *testing.T, far FarSide, how string)) {
	t.Helper()
	ways := slices.Sorted(maps.Keys(h.Start(t).Break))
	require.NotEmpty(t, ways, "ways to break the far side")
	for _, how := range ways {
		t.Run(how, func(t *testing.T) { test(t, h.Start(t), how) })
	}
}

// deliver calls Deliver and checks what holds for every call; what is said to be
// delivered must have arrived by then.
func (r *rig) deliver(ctx context.Context, ms []relay.Message) []relay.Result {
	r.t.Helper()
	results := deliver(r.t, ctx, r.sink, ms)
	if slices.ContainsFunc(results, func(result relay.Result) bool { return result.Outcome == relay.Delivered }) {
		arrived := r.byID()
		for i, result := range results {
			if result.Outcome == relay.Delivered {
				require.NotEmpty(r.t, arrived[ms[i].ID], "%q is said to be delivered and did not arrive", ms[i].ID)
			}
		}
	}
	return results
}

// deliver calls Deliver and checks that done is called once for each message, before
// Deliver returns, and that no message is written to. It may run in any goroutine.
func deliver(t *testing.T, ctx context.Context, sink relay.Sink, ms []relay.Message) []relay.Result { //nolint:revive // t first, as in testing
	t.Helper()
	original := clone(ms)
	var (
		mu       sync.Mutex
		returned bool
		calls    = make([]int, len(ms))
		results  = make([]relay.Result, len(ms))
	)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		sink.Deliver(ctx, ms, func(i int, r relay.Result) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case returned:
				t.Errorf("done(%d) was called after Deliver had returned", i)
			case i < 0 || i >= len(ms):
				t.Errorf("done(%d) was called for a batch of %d", i, len(ms))
			default:
				calls[i]++
				results[i] = r
			}
		})
	}()
	select {
	case <-finished:
	case <-time.After(stuck):
		t.Errorf("Deliver did not return for %v", stuck)
		return make([]relay.Result, len(ms))
	}
	mu.Lock()
	defer mu.Unlock()
	returned = true
	for i, n := range calls {
		if n != 1 {
			t.Errorf("done(%d) was called %d times", i, n)
		}
	}
	if !slices.EqualFunc(original, ms, same) {
		t.Error("a message was written to")
	}
	return results
}

func clone(ms []relay.Message) []relay.Message {
	copied := slices.Clone(ms)
	for i := range copied {
		copied[i].Body = bytes.Clone(ms[i].Body)
		copied[i].Attributes = maps.Clone(ms[i].Attributes)
		if ms[i].Dead != nil {
			dead := *ms[i].Dead
			copied[i].Dead = &dead
		}
	}
	return copied
}

func same(a, b relay.Message) bool {
	return a.ID == b.ID && a.Source == b.Source && a.Attempt == b.Attempt && a.EnqueuedAt.Equal(b.EnqueuedAt) &&
		bytes.Equal(a.Body, b.Body) && maps.Equal(a.Attributes, b.Attributes) && reflect.DeepEqual(a.Dead, b.Dead)
}

// eventuallyDelivers delivers messages again, as the queue would, until all have
// arrived.
func (r *rig) eventuallyDelivers(ms []relay.Message) {
	r.t.Helper()
	deadline := time.NewTimer(r.h.Recovery + r.h.Timeout + margin)
	defer deadline.Stop()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		var left []relay.Message
		var why error
		for i, result := range r.deliver(r.t.Context(), ms) {
			if result.Outcome != relay.Delivered {
				require.Equal(r.t, relay.Retry, result.Outcome, "outcome of a message that the far side will take")
				left = append(left, ms[i])
				why = result.Err
			}
		}
		if len(left) == 0 {
			return
		}
		ms = left
		select {
		case <-again.C:
		case <-deadline.C:
			require.Fail(r.t, "the sink does not deliver", "%d messages are left: %v", len(left), why)
		}
	}
}

// awaitHealth waits for a state and gives it with its reason.
func (r *rig) awaitHealth(when string, fits func(relay.State) bool) relay.Health {
	r.t.Helper()
	deadline := time.NewTimer(r.h.Recovery + r.h.Timeout + margin)
	defer deadline.Stop()
	for {
		health, changed := r.far.Endpoint.Health()
		if fits(health.State) {
			return health
		}
		select {
		case <-changed:
		case <-deadline.C:
			require.Failf(r.t, "wrong health", "%s: %v: %s", when, health.State, health.Reason)
		}
	}
}

func (r *rig) byID() map[string][]Arrival {
	r.t.Helper()
	arrived := make(map[string][]Arrival)
	for _, a := range r.far.Arrived(r.t) {
		arrived[a.ID] = append(arrived[a.ID], a)
	}
	return arrived
}

// message makes one that was received for the first time.
func message(id string, body []byte) relay.Message {
	return relay.Message{
		ID:         id,
		Source:     "sms-report",
		Body:       body,
		EnqueuedAt: time.Date(2026, time.March, 1, 9, 30, 0, 45e6, time.FixedZone("CST", 8*60*60)),
		Attempt:    1,
	}
}

// batch makes n messages whose ids begin with prefix.
func batch(prefix string, n int) []relay.Message {
	ms := make([]relay.Message, n)
	for i := range ms {
		id := fmt.Sprintf("%s-%d", prefix, i)
		ms[i] = message(id, []byte(`{"id":"`+id+`"}`))
	}
	return ms
}

func requireSameMessage(t *testing.T, sent relay.Message, got Arrival) {
	t.Helper()
	require.True(t, bytes.Equal(sent.Body, got.Body), "%s: the body is another one: %d bytes were sent, %d arrived", sent.ID, len(sent.Body), len(got.Body))
	encoding := relay.BodyRaw
	if e := sent.Attributes[relay.AttributeBody]; e != "" {
		encoding = e
	}
	require.Equal(t, map[string]string{
		relay.HeaderSource:     "sms-report",
		relay.HeaderAttempt:    "1",
		relay.HeaderEnqueuedAt: "2026-03-01T01:30:00.045Z",
		relay.HeaderBody:       encoding,
	}, got.Headers, "headers of %s", sent.ID)
}

func requireDelivered(t *testing.T, r relay.Result) {
	t.Helper()
	require.NoError(t, r.Err)
	require.Equal(t, relay.Delivered, r.Outcome)
}

// reasonForm is that of a metric's label.
var reasonForm = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// requireRetry demands the outcome Retry with an error whose reason has a name.
func requireRetry(t *testing.T, r relay.Result) {
	t.Helper()
	require.Equal(t, relay.Retry, r.Outcome)
	require.Error(t, r.Err, "the cause of a retry")
	var failure *relay.Failure
	require.ErrorAs(t, r.Err, &failure)
	require.Regexp(t, reasonForm, failure.Reason)
}

// within fails the test if f does not return in time.
func within(t *testing.T, limit time.Duration, what string, f func()) {
	t.Helper()
	began := time.Now()
	f()
	require.LessOrEqual(t, time.Since(began), limit, "how long it took: %s", what)
}
