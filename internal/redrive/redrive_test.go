package redrive_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/redrive"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// TestMain checks for goroutines that are left. The one of fasthttp.Client, which the
// SDK owns, ends by itself a second or two after the last request.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*Client).mCleaner"))
}

const dead, live = "orders-dead", "orders"

// rig is two queues of one server.
type rig struct {
	t      *testing.T
	server *emulator.Server
	url    string
}

func newRig(t *testing.T, from, to emulator.QueueConfig) *rig {
	t.Helper()
	server, err := emulator.New(emulator.Config{Queues: map[string]emulator.QueueConfig{dead: from, live: to}})
	require.NoError(t, err)
	url, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	return &rig{t: t, server: server, url: url}
}

type keys struct{}

func (keys) Current() (credentials.Keys, error) {
	return credentials.Keys{AccessKeyID: emulator.DemoAccessKeyID, AccessKeySecret: setting.NewSecret(emulator.DemoAccessKeySecret)}, nil
}

func (keys) Refused(credentials.Keys) {}

func (r *rig) queue(name string) *mns.Queue {
	r.t.Helper()
	q, err := mns.NewQueue(mns.Config{Name: name, Endpoint: r.url, Queue: name, RequestTimeout: 2 * time.Second}, mns.Deps{Credentials: keys{}})
	require.NoError(r.t, err)
	r.t.Cleanup(q.Close)
	return q
}

// mover moves from dead to live; change may alter what it is made of.
func (r *rig) mover(change func(*redrive.Config, *redrive.Deps)) *redrive.Mover {
	r.t.Helper()
	cfg := redrive.Config{Wait: time.Second, Patience: 20 * time.Second}
	deps := redrive.Deps{From: r.queue(dead), To: r.queue(live)}
	if change != nil {
		change(&cfg, &deps)
	}
	return redrive.New(cfg, deps)
}

func (r *rig) run(change func(*redrive.Config, *redrive.Deps)) (redrive.Progress, error) {
	r.t.Helper()
	return r.mover(change).Run(r.t.Context(), r.t.Context())
}

func (r *rig) fault(f emulator.Fault) {
	r.t.Helper()
	_, err := r.server.AddFault(f)
	require.NoError(r.t, err)
}

func (r *rig) stats(queue string) emulator.QueueStats {
	r.t.Helper()
	s, found := r.server.QueueStats(queue)
	require.True(r.t, found)
	return s
}

// fill puts n dead letters into the queue, every third a message of somebody else's,
// and gives the bodies that are to arrive.
func (r *rig) fill(n int) map[string]bool {
	r.t.Helper()
	want := make(map[string]bool, n)
	var ms []emulator.Message
	for i := range n {
		body := fmt.Sprintf(`{"order":%d}`, i)
		want[body] = true
		if i%3 == 0 {
			ms = append(ms, emulator.Message{Body: []byte(body)})
			continue
		}
		ms = append(ms, emulator.Message{Body: envelope(r.t, body)})
	}
	_, err := r.server.SendAll(dead, ms)
	require.NoError(r.t, err)
	return want
}

func envelope(t *testing.T, body string) []byte {
	t.Helper()
	text, err := mns.Wrap(&relay.Message{
		ID: "1", Source: "orders", Queue: live, Body: []byte(body), Attempt: 16,
		Dead: &relay.DeadLetter{Reason: "max_receives", Sink: "hook", First: time.Now(), Last: time.Now()},
	}).Text()
	require.NoError(t, err)
	return text
}

// arrived takes everything out of live and counts it by body.
func (r *rig) arrived() map[string]int {
	r.t.Helper()
	q := r.queue(live)
	got := map[string]int{}
	for {
		ds, err := q.BatchReceive(r.t.Context(), mns.MaxBatch, 0)
		require.NoError(r.t, err)
		if len(ds) == 0 {
			return got
		}
		for _, d := range ds {
			got[string(d.Body)]++
		}
	}
}

// requireAll demands that everything arrived, gives how often more than once, and that
// nothing is left.
func (r *rig) requireAll(want map[string]bool) (twice int) {
	r.t.Helper()
	got := r.arrived()
	for body := range want {
		require.Positive(r.t, got[body], "times that %s arrived", body)
		twice += got[body] - 1
	}
	require.Len(r.t, got, len(want))
	s := r.stats(dead)
	require.Zero(r.t, s.Active+s.Inactive+s.Delayed, "left in the dead-letter queue")
	return twice
}

func TestMovesEverythingAndUnwraps(t *testing.T) {
	t.Parallel()
	r := newRig(t, emulator.QueueConfig{}, emulator.QueueConfig{})
	want := r.fill(100)
	var last redrive.Progress
	p, err := r.run(func(_ *redrive.Config, d *redrive.Deps) { d.Report = func(p redrive.Progress) { last = p } })
	require.NoError(t, err)
	require.Equal(t, redrive.Progress{Moved: 100, Unwrapped: 66}, p)
	require.Equal(t, p, last)
	require.Zero(t, r.requireAll(want))
	require.LessOrEqual(t, r.server.Requests()[emulator.OpSend]["OK"], int64(7))
	require.LessOrEqual(t, r.server.Requests()[emulator.OpDelete]["OK"], int64(7))

	p, err = r.run(nil)
	require.NoError(t, err)
	require.Equal(t, redrive.Progress{}, p)
}

// A body goes back in the encoding in which it came: a source with body: base64 would
// reject it otherwise.
func TestBodiesAreAsTheyWere(t *testing.T) {
	t.Parallel()
	r := newRig(t, emulator.QueueConfig{}, emulator.QueueConfig{})
	big := strings.Repeat("x", 60<<10)
	for _, m := range []relay.Message{
		{Body: []byte("text"), Attributes: map[string]string{relay.AttributeBody: relay.BodyBase64}},
		{Body: []byte("dGV4dA==")},
		{Body: []byte("\x00\xff")},
		{Body: nil},
	} {
		text, err := mns.Wrap(&m).Text()
		require.NoError(t, err)
		_, err = r.server.Send(dead, text)
		require.NoError(t, err)
	}
	for _, raw := range []string{big, big, `{"envelope":"C5"}`, "a\r\n<&>"} {
		_, err := r.server.Send(dead, []byte(raw))
		require.NoError(t, err)
	}
	p, err := r.run(nil)
	require.NoError(t, err)
	require.Equal(t, redrive.Progress{Moved: 8, Unwrapped: 4}, p)
	require.Equal(t, map[string]int{"dGV4dA==": 2, "AP8=": 1, "": 1, big: 2, `{"envelope":"C5"}`: 1, "a\r\n<&>": 1}, r.arrived())
}

func TestWhatCannotBeMovedStaysAndIsNamed(t *testing.T) {
	t.Parallel()
	// The lease is so short that what stays is received again and again.
	r := newRig(t, emulator.QueueConfig{VisibilityTimeout: time.Second}, emulator.QueueConfig{MaximumMessageSize: 1024})
	want := r.fill(40)
	var staying []string
	for _, body := range [][]byte{
		[]byte(strings.Replace(string(envelope(t, "later")), "mnsrelay/1", "mnsrelay/9", 1)),
		envelope(t, strings.Repeat("x", 2000)),
		[]byte(strings.Repeat("y", 2000)),
	} {
		id, err := r.server.Send(dead, body)
		require.NoError(t, err)
		staying = append(staying, id)
	}
	reasons := map[string]error{}
	p, err := r.run(func(_ *redrive.Config, d *redrive.Deps) {
		d.Stays = func(id string, why error) {
			require.NotContains(t, reasons, id, "told once")
			reasons[id] = why
		}
	})
	require.NoError(t, err)
	require.Equal(t, redrive.Progress{Moved: 40, Unwrapped: 26, Stayed: 3}, p)
	require.Len(t, reasons, 3)
	require.ErrorContains(t, reasons[staying[0]], "use a newer one")
	require.True(t, mns.RefusesBody(reasons[staying[1]]))
	require.True(t, mns.RefusesBody(reasons[staying[2]]))
	got := r.arrived()
	require.Len(t, got, len(want))
	for body, n := range got {
		require.Equal(t, 1, n, body)
	}
	s := r.stats(dead)
	require.Equal(t, 3, s.Active+s.Inactive)
}

func TestFaultsLoseNothing(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := newRig(t, emulator.QueueConfig{VisibilityTimeout: 3 * time.Second}, emulator.QueueConfig{})
	want := r.fill(300)
	doubtful := []emulator.Connection{emulator.DropAfter, emulator.CutBody}
	for _, op := range []emulator.Op{emulator.OpReceive, emulator.OpSend, emulator.OpDelete, emulator.OpVisibility} {
		r.fault(emulator.Fault{Operation: op, Status: http.StatusServiceUnavailable, Code: "InternalError", Rate: 0.1})
		r.fault(emulator.Fault{Operation: op, Connection: emulator.DropBefore, Rate: 0.05})
		for _, c := range doubtful {
			r.fault(emulator.Fault{Operation: op, Connection: c, Rate: 0.05})
		}
	}
	p, err := r.run(nil)
	require.NoError(t, err)
	require.Equal(t, 300, p.Moved+p.Twofold, "%+v", p)
	lost := 0
	for _, f := range r.server.Faults() {
		if f.Operation == emulator.OpSend && f.Connection != emulator.DropBefore && f.Status == 0 {
			lost += int(f.Hits)
		}
	}
	r.server.ClearFaults()
	require.LessOrEqual(t, r.requireAll(want), lost*mns.MaxBatch, "only a send without an answer makes a second copy")
}

// What was sent and could not be deleted before its lease ended is not sent again.
func TestADeleteThatFailsMakesNoSecondCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t, emulator.QueueConfig{VisibilityTimeout: 2 * time.Second}, emulator.QueueConfig{})
	want := r.fill(20)
	// Longer than the lease: the pauses between the tries add up to seconds.
	r.fault(emulator.Fault{Operation: emulator.OpDelete, Status: http.StatusServiceUnavailable, Code: "InternalError", Count: 5})
	p, err := r.run(nil)
	require.NoError(t, err)
	require.Equal(t, 20, p.Moved)
	require.Zero(t, p.Twofold)
	require.Zero(t, r.requireAll(want))
	require.Positive(t, r.stats(dead).Redelivered, "the lease had ended")
}

// A delete whose answer is lost has deleted.
func TestADeleteWithoutAnAnswerIsNoTrouble(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 5} {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, emulator.QueueConfig{}, emulator.QueueConfig{})
			want := r.fill(n)
			r.fault(emulator.Fault{Operation: emulator.OpDelete, Connection: emulator.DropAfter, Count: 1})
			p, err := r.run(nil)
			require.NoError(t, err)
			require.Equal(t, n, p.Moved)
			require.Zero(t, p.Twofold)
			require.Zero(t, r.requireAll(want))
		})
	}
}

func TestAStopLosesNothingAndCopiesNothingTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t, emulator.QueueConfig{}, emulator.QueueConfig{})
	want := r.fill(200)
	interrupted := errors.New("received the signal interrupt")
	stop, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	p, err := r.mover(func(_ *redrive.Config, d *redrive.Deps) {
		d.Report = func(p redrive.Progress) {
			if p.Moved >= 50 {
				cancel(interrupted)
			}
		}
	}).Run(stop, t.Context())
	require.ErrorIs(t, err, interrupted)
	require.GreaterOrEqual(t, p.Moved, 50)
	require.Less(t, p.Moved, 100)
	require.Zero(t, p.Twofold)
	require.EqualValues(t, p.Moved, r.stats(live).Sent)
	require.EqualValues(t, p.Moved, r.stats(dead).Deleted)
	require.Equal(t, 200-p.Moved, r.stats(dead).Active, "nothing is left under lease")

	rest, err := r.run(nil)
	require.NoError(t, err)
	require.Equal(t, 200, p.Moved+rest.Moved)
	require.Zero(t, r.requireAll(want))
}

// A stop while the other queue does not work gives back what is in hand.
func TestAStopInTrouble(t *testing.T) {
	t.Parallel()
	r := newRig(t, emulator.QueueConfig{VisibilityTimeout: time.Hour}, emulator.QueueConfig{})
	want := r.fill(10)
	r.fault(emulator.Fault{Operation: emulator.OpSend, Status: http.StatusServiceUnavailable, Code: "InternalError"})
	stop, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, err := r.mover(func(_ *redrive.Config, d *redrive.Deps) {
		d.Report = func(p redrive.Progress) {
			require.Contains(t, p.Trouble, "InternalError")
			cancel()
		}
	}).Run(stop, t.Context())
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, redrive.Progress{}, p)
	r.server.ClearFaults()
	p, err = r.run(func(c *redrive.Config, _ *redrive.Deps) { c.Wait = 2 * time.Second })
	require.NoError(t, err)
	require.Equal(t, 10, p.Moved)
	require.Zero(t, r.requireAll(want))
}

// The end of the process at any moment: whatever is under way is cut, nothing is given
// back, and another process begins anew.
func TestAKillAtAnyMomentLosesNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, emulator.QueueConfig{VisibilityTimeout: time.Second}, emulator.QueueConfig{})
	want := r.fill(400)
	r.fault(emulator.Fault{Operation: emulator.OpSend, AnswerDelay: emulator.Duration(time.Millisecond)})
	r.fault(emulator.Fault{Operation: emulator.OpDelete, Delay: emulator.Duration(time.Millisecond)})
	kills := 0
	for {
		ctx, kill := context.WithTimeout(t.Context(), time.Duration(1+rand.IntN(20))*time.Millisecond)
		if kills >= 40 {
			ctx, kill = context.WithCancel(t.Context())
		}
		_, err := r.mover(func(c *redrive.Config, _ *redrive.Deps) { c.Wait = 2 * time.Second }).Run(ctx, ctx)
		kill()
		if err == nil {
			break
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
		kills++
	}
	require.GreaterOrEqual(t, kills, 20)
	twice := r.requireAll(want)
	t.Logf("%d kills, %d second copies", kills, twice)
	require.LessOrEqual(t, twice, kills*mns.MaxBatch)
}

func TestMaxAndRate(t *testing.T) {
	t.Parallel()
	r := newRig(t, emulator.QueueConfig{}, emulator.QueueConfig{})
	r.fill(60)
	p, err := r.run(func(c *redrive.Config, _ *redrive.Deps) { c.Max = 21 })
	require.NoError(t, err)
	require.Equal(t, 21, p.Moved)
	require.EqualValues(t, 21, r.stats(live).Sent)
	require.Equal(t, 39, r.stats(dead).Active, "no more was received than is moved")

	began := time.Now()
	p, err = r.run(func(c *redrive.Config, _ *redrive.Deps) { c.Max, c.Rate = 20, 40 })
	require.NoError(t, err)
	require.Equal(t, 20, p.Moved)
	require.GreaterOrEqual(t, time.Since(began), 16*time.Second/40, "between the first request and the second")

	began = time.Now()
	p, err = r.run(func(c *redrive.Config, _ *redrive.Deps) { c.Max, c.Rate = 2, 2 })
	require.NoError(t, err)
	require.Equal(t, 2, p.Moved)
	p, err = r.run(func(c *redrive.Config, _ *redrive.Deps) { c.Max, c.Rate = 2, 4.5 })
	require.NoError(t, err)
	require.Equal(t, 2, p.Moved)
	require.Less(t, time.Since(began), 5*time.Second)
}

func TestAQueueThatDoesNotWorkEndsTheMove(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		fault emulator.Fault
		want  string
		class relay.Class
	}{
		{"no such queue to move to", emulator.Fault{Queue: live, Status: http.StatusNotFound, Code: "QueueNotExist"}, "QueueNotExist", relay.ClassNotFound},
		{"no such queue to move from", emulator.Fault{Queue: dead, Status: http.StatusNotFound, Code: "QueueNotExist"}, "QueueNotExist", relay.ClassNotFound},
		{"may not send", emulator.Fault{Operation: emulator.OpSend, Status: http.StatusForbidden, Code: "AccessDenied"}, "AccessDenied", relay.ClassAuth},
		{"may not receive", emulator.Fault{Operation: emulator.OpReceive, Status: http.StatusForbidden, Code: "AccessDenied"}, "AccessDenied", relay.ClassAuth},
		{"fails for long", emulator.Fault{Queue: live, Status: http.StatusBadGateway, Body: "<html>"}, "give up after 300ms: send: 502", relay.ClassServer},
		{"fails for long at the other end", emulator.Fault{Queue: dead, Status: http.StatusBadGateway, Body: "<html>"}, "give up after 300ms: receive: 502", relay.ClassServer},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, emulator.QueueConfig{VisibilityTimeout: time.Hour}, emulator.QueueConfig{})
			want := r.fill(20)
			r.fault(c.fault)
			p, err := r.run(func(c *redrive.Config, _ *redrive.Deps) { c.Patience = 300 * time.Millisecond })
			require.ErrorContains(t, err, c.want)
			require.Equal(t, c.class, relay.ClassOf(err))
			require.Equal(t, redrive.Progress{}, p)
			r.server.ClearFaults()
			p, err = r.run(func(c *redrive.Config, _ *redrive.Deps) { c.Wait = 2 * time.Second })
			require.NoError(t, err)
			require.Equal(t, 20, p.Moved, "what had been received was given back")
			require.Zero(t, r.requireAll(want))
		})
	}
}

// MNS may take a part of a request.
type halfTaken struct {
	redrive.Destination
	calls int
}

func (h *halfTaken) BatchSend(ctx context.Context, ms []mns.Outgoing) ([]mns.Sent, error) {
	h.calls++
	half := len(ms) / 2
	if h.calls > 3 {
		half = len(ms)
	}
	sent := make([]mns.Sent, len(ms))
	if half > 0 {
		taken, err := h.Destination.BatchSend(ctx, ms[:half])
		if err != nil {
			return nil, err
		}
		copy(sent, taken)
	}
	for i := half; i < len(ms); i++ {
		sent[i].Err = &mns.Error{Op: mns.OpSend, Code: "InternalError"}
	}
	return sent, nil
}

func TestAPartThatWasTakenIsNotSentAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, emulator.QueueConfig{VisibilityTimeout: 2 * time.Second}, emulator.QueueConfig{})
	want := r.fill(16)
	p, err := r.run(func(_ *redrive.Config, d *redrive.Deps) { d.To = &halfTaken{Destination: d.To} })
	require.NoError(t, err)
	require.Equal(t, 16, p.Moved)
	require.Zero(t, r.requireAll(want))
}
