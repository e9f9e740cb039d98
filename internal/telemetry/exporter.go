package telemetry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/zap"

	"mnsrelay/internal/setting"
)

// maxAnswer is how much of an answer of the collector is read, in bytes.
const maxAnswer = 64 << 10

// exporter brings spans to a collector. It counts them, and says once when that begins to fail
// and once when it works again. As an http.RoundTripper it sees the answers.
type exporter struct {
	sdktrace.SpanExporter
	host string
	http *http.Transport
	log  *zap.Logger
	// waiting counts the spans that have neither been sent nor given up.
	waiting                   atomic.Int64
	exported, failed, dropped prometheus.Counter
	// status is that of the last answer; 0: there was none.
	status atomic.Int32
	over   context.Context //nolint:containedctx // the life of the exporter, which no call has
	cut    context.CancelFunc

	mu sync.Mutex
	// lost counts the spans that were lost since sending began to fail; 0: it works.
	lost int
}

func newExporter(host string, config func() (*tls.Config, error), deps TracingDeps) *exporter {
	spans := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "mnsrelay_trace_spans_total",
		Help: "Spans that were recorded: exported to the collector, failed where it did not take them, dropped where too many waited.",
	}, []string{"result"})
	deps.Registry.MustRegister(spans)
	dialer := &net.Dialer{Timeout: requestTimeout}
	e := &exporter{
		host: host, log: deps.Log,
		exported: spans.WithLabelValues("exported"), failed: spans.WithLabelValues("failed"), dropped: spans.WithLabelValues("dropped"),
		http: &http.Transport{
			DialContext: dialer.DialContext, MaxIdleConns: 2, IdleConnTimeout: 90 * time.Second,
			MaxResponseHeaderBytes: maxAnswer, TLSHandshakeTimeout: requestTimeout,
			DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := config()
				if err != nil {
					return nil, err
				}
				return (&tls.Dialer{NetDialer: dialer, Config: c}).DialContext(ctx, network, address)
			},
		},
	}
	e.over, e.cut = context.WithCancel(context.Background())
	return e
}

// ExportSpans is part of sdktrace.SpanExporter. Its error is nil: the outcome is counted and
// logged here.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	defer e.waiting.Add(-int64(len(spans)))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.over, cancel)() //nolint:contextcheck // whichever ends first
	e.status.Store(0)
	e.note(len(spans), e.SpanExporter.ExportSpans(ctx, spans))
	return nil
}

func (e *exporter) note(n int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err == nil {
		e.exported.Add(float64(n))
		if e.lost > 0 {
			e.log.Info("the collector takes traces again", zap.String("collector", e.host), zap.Int("spans_lost", e.lost))
			e.lost = 0
		}
		return
	}
	e.failed.Add(float64(n))
	if e.lost == 0 {
		e.log.Warn("the collector does not take traces; spans are lost until it does, messages are not", zap.String("collector", e.host), zap.Error(e.cause(err)))
	}
	e.lost += n
}

// cause is what is said of an error: neither the URL nor the text of an answer, which may hold
// what the headers hold.
func (e *exporter) cause(err error) error {
	var transport *url.Error
	status := int(e.status.Load())
	switch {
	case e.over.Err() != nil:
		return errors.New("there was no time left to send them")
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fmt.Errorf("the answer is %d: check tracing.headers", status)
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed || status/100 == 3:
		return fmt.Errorf("the answer is %d: check the path of tracing.otlp_endpoint; without one it is %s", status, tracesPath)
	case status != 0 && status/100 != 2:
		return fmt.Errorf("the answer is %d", status)
	case status != 0:
		return fmt.Errorf("the answer is %d, but it is not read as one of OTLP, or says that spans were rejected", status)
	case errors.As(err, &transport):
		return setting.AdviseTLS(setting.AdviseNetwork(transport.Err))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return errors.New("it does not answer in time")
	}
	return errors.New("they cannot be encoded")
}

// RoundTrip is part of http.RoundTripper.
func (e *exporter) RoundTrip(r *http.Request) (*http.Response, error) {
	e.status.Store(0)
	response, err := e.http.RoundTrip(r)
	if err == nil {
		e.status.Store(int32(response.StatusCode)) //nolint:gosec // three digits
	}
	return response, err
}

func (e *exporter) close() {
	e.cut()
	e.http.CloseIdleConnections()
}
