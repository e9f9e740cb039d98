package app

import (
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"

	"mnsrelay/internal/config"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/telemetry"
)

// newTracing gives what the configuration asks for; nil: there is none.
func newTracing(c *config.Tracing, deps Deps) (*telemetry.Tracing, error) {
	if c.OTLPEndpoint.IsZero() {
		return nil, nil //nolint:nilnil // no tracing is the usual case
	}
	endpoint, err := c.OTLPEndpoint.Parse()
	if err != nil {
		return nil, err
	}
	headers := make(map[string]string, len(c.Headers))
	for name, value := range c.Headers {
		headers[name] = value.Reveal()
	}
	return telemetry.NewTracing(telemetry.TracingConfig{
		Endpoint: endpoint, Headers: headers, SampleRatio: c.SampleRatio,
		TLS:     func() (*tls.Config, error) { return c.TLS.Config(endpoint.Hostname()) },
		Version: deps.Version, Instance: deps.Instance,
	}, telemetry.TracingDeps{Registry: deps.Registry, Log: deps.Log.Named("tracing")})
}

// histogram observes, where spans are made, with the trace that an observation belongs to.
type histogram struct {
	prometheus.Observer
	traced bool
}

func newHistogram(of prometheus.Observer, traced bool) histogram { return histogram{of, traced} }

func (h histogram) observe(value float64, m *relay.Message) {
	of, can := h.Observer.(prometheus.ExemplarObserver)
	if !h.traced || !can || m.Trace == nil || !m.Trace.Sampled() {
		h.Observe(value)
		return
	}
	of.ObserveWithExemplar(value, prometheus.Labels{"trace_id": m.Trace.TraceID()})
}
