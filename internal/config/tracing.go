package config

import (
	"maps"
	"slices"

	"golang.org/x/net/http/httpguts"

	"mnsrelay/internal/setting"
)

func (d *decoder) checkTracing(t *Tracing) {
	if t.SampleRatio < 0 || t.SampleRatio > 1 {
		d.checked("tracing.sample_ratio", "must be from 0 to 1, not %s", d.plain("tracing.sample_ratio", t.SampleRatio))
	}
	for _, name := range slices.Sorted(maps.Keys(t.Headers)) {
		switch path := join("tracing.headers", name); {
		case !httpguts.ValidHeaderFieldName(name):
			d.checked("tracing.headers", "HTTP does not allow the name %s; use letters, digits and -", quote(name))
		case !httpguts.ValidHeaderFieldValue(t.Headers[name].Reveal()):
			d.checked(path, "has a line break or another control character in its value")
		}
	}
	d.validated("tracing", t.TLS.Validate("tls"))
	const path = "tracing.otlp_endpoint"
	if t.OTLPEndpoint.IsZero() {
		if d.written(path) || d.suspect(path) {
			return // switched off, by a variable for one
		}
		for _, key := range []string{"tracing.headers", "tracing.sample_ratio", "tracing.tls"} {
			if d.written(key) {
				d.checked(key, "has a meaning with otlp_endpoint only: write that too, or remove it")
			}
		}
		return
	}
	u, err := t.OTLPEndpoint.Parse()
	switch {
	case err != nil:
		d.checked(path, "not a complete URL: write scheme://host, as in http://otel:4318")
	case u.Scheme != "http" && u.Scheme != "https":
		d.checked(path, "must begin with http:// or https://: traces go by OTLP over HTTP, whose port is 4318, and not by gRPC")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		d.checked(path, "must have no user name, query or fragment: write what proves who you are under tracing.headers")
	case u.Scheme == "http" && t.TLS != setting.TLS{}:
		d.checked("tracing.tls", "the endpoint is http://, which has no TLS: write https://, or remove it")
	case u.Scheme == "http" && len(t.Headers) > 0 && !setting.IsLoopback(u.Hostname()):
		d.warn(path, "is http://: the headers cross the network unencrypted; write https:// if the collector has it")
	}
	if err == nil && u.Port() == "4317" {
		d.warn(path, "4317 is the port of gRPC, OTLP over HTTP has 4318")
	}
}
