package telemetry

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// TracingConfig says where spans go.
type TracingConfig struct {
	// Endpoint is the collector's URL. Without a path it is that of OTLP over HTTP.
	Endpoint *url.URL
	// Headers go with every request.
	Headers map[string]string
	// SampleRatio is how many of the traces that begin here are recorded, 0 to 1. Of a
	// message that belongs to a trace, its sender has decided that.
	SampleRatio float64
	// TLS gives what a connection to the collector is made with; it is asked each time.
	TLS func() (*tls.Config, error)
	// Version and Instance are those of the process, for every span.
	Version, Instance string
}

// TracingDeps are what tracing works with.
type TracingDeps struct {
	Registry prometheus.Registerer
	Log      *zap.Logger
}

// Tracing makes spans and brings them to a collector. Whatever that does, nobody waits for it:
// spans wait in a queue of a fixed size, and what does not fit is dropped and counted.
type Tracing struct {
	exporter *exporter
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
}

const (
	// maxSpans is how many spans are kept at most; each takes about a kilobyte.
	maxSpans = 4096
	// spansPerRequest and sendEvery say when some are sent.
	spansPerRequest = 512
	sendEvery       = 2 * time.Second
	// requestTimeout bounds one request, exportTimeout those with the same spans together.
	requestTimeout = 10 * time.Second
	exportTimeout  = 30 * time.Second
	// flushTimeout bounds what Stop waits for the collector.
	flushTimeout = 3 * time.Second
)

// tracesPath is where a collector takes traces (OTLP: "OTLP/HTTP Request").
const tracesPath = "/v1/traces"

// NewTracing opens no connection and starts nothing; Start does.
//
// Of the environment OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES are looked at, which say
// what the process is. All else is the configuration's, and the variables that the SDK would
// read for it have no effect.
func NewTracing(cfg TracingConfig, deps TracingDeps) (*Tracing, error) {
	// The SDK's own log and error handler are global. What there is to say of the collector
	// goes by neither, and the log may quote variables, with their secrets.
	otel.SetLogger(logr.Discard())
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { deps.Log.Debug("tracing", zap.Error(err)) }))
	endpoint := *cfg.Endpoint
	if endpoint.Path == "" || endpoint.Path == "/" {
		endpoint.Path = tracesPath
	}
	e := newExporter(endpoint.Host, cfg.TLS, deps)
	var err error
	if e.SpanExporter, err = otlptracehttp.New(context.Background(),
		otlptracehttp.WithEndpointURL(endpoint.String()),
		otlptracehttp.WithHeaders(cfg.Headers),
		otlptracehttp.WithHTTPClient(&http.Client{Transport: e, Timeout: requestTimeout, CheckRedirect: noRedirect}),
		otlptracehttp.WithCompression(otlptracehttp.GzipCompression),
		otlptracehttp.WithEncoding(otlptracehttp.EncodingProtobuf),
		otlptracehttp.WithMaxResponseSize(maxAnswer),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: 10 * time.Second, MaxElapsedTime: exportTimeout}),
	); err != nil {
		return nil, fmt.Errorf("make the exporter of traces: %w", err)
	}
	of, err := resource.New(context.Background(),
		resource.WithAttributes(semconv.ServiceName("mnsrelay"), semconv.ServiceVersion(cfg.Version), semconv.ServiceInstanceID(cfg.Instance)),
		resource.WithFromEnv(), // counts more
	)
	if err != nil { // the rest of it is there
		deps.Log.Warn("a part of OTEL_RESOURCE_ATTRIBUTES is left out; write key=value,key=value")
	}
	t := &Tracing{exporter: e}
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithResource(of),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.SampleRatio))),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{
			AttributeValueLengthLimit: 256, AttributeCountLimit: 32, EventCountLimit: 32, LinkCountLimit: 32,
			AttributePerEventCountLimit: 8, AttributePerLinkCountLimit: 8,
		}),
	)
	t.tracer = t.provider.Tracer("mnsrelay", trace.WithInstrumentationVersion(cfg.Version), trace.WithSchemaURL(semconv.SchemaURL))
	return t, nil
}

func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Start begins to send. Stop must be called.
func (t *Tracing) Start() {
	t.provider.RegisterSpanProcessor(&queue{
		exporter: t.exporter,
		SpanProcessor: sdktrace.NewBatchSpanProcessor(t.exporter,
			sdktrace.WithMaxQueueSize(maxSpans),
			sdktrace.WithMaxExportBatchSize(spansPerRequest),
			sdktrace.WithBatchTimeout(sendEvery),
			sdktrace.WithExportTimeout(exportTimeout),
		),
	})
}

// Stop sends what waits, for at most flushTimeout or until ctx ends, and ends.
func (t *Tracing) Stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, t.exporter.cut)()
	// It ends soon, for what is cut fails at once.
	_ = t.provider.Shutdown(context.WithoutCancel(ctx))
	t.exporter.close()
}

// queue keeps the spans that wait within bounds. The library's own queue drops what does not
// fit without saying how many.
type queue struct {
	sdktrace.SpanProcessor
	exporter *exporter
}

// OnEnd is part of sdktrace.SpanProcessor.
func (q *queue) OnEnd(s sdktrace.ReadOnlySpan) {
	if !s.SpanContext().IsSampled() {
		return
	}
	if q.exporter.waiting.Add(1) > maxSpans {
		q.exporter.waiting.Add(-1)
		q.exporter.dropped.Inc()
		return
	}
	q.SpanProcessor.OnEnd(s)
}
