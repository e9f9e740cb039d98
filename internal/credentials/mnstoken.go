package credentials

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	sdkcredentials "github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	sdkerrors "github.com/aliyun/alibaba-cloud-sdk-go/sdk/errors"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/dybaseapi"

	"mnsrelay/internal/setting"
)

// callTimeout ends a call to a credential server, connecting included.
const callTimeout = 10 * time.Second

// maxAnswer is the most that is read of an answer, in bytes; a token takes about one
// KiB.
const maxAnswer = 1 << 20

// opQueryToken is the call that gives a token (Dybaseapi: QueryTokenForMnsQueue).
const opQueryToken = "QueryTokenForMnsQueue"

// The APIs of Alicom answer HTTP 200 to what they refuse as well: only codeOK says
// that the answer holds what was asked for.
const (
	codeOK        = "OK"
	codeRAMDenied = "isp.RAM_PERMISSION_DENY"
)

// mnsToken gets a token for an Alicom queue from Dybaseapi.
type mnsToken struct {
	queue, messageType string
	ownerID            int64
	region             string
	endpoint           *url.URL
	base               Provider
	transport          *http.Transport
}

func newMNSToken(c *Config, queue string, endpoint *url.URL, base Provider) *mnsToken {
	return &mnsToken{
		queue:       queue,
		messageType: c.MessageType,
		ownerID:     c.OwnerID,
		region:      c.Region,
		endpoint:    endpoint,
		base:        base,
		// A connection a call: minutes pass between two, and a stale connection
		// would cost an attempt.
		transport: &http.Transport{
			Proxy:             http.ProxyFromEnvironment,
			DialContext:       (&net.Dialer{Timeout: callTimeout / 2}).DialContext,
			DisableKeepAlives: true,
			ForceAttemptHTTP2: true,
		},
	}
}

// Retrieve asks for a token with fresh keys of the base.
func (m *mnsToken) Retrieve(ctx context.Context) (Keys, error) {
	base, err := m.base.Retrieve(ctx)
	if err != nil {
		return Keys{}, fmt.Errorf("get base keys: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	started := time.Now()
	answer, served, err := m.query(ctx, base)
	if err != nil {
		return Keys{}, fmt.Errorf("get token for queue %q: %w", m.queue, err)
	}
	keys, err := token(answer, started, served)
	if err != nil {
		return Keys{}, fmt.Errorf("get token for queue %q: %w", m.queue, err)
	}
	return keys, nil
}

// query makes one call. It gives the answer and when, by the server's clock, it was
// made (zero: unknown).
func (m *mnsToken) query(ctx context.Context, base Keys) (answer *dybaseapi.QueryTokenForMnsQueueResponse, served time.Time, err error) {
	status := 0
	// The SDK takes the answer apart with type assertions that panic.
	defer func() {
		if recover() != nil {
			err = &Error{Op: opQueryToken, Status: status, Message: "the answer is not of the kind that Dybaseapi gives"}
		}
	}()

	config := sdk.NewConfig()
	// The SDK knows no context, follows redirects with the signed query, and reads
	// bodies of any length.
	config.Transport = roundTrip(func(request *http.Request) (*http.Response, error) {
		response, err := m.transport.RoundTrip(request.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		status = response.StatusCode
		served, _ = http.ParseTime(response.Header.Get("Date"))
		if status >= 300 && status < 400 {
			_ = response.Body.Close()
			return nil, &Error{Op: opQueryToken, Status: status, Message: "the endpoint answers with a redirect, which is not followed: write the address of Dybaseapi itself"}
		}
		response.Body = limited{io.LimitReader(response.Body, maxAnswer), response.Body}
		return response, nil
	})
	client, err := dybaseapi.NewClientWithOptions(m.region, config, &sdkcredentials.StsTokenCredential{
		AccessKeyId:       base.AccessKeyID,
		AccessKeySecret:   base.AccessKeySecret.Reveal(),
		AccessKeyStsToken: base.SecurityToken.Reveal(),
	})
	if err != nil {
		return nil, served, errors.New("make client: the OpenAPI SDK refuses the region or the keys")
	}
	client.SetReadTimeout(callTimeout)
	// A trace would be named after the signed URL.
	client.SetCloseTrace(true)
	// Our transport does the proxying. These keep the SDK from failing on values of
	// the usual variables that it cannot parse, such as HTTPS_PROXY=10.0.0.1:3128.
	client.SetHttpProxy("http://unused.invalid")
	client.SetHttpsProxy("http://unused.invalid")
	client.SetNoProxy("unused.invalid")

	request := dybaseapi.CreateQueryTokenForMnsQueueRequest()
	request.Scheme = strings.ToUpper(m.endpoint.Scheme)
	request.Domain = m.endpoint.Host
	request.QueueName = m.queue
	request.MessageType = m.messageType
	if m.ownerID != 0 {
		request.OwnerId = requests.Integer(strconv.FormatInt(m.ownerID, 10))
	}
	answer, err = client.QueryTokenForMnsQueue(request)
	if err != nil {
		return nil, served, queryError(err, status, base)
	}
	if answer.Code != codeOK {
		e := &Error{
			Op: opQueryToken, Code: identifier(answer.Code), Status: status,
			RequestID: identifier(answer.RequestId), Message: clean(answer.Message, base),
		}
		if e.Code == "" {
			e.Message = "the answer is not of the kind that Dybaseapi gives"
		}
		return nil, served, e
	}
	return answer, served, nil
}

// queryError makes an *Error of what the SDK reports.
func queryError(err error, status int, base Keys) error {
	var own *Error
	var server *sdkerrors.ServerError
	var client *sdkerrors.ClientError
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &server):
		e := &Error{
			Op: opQueryToken, Code: identifier(server.ErrorCode()), Status: server.HttpStatus(),
			RequestID: identifier(server.RequestId()), Message: clean(server.Message(), base),
		}
		if e.Code == "" {
			e.Message = "the endpoint's answer is not one of Dybaseapi's: check the endpoint"
		}
		return e
	case errors.As(err, &client):
		return &Error{Op: opQueryToken, Status: status, Message: "the endpoint's answer is not one of Dybaseapi's: check the endpoint"}
	}
	return networkError(opQueryToken, err)
}

// token reads the keys and their end from an answer that says OK.
func token(answer *dybaseapi.QueryTokenForMnsQueueResponse, started, served time.Time) (Keys, error) {
	dto := &answer.MessageTokenDTO
	refuse := func(message string) (Keys, error) {
		return Keys{}, &Error{
			Op: opQueryToken, Code: codeOK, Status: answer.GetHttpStatus(),
			RequestID: identifier(answer.RequestId), Message: message,
		}
	}
	if dto.AccessKeyId == "" || dto.AccessKeySecret == "" || dto.SecurityToken == "" {
		return refuse("the answer holds no token")
	}
	expire, err := parseBeijing(dto.ExpireTime)
	if err != nil {
		return refuse("the answer's ExpireTime is not a time")
	}
	// A missing or unreadable CreateTime is the zero time: then only ExpireTime tells.
	create, _ := parseBeijing(dto.CreateTime)
	remaining := remainingLife(create, expire, started, time.Now(), served)
	if remaining <= 0 {
		return refuse("the token that came has ended already")
	}
	return Keys{
		AccessKeyID:     dto.AccessKeyId,
		AccessKeySecret: setting.NewSecret(dto.AccessKeySecret),
		SecurityToken:   setting.NewSecret(dto.SecurityToken),
		Expires:         started.Add(remaining),
	}, nil
}

// parseBeijing reads a time of Dybaseapi's, which names no zone and is Beijing's:
// eight hours ahead of UTC, without a summer time.
func parseBeijing(s string) (time.Time, error) {
	return time.ParseInLocation("2006-01-02 15:04:05", s, time.FixedZone("Beijing", 8*60*60))
}

// skewTolerated is how far the server's Date may be from the local clock before the
// local one is taken to be wrong. It covers the way of the answer and the whole
// seconds of a Date.
const skewTolerated = 5 * time.Second

// remainingLife tells how long after started a token ends. Three clocks may be wrong,
// so none is trusted alone: expire and create have an assumed zone, the local clock
// may be set wrong, served (the Date of the answer, zero if unknown) is in whole
// seconds. The life as such, expire - create, is right whatever the zone, and
// counted from before the token was made it ends too soon rather than too late. It
// is shortened by the token's age where the clocks agree on one: the server may have
// handed out a token that it made before.
func remainingLife(create, expire, started, received, served time.Time) time.Duration {
	now := received
	if skew := served.Sub(received); !served.IsZero() && skew.Abs() > skewTolerated {
		now = received.Add(skew + time.Second)
	}
	spent := received.Sub(started)
	if create.IsZero() {
		return expire.Sub(now) + spent
	}
	life := expire.Sub(create)
	if age := now.Sub(create); age > spent && age < life {
		return life - age + spent
	}
	return life
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(request *http.Request) (*http.Response, error) { return f(request) }

// limited reads a part of a body and closes the whole.
type limited struct {
	io.Reader
	io.Closer
}
