package webhook_test

import (
	"crypto/tls"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

const (
	timeout = 2 * time.Second
	probe   = 200 * time.Millisecond
)

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name         string
		secure       bool
		onlyDelivery []string
	}{
		{"http", false, []string{"answers 503", "does not answer", "hangs"}},
		{"https", true, []string{"answers 503", "does not answer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			relaytest.TestSink(t, relaytest.SinkHarness{
				Start:   func(t *testing.T) relaytest.FarSide { t.Helper(); return farSide(t, c.secure) },
				Timeout: timeout,
				// Then an open circuit lets one message find out.
				Recovery:     probe,
				OnlyDelivery: c.onlyDelivery,
			})
		})
	}
}

// farSide is a receiver behind a proxy that breaks the way to it.
func farSide(t *testing.T, secure bool) relaytest.FarSide {
	t.Helper()
	receiver := &receiver{t: t, protocol: 1}
	server := httptest.NewUnstartedServer(receiver)
	server.Config.ErrorLog = zap.NewStdLog(zap.NewNop()) // it is broken on purpose
	scheme := "http://"
	if secure {
		scheme = "https://"
		receiver.protocol = 2
		server.EnableHTTP2 = true
		server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{trusted}}
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	proxy := relaytest.NewProxy(t, server.Listener.Addr().String())

	return relaytest.FarSide{
		Endpoint: open(t, func(c *webhook.Config) { c.URL = setting.NewURL(scheme + proxy.Addr() + "/hook?key=1") }),
		Arrived:  receiver.arrived,
		Break: map[string]func(){
			"refuses":         proxy.Refuse,
			"hangs":           proxy.Hang,
			"answers 503":     func() { receiver.set(receiver.unavailable) },
			"does not answer": func() { receiver.set(silent) },
		},
		Mend: func() {
			receiver.set(nil)
			proxy.Mend()
		},
	}
}

// receiver accepts what is posted, unless it was told otherwise.
type receiver struct {
	t        *testing.T
	protocol int

	mu        sync.Mutex
	otherwise http.HandlerFunc
	got       []relaytest.Arrival
}

func (r *receiver) set(h http.HandlerFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.otherwise = h
}

func (r *receiver) unavailable(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusServiceUnavailable)
}

// silent reads, so that it learns of the connection's end, and says nothing.
func silent(_ http.ResponseWriter, req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body)
	<-req.Context().Done()
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	otherwise := r.otherwise
	r.mu.Unlock()
	if otherwise != nil {
		otherwise(w, req)
		return
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	assert.Equal(r.t, http.MethodPost, req.Method)
	assert.Equal(r.t, "/hook?key=1", req.RequestURI)
	assert.Equal(r.t, r.protocol, req.ProtoMajor)
	assert.Equal(r.t, int64(len(body)), req.ContentLength)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, arrival(r.t, req.Header, body))
	w.WriteHeader(http.StatusAccepted)
}

func arrival(t *testing.T, h http.Header, body []byte) relaytest.Arrival {
	t.Helper()
	id, err := url.PathUnescape(h.Get(webhook.HeaderID))
	if err != nil {
		t.Errorf("%s: %v", webhook.HeaderID, err)
	}
	return relaytest.Arrival{ID: id, Body: body, Headers: arrivalHeaders(h), ContentType: h.Get("Content-Type")}
}

// arrivalHeaders are those of the relay itself.
func arrivalHeaders(h http.Header) map[string]string {
	headers := make(map[string]string)
	for name := range h {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-") {
			headers[lower] = h.Get(name)
		}
	}
	return headers
}

func (r *receiver) arrived(t *testing.T) []relaytest.Arrival {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]relaytest.Arrival(nil), r.got...)
}

// open makes an endpoint that may connect to loopback.
func open(t *testing.T, change func(*webhook.Config)) relay.Endpoint {
	t.Helper()
	c := webhook.Defaults()
	c.Timeout = timeout
	c.Network.Allow = []string{"127.0.0.0/8"}
	change(c)
	require.NoError(t, c.Validate())
	endpoint, err := c.Open(relay.SinkDeps{Name: "hook", Instance: "mnsrelay/test (host)", Log: zaptest.NewLogger(t)})
	require.NoError(t, err)
	webhook.ProbeEvery(endpoint, probe)
	return endpoint
}
