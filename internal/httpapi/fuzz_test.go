package httpapi_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/api"
	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/setting"
)

// wellRelay is a fakeRelay that is well: it gives nobody a reason for a 5xx.
type wellRelay struct{ fakeRelay }

func (*wellRelay) Message(ctx context.Context, id string) (api.MessageState, error) {
	if id == "slow" {
		id = "A-1"
	}
	return (&fakeRelay{}).Message(ctx, id)
}

func (r *wellRelay) Pause(source string) error { return r.Resume(source) }

func (r *wellRelay) Resume(source string) error {
	r.steered = append(r.steered, source)
	if source != "sms" {
		return fmt.Errorf("source %q: %w", source, httpapi.ErrNotFound)
	}
	return nil
}

// Whatever is sent: no panic, no 5xx, every answer that openapi.yaml describes as it
// describes it, an error as a problem document, and no token in an answer or the log. Who
// does not show the token changes nothing.
func FuzzAPI(f *testing.F) {
	spec := newContract(f)
	for path, methods := range spec.Operations() {
		for method := range methods {
			for operator := range 8 {
				f.Add(strings.ToUpper(method), parametersOf.Replace(path), "Accept: */*", "", uint8(operator))
			}
		}
	}
	f.Add("PUT", "/api/v1/log-level", "Content-Type: application/json", `{"level": "debug"}`, uint8(1))
	f.Add("PUT", "/api/v1/log-level", "Content-Type: application/json", `{"level": "fatal", "for": [1e999]}`, uint8(1))
	f.Add("POST", "/api/v1/reload", "Origin: https://evil.example\r\nSec-Fetch-Site: cross-site", "x=1", uint8(1))
	f.Add("POST", "/api/v1/sources/%2e%2e%2fsms/pause", "X-HTTP-Method-Override: DELETE", "", uint8(1))
	f.Add("GET", "/api/v1/errors?limit=-1&limit=2&source=%00%ff", "Range: bytes=0-1", "", uint8(0))
	f.Add("GET", "/api/v1/messages/a%2Fb%3F%23", "If-None-Match: *", "", uint8(0))
	f.Add("HEAD", "/assets/..%2f..%2fserver.go", "Accept-Encoding: gzip, br", "", uint8(0))
	f.Add("GET", "/debug/pprof/heap?debug=2&seconds=0&gc=1", "Accept-Encoding: gzip", "", uint8(1))
	f.Add("GET", "/debug/pprof/goroutine?seconds=1", "", "", uint8(3))
	f.Add("GET", "/metrics", "Accept: application/openmetrics-text; version=1.0.0; escaping=values;q=0.5,*/*;q=0", "", uint8(0))
	f.Add("GET", "http://10.0.0.7:8080/livez?a;b", "Host: 10.0.0.7\r\nConnection: upgrade", "", uint8(0))
	f.Add("OPTIONS", "*", "Access-Control-Request-Method: POST", "", uint8(0))
	f.Add("GET", "//livez/../readyz", "Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", uint8(0))

	f.Fuzz(func(t *testing.T, method, target, headers, body string, as uint8) {
		// Of what the fuzzer cannot find out: the token, and whether it is asked for at all.
		token := "fuzz-" + strings.Repeat("token", 8)
		shown := []string{"", "Bearer " + token, "Bearer " + token + "x", "bearer " + token}[as%4]
		cfg := httpapi.Config{AdminToken: setting.NewSecret(token)}
		if as&4 != 0 {
			cfg.AdminListen = "127.0.0.1:8081"
		}
		text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: relay\r\n%s\r\nContent-Length: %d\r\n\r\n%s", method, target, headers, len(body), body)
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(text)))
		if err != nil || strings.Contains(text, token) {
			return // net/http answers this by itself
		}
		req.Header.Del("Authorization")
		if shown != "" {
			req.Header.Set("Authorization", shown)
		}
		// A profile that takes its time is given none.
		gone, leave := context.WithCancel(t.Context())
		leave()
		core, logs := observer.New(zap.DebugLevel)
		relay := &wellRelay{fakeRelay{status: full}}
		handler := httpapi.Handler(cfg, httpapi.Deps{
			Instance: "relay-0", Relay: relay, Metrics: prometheus.NewRegistry(), Log: zap.New(core), Level: zap.NewAtomicLevel(),
		})
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, req.WithContext(gone))

		got := w.Result()
		answered := w.Body.String()
		path := req.URL.RequestURI()
		if got.StatusCode >= 500 {
			t.Fatalf("%q: %d: %s", text, got.StatusCode, answered)
		}
		if got.StatusCode/100 != 2 && got.Header.Get("Content-Type") != "application/problem+json" {
			t.Fatalf("%q: %d is no problem document: %s: %s", text, got.StatusCode, got.Header, answered)
		}
		if got.Header.Get(httpapi.HeaderInstance) != "relay-0" {
			t.Fatalf("%q: nobody has answered: %v", text, got.Header)
		}
		if req.Method != http.MethodHead {
			if err := spec.Check(req.Method, path, got.StatusCode, got.Header, w.Body.Bytes()); err != nil {
				t.Fatalf("%q: %v", text, err)
			}
		}
		if all := fmt.Sprint(answered, got.Header, logs.All()); strings.Contains(all, token) {
			t.Fatalf("%q: the token is told: %s", text, all)
		}
		if mayChange := as%4 == 1 && as&4 == 0; len(relay.steered) > 0 && !mayChange {
			t.Fatalf("%q: changed without the token: %v", text, relay.steered)
		}
	})
}
