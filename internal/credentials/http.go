package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"mnsrelay/internal/setting"
)

// plain makes requests that are not signed, to servers of keys.
type plain struct {
	// service is the server's name for people.
	service   string
	transport *http.Transport
	// conceal are parts of the address that its answers may quote and nobody may see.
	conceal []string
}

func newPlain(service string, proxy func(*http.Request) (*url.URL, error), conceal ...string) *plain {
	return &plain{service: service, transport: newHTTPTransport(proxy), conceal: conceal}
}

// do makes a request and reads its answer, whatever its status. The error is an *Error.
func (p *plain) do(ctx context.Context, op string, request *http.Request) (*response, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r := &response{started: time.Now()}
	answer, err := p.transport.RoundTrip(request.WithContext(ctx)) // which follows no redirect
	if err != nil {
		return nil, networkError(op, err)
	}
	defer answer.Body.Close() //nolint:errcheck // it was read as far as it matters
	r.status, r.received = answer.StatusCode, time.Now()
	r.served, _ = http.ParseTime(answer.Header.Get("Date"))
	if r.body, err = io.ReadAll(io.LimitReader(answer.Body, maxAnswer)); err != nil {
		return nil, networkError(op, err)
	}
	return r, nil
}

// grant is how the servers of ECS and of a credentials URI give keys (ECS: instance RAM
// role; credentials URI: the same form).
type grant struct {
	Code            string
	Message         string
	AccessKeyID     string `json:"AccessKeyId"`
	AccessKeySecret string
	SecurityToken   string
	Expiration      string
	LastUpdated     string
}

// codeSuccess is the Code of a grant that holds keys.
const codeSuccess = "Success"

// readGrant reads the keys of an answer.
func (p *plain) readGrant(op string, r *response) (Keys, error) {
	e := &Error{Op: op, Status: r.status, Message: notOf(p.service)}
	var g grant
	if json.Unmarshal(r.body, &g) != nil {
		return Keys{}, e
	}
	e.Code = identifier(g.Code)
	if r.status != http.StatusOK || e.Code != codeSuccess {
		message := g.Message
		for _, secret := range p.conceal {
			message = strings.ReplaceAll(message, secret, "***")
		}
		if e.Message = oneLine(message); e.Message == "" {
			e.Message = "it gives no keys"
		}
		return Keys{}, e
	}
	created, _ := time.Parse(time.RFC3339, g.LastUpdated)
	return keysOf(e, g.AccessKeyID, g.AccessKeySecret, g.SecurityToken, g.Expiration, created, r)
}

// keysOf makes keys of an answer that grants them. e is the error of what is wrong with it.
func keysOf(e *Error, id, secret, token, expiration string, created time.Time, r *response) (Keys, error) {
	if id == "" || secret == "" || token == "" {
		e.Message = "the answer holds no keys"
		return Keys{}, e
	}
	expires, err := time.Parse(time.RFC3339, expiration)
	if err != nil {
		e.Message = "the answer's Expiration is not a time"
		return Keys{}, e
	}
	if !r.served.IsZero() && !r.served.Before(expires) {
		e.Message = "the keys that came have ended already"
		return Keys{}, e
	}
	remaining := remainingLife(created, expires, r.started, r.received, r.served)
	if remaining <= 0 {
		e.Message = "the keys that came have ended already"
		return Keys{}, e
	}
	return Keys{
		AccessKeyID:     id,
		AccessKeySecret: setting.NewSecret(secret),
		SecurityToken:   setting.NewSecret(token),
		Expires:         r.started.Add(remaining),
	}, nil
}

// at is an address below an endpoint.
func at(endpoint *url.URL, path string) string {
	return strings.TrimSuffix(endpoint.Scheme+"://"+endpoint.Host+endpoint.EscapedPath(), "/") + path
}

func newRequest(ctx context.Context, method, address string, body string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	if err != nil {
		return nil, errors.New("make request: not an address")
	}
	return request, nil
}
