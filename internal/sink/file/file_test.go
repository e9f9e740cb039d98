package file_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/file"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformanceOfFile(t *testing.T) { testConformance(t, "messages.jsonl") }
func TestConformanceOfFolder(t *testing.T) {
	testConformance(t, "{{ attempt > 0 ? 'messages' : '' }}.jsonl", "is a folder")
}

func testConformance(t *testing.T, name string, onlyDelivery ...string) {
	t.Helper()
	relaytest.TestSink(t, relaytest.SinkHarness{
		OnlyDelivery: onlyDelivery,
		Timeout:      time.Second,
		Recovery:     time.Second,
		Connected:    true,
		Untyped:      true,
		Start: func(t *testing.T) relaytest.FarSide {
			t.Helper()
			folder := filepath.Join(t.TempDir(), "volume")
			away := folder + ".away"
			path := filepath.Join(folder, "messages.jsonl")
			require.NoError(t, os.Mkdir(folder, 0o700))
			return relaytest.FarSide{
				Endpoint: open(t, filepath.Join(folder, name), nil),
				Arrived:  func(t *testing.T) []relaytest.Arrival { t.Helper(); return arrivals(t, read(t, path)) },
				Break: map[string]func(){
					"has no folder": func() { require.NoError(t, os.Rename(folder, away)) },
					"is a folder": func() {
						require.NoError(t, os.Rename(folder, away))
						require.NoError(t, os.MkdirAll(path, 0o700))
					},
				},
				Mend: func() {
					require.NoError(t, os.RemoveAll(folder))
					require.NoError(t, os.Rename(away, folder))
				},
			}
		},
	})
}

func TestConformanceOfStandardOutput(t *testing.T) {
	relaytest.TestSink(t, relaytest.SinkHarness{
		Timeout:      time.Second,
		Recovery:     time.Second,
		Untyped:      true,
		OnlyDelivery: []string{"is closed"},
		Start: func(t *testing.T) relaytest.FarSide {
			t.Helper()
			out := &output{}
			return relaytest.FarSide{
				Endpoint: open(t, file.Stdout, out),
				Arrived:  func(t *testing.T) []relaytest.Arrival { t.Helper(); return arrivals(t, out.String()) },
				Break:    map[string]func(){"is closed": func() { out.set(0) }},
				Mend:     func() { out.set(-1) },
			}
		},
	})
}

// output takes all, unless room is left for a number of bytes only.
type output struct {
	mu      sync.Mutex
	limited bool
	room    int
	got     bytes.Buffer
}

// set limits the bytes that are still taken; a negative number ends the limit.
func (o *output) set(room int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.limited, o.room = room >= 0, room
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.limited || len(p) <= o.room {
		return o.got.Write(p)
	}
	n, _ := o.got.Write(p[:o.room])
	o.room = 0
	return n, syscall.EPIPE
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.got.String()
}

func TestLine(t *testing.T) {
	const moved = "2026-03-01T01:30:00.045Z"
	enqueued := time.Date(2026, time.March, 1, 9, 30, 0, 45e6, time.FixedZone("CST", 8*60*60))
	for _, c := range []struct {
		name    string
		message relay.Message
		want    string
	}{
		{
			"JSON stays text",
			relay.Message{ID: "1", Source: "sms", Body: []byte(`{"a":"<&>"}`), Attempt: 2, Attributes: map[string]string{"body": "base64", "topic": "t"}},
			`{"id":"1","source":"sms","attempt":2,"enqueued_at":"` + moved + `","attributes":{"body":"base64","topic":"t"},"body":"{\"a\":\"<&>\"}"}`,
		},
		{
			"line breaks are escaped",
			relay.Message{ID: "a\nb", Source: "sms", Body: []byte("x\r\ny"), Attempt: 1},
			`{"id":"a\nb","source":"sms","attempt":1,"enqueued_at":"` + moved + `","attributes":{},"body":"x\r\ny"}`,
		},
		{
			"an empty body is text",
			relay.Message{ID: "2", Source: "sms", Attempt: 1},
			`{"id":"2","source":"sms","attempt":1,"enqueued_at":"` + moved + `","attributes":{},"body":""}`,
		},
		{
			"a dead letter says why, in the words of the error",
			relay.Message{ID: "4", Source: "sms", Attempt: 16, Dead: &relay.DeadLetter{
				Reason: "status_4xx", Error: "the endpoint answered 400:\n短信", Sink: "hook", First: enqueued, Last: enqueued.Add(time.Hour),
			}},
			`{"id":"4","source":"sms","attempt":16,"enqueued_at":"` + moved + `","attributes":{},"dead":{"reason":"status_4xx","error":"the endpoint answered 400:\n短信","sink":"hook","first":"` + moved + `","last":"2026-03-01T02:30:00.045Z"},"body":""}`,
		},
		{
			"bytes are base64",
			relay.Message{ID: "3", Source: "sms", Body: []byte{0xff, 0, 1}, Attempt: 1},
			`{"id":"3","source":"sms","attempt":1,"enqueued_at":"` + moved + `","attributes":{},"body_base64":"/wAB"}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := &output{}
			sink := start(t, open(t, file.Stdout, out))
			c.message.EnqueuedAt = enqueued
			requireDelivered(t, sink, c.message)
			require.Equal(t, c.want+"\n", out.String())
		})
	}
}

func TestFileOfAnEarlierRun(t *testing.T) {
	line := `{"id":"old","body":"x"}`
	for _, c := range []struct{ name, before, want string }{
		{"is appended to", line + "\n", line + "\n"},
		{"has its torn last line ended", line + "\n" + `{"id":"tor`, line + "\n" + `{"id":"tor` + "\n"},
		{"may be empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "messages.jsonl")
			require.NoError(t, os.WriteFile(path, []byte(c.before), 0o600))
			sink := start(t, open(t, path, nil))
			requireDelivered(t, sink, message("new"))
			rest, found := strings.CutPrefix(read(t, path), c.want)
			require.True(t, found, "what was there before is kept: %q", read(t, path))
			require.Equal(t, []string{"new"}, ids(t, rest))
		})
	}
}

func TestNewFileIsNotForEverybody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "messages.jsonl")
	requireDelivered(t, start(t, open(t, path, nil)), message("1"))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Zero(t, info.Mode().Perm()&0o037, "mode %v", info.Mode())
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm()&0o600, "mode %v", info.Mode())
}

func TestRotation(t *testing.T) {
	for _, c := range []struct {
		name   string
		rotate func(t *testing.T, path string)
		old    []string
	}{
		{"moved", func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.Rename(path, path+".1"))
		}, []string{"before"}},
		{"moved and made anew", func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.Rename(path, path+".1"))
			require.NoError(t, os.WriteFile(path, nil, 0o600))
		}, []string{"before"}},
		{"copied and truncated", func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.WriteFile(path+".1", []byte(read(t, path)), 0o600))
			require.NoError(t, os.Truncate(path, 0))
		}, []string{"before"}},
		{"removed", func(t *testing.T, path string) {
			t.Helper()
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.WriteFile(path+".1", nil, 0o600))
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "messages.jsonl")
			sink := start(t, open(t, path, nil))
			requireDelivered(t, sink, message("before"))
			c.rotate(t, path)
			requireDelivered(t, sink, message("after"))
			require.Equal(t, c.old, ids(t, read(t, path+".1")))
			require.Equal(t, []string{"after"}, ids(t, read(t, path)))
		})
	}
}

// TestFullDisk has the kernel refuse to let the file grow: a write is cut within a
// line, as on a disk that is full.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "messages.jsonl")
	endpoint := open(t, path, nil)
	sink := start(t, endpoint)
	// The limit is that of every file of the process: this one is larger than any other.
	before := message("before")
	before.Body = bytes.Repeat([]byte("x"), 1<<20)
	requireDelivered(t, sink, before)
	size := int64(len(read(t, path)))

	lift := limitFileSize(t, uint64(size)+100)
	for _, r := range deliver(t, sink, message("lost-1"), message("lost-2"), message("lost-3")) {
		require.Equal(t, relay.Retry, r.Outcome)
		require.ErrorIs(t, r.Err, syscall.EFBIG)
		var failure *relay.Failure
		require.ErrorAs(t, r.Err, &failure)
		require.Equal(t, "write", failure.Reason)
	}
	health, _ := endpoint.Health()
	require.Equal(t, relay.Down, health.State)
	require.NotEmpty(t, health.Reason)
	require.Equal(t, []string{"before"}, ids(t, read(t, path)), "what the failed write left")

	await(t, endpoint, relay.Probe)
	lift()
	requireDelivered(t, sink, message("after"))
	await(t, endpoint, relay.Up)
	require.Equal(t, []string{"before", "after"}, ids(t, read(t, path)))
}

// limitFileSize limits the size of every file that this process writes.
func limitFileSize(t *testing.T, size uint64) (lift func()) {
	t.Helper()
	// Without a receiver the signal would end the process.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGXFSZ)
	var was syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &was))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: size, Max: was.Max}))
	lift = sync.OnceFunc(func() {
		require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &was))
		signal.Stop(signals)
	})
	t.Cleanup(lift)
	return lift
}

func TestOutputThatEndsWithinALine(t *testing.T) {
	out := &output{}
	endpoint := open(t, file.Stdout, out)
	sink := start(t, endpoint)
	out.set(20)
	results := deliver(t, sink, message("torn"))
	require.ErrorIs(t, results[0].Err, syscall.EPIPE)

	out.set(-1)
	await(t, endpoint, relay.Probe)
	requireDelivered(t, sink, message("after"))
	torn, rest, _ := strings.Cut(out.String(), "\n")
	require.Len(t, torn, 20)
	require.Equal(t, []string{"after"}, ids(t, rest))
}

func TestWhatIsNoFileIsRefused(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	for _, path := range []string{fifo, "/dev/null", t.TempDir()} {
		endpoint := open(t, path, nil)
		sink := run(t, endpoint)
		results := deliver(t, sink, message("1"))
		require.Equal(t, relay.Retry, results[0].Outcome)
		health, _ := endpoint.Health()
		require.Equal(t, relay.Down, health.State)
	}
}

// TestStalledOutput is a reader that has stopped reading, as a pager does.
func TestStalledOutput(t *testing.T) {
	reader, writer := io.Pipe()
	endpoint := open(t, file.Stdout, writer)
	sink, err := endpoint.Bind(nil)
	require.NoError(t, err)
	ctx, end := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- endpoint.Run(ctx) }()
	await(t, endpoint, relay.Up)

	deadline, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var waiting sync.WaitGroup
	for range 3 { // one stalls in the write, the others behind it
		waiting.Go(func() {
			sink.Deliver(deadline, []relay.Message{message("1")}, func(_ int, r relay.Result) {
				if r.Outcome != relay.Retry || !errors.Is(r.Err, context.DeadlineExceeded) {
					t.Errorf("%v: %v", r.Outcome, r.Err)
				}
			})
		})
	}
	waiting.Wait()

	end()
	require.Error(t, <-ended, "the end while a write is stuck")
	require.NoError(t, reader.Close())
	requireRetry(t, sink)
}

func TestConfig(t *testing.T) {
	for path, want := range map[string]string{
		"":                  "path: is missing",
		"/var/{{ id }}/log": "path: has a {{ }} in the name of a folder",
		`/var/{{ "a/b" }}`:  "path: has a {{ }} in the name of a folder",
		"/var/{{ idd }}":    `path: at character 9: there is no variable "idd"`,
		"/var/log/":         "path: is a folder",
		"a\x00b":            "path: has a NUL",
	} {
		c := file.Defaults()
		c.Path = path
		err := c.Validate()
		require.ErrorContains(t, err, want)
		var problem *setting.Problem
		require.ErrorAs(t, err, &problem)
	}
	for _, path := range []string{"-", "messages.jsonl", "/var/log/messages.jsonl", "{{ id }}", `a/{{ source }}-{{ body.n / 2 }}-{{ "x" }}.jsonl`} {
		c := file.Defaults()
		c.Path = path
		require.NoError(t, c.Validate())
	}
}

func BenchmarkDeliver(b *testing.B) {
	c := file.Defaults()
	c.Path = filepath.Join(b.TempDir(), "messages.jsonl")
	endpoint, err := file.New(c, relay.SinkDeps{Name: "file", Log: zap.NewNop()}, nil)
	require.NoError(b, err)
	sink, err := endpoint.Bind(nil)
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = endpoint.Run(ctx) })
	defer running.Wait()
	defer cancel()
	for health, changed := endpoint.Health(); health.State != relay.Up; health, changed = endpoint.Health() {
		<-changed
	}
	ms := make([]relay.Message, 16)
	for i := range ms {
		ms[i] = message(strconv.Itoa(i))
		ms[i].Body = bytes.Repeat([]byte("x"), 1<<10)
	}
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			sink.Deliver(b.Context(), ms, func(_ int, r relay.Result) {
				if r.Outcome != relay.Delivered {
					b.Error(r.Err)
				}
			})
		}
	})
	b.ReportMetric(float64(b.N*len(ms))/b.Elapsed().Seconds(), "messages/s")
}

func open(t *testing.T, path string, stdout io.Writer) *file.Endpoint {
	t.Helper()
	c := file.Defaults()
	c.Path = path
	require.NoError(t, c.Validate())
	endpoint, err := file.New(c, relay.SinkDeps{Name: "file", Instance: "mnsrelay/test (host)", Log: zap.NewNop()}, stdout)
	require.NoError(t, err)
	return endpoint
}

// run runs an endpoint until the test ends.
func run(t *testing.T, endpoint *file.Endpoint) relay.Sink {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- endpoint.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	sink, err := endpoint.Bind(nil)
	require.NoError(t, err)
	return sink
}

func start(t *testing.T, endpoint *file.Endpoint) relay.Sink {
	t.Helper()
	sink := run(t, endpoint)
	await(t, endpoint, relay.Up)
	return sink
}

func await(t *testing.T, endpoint *file.Endpoint, state relay.State) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		health, changed := endpoint.Health()
		if health.State == state {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			require.Failf(t, "wrong health", "%v: %s", health.State, health.Reason)
		}
	}
}

func message(id string) relay.Message {
	return relay.Message{ID: id, Source: "sms", Body: []byte("body of " + id), EnqueuedAt: time.Now(), Attempt: 1}
}

func deliver(t *testing.T, sink relay.Sink, ms ...relay.Message) []relay.Result {
	t.Helper()
	results := make([]relay.Result, len(ms))
	sink.Deliver(t.Context(), ms, func(i int, r relay.Result) { results[i] = r })
	return results
}

func requireDelivered(t *testing.T, sink relay.Sink, ms ...relay.Message) {
	t.Helper()
	for _, r := range deliver(t, sink, ms...) {
		require.NoError(t, r.Err)
		require.Equal(t, relay.Delivered, r.Outcome)
	}
}

func requireRetry(t *testing.T, sink relay.Sink) {
	t.Helper()
	results := deliver(t, sink, message("late"))
	require.Equal(t, relay.Retry, results[0].Outcome)
	require.Error(t, results[0].Err)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	require.NoError(t, err)
	return string(text)
}

// ids reads the ids of lines, each of which has to be whole.
func ids(t *testing.T, text string) (ids []string) {
	t.Helper()
	for _, a := range arrivals(t, text) {
		ids = append(ids, a.ID)
	}
	return ids
}

// arrivals reads lines as somebody else would; each has to be whole.
func arrivals(t *testing.T, text string) []relaytest.Arrival {
	t.Helper()
	var all []relaytest.Arrival
	for line := range strings.Lines(text) {
		var l struct {
			ID         string
			Source     string
			Attempt    int
			EnqueuedAt string `json:"enqueued_at"`
			Attributes map[string]string
			Dead       *struct{ Reason, Error, Sink, First, Last string }
			Body       *string
			BodyBase64 []byte `json:"body_base64"`
		}
		decoder := json.NewDecoder(strings.NewReader(line))
		decoder.DisallowUnknownFields()
		require.NoError(t, decoder.Decode(&l), "line %q", line)
		require.True(t, strings.HasSuffix(line, "\n"), "line %q has no end", line)
		body := l.BodyBase64
		if l.Body != nil {
			require.Nil(t, body, "a line with two bodies")
			body = []byte(*l.Body)
		}
		encoding := l.Attributes[relay.AttributeBody]
		if encoding == "" {
			encoding = relay.BodyRaw
		}
		headers := map[string]string{
			relay.HeaderSource:     l.Source,
			relay.HeaderAttempt:    strconv.Itoa(l.Attempt),
			relay.HeaderEnqueuedAt: l.EnqueuedAt,
			relay.HeaderBody:       encoding,
		}
		if l.Dead != nil {
			headers[relay.HeaderDeadReason] = l.Dead.Reason
			headers[relay.HeaderDeadError] = l.Dead.Error
			headers[relay.HeaderDeadSink] = l.Dead.Sink
			headers[relay.HeaderDeadFirst] = l.Dead.First
			headers[relay.HeaderDeadLast] = l.Dead.Last
		}
		all = append(all, relaytest.Arrival{ID: l.ID, Body: body, Headers: headers})
	}
	return all
}

// Two do not write to one file: a write of one that fails would cut off what the other wrote.
// The second takes messages as soon as the first has ended.
func TestOneWriterAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "messages.jsonl")
	other, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	require.NoError(t, syscall.Flock(int(other.Fd()), syscall.LOCK_EX)) // as another relay does
	endpoint := open(t, path, nil)
	sink := run(t, endpoint)
	requireReason(t, endpoint, "another sink or process writes to it")
	r := deliver(t, sink, message("early"))[0]
	require.Equal(t, relay.Retry, r.Outcome)
	require.ErrorContains(t, r.Err, "another sink or process writes to it")
	require.NoError(t, other.Close())
	await(t, endpoint, relay.Up)
	requireDelivered(t, sink, message("late"))
	require.Equal(t, []string{"late"}, ids(t, read(t, path)))
}

// requireReason waits until the endpoint is down and says why.
func requireReason(t *testing.T, endpoint *file.Endpoint, reason string) {
	t.Helper()
	require.Eventually(t, func() bool {
		health, _ := endpoint.Health()
		return health.State == relay.Down && strings.Contains(health.Reason, reason)
	}, 5*time.Second, time.Millisecond)
}
