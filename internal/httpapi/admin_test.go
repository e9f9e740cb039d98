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

	"mnsrelay/api"
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
				spec.require(t, got)
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
		path   string
		refuse error
		code   int
		detail string
	}{
		{"/api/v1/sources/smz/pause", fmt.Errorf("source %q: %w", "smz", httpapi.ErrNotFound), 404, `there is no source "smz"`},
		{"/api/v1/sources/sms/resume", errors.New("odd"), 500, "odd"},
		{"/api/v1/reload", errors.New("mnsrelay.yaml:3:1: no such key"), 422, "mnsrelay.yaml:3:1"},
		{"/api/v1/reload", fmt.Errorf("busy: %w", context.DeadlineExceeded), 409, "draining"},
	} {
		t.Run(test.path, func(t *testing.T) {
			base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{refuse: test.refuse}, prometheus.NewRegistry(), zap.NewNop())
			got := post(t, base+test.path, map[string]string{"Authorization": "Bearer " + adminToken})
			require.Equal(t, test.code, got.code)
			spec.require(t, got)
			require.Contains(t, decode[api.Problem](t, got.body).Detail, test.detail)
		})
	}
}

func TestReloadTellsWhatIsInForce(t *testing.T) {
	t.Parallel()
	base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{}, prometheus.NewRegistry(), zap.NewNop())
	got := post(t, base+"/api/v1/reload", map[string]string{"Authorization": "Bearer " + adminToken})
	require.Equal(t, &configuration, decode[api.Done](t, got.body).Configuration)
}

// What shows more than the state of the relay is the operator's too, whatever its method.
func TestWhatIsTheOperatorsNeedsTheToken(t *testing.T) {
	t.Parallel()
	spec := newContract(t)
	secured := 0
	base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	closed := serve(t, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	for path, methods := range spec.Operations() {
		for method, needs := range methods {
			if !needs {
				require.Equal(t, "get", method, "%s changes something and asks for no token", path)
				continue
			}
			secured++
			at := parametersOf.Replace(path)
			got := ask(t, strings.ToUpper(method), base+at)
			require.Equal(t, 401, got.code, "%s %s", method, path)
			spec.require(t, got)
			got = ask(t, strings.ToUpper(method), closed+at)
			require.Equal(t, 403, got.code, "%s %s", method, path)
			spec.require(t, got)
		}
	}
	require.GreaterOrEqual(t, secured, 6)
}

func TestTheLogLevel(t *testing.T) {
	t.Parallel()
	spec := newContract(t)
	base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{}, prometheus.NewRegistry(), zap.NewNop())
	put := func(body string) answer {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, base+"/api/v1/log-level", strings.NewReader(body))
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+adminToken)
		got := send(t, req)
		spec.require(t, got)
		return got
	}
	level := func() api.Level {
		got := askWith(t, http.MethodGet, base+"/api/v1/log-level", map[string]string{"Authorization": "Bearer " + adminToken})
		return decode[api.LogLevel](t, got.body).Level
	}
	require.Equal(t, api.LevelInfo, level())
	require.Equal(t, 200, put(`{"level": "debug"}`).code)
	require.Equal(t, api.LevelDebug, level())
	for _, wrong := range []string{"", "debug", `{"level": "fatal"}`, `{"level": ""}`, `{"level": "info", "for": "1h"}`} {
		require.Equal(t, 400, put(wrong).code, "%.40s", wrong)
		require.Equal(t, api.LevelDebug, level())
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{}, prometheus.NewRegistry(), zap.NewNop())
	for path, code := range map[string]int{
		"heap": 200, "goroutine?debug=2": 200, "profile?seconds=1": 200, "trace?seconds=1": 200, "other": 404, "profile?seconds=26": 400, "profile?seconds=x": 400, "profile?seconds=0": 400,
		"heap?seconds=1": 400, "cmdline": 404,
	} {
		got := askWith(t, http.MethodGet, base+"/debug/pprof/"+path, map[string]string{"Authorization": "Bearer " + adminToken})
		require.Equal(t, code, got.code, "%s: %.200s", path, got.body)
		if code == 200 {
			require.NotEmpty(t, got.body)
		}
		if strings.Contains(path, "profile?seconds") && code == 400 {
			require.Equal(t, "seconds must be one whole number, 1 to 25", decode[api.Problem](t, got.body).Detail)
		}
	}
	// The runtime takes one at a time.
	codes := make(chan int, 2)
	for range 2 {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/debug/pprof/profile?seconds=2", http.NoBody)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+adminToken)
		go func() {
			res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
			if err != nil {
				codes <- 0
				return
			}
			_ = res.Body.Close()
			codes <- res.StatusCode
		}()
	}
	require.ElementsMatch(t, []int{200, 409}, []int{<-codes, <-codes})
}
