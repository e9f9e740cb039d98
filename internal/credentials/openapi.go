package credentials

import (
	"context"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // G505: the signature of the RPC APIs is made with it
	"encoding/base64"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	sdkcredentials "github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
)

// callTimeout ends a call to a credential server, connecting included.
const callTimeout = 10 * time.Second

// maxAnswer is the most that is read of an answer, in bytes; a token takes about one
// KiB.
const maxAnswer = 1 << 20

// openAPI calls one RPC API of Alibaba Cloud through the OpenAPI SDK. It is safe for
// concurrent use.
type openAPI struct {
	// service is the name of the API for people, version that of the API.
	service, version string
	region           string
	endpoint         *url.URL
	transport        *http.Transport
	turns            *turns

	// The SDK signs with the local time, which the server refuses where it is 15 minutes
	// off.
	skew skew
}

// skew is the server's time less the local one, learned from answers. It is safe for
// concurrent use.
type skew struct{ nanoseconds atomic.Int64 }

func (s *skew) learn(r *response) {
	if !r.served.IsZero() {
		s.nanoseconds.Store(int64(r.served.Sub(r.received)))
	}
}

// offset is the skew where it is more than what an answer's way and the whole seconds of a
// Date make of it.
func (s *skew) offset() time.Duration {
	if d := time.Duration(s.nanoseconds.Load()); d.Abs() > skewTolerated {
		return d
	}
	return 0
}

func newOpenAPI(service, version, region string, endpoint *url.URL, turns *turns) *openAPI {
	return &openAPI{
		service: service, version: version, region: region, endpoint: endpoint,
		transport: newHTTPTransport(http.ProxyFromEnvironment), turns: turns,
	}
}

// newHTTPTransport makes a connection a call: minutes pass between two, and a stale
// connection would cost an attempt.
func newHTTPTransport(proxy func(*http.Request) (*url.URL, error)) *http.Transport {
	return &http.Transport{
		Proxy:             proxy,
		DialContext:       (&net.Dialer{Timeout: callTimeout / 2}).DialContext,
		DisableKeepAlives: true,
		ForceAttemptHTTP2: true,
	}
}

// response is an answer of 2xx.
type response struct {
	body   []byte
	status int
	// started and received are the local times of the call, served is when the answer
	// was made by the server's clock; zero: unknown.
	started, received, served time.Time
}

// call makes a call with keys. One that is refused for the time it is signed with is made
// again with the server's time. The error is an *Error.
func (a *openAPI) call(ctx context.Context, keys Keys, op string, params map[string]string) (*response, error) {
	before := a.skew.offset()
	r, err := a.callOnce(ctx, keys, op, params)
	if e, is := errors.AsType[*Error](err); is && isClockCode(e.Code) && a.skew.offset() != before && a.turns.wait(ctx, underWay) == nil {
		return a.callOnce(ctx, keys, op, params)
	}
	return r, err
}

// isClockCode tells whether a code says that the time of a request is wrong.
func isClockCode(code string) bool {
	return strings.HasPrefix(code, "InvalidTimeStamp") || code == "IllegalTimestamp"
}

func (a *openAPI) callOnce(ctx context.Context, keys Keys, op string, params map[string]string) (r *response, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r = &response{started: time.Now()}
	// The SDK takes error documents apart with type assertions that panic.
	defer func() {
		if recover() != nil {
			err = &Error{Op: op, Status: r.status, Message: "the answer is not of the kind that " + a.service + " gives"}
		}
	}()
	config := sdk.NewConfig()
	// The SDK knows no context, follows redirects with the signed query, and reads
	// bodies of any length.
	config.Transport = roundTrip(func(request *http.Request) (*http.Response, error) {
		if offset := a.skew.offset(); offset != 0 {
			sign(request, time.Now().Add(offset), keys.AccessKeySecret.Reveal())
		}
		answer, err := a.transport.RoundTrip(request.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		r.status, r.received = answer.StatusCode, time.Now()
		r.served, _ = http.ParseTime(answer.Header.Get("Date"))
		a.skew.learn(r)
		if r.status >= 300 && r.status < 400 {
			_ = answer.Body.Close()
			return nil, &Error{Op: op, Status: r.status, Message: "the endpoint answers with a redirect, which is not followed: write the address of " + a.service + " itself"}
		}
		answer.Body = limited{io.LimitReader(answer.Body, maxAnswer), answer.Body}
		return answer, nil
	})
	client, err := sdk.NewClientWithOptions(a.region, config, &sdkcredentials.StsTokenCredential{
		AccessKeyId:       keys.AccessKeyID,
		AccessKeySecret:   keys.AccessKeySecret.Reveal(),
		AccessKeyStsToken: keys.SecurityToken.Reveal(),
	})
	if err != nil {
		return nil, errors.New("make client: the OpenAPI SDK refuses the region or the keys")
	}
	client.SetReadTimeout(callTimeout)
	// A trace would be named after the signed URL.
	client.SetCloseTrace(true)
	// Our transport does the proxying. These keep the SDK from failing on values of
	// the usual variables that it cannot parse, such as HTTPS_PROXY=10.0.0.1:3128.
	client.SetHttpProxy("http://unused.invalid")
	client.SetHttpsProxy("http://unused.invalid")
	client.SetNoProxy("unused.invalid")

	request := requests.NewCommonRequest()
	request.Method = http.MethodPost
	request.Scheme = strings.ToUpper(a.endpoint.Scheme)
	request.Domain = a.endpoint.Host
	request.Version, request.ApiName, request.Product = a.version, op, a.service
	request.AcceptFormat = "JSON"
	maps.Copy(request.QueryParams, params)
	answer, err := client.ProcessCommonRequest(request)
	if err != nil {
		return nil, a.failure(op, err, r.status, keys)
	}
	r.body = answer.GetHttpContentBytes()
	return r, nil
}

// failure makes an *Error of what the SDK reports.
func (a *openAPI) failure(op string, err error, status int, keys Keys) error {
	var own *Error
	var server *sdkerrors.ServerError
	var client *sdkerrors.ClientError
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &server):
		e := &Error{
			Op: op, Code: identifier(server.ErrorCode()), Status: server.HttpStatus(),
			RequestID: identifier(server.RequestId()), Message: clean(server.Message(), keys),
		}
		if e.Code == "" {
			e.Message = notOf(a.service)
		}
		return e
	case errors.As(err, &client):
		return &Error{Op: op, Status: status, Message: notOf(a.service)}
	}
	return networkError(op, err)
}

// notOf says that what answers is another server.
func notOf(service string) string {
	return "the endpoint's answer is not one of " + service + "'s: check the endpoint"
}

// sign puts another time into a request and signs it anew (Alibaba Cloud: RPC signature
// method). All parameters are in the query.
func sign(request *http.Request, at time.Time, secret string) {
	params := request.URL.Query()
	params.Set("Timestamp", at.UTC().Format("2006-01-02T15:04:05Z"))
	params.Del("Signature")
	var query []string
	for _, name := range slices.Sorted(maps.Keys(params)) {
		query = append(query, percentEncode(name)+"="+percentEncode(params.Get(name)))
	}
	mac := hmac.New(sha1.New, []byte(secret+"&"))
	_, _ = io.WriteString(mac, request.Method+"&"+percentEncode("/")+"&"+percentEncode(strings.Join(query, "&")))
	params.Set("Signature", base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	request.URL.RawQuery = params.Encode()
}

// percentEncode is that of RFC 3986: all but letters, digits and -_.~ is encoded.
func percentEncode(s string) string {
	return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(s))
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

// limited reads a part of a body and closes the whole.
type limited struct {
	io.Reader
	io.Closer
}
