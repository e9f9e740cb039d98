package credentials

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"mnsrelay/internal/setting"
)

// The calls of STS that give the keys of a role, and its version.
const (
	opAssumeRole = "AssumeRole"
	opAssumeOIDC = "AssumeRoleWithOIDC"
	stsVersion   = "2015-04-01"
)

// role says which role is taken on, and how.
type role struct {
	arn, session string
	policy       string
	duration     time.Duration
}

// params are those of either call (STS: AssumeRole, AssumeRoleWithOIDC).
func (r *role) params() map[string]string {
	params := map[string]string{"RoleArn": r.arn, "RoleSessionName": r.session}
	if r.policy != "" {
		params["Policy"] = r.policy
	}
	if r.duration != 0 {
		params["DurationSeconds"] = strconv.Itoa(int(r.duration / time.Second))
	}
	return params
}

// assumed is the answer of either call.
type assumed struct {
	RequestID   string `json:"RequestId"`
	Code        string
	Message     string
	Credentials struct {
		AccessKeyID     string `json:"AccessKeyId"`
		AccessKeySecret string
		SecurityToken   string
		Expiration      string
	}
}

// keys reads an answer of 2xx.
func (a *assumed) keys(op string, r *response) (Keys, error) {
	e := &Error{Op: op, Status: r.status, Message: notOf("STS")}
	if json.Unmarshal(r.body, a) != nil {
		return Keys{}, e
	}
	e.RequestID = identifier(a.RequestID)
	c := a.Credentials
	return keysOf(e, c.AccessKeyID, c.AccessKeySecret, c.SecurityToken, c.Expiration, time.Time{}, r)
}

// ramRole gets the keys of a role with those of a base.
type ramRole struct {
	role
	externalID string
	api        *openAPI
	base       Provider
}

// Retrieve takes the role on.
func (p *ramRole) Retrieve(ctx context.Context) (Keys, error) {
	keys, err := withBase(ctx, p.base, p.api.turns, func(ctx context.Context, base Keys) (Keys, error) {
		params := p.params()
		if p.externalID != "" {
			params["ExternalId"] = p.externalID
		}
		r, err := p.api.call(ctx, base, opAssumeRole, params)
		if err != nil {
			return Keys{}, err
		}
		return new(assumed).keys(opAssumeRole, r)
	})
	if err != nil {
		return Keys{}, fmt.Errorf("assume role %s: %w", p.arn, err)
	}
	return keys, nil
}

// oidcRole gets the keys of a role with a token that Kubernetes projects into the pod and
// replaces in time (RRSA): it is read for each call.
type oidcRole struct {
	role
	providerARN, tokenFile string
	endpoint               *url.URL
	plain                  *plain
	turns                  *turns
	skew                   skew
}

func newOIDCRole(r role, c *Config, endpoint *url.URL, turns *turns) *oidcRole {
	return &oidcRole{
		role: r, providerARN: c.OIDCProviderARN, tokenFile: c.OIDCTokenFile,
		endpoint: endpoint, plain: newPlain("STS", http.ProxyFromEnvironment), turns: turns,
	}
}

// Retrieve takes the role on. A call that is refused for its time is made again with the
// server's.
func (p *oidcRole) Retrieve(ctx context.Context) (Keys, error) {
	before := p.skew.offset()
	keys, err := p.assume(ctx)
	if e, is := errors.AsType[*Error](err); is && isClockCode(e.Code) && p.skew.offset() != before && p.turns.wait(ctx, underWay) == nil {
		keys, err = p.assume(ctx)
	}
	if err != nil {
		return Keys{}, fmt.Errorf("assume role %s: %w", p.arn, err)
	}
	return keys, nil
}

func (p *oidcRole) assume(ctx context.Context) (Keys, error) {
	token, err := readToken(p.tokenFile)
	if err != nil {
		return Keys{}, err
	}
	form := url.Values{
		"Action": {opAssumeOIDC}, "Version": {stsVersion}, "Format": {"JSON"},
		"Timestamp":       {time.Now().Add(p.skew.offset()).UTC().Format("2006-01-02T15:04:05Z")},
		"OIDCProviderArn": {p.providerARN}, "OIDCToken": {token},
	}
	for name, value := range p.params() {
		form.Set(name, value)
	}
	request, err := newRequest(ctx, http.MethodPost, at(p.endpoint, "/"), form.Encode())
	if err != nil {
		return Keys{}, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r, err := p.plain.do(ctx, opAssumeOIDC, request)
	if err != nil {
		return Keys{}, err
	}
	p.skew.learn(r)
	var answer assumed
	if r.status == http.StatusOK {
		return answer.keys(opAssumeOIDC, r)
	}
	e := &Error{Op: opAssumeOIDC, Status: r.status, Message: notOf("STS")}
	if json.Unmarshal(r.body, &answer) == nil && identifier(answer.Code) != "" {
		e.Code, e.RequestID = answer.Code, identifier(answer.RequestID)
		e.Message = clean(answer.Message, Keys{SecurityToken: setting.NewSecret(token)})
	}
	return Keys{}, e
}

// readToken reads the projected token.
func readToken(path string) (string, error) {
	data, err := setting.ReadAgain(path)
	if err != nil {
		return "", fmt.Errorf("read oidc_token_file: %w: check the path and the projected volume of the pod", err)
	}
	token, err := setting.FileText(data)
	if err != nil {
		return "", fmt.Errorf("read oidc_token_file %s: %w", path, err)
	}
	if token == "" {
		return "", fmt.Errorf("read oidc_token_file: %s is empty: check the projected volume of the pod", path)
	}
	return token, nil
}
