package httpapi_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/api"
	"mnsrelay/internal/httpapi"
	"mnsrelay/internal/setting"
)

// What needs the token is at the operator's own address alone; the other says where, whatever
// it is shown. All the rest, the page too, is at both.
func TestTheOperatorsOwnAddress(t *testing.T) {
	t.Parallel()
	spec := newContract(t)
	relay := &fakeRelay{status: full}
	base, admin := serveBoth(t, httpapi.Config{AdminListen: "127.0.0.1:0", AdminToken: setting.NewSecret(adminToken)}, relay, prometheus.NewRegistry(), zap.NewNop())
	for path, methods := range spec.Operations() {
		for method, secured := range methods {
			if secured && method == "put" {
				continue // TestTheLogLevel sends it
			}
			t.Run(method+path, func(t *testing.T) {
				at := parametersOf.Replace(path)
				operator := map[string]string{"Authorization": "Bearer " + adminToken}
				got := askWith(t, strings.ToUpper(method), admin+at, operator)
				require.Equal(t, 200, got.code, "%s", got.body)
				spec.require(t, got)
				before := len(relay.steered)
				for _, headers := range []map[string]string{operator, {"Authorization": "Bearer wrong"}, nil} {
					got = askWith(t, strings.ToUpper(method), base+at, headers)
					spec.require(t, got)
					if !secured {
						require.Equal(t, 200, got.code, "%s", got.body)
						continue
					}
					require.Equal(t, 403, got.code, "%s", got.body)
					require.Contains(t, decode[api.Problem](t, got.body).Detail, "server.admin_listen, 127.0.0.1:0,")
				}
				require.Len(t, relay.steered, before)
			})
		}
	}
}

// The status says whether an operator can do something at the address, and where else, so that
// the page offers no button that cannot work.
func TestTheStatusSaysWhereTheOperatorIs(t *testing.T) {
	t.Parallel()
	token := setting.NewSecret(adminToken)
	at := func(base string) (admin bool, listen string) {
		status := decode[api.Status](t, ask(t, http.MethodGet, base+"/api/v1/status").body)
		return status.Admin, status.AdminListen
	}
	closed := serve(t, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	one := serveWith(t, httpapi.Config{AdminToken: token}, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	base, own := serveBoth(t, httpapi.Config{AdminToken: token, AdminListen: "127.0.0.1:0"}, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	for _, test := range []struct {
		base   string
		admin  bool
		listen string
	}{{closed, false, ""}, {one, true, ""}, {base, false, "127.0.0.1:0"}, {own, true, ""}} {
		admin, listen := at(test.base)
		require.Equal(t, test.admin, admin)
		require.Equal(t, test.listen, listen)
	}
}

// A kubelet asks by the address of the pod, from no page. A page of another site may ask,
// and change nothing.
func TestProbesByTheAddressOfAPod(t *testing.T) {
	t.Parallel()
	base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	for _, test := range []struct {
		method, path string
		headers      map[string]string
		code         int
	}{
		{http.MethodGet, "/livez", nil, 200},
		{http.MethodGet, "/readyz", map[string]string{"User-Agent": "kube-probe/1.34", "Accept": "*/*"}, 200},
		{http.MethodGet, "/metrics", nil, 200},
		{http.MethodGet, "/readyz", map[string]string{"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 200},
		{http.MethodPost, "/api/v1/reload", nil, 200}, // curl
		{http.MethodPost, "/api/v1/reload", map[string]string{"Origin": "http://10.20.30.40:8080"}, 200},
		{http.MethodPost, "/api/v1/reload", map[string]string{"Sec-Fetch-Site": "same-origin"}, 200},
		{http.MethodPost, "/api/v1/reload", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{http.MethodPost, "/api/v1/reload", map[string]string{"Origin": "http://10.20.30.40:8081"}, 403},
		{http.MethodPost, "/api/v1/reload", map[string]string{"Origin": "null"}, 403},
	} {
		t.Run(fmt.Sprint(test), func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), test.method, base+test.path, http.NoBody)
			require.NoError(t, err)
			req.Host = "10.20.30.40:8080"
			req.Header.Set("Authorization", "Bearer "+adminToken)
			for name, value := range test.headers {
				req.Header.Set(name, value)
			}
			got := send(t, req)
			require.Equal(t, test.code, got.code, "%s", got.body)
			if test.code == http.StatusForbidden {
				require.Contains(t, got.header.Get("Content-Type"), "application/problem+json")
			}
		})
	}
}

// A body that is too long is refused before it is read, and where its length is not told
// its connection ends.
func TestBodiesAreBounded(t *testing.T) {
	t.Parallel()
	spec := newContract(t)
	base := serveWith(t, httpapi.Config{AdminToken: setting.NewSecret(adminToken)}, &fakeRelay{status: full}, prometheus.NewRegistry(), zap.NewNop())
	for path, method := range map[string]string{
		"/api/v1/log-level": http.MethodPut, "/api/v1/reload": http.MethodPost, "/api/v1/sources/sms/pause": http.MethodPost, "/livez": http.MethodGet,
	} {
		t.Run(path, func(t *testing.T) {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(base, "http://"))
			require.NoError(t, err)
			defer func() { _ = conn.Close() }()
			_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", method, path, adminToken, 64<<10+1)
			require.NoError(t, err)
			// Nothing of the body is sent: it is not waited for.
			res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
			require.NoError(t, err)
			body, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			require.NoError(t, res.Body.Close())
			require.Equal(t, http.StatusRequestEntityTooLarge, res.StatusCode)
			require.True(t, res.Close)
			spec.require(t, answer{method: method, path: path, code: res.StatusCode, header: res.Header, body: body})
		})
	}
	t.Run("of no length", func(t *testing.T) {
		const method, path = http.MethodPut, "/api/v1/log-level"
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(base, "http://"))
		require.NoError(t, err)
		defer func() { _ = conn.Close() }()
		// One byte too many of a part that is longer still, and no more: an answer to a client that
		// goes on writing may be lost with its connection.
		begins := `{"level": "`
		_, err = fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n100000\r\n%s%s",
			method, path, adminToken, begins, strings.Repeat("x", 64<<10+1-len(begins)))
		require.NoError(t, err)
		from := bufio.NewReader(conn)
		res, err := http.ReadResponse(from, &http.Request{Method: method})
		require.NoError(t, err)
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.NoError(t, res.Body.Close())
		require.Equal(t, http.StatusRequestEntityTooLarge, res.StatusCode)
		require.True(t, res.Close)
		spec.require(t, answer{method: method, path: path, code: res.StatusCode, header: res.Header, body: body})
		_, err = from.ReadByte()
		require.ErrorIs(t, err, io.EOF, "the connection ends")
	})
}
