package httpapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/setting"
)

const adminToken = "correct horse"

// post sends a request of an operator with headers.
func post(t *testing.T, url string, headers map[string]string) answer {
	t.Helper()
	return askWith(t, http.MethodPost, url, headers)
}

func TestWhatChangesSomethingNeedsTheToken(t *testing.T) {
	t.Parallel()
	spec := newContract(t)
	paths := map[string]string{
		"/api/v1/sources/{name}/pause":  "pause sms",
		"/api/v1/sources/{name}/resume": "resume sms",
		"/api/v1/reload":                "reload",
	}
	tests := map[string]struct {
		token   string
		headers map[string]string
		code    int
	}{
		"no token configured": {headers: map[string]string{"Authorization": "Bearer "}, code: 403},
		"none shown":          {token: adminToken, code: 401},
		"wrong":               {token: adminToken, headers: map[string]string{"Authorization": "Bearer correct horsf"}, code: 401},
		"longer":              {token: adminToken, headers: map[string]string{"Authorization": "Bearer " + adminToken + "x"}, code: 401},
		"another scheme":      {token: adminToken, headers: map[string]string{"Authorization": "Basic " + adminToken}, code: 401},
		"right":               {token: adminToken, headers: map[string]string{"Authorization": "Bearer " + adminToken}, code: 200},
		"from another site": {token: adminToken, headers: map[string]string{
			"Authorization": "Bearer " + adminToken, "Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example",
		}, code: 403},
	}
	for name, test := range tests {
		for path, call := range paths {
			t.Run(name+path, func(t *testing.T) {
				relay := &fakeRelay{}
				core, logs := observer.New(zap.DebugLevel)
				base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(test.token)}, relay, prometheus.NewRegistry(), zap.New(core))
				got := post(t, base+strings.Replace(path, "{name}", "sms", 1), test.headers)
				require.Equal(t, test.code, got.code, "%s", got.body)
				if name != "from another site" { // answered by net/http, before us
					spec.requireMethod(t, "post", path, got)
				}
				if test.code == http.StatusOK {
					require.Equal(t, []string{call}, relay.steered)
				} else {
					require.Empty(t, relay.steered)
				}
				if test.code == http.StatusUnauthorized {
					require.Contains(t, got.header.Get("WWW-Authenticate"), "Bearer")
				}
				require.NotContains(t, string(got.body)+fmt.Sprint(logs.All()), adminToken)
			})
		}
	}
}

func TestWhatARelayRefuses(t *testing.T) {
	t.Parallel()
	spec := newContract(t)
	for _, test := range []struct {
		path, template string
		refuse         error
		code           int
		detail         string
	}{
		{"/api/v1/sources/smz/pause", "/api/v1/sources/{name}/pause", fmt.Errorf("source %q: %w", "smz", httpapi.ErrNotFound), 404, `source "smz": not found`},
		{"/api/v1/sources/sms/resume", "/api/v1/sources/{name}/resume", errors.New("odd"), 500, "odd"},
		{"/api/v1/reload", "/api/v1/reload", errors.New("mnsrelay.yaml:3:1: no such key"), 422, "mnsrelay.yaml:3:1"},
		{"/api/v1/reload", "/api/v1/reload", fmt.Errorf("busy: %w", context.DeadlineExceeded), 409, "draining"},
	} {
		t.Run(test.path, func(t *testing.T) {
			base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{refuse: test.refuse}, prometheus.NewRegistry(), zap.NewNop())
			got := post(t, base+test.path, map[string]string{"Authorization": "Bearer " + adminToken})
			require.Equal(t, test.code, got.code)
			spec.requireMethod(t, "post", test.template, got)
			require.Contains(t, decode[httpapi.Problem](t, got.body).Detail, test.detail)
		})
	}
}

func TestReloadTellsWhatIsInForce(t *testing.T) {
	t.Parallel()
	base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{}, prometheus.NewRegistry(), zap.NewNop())
	got := post(t, base+"/api/v1/reload", map[string]string{"Authorization": "Bearer " + adminToken})
	require.Equal(t, &configuration, decode[httpapi.Done](t, got.body).Configuration)
}
