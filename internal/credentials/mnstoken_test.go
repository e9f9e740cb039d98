package credentials_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

const (
	queue   = "Alicom-Queue-1234567890123456-SmsReport"
	baseID  = "LTAI5tAbCdEfGhIjKlMnOpQr"
	tokenID = "STS.NUabcdefghijklmnop"
)

// tokenConfig is an mns_token with static keys and a security token.
func tokenConfig(endpoint string) credentials.Config {
	config := credentials.Config{
		Type: credentials.TypeMNSToken, MessageType: "SmsReport", Endpoint: setting.NewURL(endpoint),
		AccessKeyID: secret(baseID), AccessKeySecret: secret(baseSecret), SecurityToken: secret(baseToken),
	}
	config.Defaults(os.Getenv)
	return config
}

func provider(t *testing.T, config credentials.Config) credentials.Provider {
	t.Helper()
	require.NoError(t, config.Validate())
	p, err := config.Provider(queue)
	require.NoError(t, err)
	return p
}

func beijing(at time.Time) string {
	return at.UTC().Add(8 * time.Hour).Format("2006-01-02 15:04:05")
}

// grant is the answer that gives a token.
func grant(create, expire string) string {
	answer, _ := json.Marshal(map[string]any{ //nolint:errchkjson // strings only
		"Code": "OK", "Message": "OK", "RequestId": "08C5A1F6-6B5D-4D2B-9C5E-0F6A6D0F3A11",
		"MessageTokenDTO": map[string]string{
			"AccessKeyId": tokenID, "AccessKeySecret": tokenSecret, "SecurityToken": tokenToken,
			"CreateTime": create, "ExpireTime": expire,
		},
	})
	return string(answer)
}

func freshGrant() string {
	return grant(beijing(time.Now()), beijing(time.Now().Add(time.Hour)))
}

func serve(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.URL
}

// percent encodes as the signature asks for: RFC 3986, upper case.
func percent(s string) string {
	var out strings.Builder
	for _, b := range []byte(s) {
		if b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || strings.IndexByte("-_.~", b) >= 0 {
			out.WriteByte(b)
		} else {
			fmt.Fprintf(&out, "%%%02X", b)
		}
	}
	return out.String()
}

// signature computes an RPC signature from what Alibaba Cloud documents, without the
// SDK: base64(HMAC-SHA1(secret&, METHOD&%2F&encoded(sorted query))).
func signature(method string, query url.Values, secret string) string {
	var pairs []string
	for name := range query {
		if name != "Signature" {
			pairs = append(pairs, percent(name)+"="+percent(query.Get(name)))
		}
	}
	slices.Sort(pairs)
	mac := hmac.New(sha1.New, []byte(secret+"&"))
	_, _ = io.WriteString(mac, method+"&%2F&"+percent(strings.Join(pairs, "&")))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func TestTokenRequestIsWhatDybaseapiAsksFor(t *testing.T) {
	requests := make(chan *http.Request, 1)
	endpoint := serve(t, func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		_, _ = io.WriteString(w, freshGrant())
	})
	config := tokenConfig(endpoint)
	config.OwnerID = 1234567890123456

	keys, err := provider(t, config).Retrieve(t.Context())
	require.NoError(t, err)
	require.Equal(t, tokenID, keys.AccessKeyID)
	require.Equal(t, tokenSecret, keys.AccessKeySecret.Reveal())
	require.Equal(t, tokenToken, keys.SecurityToken.Reveal())

	request := <-requests
	require.Equal(t, http.MethodPost, request.Method)
	require.Equal(t, "/", request.URL.Path)
	query := request.URL.Query()
	for name, value := range map[string]string{
		"Action": "QueryTokenForMnsQueue", "Version": "2017-05-25", "Format": "JSON", "RegionId": "cn-hangzhou",
		"AccessKeyId": baseID, "SecurityToken": baseToken, "SignatureMethod": "HMAC-SHA1", "SignatureVersion": "1.0",
		"QueueName": queue, "MessageType": "SmsReport", "OwnerId": "1234567890123456",
	} {
		require.Equal(t, value, query.Get(name), name)
	}
	timestamp, err := time.Parse("2006-01-02T15:04:05Z", query.Get("Timestamp"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), timestamp, 10*time.Second)
	require.NotEmpty(t, query.Get("SignatureNonce"))
	require.Equal(t, signature(request.Method, query, baseSecret), query.Get("Signature"))
}

func TestTokenLife(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name string
		// created, expires and date are the server's, from now.
		created, expires time.Duration
		date             time.Duration
		without          string // CreateTime or Date: it is left out
		garbled          string // CreateTime
		want             time.Duration
		// early bounds by how much the end may be too soon: times are in whole
		// seconds.
		early time.Duration
		err   string
	}{
		{name: "all clocks agree", expires: time.Hour, want: time.Hour, early: 2 * time.Second},
		{name: "a token of seconds", expires: 3 * time.Second, want: 3 * time.Second, early: 2 * time.Second},
		{name: "a token that the server made before", created: -20 * time.Minute, expires: 40 * time.Minute, want: 40 * time.Minute, early: 2 * time.Second},
		{name: "the local clock is 20 min behind", created: 20 * time.Minute, expires: 80 * time.Minute, date: 20 * time.Minute, want: time.Hour, early: 2 * time.Second},
		{name: "the local clock is 20 min ahead", created: -20 * time.Minute, expires: 40 * time.Minute, date: -20 * time.Minute, want: time.Hour, early: 2 * time.Second},
		{name: "the local clock is 8 h ahead", created: -8 * time.Hour, expires: -7 * time.Hour, date: -8 * time.Hour, want: time.Hour, early: 2 * time.Second},
		{name: "skewed, and made before", created: -70 * time.Minute, expires: -10 * time.Minute, date: -50 * time.Minute, want: 40 * time.Minute, early: 3 * time.Second},
		{name: "skewed, and no Date", created: 20 * time.Minute, expires: 80 * time.Minute, without: "Date", want: time.Hour},
		{name: "times are in UTC after all", created: -8 * time.Hour, expires: -7 * time.Hour, want: time.Hour},
		{name: "no CreateTime", expires: time.Hour, without: "CreateTime", want: time.Hour, early: 2 * time.Second},
		{name: "no CreateTime, skewed", expires: -time.Hour, date: -2 * time.Hour, without: "CreateTime", want: time.Hour, early: 3 * time.Second},
		{name: "a CreateTime that is none", expires: time.Hour, garbled: "yesterday", want: time.Hour, early: 2 * time.Second},
		{name: "ended, no CreateTime", expires: -time.Minute, without: "CreateTime", err: "has ended already"},
		{name: "ends before it begins", created: time.Minute, expires: -time.Minute, err: "has ended already"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			create := beijing(now.Add(tt.created))
			if tt.without == "CreateTime" {
				create = ""
			}
			if tt.garbled != "" {
				create = tt.garbled
			}
			endpoint := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", now.Add(tt.date).UTC().Format(http.TimeFormat))
				if tt.without == "Date" {
					w.Header()["Date"] = nil
				}
				_, _ = io.WriteString(w, grant(create, beijing(now.Add(tt.expires))))
			})
			keys, err := provider(t, tokenConfig(endpoint)).Retrieve(t.Context())
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				requireNoSecret(t, err)
				return
			}
			require.NoError(t, err)
			// From before the request on, so that only the server's rounding and
			// the duration of the call remain.
			life := keys.Expires.Sub(now)
			require.LessOrEqual(t, life, tt.want+time.Second)
			require.GreaterOrEqual(t, life, tt.want-tt.early)
			require.Contains(t, fmt.Sprint(keys.Expires), "m=", "the end is kept on the monotonic clock")
		})
	}
}

func TestTokenFailures(t *testing.T) {
	const id = "08C5A1F6-6B5D-4D2B-9C5E-0F6A6D0F3A11"
	refusal := func(code, message string) string {
		body, _ := json.Marshal(map[string]string{"Code": code, "Message": message, "RequestId": id, "HostId": "dybaseapi.aliyuncs.com"}) //nolint:errchkjson // strings only
		return string(body)
	}
	for _, tt := range []struct {
		name   string
		status int
		body   string
		want   credentials.Error // Op and Message aside
		class  relay.Class
		text   []string
	}{
		{
			"no such key", 404, refusal("InvalidAccessKeyId.NotFound", "Specified access key is not found."),
			credentials.Error{Code: "InvalidAccessKeyId.NotFound", Status: 404, RequestID: id},
			relay.ClassAuth,
			[]string{"InvalidAccessKeyId.NotFound (HTTP 404)", "Specified access key is not found", "check that access_key_id is right", id},
		},
		{
			"wrong secret, quoting what was signed", 400, refusal("SignatureDoesNotMatch", "Specified signature is not matched with our calculation. server string to sign is:POST&%2F&AccessKeyId%3D"+baseID+"%26SecurityToken%3D"+url.QueryEscape(url.QueryEscape(baseToken))),
			credentials.Error{Code: "SignatureDoesNotMatch", Status: 400, RequestID: id},
			relay.ClassAuth,
			[]string{"not matched with our calculation", "check that access_key_secret belongs to access_key_id"},
		},
		{
			"a dead base token, quoted", 400, refusal("InvalidSecurityToken.Expired", "Specified SecurityToken "+baseToken+" is expired, "+url.QueryEscape(baseToken)+" "+baseSecret),
			credentials.Error{Code: "InvalidSecurityToken.Expired", Status: 400, RequestID: id},
			relay.ClassAuth,
			[]string{"Specified SecurityToken *** is expired", "give new ones"},
		},
		{
			"no permission", 403, refusal("Forbidden.RAM", "User not authorized to operate on the specified resource."),
			credentials.Error{Code: "Forbidden.RAM", Status: 403, RequestID: id},
			relay.ClassAuth,
			[]string{"grant the owner of the key the right to call QueryTokenForMnsQueue"},
		},
		{
			"a skewed clock", 400, refusal("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired."),
			credentials.Error{Code: "InvalidTimeStamp.Expired", Status: 400, RequestID: id},
			relay.ClassAuth,
			[]string{"the clock of this machine is wrong"},
		},
		{
			"throttled", 400, refusal("Throttling.User", "Request was denied due to user flow control."),
			credentials.Error{Code: "Throttling.User", Status: 400, RequestID: id},
			relay.ClassThrottled,
			[]string{"too many calls"},
		},
		{
			"HTTP 200 with another Code", 200, refusal("isp.RAM_PERMISSION_DENY", "RAM权限不足"),
			credentials.Error{Code: "isp.RAM_PERMISSION_DENY", Status: 200, RequestID: id},
			relay.ClassAuth,
			[]string{"isp.RAM_PERMISSION_DENY (HTTP 200): RAM权限不足", "grant"},
		},
		{
			"HTTP 200, trouble of the server's own", 200, refusal("isp.SYSTEM_ERROR", "system error"),
			credentials.Error{Code: "isp.SYSTEM_ERROR", Status: 200, RequestID: id},
			relay.ClassServer,
			[]string{"isp.SYSTEM_ERROR (HTTP 200): system error"},
		},
		{
			"HTTP 200, a Code that is no string", 200, `{"Code":{"a":1},"Message":"x"}`,
			credentials.Error{Status: 200},
			relay.ClassServer,
			[]string{"HTTP 200"},
		},
		{
			"HTTP 400, a Code that is no string", 400, `{"Code":42,"Message":"x"}`,
			credentials.Error{Status: 400},
			relay.ClassServer,
			[]string{"HTTP 400"},
		},
		{
			"a Code that is a secret", 400, refusal(baseSecret, ""),
			credentials.Error{Status: 400, RequestID: id},
			relay.ClassServer,
			[]string{"check the endpoint"},
		},
		{
			"HTTP 200, no Code", 200, `{}`,
			credentials.Error{Status: 200},
			relay.ClassServer,
			[]string{"HTTP 200"},
		},
		{
			"HTTP 200, empty", 200, "",
			credentials.Error{Status: 200},
			relay.ClassServer,
			[]string{"HTTP 200"},
		},
		{
			"HTML", 200, "<html>" + baseSecret + "</html>",
			credentials.Error{Status: 200},
			relay.ClassServer,
			[]string{"HTTP 200", "not one of Dybaseapi's", "check the endpoint"},
		},
		{
			"the page of a proxy", 502, "<html><h1>Bad Gateway</h1>" + baseToken + "</html>",
			credentials.Error{Status: 502},
			relay.ClassServer,
			[]string{"HTTP 502", "check the endpoint"},
		},
		{
			"a JSON that is no object", 500, `["x"]`,
			credentials.Error{Status: 500},
			relay.ClassServer,
			[]string{"HTTP 500"},
		},
		{
			"server error", 500, refusal("InternalError", "The request processing has failed."),
			credentials.Error{Code: "InternalError", Status: 500, RequestID: id},
			relay.ClassServer,
			[]string{"InternalError (HTTP 500)"},
		},
		{
			"a redirect", 307, "",
			credentials.Error{Status: 307},
			relay.ClassServer,
			[]string{"redirect", "write the address of Dybaseapi itself"},
		},
		{
			"an answer without an end", 200, `{"Code":"OK","Message":"` + strings.Repeat("x", 2<<20),
			credentials.Error{Status: 200},
			relay.ClassServer,
			[]string{"HTTP 200"},
		},
		{
			"a message without an end", 400, refusal("Forbidden", strings.Repeat("权", 5000)),
			credentials.Error{Code: "Forbidden", Status: 400, RequestID: id},
			relay.ClassAuth,
			[]string{"权..."},
		},
		{
			"OK without a token", 200, `{"Code":"OK","RequestId":"` + id + `"}`,
			credentials.Error{Code: "OK", Status: 200, RequestID: id},
			relay.ClassServer,
			[]string{"holds no token"},
		},
		{
			"OK with half a token", 200, `{"Code":"OK","MessageTokenDTO":{"AccessKeyId":"x","AccessKeySecret":"` + tokenSecret + `","ExpireTime":"2030-01-01 00:00:00"}}`,
			credentials.Error{Code: "OK", Status: 200},
			relay.ClassServer,
			[]string{"holds no token"},
		},
		{
			"an ExpireTime that is none", 200, grant("2030-01-01 00:00:00", tokenSecret),
			credentials.Error{Code: "OK", Status: 200, RequestID: id},
			relay.ClassServer,
			[]string{"ExpireTime is not a time"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			elsewhere := serve(t, func(http.ResponseWriter, *http.Request) {
				t.Error("the redirect was followed")
			})
			endpoint := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", elsewhere)
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.body)
			})
			_, err := provider(t, tokenConfig(endpoint)).Retrieve(t.Context())

			var got *credentials.Error
			require.ErrorAs(t, err, &got)
			require.Equal(t, "QueryTokenForMnsQueue", got.Op)
			require.Equal(t, tt.want.Code, got.Code)
			require.Equal(t, tt.want.Status, got.Status)
			require.Equal(t, tt.want.RequestID, got.RequestID)
			require.Equal(t, tt.class, relay.ClassOf(err))
			require.ErrorContains(t, err, `get token for queue "`+queue+`": `)
			for _, text := range tt.text {
				require.ErrorContains(t, err, text)
			}
			require.NotContains(t, err.Error(), "POST&", "what was signed is no matter for a log")
			require.Less(t, len(err.Error()), 700)
			require.NotContains(t, err.Error(), "\n")
			requireNoSecret(t, err)
			requireNoSecret(t, got)
		})
	}
}

func TestTokenFromNowhere(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	untrusted := httptest.NewTLSServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	t.Cleanup(untrusted.Close)
	dropping := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		connection, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = connection.Close()
		}
	})
	resetting := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		connection, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = connection.(*net.TCPConn).SetLinger(0)
			_ = connection.Close()
		}
	})
	cutting := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"Code":"OK"`)
	})
	for _, tt := range []struct{ name, endpoint, text string }{
		{"refused", closed.URL, "connection refused"},
		{"no such host", "http://dybaseapi.invalid", "dybaseapi.invalid"},
		{"certificate", untrusted.URL, "certificate"},
		{"dropped", dropping, "EOF"},
		{"reset", resetting, "connection reset by peer"},
		{"cut", cutting, "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			retriever := provider(t, tokenConfig(tt.endpoint))
			_, err := retriever.Retrieve(t.Context())
			var got *credentials.Error
			require.ErrorAs(t, err, &got)
			require.Error(t, got.Err)
			require.Equal(t, relay.ClassNetwork, relay.ClassOf(err))
			require.ErrorContains(t, err, tt.text)
			requireNoSecret(t, err)
			requireNoSecret(t, got)

			_, again := retriever.Retrieve(t.Context())
			require.EqualError(t, again, err.Error(), "what fails alike reads alike")
		})
	}
}

func TestTokenCallEndsWithItsContext(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		cause      error
		hang       func(w http.ResponseWriter, r *http.Request)
		end        func(context.Context) (context.Context, context.CancelFunc)
	}{
		{
			"cancelled before the answer", "cancelled", context.Canceled,
			func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
			nil,
		},
		{
			"cancelled within the body", "cancelled", context.Canceled,
			func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.WriteString(w, "{")
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			},
			nil,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked := make(chan struct{})
			endpoint := serve(t, func(w http.ResponseWriter, r *http.Request) {
				close(asked)
				tt.hang(w, r)
			})
			retriever := provider(t, tokenConfig(endpoint))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			failed := make(chan error, 1)
			go func() {
				_, err := retriever.Retrieve(ctx)
				failed <- err
			}()
			<-asked
			cancel()
			err := <-failed
			require.ErrorIs(t, err, tt.cause)
			require.ErrorContains(t, err, tt.text)
			requireNoSecret(t, err)
		})
	}
	t.Run("deadline", func(t *testing.T) {
		endpoint := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := provider(t, tokenConfig(endpoint)).Retrieve(ctx)
		require.ErrorContains(t, err, "no answer in time")
		require.Equal(t, relay.ClassNetwork, relay.ClassOf(err))
		requireNoSecret(t, err)
	})
}

func TestTokenAnswerIsReadInPart(t *testing.T) {
	written := make(chan int, 1)
	endpoint := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		total := 0
		for chunk := make([]byte, 64<<10); ; {
			n, err := w.Write(chunk)
			total += n
			if err != nil {
				written <- total
				return
			}
		}
	})
	_, err := provider(t, tokenConfig(endpoint)).Retrieve(t.Context())
	require.ErrorContains(t, err, "check the endpoint")
	require.Less(t, <-written, 32<<20, "a MiB and what fits into the buffers between")
}

func TestTokenCallsRunConcurrently(t *testing.T) {
	var mu sync.Mutex
	nonces := map[string]bool{}
	endpoint := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		nonces[r.URL.Query().Get("SignatureNonce")] = true
		mu.Unlock()
		_, _ = io.WriteString(w, freshGrant())
	})
	retriever := provider(t, tokenConfig(endpoint))
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			keys, err := retriever.Retrieve(t.Context())
			if err != nil || keys.AccessKeyID != tokenID {
				t.Errorf("got %v, %v", keys, err)
			}
		})
	}
	group.Wait()
	require.Len(t, nonces, 20)
}

func TestTokenIgnoresProxyVariablesThatTheSDKCannotParse(t *testing.T) {
	endpoint := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, freshGrant()) })
	t.Setenv("HTTP_PROXY", "10.0.0.1:3128")
	t.Setenv("NO_PROXY", "[,127.0.0.1")
	_, err := provider(t, tokenConfig(endpoint)).Retrieve(t.Context())
	require.NoError(t, err)
}

func TestTokenWithKeysFromTheEnvironment(t *testing.T) {
	query := make(chan url.Values, 1)
	endpoint := serve(t, func(w http.ResponseWriter, r *http.Request) {
		query <- r.URL.Query()
		_, _ = io.WriteString(w, freshGrant())
	})
	config := credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport", Endpoint: setting.NewURL(endpoint)}
	config.Defaults(os.Getenv)
	retriever := provider(t, config)

	for _, name := range []string{"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"} {
		t.Setenv(name, "")
	}
	noChain(t)
	_, err := retriever.Retrieve(t.Context())
	require.ErrorContains(t, err, "there are none in the environment (ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET)")

	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", baseID)
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", baseSecret)
	_, err = retriever.Retrieve(t.Context())
	require.NoError(t, err)
	sent := <-query
	require.Equal(t, baseID, sent.Get("AccessKeyId"))
	require.NotContains(t, sent, "SecurityToken")
	require.NotContains(t, sent, "OwnerId")
	require.Equal(t, signature(http.MethodPost, sent, baseSecret), sent.Get("Signature"))

	t.Setenv("ALIBABA_CLOUD_SECURITY_TOKEN", baseToken)
	_, err = retriever.Retrieve(t.Context())
	require.NoError(t, err)
	require.Equal(t, baseToken, (<-query).Get("SecurityToken"))
}
