// Package faults_test does to the broker, to the way to it and to its objects what goes wrong
// in production, one fault a test, and looks at the relay from outside: the built program
// between an emulated MNS and a real RabbitMQ.
//
// Each test asks the same at its end: every message is in the broker, none that was not sent,
// each as it was sent; and no delete came to MNS for a message that the broker had not
// confirmed before, as seen on the wire between the relay and the broker.
package faults_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/stretchr/testify/require"

	"mnsrelay/api"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/setting"
	"mnsrelay/test/broker"
	"mnsrelay/test/rig"
)

// program is the path of the program under test, built once.
var program string

func TestMain(m *testing.M) { os.Exit(rig.BuildAndRun(broker.Closing(m, nodes), &program)) }

// nodes are lent to tests that do something to their broker.
var nodes = broker.NewPool(broker.Config{})

// The keys that the emulator accepts; the secret must appear in no output.
const (
	keyID     = "LTAI-faults-test"
	keySecret = "faults:secret/with#odd@characters"
	password  = "faults:password"
)

// patience bounds what has to happen and takes no set time.
const patience = 90 * time.Second

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// pause waits; a fault lasts as long.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

// eventually waits until check is true; what it says otherwise explains the failure.
func eventually(t *testing.T, within time.Duration, what string, check func() (bool, string)) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, state := check()
		if ok {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			require.FailNow(t, what, "not within %v: %s", within, state)
		}
	}
}

// world is MNS, a relay, and what was sent. The notary stands on both sides of the relay.
type world struct {
	t        *testing.T
	notary   *notary
	emulator *emulator.Server
	url      string // of MNS
	relay    *rig.Relay
	blind    bool // what passes is encrypted: the notary sees nothing

	mu   sync.Mutex
	sent map[string]string // bodies by message id
}

// newWorld makes an MNS with a queue for each name given, "sms" where none is.
func newWorld(t *testing.T, queue emulator.QueueConfig, names ...string) *world {
	t.Helper()
	if len(names) == 0 {
		names = []string{"sms"}
	}
	w := &world{t: t, notary: newNotary(), sent: make(map[string]string)}
	var err error
	w.emulator, err = emulator.New(emulator.Config{Issued: rig.Secret, AccessKeys: []emulator.AccessKey{{ID: keyID, Secret: setting.NewSecret(keySecret)}}})
	require.NoError(t, err)
	for _, name := range names {
		require.NoError(t, w.emulator.CreateQueue(name, queue))
	}
	server := httptest.NewServer(&office{emulator: w.emulator, notary: w.notary})
	w.url = server.URL
	t.Cleanup(func() {
		require.NoError(t, w.emulator.Close()) // waiting polls end
		server.Close()
	})
	return w
}

// office is the emulator with the notary at its door.
type office struct {
	emulator *emulator.Server
	notary   *notary
}

var (
	handleElement = regexp.MustCompile(`<ReceiptHandle>([^<]*)</ReceiptHandle>`)
	messageHandle = regexp.MustCompile(`<MessageId>([^<]*)</MessageId>.*?<ReceiptHandle>([^<]*)</ReceiptHandle>`)
)

// ServeHTTP is part of http.Handler.
func (o *office) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	handle := ""
	for name, values := range r.URL.Query() {
		if strings.EqualFold(name, "ReceiptHandle") {
			handle = values[0]
		}
	}
	if r.Method == http.MethodDelete {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		handles := []string{handle}
		if handle == "" {
			handles = nil
			for _, found := range handleElement.FindAllSubmatch(body, -1) {
				handles = append(handles, string(found[1]))
			}
		}
		o.notary.deleting(handles)
	}
	o.emulator.ServeHTTP(&noted{ResponseWriter: w, notary: o.notary, renewed: handle}, r)
}

// deleting notes whether the messages may be deleted.
func (n *notary) deleting(handles []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, handle := range handles {
		if id := n.handles[handle]; n.confirmed[id] == 0 {
			n.wrong = append(n.wrong, fmt.Sprintf("%q, published %d times", id, n.published[id]))
		}
	}
}

// noted is an answer that is read before the relay has it: which handle is whose.
type noted struct {
	http.ResponseWriter

	notary  *notary
	renewed string // the handle of the request
}

func (w *noted) Write(p []byte) (int, error) {
	w.notary.mu.Lock()
	for _, found := range messageHandle.FindAllSubmatch(p, -1) {
		w.notary.handles[string(found[2])] = string(found[1])
	}
	if bytes.Contains(p, []byte("<ChangeVisibility")) {
		if found := handleElement.FindSubmatch(p); found != nil {
			w.notary.handles[string(found[1])] = w.notary.handles[w.renewed]
		}
	}
	w.notary.mu.Unlock()
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *noted) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// source is a source of the configuration, with more lines of settings for it.
func (w *world) source(name, sink string, more ...string) string {
	return fmt.Sprintf(`
  %s:
    queue: %s
    endpoint: %s
    credentials: {type: static, access_key_id: %s, access_key_secret: "${FAULTS_SECRET}"}
    redelivery: {initial: 1s, max: 4s}
    to: %s
`, name, name, w.url, keyID, sink) + indented(more)
}

func indented(lines []string) string {
	var b strings.Builder
	for _, line := range lines {
		fmt.Fprintf(&b, "    %s\n", line)
	}
	return b.String()
}

// sink is a sink of the configuration that publishes to the inbox, with more lines.
func sink(name string, in *inbox, more ...string) string {
	return fmt.Sprintf(`
  %s:
    type: amqp091
    exchange: %s
    routing_key: sms.report
`, name, in.name) + indented(more)
}

// start runs a relay with the sources and sinks, and returns when its API listens.
func (w *world) start(sources, sinks string) {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "mnsrelay.yaml")
	text := "server: {listen: 127.0.0.1:0, admin_token: token}\nsources:" + sources + "sinks:" + sinks
	require.NoError(w.t, os.WriteFile(path, []byte(text), 0o600))
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	var err error
	w.relay, err = rig.Start(ctx, program, path, "FAULTS_SECRET="+keySecret)
	require.NoError(w.t, err, text)
	relay := w.relay
	w.t.Cleanup(func() {
		_, err := relay.End(context.Background(), syscall.SIGKILL)
		require.NoError(w.t, err)
		require.NotContains(w.t, relay.Log(), keySecret)
		require.NotContains(w.t, relay.Log(), password)
		if w.t.Failed() {
			lines := strings.Split(relay.Log(), "\n")
			w.t.Logf("the end of the relay's log:\n%s", strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
	})
}

// single is the usual world: one queue, one sink at the end of a wire to the broker, and
// more settings for either.
func single(t *testing.T, in *inbox, queue emulator.QueueConfig, source, sinkMore []string) (*world, *wire) {
	t.Helper()
	w := newWorld(t, queue)
	way := newWire(t, w.notary, in.url)
	w.start(w.source("sms", "events", source...), sink("events", in, append([]string{"url: " + way.url}, sinkMore...)...))
	w.await("up", "")
	return w, way
}

func (w *world) status() api.Status {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	status, err := w.relay.Status(ctx)
	require.NoError(w.t, err)
	return status
}

// sinkStatus is what the API says of the first sink, sourceStatus of the first source.
func (w *world) sinkStatus() api.Sink     { w.t.Helper(); return w.status().Sinks[0] }
func (w *world) sourceStatus() api.Source { w.t.Helper(); return w.status().Sources[0] }

// await waits until the API says that the first sink is in a state for a reason that holds
// the text.
func (w *world) await(state, reason string) (took time.Duration) {
	w.t.Helper()
	begun := time.Now()
	eventually(w.t, patience, "the sink is "+state+": "+reason, func() (bool, string) {
		s := w.sinkStatus()
		return string(s.State) == state && strings.Contains(s.Reason, reason), string(s.State) + ": " + s.Reason
	})
	return time.Since(begun)
}

// awaitWaiting waits until the API says that the source waits for its sink, and what for.
func (w *world) awaitWaiting(reason string) {
	w.t.Helper()
	eventually(w.t, patience, "the source waits: "+reason, func() (bool, string) {
		s := w.sourceStatus()
		return s.State == "waiting" && strings.Contains(s.Reason, "sink events is down") && strings.Contains(s.Reason, reason),
			string(s.State) + ": " + s.Reason
	})
}

// awaitFailed waits until the first sink has failed so often for a reason.
func (w *world) awaitFailed(reason string, times uint64) {
	w.t.Helper()
	eventually(w.t, patience, fmt.Sprintf("%s, %d times", reason, times), func() (bool, string) {
		failed := w.sinkStatus().Failed
		return failed[reason] >= times, fmt.Sprint(failed)
	})
}

// body is the body of a message, which tells it from all others.
func body(n, size int) string {
	text := fmt.Sprintf(`{"n":%d,"content":"`, n)
	return text + strings.Repeat("x", max(0, size-len(text)-2)) + `"}`
}

// send puts n messages of a size into a queue, at a rate a second, 0: at once.
func (w *world) send(queue string, n, size, rate int) {
	w.t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	begun := time.Now()
	for done := 0; done < n; {
		due := n
		if rate > 0 {
			<-ticker.C
			due = min(n, int(time.Since(begun).Seconds()*float64(rate)))
		}
		var batch []emulator.Message
		var bodies []string
		w.mu.Lock()
		first := len(w.sent)
		w.mu.Unlock()
		for ; done < due; done++ {
			text := body(first+len(bodies), size)
			bodies = append(bodies, text)
			batch = append(batch, emulator.Message{Body: []byte(text)})
		}
		if len(batch) == 0 {
			continue
		}
		ids, err := w.emulator.SendAll(queue, batch)
		if err != nil {
			w.t.Errorf("send: %v", err)
			return
		}
		w.mu.Lock()
		for i, id := range ids {
			w.sent[id] = bodies[i]
		}
		w.mu.Unlock()
	}
}

// sending sends in the background; the function that it gives waits for the end.
func (w *world) sending(n, size, rate int) (wait func()) {
	var sending sync.WaitGroup
	sending.Go(func() { w.send("sms", n, size, rate) })
	w.t.Cleanup(sending.Wait)
	return sending.Wait
}

func (w *world) stats(queue string) emulator.QueueStats {
	stats, _ := w.emulator.QueueStats(queue)
	return stats
}

func (w *world) deleted() int { return int(w.stats("sms").Deleted) }

func (w *world) awaitDeleted(n int) {
	w.t.Helper()
	eventually(w.t, patience, fmt.Sprintf("%d messages are deleted", n), func() (bool, string) {
		return w.deleted() >= n, fmt.Sprintf("%d are; the relay says %s", w.deleted(), w.states())
	})
}

// requireNoDeletes looks for a while whether messages are deleted; those that the broker
// had confirmed before may be.
func (w *world) requireNoDeletes(during time.Duration) {
	w.t.Helper()
	confirmed := w.notary.confirms()
	deadline := time.Now().Add(during)
	for time.Now().Before(deadline) {
		require.LessOrEqual(w.t, w.deleted(), confirmed, "more messages are deleted than the broker had confirmed")
		require.Equal(w.t, confirmed, w.notary.confirms(), "the broker confirms, contrary to what the test is about")
		pause(w.t, 50*time.Millisecond)
	}
}

func (w *world) requests(op emulator.Op) (total int64) {
	for _, n := range w.emulator.Requests()[op] {
		total += n
	}
	return total
}

func (w *world) allRequests() (total int64) {
	for op := range w.emulator.Requests() {
		total += w.requests(op)
	}
	return total
}

// states is what the relay says of itself.
func (w *world) states() string {
	_, text, err := w.relay.Get(context.Background(), "/api/v1/status")
	if err != nil {
		return err.Error()
	}
	return text
}

// need is what the relay takes of the machine.
type need struct {
	goroutines, files int
	memory            int // MiB, the most so far
}

func (w *world) needs() need {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	goroutines, err := w.relay.Metric(ctx, "go_goroutines")
	require.NoError(w.t, err)
	files, err := w.relay.Files()
	require.NoError(w.t, err)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.relay.PID()))
	require.NoError(w.t, err)
	n := need{goroutines: int(goroutines), files: files}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "VmHWM:" {
			kib, err := strconv.Atoi(fields[1])
			require.NoError(w.t, err)
			n.memory = kib >> 10
		}
	}
	return n
}

// pooled is how many idle connections to MNS a relay may keep for receives and deletes.
const pooled = 8 + 16

// requireRest waits until the relay needs no more than before, but for what it keeps.
func (w *world) requireRest(before need) { w.t.Helper(); w.requireRestOf(before, 1) }

// requireRestOf is requireRest of several sources.
func (w *world) requireRestOf(before need, sources int) {
	w.t.Helper()
	eventually(w.t, patience, "goroutines and files are as few as before", func() (bool, string) {
		now := w.needs()
		// What asks is served by goroutines too; connections to MNS that are kept have some.
		return now.goroutines <= before.goroutines+4*sources && now.files <= before.files+pooled*sources, fmt.Sprintf("%+v, before %+v", now, before)
	})
}

// finish waits until the queues are empty and the relay at rest, ends it, and checks what
// came to the inboxes. It gives how many copies came besides.
func (w *world) finish(inboxes ...*inbox) (duplicates int) {
	w.t.Helper()
	for _, queue := range w.emulator.Queues() {
		eventually(w.t, patience, "the queue "+queue+" is empty", func() (bool, string) {
			s := w.stats(queue)
			return s.Active+s.Inactive+s.Delayed == 0, fmt.Sprintf("%+v; the relay says %s", s, w.states())
		})
	}
	eventually(w.t, patience, "nothing is in flight and the balance is exact", func() (bool, string) {
		for _, s := range w.status().Sources {
			if b := s.Balance; !b.Exact || b.InFlight != 0 {
				return false, fmt.Sprintf("%+v", b)
			}
		}
		return true, ""
	})
	for _, s := range w.status().Sinks {
		require.Equal(w.t, api.SinkStateUp, s.State, "sink %s: %s", s.Name, s.Reason)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code, err := w.relay.End(ctx, syscall.SIGTERM)
	require.NoError(w.t, err)
	require.Zero(w.t, code, "the exit code")

	if !w.blind {
		w.notary.mu.Lock()
		require.Empty(w.t, w.notary.wrong, "deleted without a confirm")
		w.notary.mu.Unlock()
	}
	arrived := make(map[string]int)
	for _, in := range inboxes {
		in.read()
		for id, copies := range in.copies {
			arrived[id] += copies
			sent, expected := w.sent[id]
			require.True(w.t, expected, "message %s was not sent", id)
			require.Equal(w.t, sent, in.bodies[id], "message %s", id)
		}
	}
	for id := range w.sent {
		require.Positive(w.t, arrived[id], "message %s is lost", id)
		duplicates += arrived[id] - 1
	}
	return duplicates
}

// inbox is an exchange with a durable queue behind it that keeps what comes.
type inbox struct {
	t         *testing.T
	url       string
	name      string // of the exchange and of the queue
	arguments amqp.Table

	copies map[string]int // by message id
	bodies map[string]string
}

// newInbox declares exchange and queue, both named after the test and what is given to tell
// several apart.
func newInbox(t *testing.T, url string, arguments amqp.Table, apart ...string) *inbox {
	t.Helper()
	name := strings.Join(append([]string{"faults", strings.ReplaceAll(t.Name(), "/", ".")}, apart...), ".")
	in := &inbox{t: t, url: url, name: name, arguments: arguments, copies: make(map[string]int), bodies: make(map[string]string)}
	in.make()
	t.Cleanup(func() {
		conn, err := in.dial()
		if err != nil {
			return // a broker of the test's own, which is gone
		}
		defer conn.Close() //nolint:errcheck // Nothing hangs on it.
		if ch, err := conn.Channel(); err == nil {
			_, _ = ch.QueueDelete(in.name, false, false, false)
			_ = ch.ExchangeDelete(in.name, false, false)
		}
	})
	return in
}

// make declares what is missing.
func (in *inbox) make() {
	in.t.Helper()
	in.with(func(ch *amqp.Channel) {
		require.NoError(in.t, ch.ExchangeDeclare(in.name, amqp.ExchangeTopic, true, false, false, false, nil))
		_, err := ch.QueueDeclare(in.name, true, false, false, false, in.arguments)
		require.NoError(in.t, err)
		require.NoError(in.t, ch.QueueBind(in.name, "#", in.name, false, nil))
	})
}

func (in *inbox) unbind() {
	in.t.Helper()
	in.with(func(ch *amqp.Channel) { require.NoError(in.t, ch.QueueUnbind(in.name, "#", in.name, nil)) })
}

func (in *inbox) dial() (*amqp.Connection, error) {
	return amqp.DialConfig(in.url, amqp.Config{Dial: func(network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(context.Background(), network, addr)
		if err != nil {
			return nil, err
		}
		// The library takes it away when the connection is open.
		return conn, conn.SetDeadline(time.Now().Add(20 * time.Second))
	}})
}

func (in *inbox) with(do func(ch *amqp.Channel)) {
	in.t.Helper()
	conn, err := in.dial()
	require.NoError(in.t, err)
	defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
	ch, err := conn.Channel()
	require.NoError(in.t, err)
	do(ch)
}

// read takes what the queue holds and gives how many that were.
func (in *inbox) read() (taken int) {
	in.t.Helper()
	in.with(func(ch *amqp.Channel) {
		const consumer, quiet = "reader", 300 * time.Millisecond
		deliveries, err := ch.Consume(in.name, consumer, true, false, false, false, nil)
		require.NoError(in.t, err)
		idle := time.NewTimer(quiet)
		defer idle.Stop()
		cancelled := false
		for {
			select {
			case d, open := <-deliveries:
				if !open {
					require.True(in.t, cancelled, "the broker ends the consumer")
					return
				}
				in.copies[d.MessageId]++
				in.bodies[d.MessageId] = string(d.Body)
				taken++
			case <-idle.C:
				q, err := ch.QueueDeclarePassive(in.name, true, false, false, false, in.arguments)
				require.NoError(in.t, err)
				if q.Messages == 0 && !cancelled {
					// What comes before the answer is given out before deliveries ends.
					cancelled = true
					require.NoError(in.t, ch.Cancel(consumer, false))
				}
			}
			idle.Reset(quiet)
		}
	})
	return taken
}
