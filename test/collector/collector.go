// Package collector is an OpenTelemetry collector for tests: it takes traces by OTLP over
// HTTP, keeps them, and goes wrong in every way that a test asks for.
package collector

import (
	"compress/gzip"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	service "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	wire "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one that arrived. Ids are hexadecimal.
type Span struct {
	Name, TraceID, ID, Parent, State string
	Kind                             wire.Span_SpanKind
	Start, End                       time.Time
	// Attributes are text, int64, float64 or bool; Resource are those of the process.
	Attributes, Resource map[string]any
	Links                []Link
	Events               []Event
	Failed               bool
	Status               string // the words of a failure
}

// Link is a link of a span.
type Link struct {
	TraceID, ID string
	Attributes  map[string]any
}

// Event is an event of a span.
type Event struct {
	Name       string
	Attributes map[string]any
}

// Answer is how the collector goes on. The zero value takes spans.
type Answer struct {
	// Status is that of the answer; 0: 200.
	Status int
	Header http.Header
	Body   string
	// Hang gives no answer until the client goes or another Answer is set.
	Hang bool
}

// Collector is a running collector. It is safe for concurrent use.
type Collector struct {
	// URL is where it listens, without a path.
	URL     string
	address string
	server  *http.Server

	mu      sync.Mutex
	answer  Answer
	changed chan struct{} // closed when answer changes
	spans   []Span
	raw     strings.Builder
	headers []http.Header
}

// Start runs a collector until the test ends.
func Start(t *testing.T) *Collector {
	t.Helper()
	c := &Collector{changed: make(chan struct{}), address: "127.0.0.1:0"}
	c.Up(t)
	t.Cleanup(c.Down)
	return c
}

// Up listens, after Down on the port it had.
func (c *Collector) Up(t *testing.T) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(context.WithoutCancel(t.Context()), "tcp", c.address)
	require.NoError(t, err)
	c.address = l.Addr().String()
	c.URL = "http://" + c.address
	c.server = &http.Server{Handler: c, ReadHeaderTimeout: 10 * time.Second}
	server := c.server
	go func() { _ = server.Serve(l) }()
}

// Down ends the collector and its connections.
func (c *Collector) Down() { _ = c.server.Close() }

// Set says how the collector goes on.
func (c *Collector) Set(a Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answer = a
	close(c.changed)
	c.changed = make(chan struct{})
}

// Spans are those that were taken.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Raw is all that was sent, unpacked; Headers are those of the requests.
func (c *Collector) Raw() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.raw.String()
}

// Headers are those of all requests so far.
func (c *Collector) Headers() []http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]http.Header(nil), c.headers...)
}

// ServeHTTP is part of http.Handler.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	answer, changed := c.answer, c.changed
	c.headers = append(c.headers, r.Header.Clone())
	c.mu.Unlock()
	body, err := read(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if answer.Hang {
		select {
		case <-changed:
		case <-r.Context().Done():
		}
		return
	}
	if answer.Status == 0 {
		if err := c.take(r, body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answer.Status = http.StatusOK
	}
	maps.Copy(w.Header(), answer.Header)
	w.WriteHeader(answer.Status)
	_, _ = io.WriteString(w, answer.Body)
}

func read(r *http.Request) ([]byte, error) {
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/x-protobuf" {
		return nil, fmt.Errorf("%s of %s is not OTLP", r.Method, r.Header.Get("Content-Type"))
	}
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		unpacked, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, err
		}
		body = unpacked
	}
	return io.ReadAll(io.LimitReader(body, 64<<20))
}

func (c *Collector) take(r *http.Request, body []byte) error {
	if r.URL.Path != "/v1/traces" {
		return fmt.Errorf("nothing is at %s", r.URL.Path)
	}
	var request service.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &request); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.raw.Write(body)
	for _, resource := range request.GetResourceSpans() {
		of := attributes(resource.GetResource().GetAttributes())
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, span(s, of))
			}
		}
	}
	return nil
}

func span(s *wire.Span, resource map[string]any) Span {
	out := Span{
		Name: s.GetName(), TraceID: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		State: s.GetTraceState(), Kind: s.GetKind(), Attributes: attributes(s.GetAttributes()), Resource: resource,
		Start: time.Unix(0, int64(s.GetStartTimeUnixNano())), End: time.Unix(0, int64(s.GetEndTimeUnixNano())), //nolint:gosec // times of today
		Failed: s.GetStatus().GetCode() == wire.Status_STATUS_CODE_ERROR, Status: s.GetStatus().GetMessage(),
	}
	for _, l := range s.GetLinks() {
		out.Links = append(out.Links, Link{hex.EncodeToString(l.GetTraceId()), hex.EncodeToString(l.GetSpanId()), attributes(l.GetAttributes())})
	}
	for _, e := range s.GetEvents() {
		out.Events = append(out.Events, Event{e.GetName(), attributes(e.GetAttributes())})
	}
	return out
}

func attributes(all []*common.KeyValue) map[string]any {
	out := make(map[string]any, len(all))
	for _, a := range all {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			out[a.GetKey()] = v.IntValue
		case *common.AnyValue_DoubleValue:
			out[a.GetKey()] = v.DoubleValue
		case *common.AnyValue_BoolValue:
			out[a.GetKey()] = v.BoolValue
		}
	}
	return out
}
