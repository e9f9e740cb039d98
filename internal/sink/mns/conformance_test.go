package mns_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap/zaptest"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	sink "mnsrelay/internal/sink/mns"
)

const (
	queueName = "events"
	timeout   = time.Second
)

// lingering is the goroutine of the fasthttp.Client that the SDK owns: it ends by
// itself a second or two after the last request.
func lingering() goleak.Option {
	return goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*Client).mCleaner")
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, lingering()) }

func TestConformance(t *testing.T) {
	relaytest.TestSink(t, relaytest.SinkHarness{
		Start:     farSide,
		Timeout:   timeout,
		Recovery:  7 * time.Second, // the longest wait and its jitter
		Connected: true,
		MaxBody:   48_000, // base64 of it and the rest of the envelope are below 64 KiB
		Lingering: []goleak.Option{lingering()},
		Untyped:   true,
	})
}

// farSide is a queue behind a proxy that breaks the way to it.
func farSide(t *testing.T) relaytest.FarSide {
	t.Helper()
	server, url := startServer(t, emulator.QueueConfig{})
	proxy := relaytest.NewProxy(t, url[len("http://"):])
	reader := &reader{url: url}
	return relaytest.FarSide{
		Endpoint: open(t, "http://"+proxy.Addr(), func(c *sink.Config) { c.Format = sink.FormatEnvelope }),
		Arrived:  reader.arrived,
		Break: map[string]func(){
			"refuses":     proxy.Refuse,
			"hangs":       proxy.Hang,
			"answers 503": func() { fault(t, server, emulator.Fault{Status: http.StatusServiceUnavailable, Code: "InternalError"}) },
			"is throttled": func() {
				fault(t, server, emulator.Fault{Status: http.StatusServiceUnavailable, Code: "QpsLimitExceeded"})
			},
			"refuses the keys": func() {
				fault(t, server, emulator.Fault{Status: http.StatusForbidden, Code: "InvalidAccessKeyId"})
			},
			"is no MNS":      func() { fault(t, server, emulator.Fault{Status: http.StatusOK, Body: "<html>welcome</html>"}) },
			"does not exist": func() { require.True(t, server.DeleteQueue(queueName)) },
		},
		Mend: func() {
			server.ClearFaults()
			require.NoError(t, server.CreateQueue(queueName, emulator.QueueConfig{}))
			proxy.Mend()
		},
	}
}

func startServer(t *testing.T, queue emulator.QueueConfig) (*emulator.Server, string) {
	t.Helper()
	server, err := emulator.New(emulator.Config{Queues: map[string]emulator.QueueConfig{queueName: queue}})
	require.NoError(t, err)
	url, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	return server, url
}

func fault(t *testing.T, server *emulator.Server, f emulator.Fault) {
	t.Helper()
	_, err := server.AddFault(f)
	require.NoError(t, err)
}

// open makes an endpoint with the emulator's keys.
func open(t *testing.T, url string, change func(*sink.Config)) relay.Endpoint {
	t.Helper()
	c := sink.Defaults()
	c.Endpoint = setting.NewURL(url)
	c.Queue = queueName
	c.Credentials = credentials.Config{
		Type: credentials.TypeStatic, AccessKeyID: setting.NewSecret(emulator.DemoAccessKeyID), AccessKeySecret: setting.NewSecret(emulator.DemoAccessKeySecret),
	}
	c.Timeout = timeout
	if change != nil {
		change(c)
	}
	require.NoError(t, c.Validate())
	endpoint, err := c.Open(relay.SinkDeps{Name: "dead-letters", Instance: "mnsrelay/test (host)", Log: zaptest.NewLogger(t)})
	require.NoError(t, err)
	return endpoint
}

// run runs an endpoint until the test ends and waits for the state.
func run(t *testing.T, endpoint relay.Endpoint, state relay.State) relay.Sink {
	t.Helper()
	bound, err := endpoint.Bind(nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = endpoint.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	await(t, endpoint, state)
	return bound
}

// await waits for a state and gives it with its reason.
func await(t *testing.T, endpoint relay.Endpoint, state relay.State) relay.Health {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	for {
		health, changed := endpoint.Health()
		if health.State == state {
			return health
		}
		select {
		case <-changed:
		case <-deadline.C:
			require.Failf(t, "wrong health", "%v: %s", health.State, health.Reason)
		}
	}
}

// deliver gives the result of each message, in order.
func deliver(t *testing.T, s relay.Sink, ms ...relay.Message) []relay.Result {
	t.Helper()
	var mu sync.Mutex
	results := make([]relay.Result, len(ms))
	s.Deliver(t.Context(), ms, func(i int, r relay.Result) {
		mu.Lock()
		defer mu.Unlock()
		results[i] = r
	})
	return results
}

// reader takes everything out of a queue. It keeps no connection.
type reader struct {
	url string
	got []relaytest.Arrival
}

type staticKeys struct{}

func (staticKeys) Current() (credentials.Keys, error) {
	return credentials.Keys{AccessKeyID: emulator.DemoAccessKeyID, AccessKeySecret: setting.NewSecret(emulator.DemoAccessKeySecret)}, nil
}

func (staticKeys) Refused(credentials.Keys) {}

// bodies takes what is in the queue.
func (r *reader) bodies(t *testing.T) []string {
	t.Helper()
	queue, err := mns.NewQueue(mns.Config{Name: "reader", Endpoint: r.url, Queue: queueName}, mns.Deps{Credentials: staticKeys{}})
	require.NoError(t, err)
	defer queue.Close()
	var bodies []string
	for {
		ds, err := queue.BatchReceive(t.Context(), mns.MaxBatch, 0)
		require.NoError(t, err)
		if len(ds) == 0 {
			return bodies
		}
		receipts := make([]string, len(ds))
		for i, d := range ds {
			bodies = append(bodies, string(d.Body))
			receipts[i] = d.Receipt
		}
		errs, err := queue.BatchDelete(t.Context(), receipts)
		require.NoError(t, err)
		for _, err := range errs {
			require.NoError(t, err)
		}
	}
}

// arrived gives all envelopes that ever came. Their headers are made of the JSON by
// itself, not by the code that reads envelopes.
func (r *reader) arrived(t *testing.T) []relaytest.Arrival {
	t.Helper()
	for _, body := range r.bodies(t) {
		var e struct {
			Envelope, ID, Source, Reason, Error, Sink, First, Last string
			BodyBase64                                             []byte `json:"body_base64"`
			Attributes                                             map[string]string
			Attempts                                               int
			EnqueuedAt                                             string `json:"enqueued_at"`
		}
		require.NoError(t, json.Unmarshal([]byte(body), &e))
		require.Equal(t, "mnsrelay/1", e.Envelope)
		encoding := relay.BodyRaw
		if e.Attributes[relay.AttributeBody] != "" {
			encoding = e.Attributes[relay.AttributeBody]
		}
		headers := map[string]string{
			relay.HeaderSource: e.Source, relay.HeaderAttempt: strconv.Itoa(e.Attempts), relay.HeaderEnqueuedAt: e.EnqueuedAt, relay.HeaderBody: encoding,
		}
		for name, value := range map[string]string{
			relay.HeaderDeadReason: e.Reason, relay.HeaderDeadError: e.Error, relay.HeaderDeadSink: e.Sink,
			relay.HeaderDeadFirst: e.First, relay.HeaderDeadLast: e.Last,
		} {
			if value != "" {
				headers[name] = value
			}
		}
		r.got = append(r.got, relaytest.Arrival{ID: e.ID, Body: e.BodyBase64, Headers: headers})
	}
	return r.got
}
