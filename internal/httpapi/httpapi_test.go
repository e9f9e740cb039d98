package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/api"
	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeRelay answers what a test sets.
type fakeRelay struct {
	status  func() httpapi.Status
	waiting []string
	live    error
	// steered records the calls that change something; refuse is what they give.
	steered []string
	refuse  error
}

func (f *fakeRelay) Status() httpapi.Status {
	if f.status == nil {
		return httpapi.Status{}
	}
	return f.status()
}

func (f *fakeRelay) Ready() (ok bool, waiting []string) { return len(f.waiting) == 0, f.waiting }
func (f *fakeRelay) Live() error                        { return f.live }

func (f *fakeRelay) Pause(source string) error {
	f.steered = append(f.steered, "pause "+source)
	return f.refuse
}

func (f *fakeRelay) Resume(source string) error {
	f.steered = append(f.steered, "resume "+source)
	return f.refuse
}

func (f *fakeRelay) Reload(context.Context) (httpapi.Configuration, error) {
	f.steered = append(f.steered, "reload")
	return configuration, f.refuse
}

var configuration = httpapi.Configuration{
	Generation: 2, Digest: "abc", Loaded: epoch, LastReload: epoch,
	LastError: &httpapi.Error{Text: "mnsrelay.yaml:3:1: no such key", Time: epoch},
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)

// full is a status in which no field is empty.
func full() httpapi.Status {
	n := int64(7)
	trouble := &httpapi.Error{Text: "receive: 403 AccessDenied", Time: epoch, Class: relay.ClassAuth.String()}
	return httpapi.Status{
		Version: "1.2.3",
		Started: epoch,
		State:   httpapi.Running, Configuration: configuration,
		Sources: []httpapi.Source{{
			Name: "sms", Queue: "Alicom-Queue-1-SmsReport", State: relay.SourceWaiting, Reason: "sink events is down",
			Pollers:      2,
			Returned:     map[string]uint64{"sink_down": 2},
			Retried:      map[string]uint64{"timeout": 3},
			DeadLettered: map[string]uint64{"decode": 1}, GivenUp: map[string]uint64{"busy": 1},
			Balance:     httpapi.NewBalance(10, 4, 2, 1, 3),
			LastReceive: epoch, LastError: trouble,
			Credential:    &httpapi.Credential{Type: "mns_token", Expires: epoch, LastRefresh: epoch, LastError: trouble},
			QueueMessages: &httpapi.QueueMessages{Active: &n, Inactive: &n, Delayed: &n},
		}},
		Sinks: []httpapi.Sink{{
			Name: "events", Type: "amqp091", State: relay.Down.String(), Reason: "dial: refused", Since: epoch,
			Delivered: 4, Failed: map[string]uint64{"timeout": 3},
		}},
		Routes: []httpapi.Route{{
			Name: "sms", From: []string{"sms"}, To: []httpapi.Target{{Sink: "events", Required: true}},
		}},
	}
}

// serve runs a server for the length of a test and gives its base URL.
func serve(t *testing.T, r httpapi.Relay, metrics prometheus.Gatherer, log *zap.Logger) string {
	t.Helper()
	return serveWith(t, httpapi.Config{}, r, metrics, log)
}

func serveWith(t *testing.T, cfg httpapi.Config, r httpapi.Relay, metrics prometheus.Gatherer, log *zap.Logger) string {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	s := httpapi.New(cfg, httpapi.Deps{
		Instance: "relay-0", Relay: r, Metrics: metrics, Log: log,
	})
	addr, err := s.Listen(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	return "http://" + addr.String()
}

type answer struct {
	code   int
	header http.Header
	body   []byte
}

func ask(t *testing.T, method, url string) answer {
	t.Helper()
	return askWith(t, method, url, nil)
}

func askWith(t *testing.T, method, url string, headers map[string]string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	require.NoError(t, err)
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer func() { require.NoError(t, res.Body.Close()) }()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return answer{code: res.StatusCode, header: res.Header, body: body}
}

func decode[T any](t *testing.T, body []byte) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(string(body)))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(&v), "%s", body)
	return v
}

func TestAnswers(t *testing.T) {
	spec := newContract(t)
	working := &fakeRelay{status: full}
	tests := []struct {
		name   string
		relay  *fakeRelay
		method string
		path   string
		code   int
		check  func(t *testing.T, body []byte)
	}{
		{name: "live", relay: working, path: "/livez", code: 200, check: func(t *testing.T, body []byte) {
			t.Helper()
			require.Equal(t, httpapi.Probe{Instance: "relay-0", Status: "ok"}, decode[httpapi.Probe](t, body))
		}},
		{name: "healthz is livez", relay: working, path: "/healthz", code: 200},
		{
			name: "not live", relay: &fakeRelay{live: errors.New("pipeline sms stands still")}, path: "/livez", code: 503,
			check: func(t *testing.T, body []byte) {
				t.Helper()
				require.Equal(t, httpapi.Problem{
					Type: "about:blank", Title: "Service Unavailable", Status: 503,
					Detail: "pipeline sms stands still", ServedBy: "relay-0",
				}, decode[httpapi.Problem](t, body))
			},
		},
		{name: "not live by the other name", relay: &fakeRelay{live: errors.New("stands still")}, path: "/healthz", code: 503},
		{name: "ready", relay: working, path: "/readyz", code: 200},
		{
			name: "not ready names what it waits for", path: "/readyz", code: 503,
			relay: &fakeRelay{waiting: []string{"credential of source sms has not been fetched", "sink events has not connected"}},
			check: func(t *testing.T, body []byte) {
				t.Helper()
				p := decode[httpapi.Problem](t, body)
				require.Equal(t, []string{"credential of source sms has not been fetched", "sink events has not connected"}, p.Waiting)
				require.Contains(t, p.Detail, "sink events has not connected")
			},
		},
		{name: "live though not ready", relay: &fakeRelay{waiting: []string{"x"}}, path: "/livez", code: 200},
		{name: "status", relay: working, path: "/api/v1/status", code: 200, check: func(t *testing.T, body []byte) {
			t.Helper()
			want := full()
			want.Instance = "relay-0"
			require.Equal(t, want, decode[httpapi.Status](t, body))
		}},
		{
			name: "status of nothing", path: "/api/v1/status", code: 200,
			relay: &fakeRelay{status: func() httpapi.Status {
				return httpapi.Status{
					State: httpapi.Starting, Sources: []httpapi.Source{{State: relay.SourceStarting}},
					Sinks: []httpapi.Sink{{State: relay.Probe.String()}}, Routes: []httpapi.Route{{}},
				}
			}},
			check: func(t *testing.T, body []byte) {
				t.Helper()
				require.NotContains(t, string(body), "null")
				require.NotContains(t, string(body), "queue_messages")
				require.NotContains(t, string(body), "last_receive")
			},
		},
		{name: "openapi", relay: working, path: "/openapi.yaml", code: 200, check: func(t *testing.T, body []byte) {
			t.Helper()
			require.Equal(t, string(api.OpenAPI), string(body))
		}},
		{name: "metrics", relay: working, path: "/metrics", code: 200, check: func(t *testing.T, body []byte) {
			t.Helper()
			require.Contains(t, string(body), "\nmnsrelay_test_total 3\n")
		}},
		{name: "unknown path", relay: working, path: "/api/v2/status", code: 404},
		{name: "unknown path below a known one", relay: working, path: "/livez/x", code: 404},
		{name: "wrong method", relay: working, method: http.MethodPost, path: "/api/v1/status", code: 405},
		{
			name: "a handler panics", path: "/api/v1/status", code: 500,
			relay: &fakeRelay{status: func() httpapi.Status { panic("secret cause") }},
			check: func(t *testing.T, body []byte) {
				t.Helper()
				require.NotContains(t, string(body), "secret cause")
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			registry := prometheus.NewRegistry()
			counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "mnsrelay_test_total", Help: "Three."})
			counter.Add(3)
			registry.MustRegister(counter)
			method := tt.method
			if method == "" {
				method = http.MethodGet
			}
			base := serve(t, tt.relay, registry, zap.NewNop())
			got := ask(t, method, base+tt.path)
			require.Equal(t, tt.code, got.code, "%s", got.body)
			require.Equal(t, "relay-0", got.header.Get(httpapi.HeaderInstance))
			require.Equal(t, "no-store", got.header.Get("Cache-Control"))
			spec.require(t, tt.path, got)
			if tt.code >= 400 {
				p := decode[httpapi.Problem](t, got.body)
				require.Equal(t, tt.code, p.Status)
				require.NotEmpty(t, p.Detail)
			}
			if tt.check != nil {
				tt.check(t, got.body)
			}
		})
	}
}

func TestEveryDescribedPathAnswersGETAndHEAD(t *testing.T) {
	base := serve(t, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	spec := newContract(t)
	require.ElementsMatch(t, httpapi.Paths(), spec.paths(false))
	for _, path := range spec.paths(true) {
		require.Equal(t, http.StatusOK, ask(t, http.MethodGet, base+path).code, path)
		head := ask(t, http.MethodHead, base+path)
		require.Equal(t, http.StatusOK, head.code, path)
		require.Empty(t, head.body)
	}
}

func TestWrongMethodSaysWhichAreAllowed(t *testing.T) {
	base := serve(t, &fakeRelay{}, prometheus.NewRegistry(), zap.NewNop())
	got := ask(t, http.MethodDelete, base+"/livez")
	require.Equal(t, http.StatusMethodNotAllowed, got.code)
	require.Equal(t, []string{"GET", "HEAD"}, got.header.Values("Allow"))
}

func TestStatusLeavesTheRelaysOwnAlone(t *testing.T) {
	own := httpapi.Status{State: httpapi.Running, Sources: []httpapi.Source{{State: relay.SourceRunning}}}
	base := serve(t, &fakeRelay{status: func() httpapi.Status { return own }}, prometheus.NewRegistry(), zap.NewNop())
	ask(t, http.MethodGet, base+"/api/v1/status")
	require.Nil(t, own.Sources[0].Returned)
}

func TestPanicIsLoggedWithItsStack(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	base := serve(t, &fakeRelay{status: func() httpapi.Status { panic("boom") }}, prometheus.NewRegistry(), zap.New(core))
	ask(t, http.MethodGet, base+"/api/v1/status")
	entries := logs.FilterField(zap.String("path", "/api/v1/status")).All()
	require.Len(t, entries, 1)
	require.Equal(t, "boom", entries[0].ContextMap()["panic"])
	require.Contains(t, entries[0].ContextMap()["stack"], "httpapi_test.go")
}

func TestACollectorThatFailsHidesNoOther(t *testing.T) {
	registry := prometheus.NewRegistry()
	bad := prometheus.NewDesc("mnsrelay_bad", "Fails.", nil, nil)
	registry.MustRegister(failing{bad}, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "mnsrelay_good"}, func() float64 { return 1 }))
	base := serve(t, &fakeRelay{}, registry, zap.NewNop())
	got := ask(t, http.MethodGet, base+"/metrics")
	require.Equal(t, http.StatusOK, got.code)
	require.Contains(t, string(got.body), "mnsrelay_good 1")
}

type failing struct{ desc *prometheus.Desc }

func (f failing) Describe(ch chan<- *prometheus.Desc) { ch <- f.desc }
func (f failing) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.NewInvalidMetric(f.desc, errors.New("no value"))
}

func TestBalance(t *testing.T) {
	tests := []struct {
		name                                string
		received, deleted, returned, leases uint64
		inFlight                            int64
		exact                               bool
	}{
		{name: "nothing", exact: true},
		{name: "all accounted for", received: 10, deleted: 4, returned: 2, leases: 1, inFlight: 3, exact: true},
		{name: "one missing", received: 10, deleted: 4, returned: 2, leases: 1, inFlight: 2},
		{name: "one too many", received: 10, deleted: 8, returned: 2, leases: 1},
		{name: "more ended than came", received: 9, deleted: 10, inFlight: -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := httpapi.NewBalance(tt.received, tt.deleted, tt.returned, tt.leases, tt.inFlight)
			require.Equal(t, tt.exact, b.Exact)
		})
	}
}

func TestAPortInUseFailsTheStart(t *testing.T) {
	var lc net.ListenConfig
	taken, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, taken.Close()) }()
	s := httpapi.New(httpapi.Config{Listen: taken.Addr().String()}, httpapi.Deps{Log: zap.NewNop(), Relay: &fakeRelay{}, Metrics: prometheus.NewRegistry()})
	_, err = s.Listen(t.Context())
	require.ErrorContains(t, err, "address already in use")
}

// An answer that is under way when the server stops is given whole.
func TestRunFinishesWhatIsUnderWay(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	r := &fakeRelay{status: func() httpapi.Status {
		close(asked)
		<-answer
		return full()
	}}
	s := httpapi.New(httpapi.Config{Listen: "127.0.0.1:0"}, httpapi.Deps{Instance: "relay-0", Relay: r, Metrics: prometheus.NewRegistry(), Log: zap.NewNop()})
	addr, err := s.Listen(t.Context())
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()

	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String())
	require.NoError(t, err)
	defer func() { require.NoError(t, conn.Close()) }()
	_, err = io.WriteString(conn, "GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	<-asked
	stop()
	// The listener is closed once the stop is under way.
	require.Eventually(t, func() bool {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr.String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, 5*time.Second, time.Millisecond)
	close(answer)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Equal(t, "relay-0", decode[httpapi.Status](t, body).Instance)
	require.NoError(t, <-done)
}
