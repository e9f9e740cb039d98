package httpapi_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
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
	"mnsrelay/internal/setting"
	"mnsrelay/test/contract"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeRelay answers what a test sets.
type fakeRelay struct {
	status  func() api.Status
	waiting []string
	live    error
	// steered records the calls that change something; refuse is what they give.
	steered []string
	refuse  error
}

func (f *fakeRelay) Status() api.Status {
	if f.status == nil {
		return api.Status{}
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

func (f *fakeRelay) Reload(context.Context) (api.Configuration, error) {
	f.steered = append(f.steered, "reload")
	return configuration, f.refuse
}

func (f *fakeRelay) History() api.History {
	return api.History{
		End: epoch, IntervalSeconds: 10,
		Sources: map[string]api.Points{"sms": {0, 1.5}}, Sinks: map[string]api.Points{"events": {}},
		Routes: map[string]map[string]api.Points{"sms": {"events": {2}}},
	}
}

var failure = api.Failure{
	Time: epoch, Source: "sms", Route: "sms", Sink: "events", MessageId: "A-1", Attempt: 2, Outcome: api.Rejected, Reason: "returned", Text: "no route",
}

func (f *fakeRelay) Failures(source string) []api.Failure {
	if source != "" && source != "sms" {
		return nil
	}
	return []api.Failure{failure, {Time: epoch, Source: "sms", MessageId: "A-2", Attempt: 1, Outcome: api.Retry, Reason: "decode", Text: "not base64"}}
}

func (f *fakeRelay) Message(_ context.Context, id string) (api.MessageState, error) {
	switch id {
	case "A-1":
		return api.MessageState{Id: id, Failures: []api.Failure{failure}, Confirmed: []api.Confirmation{{Source: "sms", Route: "sms", Sink: "events"}}}, nil
	case "A-2":
		return api.MessageState{Id: id}, nil
	case "A-3":
		return api.MessageState{Id: id, Previews: []api.MessagePreview{{Source: "sms", Preview: api.Preview{
			Time: epoch, MessageId: id, Attempt: 1, EnqueuedAt: epoch, End: "it would stay in the queue", Deliveries: []api.WouldDeliver{},
		}}}}, nil
	case "slow":
		return api.MessageState{}, errors.New("ask the ledger: timeout")
	}
	return api.MessageState{}, fmt.Errorf("message %q: %w", id, httpapi.ErrNotFound)
}

func (f *fakeRelay) Configuration() (api.Configuration, string) {
	return configuration, "sources: {}\n"
}

var configuration = api.Configuration{
	Generation: 2, Digest: "abc", Loaded: epoch, LastReload: epoch,
	LastError: &api.Error{Text: "mnsrelay.yaml:3:1: no such key", Time: epoch},
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)

// full is a status in which no field is empty.
func full() api.Status {
	n := int64(7)
	trouble := &api.Error{Text: "receive: 403 AccessDenied", Time: epoch, Class: api.Auth}
	return api.Status{
		Version: "1.2.3",
		Started: epoch,
		State:   api.StatusStateRunning, Configuration: configuration,
		Sources: []api.Source{{
			Name: "sms", Queue: "Alicom-Queue-1-SmsReport", State: api.SourceStateWaiting, Reason: "sink events is down",
			Pollers: 2, ReceivedPerSecond: 1.5, BatchFill: 0.5, OldestMessageAgeSeconds: 3,
			Latency:      &api.Latency{P50Seconds: 0.01, P99Seconds: 0.1},
			Returned:     map[string]uint64{"sink_down": 2},
			Retried:      map[string]uint64{"timeout": 3},
			DeadLettered: map[string]uint64{"decode": 1}, GivenUp: map[string]uint64{"busy": 1},
			Balance:     api.Balance{Received: 10, Deleted: 4, Returned: 2, LostLeases: 1, InFlight: 3, Exact: true},
			LastReceive: epoch, LastError: trouble,
			Credential:    &api.Credential{Type: "mns_token", Expires: epoch, LastRefresh: epoch, LastError: trouble},
			QueueMessages: &api.QueueMessages{Active: &n, Inactive: &n, Delayed: &n},
		}},
		Sinks: []api.Sink{{
			Name: "events", Type: "amqp091", State: api.SinkStateDown, Reason: "dial: refused", Since: epoch,
			Delivered: 4, DeliveredPerSecond: 0.5, Latency: &api.Latency{P50Seconds: 0.01, P99Seconds: 0.1}, Failed: map[string]uint64{"timeout": 3},
		}},
		Routes: []api.Route{{
			Name: "sms", From: []string{"sms"}, To: []api.Target{{Sink: "events", Required: true, Delivered: 4, DeliveredPerSecond: 0.5, Latency: &api.Latency{P50Seconds: 0.01, P99Seconds: 0.1}}},
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
	base, _ := serveBoth(t, cfg, r, metrics, log)
	return base
}

// serveBoth gives the address of an operator's own listener too; empty: there is none.
func serveBoth(t *testing.T, cfg httpapi.Config, r httpapi.Relay, metrics prometheus.Gatherer, log *zap.Logger) (base, admin string) {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	s, err := httpapi.New(cfg, httpapi.Deps{
		Instance: "relay-0", Relay: r, Metrics: metrics, Log: log, Level: zap.NewAtomicLevel(),
	})
	require.NoError(t, err)
	apiAt, adminAt, err := s.Listen(t.Context())
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	scheme := "http://"
	if !cfg.TLS.IsZero() {
		scheme = "https://"
	}
	if adminAt != nil {
		admin = scheme + adminAt.String()
	}
	return scheme + apiAt.String(), admin
}

type answer struct {
	method, path string
	code         int
	header       http.Header
	body         []byte
}

// spec holds answers against openapi.yaml.
type spec struct{ *contract.Contract }

func newContract(tb testing.TB) spec {
	tb.Helper()
	c, err := contract.New()
	require.NoError(tb, err)
	return spec{c}
}

func (s spec) require(t *testing.T, got answer) {
	t.Helper()
	require.NoError(t, s.Check(got.method, got.path, got.code, got.header, got.body))
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
	return send(t, req)
}

func send(t *testing.T, req *http.Request) answer {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	res, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer func() { require.NoError(t, res.Body.Close()) }()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return answer{method: req.Method, path: req.URL.RequestURI(), code: res.StatusCode, header: res.Header, body: body}
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
			require.Equal(t, api.Probe{Instance: "relay-0", Status: api.ProbeStatusOk}, decode[api.Probe](t, body))
		}},
		{name: "healthz is livez", relay: working, path: "/healthz", code: 200},
		{
			name: "not live", relay: &fakeRelay{live: errors.New("pipeline sms stands still")}, path: "/livez", code: 503,
			check: func(t *testing.T, body []byte) {
				t.Helper()
				require.Equal(t, api.Problem{
					Type: api.AboutBlank, Title: "Service Unavailable", Status: 503,
					Detail: "pipeline sms stands still", ServedBy: "relay-0",
				}, decode[api.Problem](t, body))
			},
		},
		{name: "not live by the other name", relay: &fakeRelay{live: errors.New("stands still")}, path: "/healthz", code: 503},
		{name: "ready", relay: working, path: "/readyz", code: 200},
		{
			name: "not ready names what it waits for", path: "/readyz", code: 503,
			relay: &fakeRelay{waiting: []string{"credential of source sms has not been fetched", "sink events has not connected"}},
			check: func(t *testing.T, body []byte) {
				t.Helper()
				p := decode[api.Problem](t, body)
				require.Equal(t, []string{"credential of source sms has not been fetched", "sink events has not connected"}, p.Waiting)
				require.Contains(t, p.Detail, "sink events has not connected")
			},
		},
		{name: "live though not ready", relay: &fakeRelay{waiting: []string{"x"}}, path: "/livez", code: 200},
		{name: "status", relay: working, path: "/api/v1/status", code: 200, check: func(t *testing.T, body []byte) {
			t.Helper()
			want := full()
			want.Instance = "relay-0"
			require.Equal(t, want, decode[api.Status](t, body))
		}},
		{
			name: "status of nothing", path: "/api/v1/status", code: 200,
			relay: &fakeRelay{status: func() api.Status {
				return api.Status{
					State: api.StatusStateStarting, Sources: []api.Source{{State: api.SourceStateStarting}},
					Sinks: []api.Sink{{State: api.SinkStateProbe}}, Routes: []api.Route{{}},
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
			relay: &fakeRelay{status: func() api.Status { panic("secret cause") }},
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
			spec.require(t, got)
			if tt.code >= 400 {
				p := decode[api.Problem](t, got.body)
				require.Equal(t, tt.code, p.Status)
				require.NotEmpty(t, p.Detail)
			}
			if tt.check != nil {
				tt.check(t, got.body)
			}
		})
	}
}

// parametersOf fills in the parameters of a path.
var parametersOf = strings.NewReplacer("/sources/{name}", "/sources/sms", "/sinks/{name}", "/sinks/events", "{id}", "A-1", "{profile}", "goroutine", "{file}", "page.js")

func TestEveryDescribedPathAnswersGETAndHEAD(t *testing.T) {
	base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	spec := newContract(t)
	require.ElementsMatch(t, httpapi.Paths(), slices.Collect(maps.Keys(spec.Operations())))
	operator := map[string]string{"Authorization": "Bearer " + adminToken}
	for path, methods := range spec.Operations() {
		if _, has := methods["get"]; !has {
			continue
		}
		got := askWith(t, http.MethodGet, base+parametersOf.Replace(path), operator)
		require.Equal(t, http.StatusOK, got.code, path)
		spec.require(t, got)
		head := askWith(t, http.MethodHead, base+parametersOf.Replace(path), operator)
		require.Equal(t, http.StatusOK, head.code, path)
		require.Empty(t, head.body)
	}
}

func TestOneOfMany(t *testing.T) {
	t.Parallel()
	spec := newContract(t)
	base := serve(t, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	for path, test := range map[string]struct {
		code int
		want string // a part of the answer
	}{
		"/api/v1/sources/sms":                       {200, `"queue": "Alicom-Queue-1-SmsReport"`},
		"/api/v1/sources/smz":                       {404, `there is no source \"smz\"`},
		"/api/v1/sinks/events":                      {200, `"delivered": 4`},
		"/api/v1/sinks/e%2Fv":                       {404, `there is no sink \"e/v\"`},
		"/api/v1/messages/A-1":                      {200, `"reason": "returned"`},
		"/api/v1/messages/A-2":                      {200, `"confirmed": []`},
		"/api/v1/messages/A-3":                      {200, `"end": "it would stay in the queue"`},
		"/api/v1/messages/B":                        {404, "nothing is known"},
		"/api/v1/messages/slow":                     {502, "ask the ledger: timeout"},
		"/api/v1/errors?limit=1":                    {200, `"message_id": "A-1"`},
		"/api/v1/errors?source=other":               {404, `there is no source \"other\"`},
		"/api/v1/errors?source=sms":                 {200, `"message_id": "A-1"`},
		"/api/v1/errors?limit=1001":                 {400, "1 to 1000"},
		"/api/v1/errors?limit=-1":                   {400, "1 to 1000"},
		"/api/v1/errors?limit=many":                 {400, `"limit must be one whole number, 1 to 1000"`},
		"/api/v1/errors?limit=1&limit=2":            {400, `"limit must be one whole number, 1 to 1000"`},
		"/api/v1/errors?limit=0":                    {400, `"limit must be one whole number, 1 to 1000"`},
		"/api/v1/errors?limit=99999999999999999999": {400, `"limit must be one whole number, 1 to 1000"`},
	} {
		t.Run(path, func(t *testing.T) {
			got := ask(t, http.MethodGet, base+path)
			require.Equal(t, test.code, got.code, "%s", got.body)
			spec.require(t, got)
			require.Contains(t, string(got.body), test.want)
		})
	}
	one := ask(t, http.MethodGet, base+"/api/v1/errors?limit=1")
	require.NotContains(t, string(one.body), "A-2")
}

func TestWrongMethodSaysWhichAreAllowed(t *testing.T) {
	base := serve(t, &fakeRelay{}, prometheus.NewRegistry(), zap.NewNop())
	got := ask(t, http.MethodDelete, base+"/livez")
	require.Equal(t, http.StatusMethodNotAllowed, got.code)
	require.Equal(t, []string{"GET", "HEAD"}, got.header.Values("Allow"))
}

func TestStatusLeavesTheRelaysOwnAlone(t *testing.T) {
	own := api.Status{State: api.StatusStateRunning, Sources: []api.Source{{State: api.SourceStateRunning}}}
	base := serve(t, &fakeRelay{status: func() api.Status { return own }}, prometheus.NewRegistry(), zap.NewNop())
	ask(t, http.MethodGet, base+"/api/v1/status")
	require.Nil(t, own.Sources[0].Returned)
}

func TestPanicIsLoggedWithItsStack(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	base := serve(t, &fakeRelay{status: func() api.Status { panic("boom") }}, prometheus.NewRegistry(), zap.New(core))
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

func TestAPortInUseFailsTheStart(t *testing.T) {
	var lc net.ListenConfig
	taken, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { require.NoError(t, taken.Close()) }()
	for _, cfg := range []httpapi.Config{
		{Listen: taken.Addr().String()},
		{Listen: "127.0.0.1:0", AdminListen: taken.Addr().String()},
	} {
		s, err := httpapi.New(cfg, httpapi.Deps{Log: zap.NewNop(), Relay: &fakeRelay{}, Metrics: prometheus.NewRegistry()})
		require.NoError(t, err)
		_, _, err = s.Listen(t.Context())
		require.ErrorContains(t, err, "address already in use")
	}
}

// An answer that is under way when the server stops is given whole.
func TestRunFinishesWhatIsUnderWay(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	r := &fakeRelay{status: func() api.Status {
		close(asked)
		<-answer
		return full()
	}}
	s, err := httpapi.New(httpapi.Config{Listen: "127.0.0.1:0"}, httpapi.Deps{Instance: "relay-0", Relay: r, Metrics: prometheus.NewRegistry(), Log: zap.NewNop()})
	require.NoError(t, err)
	addr, _, err := s.Listen(t.Context())
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
	require.Equal(t, "relay-0", decode[api.Status](t, body).Instance)
	require.NoError(t, <-done)
}

// Clients that are idle or slow hold up no probe, and are cut off.
func TestSlowClientsHoldUpNobody(t *testing.T) {
	base := serve(t, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	address := strings.TrimPrefix(base, "http://")
	dial := func() net.Conn {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	for range 200 {
		dial()
	}
	var slow []net.Conn
	for range 50 {
		conn := dial()
		_, err := io.WriteString(conn, "GET /api/v1/status HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		require.NoError(t, err)
		slow = append(slow, conn)
	}
	for range 20 {
		begun := time.Now()
		require.Equal(t, http.StatusOK, ask(t, http.MethodGet, base+"/readyz").code)
		require.Less(t, time.Since(begun), time.Second)
	}
	for _, conn := range slow {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err := io.ReadAll(conn)
		require.NoError(t, err, "the server ends it within the time of a header")
	}
}
