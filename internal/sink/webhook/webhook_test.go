package webhook_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// server records the requests that it gets.
type server struct {
	url string

	mu       sync.Mutex
	requests []*http.Request
}

// start serves a handler over plain HTTP.
func start(t *testing.T, handle http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	http := httptest.NewServer(s.recording(handle))
	t.Cleanup(http.Close)
	s.url = http.URL
	return s
}

func (s *server) recording(handle http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, req)
		s.mu.Unlock()
		handle(w, req)
	}
}

func (s *server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.requests)
}

func (s *server) last() *http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.requests[len(s.requests)-1]
}

func accept(w http.ResponseWriter, req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body)
	w.WriteHeader(http.StatusNoContent)
}

// run runs an endpoint until the test ends; nothing of it is left then.
func run(t *testing.T, endpoint relay.Endpoint) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- endpoint.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		goleak.VerifyNone(t, before)
	})
}

// sinkTo runs an endpoint for a URL and binds a sink.
func sinkTo(t *testing.T, url string) relay.Sink {
	t.Helper()
	endpoint := open(t, func(c *webhook.Config) { c.URL = setting.NewURL(url) })
	run(t, endpoint)
	return bind(t, endpoint)
}

func bind(t *testing.T, endpoint relay.Endpoint) relay.Sink {
	t.Helper()
	sink, err := endpoint.Bind(nil)
	require.NoError(t, err)
	return sink
}

func message(id string) relay.Message {
	return relay.Message{ID: id, Source: "sms", Body: []byte(`{"id":"` + id + `"}`), EnqueuedAt: time.Now(), Attempt: 1}
}

func deliver(t *testing.T, sink relay.Sink, ms ...relay.Message) []relay.Result {
	t.Helper()
	results := make([]relay.Result, len(ms))
	sink.Deliver(t.Context(), ms, func(i int, r relay.Result) { results[i] = r })
	return results
}

func requireFailure(t *testing.T, outcome relay.Outcome, reason string, r relay.Result) {
	t.Helper()
	require.Error(t, r.Err)
	var failure *relay.Failure
	require.ErrorAs(t, r.Err, &failure)
	require.Equal(t, reason, failure.Reason, "%v", r.Err)
	require.Equal(t, outcome, r.Outcome)
}

func TestStatus(t *testing.T) {
	type verdict struct {
		outcome relay.Outcome
		reason  string
	}
	special := map[int]verdict{
		401: {relay.Retry, "status_401"},
		403: {relay.Retry, "status_403"},
		404: {relay.Retry, "status_404"},
		408: {relay.Retry, "status_408"},
		410: {relay.Retry, "status_410"},
		425: {relay.Retry, "status_425"},
		429: {relay.Retry, "status_429"},
	}
	classes := map[int]verdict{
		2: {relay.Delivered, ""},
		3: {relay.Rejected, "status_3xx"},
		4: {relay.Rejected, "status_4xx"},
		5: {relay.Retry, "status_5xx"},
		6: {relay.Retry, "status_unknown"},
		9: {relay.Retry, "status_unknown"},
	}
	var status atomic.Int64
	far := start(t, func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(int(status.Load()))
	})
	endpoint := open(t, func(c *webhook.Config) { c.URL = setting.NewURL(far.url) })
	run(t, endpoint)
	sink := bind(t, endpoint)
	sent := 0
	for code := 200; code <= 999; code++ {
		want, found := special[code]
		if !found {
			if want, found = classes[code/100]; !found {
				continue
			}
		}
		if want.outcome == relay.Retry {
			status.Store(http.StatusOK) // between failures, that the circuit stays closed
			deliver(t, sink, message("between"))
			sent++
		}
		status.Store(int64(code))
		result := deliver(t, sink, message(strconv.Itoa(code)))[0]
		sent++
		if code == http.StatusGone { // which stops the endpoint
			endpoint.(relay.Resumer).Resume()
		}
		if want.outcome == relay.Delivered {
			require.NoError(t, result.Err, "status %d", code)
			require.Equal(t, relay.Delivered, result.Outcome, "status %d", code)
			continue
		}
		requireFailure(t, want.outcome, want.reason, result)
		require.Contains(t, result.Err.Error(), strconv.Itoa(code))
	}
	require.Equal(t, sent, far.count(), "one request a message, none elsewhere")
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	elsewhere := start(t, accept)
	for _, location := range []string{elsewhere.url, "http://169.254.169.254/latest", "http://100.100.100.200/latest", "http://[::ffff:127.0.0.1]/"} {
		for _, code := range []int{301, 302, 303, 307, 308} {
			far := start(t, func(w http.ResponseWriter, req *http.Request) {
				http.Redirect(w, req, location, code)
			})
			result := deliver(t, sinkTo(t, far.url), message("1"))[0]
			requireFailure(t, relay.Rejected, "status_3xx", result)
			require.Equal(t, 1, far.count())
		}
	}
	require.Zero(t, elsewhere.count())
}

func TestRetryAfter(t *testing.T) {
	const date = "Tue, 10 Mar 2026 08:00:00 GMT"
	for _, c := range []struct {
		status int
		after  string
		want   time.Duration
	}{
		{429, "", 0},
		{429, "0", 0},
		{429, "7", 7 * time.Second},
		{503, "120", 2 * time.Minute},
		{500, "3", 3 * time.Second},
		{404, "3", 3 * time.Second},
		{429, "3600", time.Hour},
		{429, "3601", time.Hour},
		{429, "99999999999999999999999999", time.Hour},
		{429, "-5", 0},
		{429, "-99999999999999999999999999", 0},
		{429, "1.5", 0},
		{429, "soon", 0},
		// Measured by the far side's own clock, whatever ours says.
		{503, "Tue, 10 Mar 2026 08:00:30 GMT", 30 * time.Second},
		{503, "Tuesday, 10-Mar-26 08:00:30 GMT", 30 * time.Second},
		{503, "Tue, 10 Mar 2026 07:59:00 GMT", 0},
		{503, "Wed, 11 Mar 2026 08:00:00 GMT", time.Hour},
		{400, "7", 0}, // rejected: there is no next time
		{200, "7", 0},
	} {
		t.Run(fmt.Sprintf("%d %s", c.status, c.after), func(t *testing.T) {
			far := start(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", date)
				w.Header().Set("Retry-After", c.after)
				w.WriteHeader(c.status)
			})
			require.Equal(t, c.want, deliver(t, sinkTo(t, far.url), message("1"))[0].RetryAfter)
		})
	}
}

// TestHostileReceiver plays far sides that do all but answer.
func TestHostileReceiver(t *testing.T) {
	const slow = 5 * time.Millisecond
	say := func(text string) func(net.Conn) {
		return func(c net.Conn) { _, _ = io.WriteString(c, text) }
	}
	wait := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	reset := func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }
	drip := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			ticker := time.NewTicker(slow)
			defer ticker.Stop()
			for {
				for i := range len(text) {
					<-ticker.C
					if _, err := c.Write([]byte{text[i]}); err != nil {
						return
					}
				}
			}
		}
	}
	flood := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, text); err != nil {
					return
				}
			}
		}
	}
	const (
		ok      = "HTTP/1.1 200 OK\r\n"
		chunked = ok + "Transfer-Encoding: chunked\r\n\r\n"
		kib     = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	)
	for _, c := range []struct {
		name   string
		unread bool // the request is not even read
		play   []func(net.Conn)
		want   string // the reason
	}{
		{"does not read", true, []func(net.Conn){func(c net.Conn) { time.AfterFunc(2*timeout, func() { _ = c.Close() }); wait(c) }}, "timeout"},
		{"closes in the request", true, []func(net.Conn){func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }}, "network"},
		{"resets in the request", true, []func(net.Conn){func(c net.Conn) { _, _ = c.Read(make([]byte, 1)) }, reset}, "network"},
		{"closes without an answer", false, nil, "network"},
		{"resets without an answer", false, []func(net.Conn){reset}, "network"},
		{"says nothing", false, []func(net.Conn){wait}, "timeout"},
		{"stops in the status line", false, []func(net.Conn){say("HTTP/1.1 20"), wait}, "timeout"},
		{"closes in the status line", false, []func(net.Conn){say("HTTP/1.1 200")}, "network"},
		{"stops in the headers", false, []func(net.Conn){say(ok + "X-A: 1\r\n"), wait}, "timeout"},
		{"closes in the headers", false, []func(net.Conn){say(ok + "X-A: 1\r\n")}, "network"},
		{"resets after the headers", false, []func(net.Conn){say(ok + "Content-Length: 5\r\n\r\n"), reset}, "network"},
		{"stops in the body", false, []func(net.Conn){say(ok + "Content-Length: 5\r\n\r\nab"), wait}, "timeout"},
		{"says less than it promised", false, []func(net.Conn){say(ok + "Content-Length: 5\r\n\r\nab")}, "network"},
		{"stops in a chunk", false, []func(net.Conn){say(chunked + "5\r\nab"), wait}, "timeout"},
		{"closes before the last chunk", false, []func(net.Conn){say(chunked + "2\r\nab\r\n")}, "network"},
		{"lies about a chunk", false, []func(net.Conn){say(chunked + "zz\r\nab\r\n0\r\n\r\n")}, "network"},
		{"has two lengths", false, []func(net.Conn){say(ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc")}, "network"},
		{"has a negative length", false, []func(net.Conn){say(ok + "Content-Length: -1\r\n\r\n"), wait}, "network"},
		{"drips headers", false, []func(net.Conn){say(ok), drip("X-A: 1\r\n")}, "timeout"},
		{"drips a body", false, []func(net.Conn){say(chunked), drip("1\r\nx\r\n")}, "timeout"},
		{"answers after the timeout", false, []func(net.Conn){func(net.Conn) { <-time.After(timeout + timeout/2) }, say(ok + "Content-Length: 0\r\n\r\n")}, "timeout"},
		{"floods headers", false, []func(net.Conn){say(ok), flood("X-A: " + kib + "\r\n")}, "network"},
		{"floods a status line", false, []func(net.Conn){flood("HTTP/1.1 200 " + kib)}, "network"},
		{"floods a body", false, []func(net.Conn){say(ok + "\r\n"), flood(kib)}, "answer_too_long"},
		{"floods chunks", false, []func(net.Conn){say(chunked), flood("40\r\n" + kib + "\r\n")}, "answer_too_long"},
		{"promises a terabyte", false, []func(net.Conn){say(ok + "Content-Length: 1099511627776\r\n\r\n"), flood(kib)}, "answer_too_long"},
		{"floods interim answers", false, []func(net.Conn){flood("HTTP/1.1 103 Early Hints\r\n\r\n")}, "network"},
		{"switches protocols", false, []func(net.Conn){say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")}, "status_unknown"},
		{"is not HTTP", false, []func(net.Conn){say("220 mail.example.com ESMTP\r\n")}, "network"},
		{"is TLS", false, []func(net.Conn){say("\x15\x03\x01\x00\x02\x02\x46"), reset}, "network"},
		{"quotes at length what is not HTTP", false, []func(net.Conn){say(strings.Repeat(kib, 64) + "\r\n\r\n")}, "network"},
	} {
		for kind, most := range map[string]int{"alone": 1, "batch": 4} {
			t.Run(c.name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				far := listen(t, func(conn net.Conn) {
					if !c.unread {
						req, err := http.ReadRequest(bufio.NewReader(conn))
						if err != nil {
							return
						}
						_, _ = io.Copy(io.Discard, req.Body)
					}
					for _, act := range c.play {
						act(conn)
					}
				})
				endpoint := open(t, func(config *webhook.Config) {
					config.URL, config.Batch.MaxMessages = setting.NewURL("http://"+far), most
				})
				ctx, cancel := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { assert.NoError(t, endpoint.Run(ctx)) })
				defer running.Wait()
				defer cancel()

				ms := numbered(1, most)
				ms[0].Body = make([]byte, 60<<10)
				began := time.Now()
				for _, result := range deliver(t, bind(t, endpoint), ms...) {
					requireFailure(t, relay.Retry, c.want, result)
					require.Less(t, len(result.Err.Error()), 1024, "an error as long as what the far side sent")
				}
				require.Less(t, time.Since(began), timeout+2*time.Second)
			})
		}
	}
}

// As many connections are kept as there may be requests, for the next ones, and no longer than
// far sides keep theirs.
func TestConnectionsAreKept(t *testing.T) {
	const concurrency = 8
	var mu sync.Mutex
	met := sync.NewCond(&mu)
	together, connections := 0, map[string]bool{}
	far := start(t, func(w http.ResponseWriter, req *http.Request) {
		accept(w, req)
		mu.Lock()
		defer mu.Unlock()
		connections[req.RemoteAddr] = true
		together++
		met.Broadcast()
		for target := (together + concurrency - 1) / concurrency * concurrency; together < target; {
			met.Wait()
		}
	})
	endpoint := open(t, func(c *webhook.Config) {
		c.URL, c.Concurrency, c.Timeout = setting.NewURL(far.url), concurrency, 10*time.Second
	})
	run(t, endpoint)
	sink := bind(t, endpoint)
	for range 3 {
		requireDelivered(t, deliver(t, sink, numbered(1, concurrency)...))
	}
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, connections, concurrency)
	require.Equal(t, 90*time.Second, webhook.IdleTimeout(endpoint))
}

// listen serves raw connections until the test ends.
func listen(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer conn.Close() //nolint:errcheck // the far side does what it likes
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		work.Wait()
	})
	return listener.Addr().String()
}

// TestFloodIsNotRead counts what a far side gets rid of: what was read, and what the
// kernel holds for a reader that does not come.
func TestFloodIsNotRead(t *testing.T) {
	for _, head := range []string{
		"HTTP/1.1 200 OK\r\n",
		"HTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 500 Oh\r\n\r\n",
	} {
		all := make(chan int, 1)
		far := listen(t, func(c net.Conn) {
			_ = c.(*net.TCPConn).SetWriteBuffer(4 << 10)
			_, _ = http.ReadRequest(bufio.NewReader(c))
			_, _ = io.WriteString(c, head)
			line := "x: " + strings.Repeat("x", 1000) + "\r\n"
			for sent := 0; ; {
				n, err := io.WriteString(c, line)
				if sent += n; err != nil {
					all <- sent
					return
				}
			}
		})
		require.Equal(t, relay.Retry, deliver(t, sinkTo(t, "http://"+far), message("1"))[0].Outcome)
		require.Less(t, <-all, 1<<20, "bytes sent after %q", head)
	}
}

// What an answer costs in memory is bounded, whatever comes: all that is allocated for one,
// used again or not, is little more than what is read of it.
func TestMemoryOfAnAnswer(t *testing.T) {
	const answers = 50
	// results is an answer that tells of far more messages than there are.
	results := func(each string) string {
		body := `{"results":[` + strings.Repeat(each+",", (64_000-len(each))/(len(each)+1)) + each + "]}"
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	for name, c := range map[string]struct {
		head  string
		batch int
		most  uint64 // bytes an answer
	}{
		"a body":               {"HTTP/1.1 200 OK\r\n\r\n", 1, 64 << 10},
		"a body of a batch":    {"HTTP/1.1 200 OK\r\n\r\n", 2, 128 << 10}, // and it is kept
		"results of nothing":   {results("0"), 2, 192 << 10},
		"results for nobody":   {results("{}"), 2, 192 << 10},
		"results of much":      {results(`{"error":[[[[[[[[[[]]]]]]]]]]}`), 2, 192 << 10},
		"a body of an error":   {"HTTP/1.1 500 Oh\r\n\r\n", 1, 64 << 10},
		"headers":              {"HTTP/1.1 200 OK\r\n", 1, 256 << 10}, // as many lines as fit
		"a chunk without end":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", 1, 64 << 10},
		"a length like no two": {"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n", 1, 64 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			line := []byte("x: " + strings.Repeat("x", 1000) + "\r\n")
			far := listen(t, func(conn net.Conn) {
				request := make([]byte, 16<<10)
				_, _ = conn.Read(request)
				_, _ = io.WriteString(conn, c.head)
				for !strings.HasSuffix(c.head, "}") { // with which it ends
					if _, err := conn.Write(line); err != nil {
						return
					}
				}
			})
			endpoint := open(t, func(config *webhook.Config) {
				config.URL, config.Concurrency = setting.NewURL("http://"+far), 1
				config.Batch = webhook.Batch{MaxMessages: c.batch, MaxBytes: setting.MiB}
			})
			run(t, endpoint)
			webhook.NeverOpen(endpoint)
			sink := bind(t, endpoint)
			deliver(t, sink, message("1")) // what is made but once
			allocated := func() uint64 {
				sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
				metrics.Read(sample)
				return sample[0].Value.Uint64()
			}
			before := allocated()
			for range answers {
				require.Equal(t, relay.Retry, deliver(t, sink, message("1"))[0].Outcome)
			}
			each := (allocated() - before) / answers
			require.Less(t, each, c.most+64<<10, "bytes an answer, the far side's own included")
		})
	}
}

// TestConnectHangs has a far side whose kernel drops what should open a connection.
func TestConnectHangs(t *testing.T) {
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL("http://" + fullListener(t))
		c.Timeout = time.Minute
	})
	run(t, endpoint) // nothing is left of it afterwards, without waiting for a minute
	hasty, err := endpoint.Bind(func(settings any) error {
		settings.(*webhook.Settings).Timeout = 100 * time.Millisecond
		return nil
	})
	require.NoError(t, err)
	for _, result := range deliver(t, hasty, message("1"), message("2")) {
		requireFailure(t, relay.Retry, "timeout", result)
	}
}

// fullListener gives the address of a socket whose queue of connections is full.
func fullListener(t *testing.T) (addr string) {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, syscall.Close(fd)) })
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	bound, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(bound.(*syscall.SockaddrInet4).Port))
	for range 16 {
		conn, err := (&net.Dialer{Timeout: 200 * time.Millisecond}).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	require.Fail(t, "the queue does not fill")
	return ""
}

// TestAbandonedConnectionsAreBounded has requests give up while net/http goes on with
// the connections that it began for them.
func TestAbandonedConnectionsAreBounded(t *testing.T) {
	const concurrency = 2
	var accepted atomic.Int64
	far := listen(t, func(c net.Conn) {
		accepted.Add(1)
		_, _ = io.Copy(io.Discard, c)
	})
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL("https://" + far)
		c.Timeout = time.Minute
		c.Concurrency = concurrency
	})
	run(t, endpoint)
	hasty, err := endpoint.Bind(func(settings any) error {
		settings.(*webhook.Settings).Timeout = 100 * time.Millisecond
		return nil
	})
	require.NoError(t, err)
	for _, result := range deliver(t, hasty, make([]relay.Message, 2*concurrency)...) {
		requireFailure(t, relay.Retry, "timeout", result)
	}
	require.Equal(t, int64(concurrency), accepted.Load())
}

func TestEndDoesNotWaitForTheTimeout(t *testing.T) {
	arrived := make(chan struct{})
	far := start(t, func(_ http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		close(arrived)
		<-req.Context().Done()
	})
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.url)
		c.Timeout = time.Minute
		c.Concurrency = 1
	})
	ctx, end := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { assert.NoError(t, endpoint.Run(ctx)) })
	defer running.Wait()
	go func() {
		<-arrived
		end()
	}()
	began := time.Now()
	for _, result := range deliver(t, bind(t, endpoint), message("under way"), message("waiting")) {
		requireFailure(t, relay.Retry, "stopped", result)
	}
	require.Less(t, time.Since(began), 30*time.Second)
}

func TestNothingListens(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	require.NoError(t, listener.Close())
	requireFailure(t, relay.Retry, "connect", deliver(t, sinkTo(t, "http://"+addr), message("1"))[0])
}

func TestHostWithoutAddress(t *testing.T) {
	result := deliver(t, sinkTo(t, "http://hooks.invalid"), message("1"))[0] // RFC 6761
	requireFailure(t, relay.Retry, "dns", result)
}

func TestAnswerOfTheLongestKind(t *testing.T) {
	for _, c := range []struct {
		bytes int
		want  relay.Outcome
	}{{64<<10 - 1, relay.Delivered}, {64 << 10, relay.Retry}} {
		far := start(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, c.bytes)) })
		require.Equal(t, c.want, deliver(t, sinkTo(t, far.url), message("1"))[0].Outcome)
	}
}

func TestAddresses(t *testing.T) {
	type rules = []string
	for _, c := range []struct {
		host  string
		allow rules
	}{
		{"127.0.0.1", nil},
		{"127.255.255.254", nil},
		{"localhost", nil}, // only DNS tells
		{"0.0.0.0", nil},
		{"10.1.2.3", nil},
		{"172.16.0.1", nil},
		{"192.168.1.1", nil},
		{"169.254.169.254", nil}, // metadata of most clouds
		{"100.100.100.200", nil}, // metadata of Alibaba Cloud
		{"100.64.0.1", nil},
		{"192.0.0.192", nil},
		{"198.18.0.1", nil},
		{"224.0.0.1", nil},
		{"255.255.255.255", nil},
		{"[::]", nil},
		{"[::1]", nil},
		{"[::ffff:127.0.0.1]", nil},
		{"[::ffff:100.100.100.200]", nil},
		{"[::127.0.0.1]", nil},
		{"[64:ff9b::7f00:1]", nil},
		{"[64:ff9b::6464:64c8]", nil}, // 100.100.100.200
		{"[64:ff9b::808:808]", nil},
		{"[64:ff9b:1::1]", nil},
		{"[2002:7f00:1::]", nil}, // 6to4
		{"[2001::1]", nil},       // Teredo
		{"[fe80::1]", nil},
		{"[fc00::1]", nil},
		{"[fd00:ec2::254]", nil},
		{"[ff02::1]", nil},
		// Allowed networks open what they name and no more.
		{"127.0.0.1", rules{"10.0.0.0/8", "::/0"}},
		{"[::ffff:127.0.0.1]", rules{"::/0"}},
		{"[::1]", rules{"0.0.0.0/0"}},
		{"[64:ff9b::7f00:1]", rules{"64:ff9b::/96"}},
		{"[64:ff9b::6464:64c8]", rules{"64:ff9b::/96"}},
	} {
		t.Run(fmt.Sprint(c.host, c.allow), func(t *testing.T) {
			config := webhook.Defaults()
			config.Timeout = timeout
			config.Network.Allow = c.allow
			config.URL = setting.NewURL("http://" + c.host + ":9/")
			if !strings.Contains(c.host, "localhost") {
				require.ErrorContains(t, config.Validate(), "is not an address of the public internet")
			}
			// A name could lead there all the same.
			endpoint, err := config.Open(relay.SinkDeps{Instance: "mnsrelay/test", Log: zap.NewNop()})
			require.NoError(t, err)
			run(t, endpoint)
			result := deliver(t, bind(t, endpoint), message("1"))[0]
			requireFailure(t, relay.Retry, "address_refused", result)
			require.ErrorContains(t, result.Err, "network.allow")
		})
	}
}

func TestAllowedAddresses(t *testing.T) {
	far := start(t, accept)
	_, port, err := net.SplitHostPort(strings.TrimPrefix(far.url, "http://"))
	require.NoError(t, err)
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]"} {
		result := deliver(t, sinkTo(t, "http://"+host+":"+port), message("1"))[0]
		require.NoError(t, result.Err, host)
		require.Equal(t, relay.Delivered, result.Outcome, host)
	}
	// Which is no connection that a test could make.
	c := webhook.Defaults()
	for _, host := range []string{"8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "[2400:3200::1]"} {
		c.URL = setting.NewURL("https://" + host)
		require.NoError(t, c.Validate(), host)
	}
	c.Network.Allow = []string{"64:ff9b::/96"}
	c.URL = setting.NewURL("https://[64:ff9b::808:808]")
	require.NoError(t, c.Validate())
}

func TestRequest(t *testing.T) {
	far := start(t, accept)
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(strings.Replace(far.url, "http://", "http://us%20er:p%40ss@", 1) + "/a%2Fb?q=1")
		c.Headers = map[string]setting.Secret{"x-team": setting.NewSecret("mess age"), "content-type": setting.NewSecret("application/x-sms")}
	})
	run(t, endpoint)
	m := message("id 1")
	m.Source = "短信"
	m.Attempt = 3
	require.Equal(t, relay.Delivered, deliver(t, bind(t, endpoint), m)[0].Outcome)

	got := far.last()
	require.Equal(t, "POST /a%2Fb?q=1", got.Method+" "+got.RequestURI)
	user, password, _ := got.BasicAuth()
	require.Equal(t, "us er p@ss", user+" "+password)
	for name, want := range map[string]string{
		"webhook-id":         "id%201",
		"user-agent":         "mnsrelay/test (host)",
		"x-team":             "mess age",
		"content-type":       "application/x-sms",
		"accept-encoding":    "",
		"x-mnsrelay-source":  "%E7%9F%AD%E4%BF%A1",
		"x-mnsrelay-attempt": "3",
		"x-mnsrelay-body":    "raw",
	} {
		require.Equal(t, want, got.Header.Get(name), name)
	}
}

func TestConcurrencyIsOfAllRoutesTogether(t *testing.T) {
	const concurrency, calls, each = 3, 4, 8
	var now, most, conns atomic.Int64
	meet := make(chan struct{})
	far := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
			if n == concurrency {
				close(meet) // as many as may be are there at once
			}
		}
		<-meet
		now.Add(-1)
		accept(w, req)
	}))
	far.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	far.Start()
	t.Cleanup(far.Close)
	endpoint := open(t, func(c *webhook.Config) {
		c.URL = setting.NewURL(far.URL)
		c.Concurrency = concurrency
	})
	run(t, endpoint)

	var work sync.WaitGroup
	for call := range calls {
		sink := bind(t, endpoint)
		work.Go(func() {
			ms := make([]relay.Message, each)
			for i := range ms {
				ms[i] = message(fmt.Sprintf("%d-%d", call, i))
			}
			for _, r := range deliver(t, sink, ms...) {
				assert.Equal(t, relay.Delivered, r.Outcome, "%v", r.Err)
			}
		})
	}
	work.Wait()
	require.Equal(t, int64(concurrency), most.Load(), "requests at once")
	require.LessOrEqual(t, conns.Load(), int64(concurrency), "connections, which are kept")
}

func TestNoSecretInErrorsAndLogs(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	answers := start(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Location", "/hunter2")
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, "hunter2")
	})
	closed := listen(t, func(net.Conn) {})
	for _, address := range []string{strings.TrimPrefix(answers.url, "http://"), closed, "hooks.invalid", "127.0.0.1:1"} {
		for _, scheme := range []string{"http://", "https://"} {
			c := webhook.Defaults()
			c.Timeout = timeout
			c.Network.Allow = []string{"127.0.0.0/8"}
			c.URL = setting.NewURL(scheme + "hunter2:hunter2@" + address + "/hunter2?key=hunter2")
			c.Headers = map[string]setting.Secret{"x-key": setting.NewSecret("hunter2")}
			endpoint, err := c.Open(relay.SinkDeps{Instance: "mnsrelay/test", Log: zap.New(core)})
			require.NoError(t, err)
			run(t, endpoint)
			m := message("1")
			m.Body = []byte("hunter2")
			result := deliver(t, bind(t, endpoint), m)[0]
			require.Error(t, result.Err)
			require.NotContains(t, fmt.Sprintf("%v %+v %#v", result.Err, result, result), "hunter2")
		}
	}
	require.NotZero(t, logs.Len())
	for _, entry := range logs.All() {
		require.NotContains(t, fmt.Sprint(entry.Message, entry.ContextMap()), "hunter2")
	}
}

func TestRefusalIsLoudOnce(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	var status atomic.Int64
	far := start(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(status.Load())) })
	c := webhook.Defaults()
	c.Network.Allow = []string{"127.0.0.0/8"}
	c.URL = setting.NewURL(far.url)
	endpoint, err := c.Open(relay.SinkDeps{Instance: "mnsrelay/test", Log: zap.New(core)})
	require.NoError(t, err)
	run(t, endpoint)
	sink := bind(t, endpoint)
	for _, code := range []int{200, 401, 401, 503, 401, 200, 404, 404, 410, 200, 200} {
		endpoint.(relay.Resumer).Resume() // from 410
		status.Store(int64(code))
		deliver(t, sink, message("1"))
	}
	var said []string
	for _, entry := range logs.FilterFieldKey("url").All() {
		answer, _ := entry.ContextMap()["answer"].(string)
		said = append(said, strings.TrimSpace(entry.Level.String()+" "+strings.SplitN(answer, " ", 2)[0]))
	}
	require.Equal(t, []string{"error 401", "info", "error 404", "error 410", "info"}, said)
}

func TestTLS(t *testing.T) {
	serve := func(t *testing.T, config *tls.Config, own bool) string {
		t.Helper()
		far := httptest.NewUnstartedServer(http.HandlerFunc(accept))
		far.TLS = config
		if config.Certificates == nil {
			config.Certificates = []tls.Certificate{trusted}
		}
		far.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
		far.StartTLS()
		t.Cleanup(far.Close)
		if own {
			return far.URL
		}
		// A name that the certificate does not have.
		return strings.Replace(far.URL, "127.0.0.1", "localhost", 1)
	}
	for _, c := range []struct {
		name   string
		config *tls.Config
		own    bool
		want   string // the reason; empty: delivered
	}{
		{"1.2", &tls.Config{MaxVersion: tls.VersionTLS12}, true, ""},
		{"1.3", &tls.Config{MinVersion: tls.VersionTLS13}, true, ""},
		{"1.1", &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, true, "tls"},
		{"another name", &tls.Config{MinVersion: tls.VersionTLS12}, false, "tls"},
		{"another authority", &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{selfSigned()}}, true, "tls"},
	} {
		t.Run(c.name, func(t *testing.T) {
			result := deliver(t, sinkTo(t, serve(t, c.config, c.own)), message("1"))[0]
			if c.want == "" {
				require.NoError(t, result.Err)
				require.Equal(t, relay.Delivered, result.Outcome)
				return
			}
			requireFailure(t, relay.Retry, c.want, result)
		})
	}
	t.Run("none", func(t *testing.T) {
		far := start(t, accept)
		result := deliver(t, sinkTo(t, strings.Replace(far.url, "http://", "https://", 1)), message("1"))[0]
		requireFailure(t, relay.Retry, "tls", result)
		require.Zero(t, far.count())
	})
	t.Run("a handshake that hangs", func(t *testing.T) {
		left := make(chan struct{})
		far := listen(t, func(c net.Conn) {
			_, _ = io.Copy(io.Discard, c)
			close(left)
		})
		requireFailure(t, relay.Retry, "timeout", deliver(t, sinkTo(t, "https://"+far), message("1"))[0])
		select {
		case <-left: // net/http itself would go on with it
		case <-time.After(timeout):
			require.Fail(t, "the connection is still open")
		}
	})
}

func BenchmarkDeliver(b *testing.B) {
	far := httptest.NewServer(http.HandlerFunc(accept))
	defer far.Close()
	c := webhook.Defaults()
	c.Network.Allow = []string{"127.0.0.0/8"}
	c.URL = setting.NewURL(far.URL)
	endpoint, err := c.Open(relay.SinkDeps{Instance: "mnsrelay/test", Log: zap.NewNop()})
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = endpoint.Run(ctx) })
	defer running.Wait()
	defer cancel()
	sink, err := endpoint.Bind(nil)
	require.NoError(b, err)
	ms := make([]relay.Message, 16)
	for i := range ms {
		ms[i] = message(strconv.Itoa(i))
		ms[i].Body = make([]byte, 1<<10)
	}
	b.ReportAllocs()
	for b.Loop() {
		sink.Deliver(b.Context(), ms, func(_ int, r relay.Result) {
			if r.Outcome != relay.Delivered {
				b.Error(r.Err)
			}
		})
	}
	b.ReportMetric(float64(b.N*len(ms))/b.Elapsed().Seconds(), "messages/s")
}
