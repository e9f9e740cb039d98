package credentials

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"mnsrelay/internal/setting"
)

// opQueryToken is the call that gives a token, in this version of Dybaseapi.
const (
	opQueryToken  = "QueryTokenForMnsQueue"
	dybaseVersion = "2017-05-25"
)

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
	api                *openAPI
	base               Provider
}

func newMNSToken(c *Config, queue string, endpoint *url.URL, base Provider, turns *turns) *mnsToken {
	return &mnsToken{
		queue:       queue,
		messageType: c.MessageType,
		ownerID:     c.OwnerID,
		api:         newOpenAPI("Dybaseapi", dybaseVersion, c.Region, endpoint, turns),
		base:        base,
	}
}

// Retrieve asks for a token with keys of the base.
func (m *mnsToken) Retrieve(ctx context.Context) (Keys, error) {
	keys, err := withBase(ctx, m.base, m.api.turns, m.query)
	if err != nil {
		return Keys{}, fmt.Errorf("get token for queue %q: %w", m.queue, err)
	}
	return keys, nil
}

// query makes one call.
func (m *mnsToken) query(ctx context.Context, base Keys) (Keys, error) {
	params := map[string]string{"QueueName": m.queue, "MessageType": m.messageType}
	if m.ownerID != 0 {
		params["OwnerId"] = strconv.FormatInt(m.ownerID, 10)
	}
	r, err := m.api.call(ctx, base, opQueryToken, params)
	if err != nil {
		return Keys{}, err
	}
	var answer struct {
		RequestID string `json:"RequestId"`
		Code      string
		Message   string
		Token     struct {
			AccessKeyID     string `json:"AccessKeyId"`
			AccessKeySecret string
			SecurityToken   string
			CreateTime      string
			ExpireTime      string
		} `json:"MessageTokenDTO"`
	}
	e := &Error{Op: opQueryToken, Status: r.status}
	if !json.Valid(r.body) {
		e.Message = notOf("Dybaseapi")
		return Keys{}, e
	}
	if json.Unmarshal(r.body, &answer) != nil || identifier(answer.Code) == "" {
		e.RequestID, e.Message = identifier(answer.RequestID), "the answer is not of the kind that Dybaseapi gives"
		return Keys{}, e
	}
	e.Code, e.RequestID, e.Message = answer.Code, identifier(answer.RequestID), clean(answer.Message, base)
	if answer.Code != codeOK {
		return Keys{}, e
	}
	token := answer.Token
	if token.AccessKeyID == "" || token.AccessKeySecret == "" || token.SecurityToken == "" {
		e.Message = "the answer holds no token"
		return Keys{}, e
	}
	expire, err := parseBeijing(token.ExpireTime)
	if err != nil {
		e.Message = "the answer's ExpireTime is not a time"
		return Keys{}, e
	}
	// A missing or unreadable CreateTime is the zero time: then only ExpireTime tells.
	create, _ := parseBeijing(token.CreateTime)
	remaining := remainingLife(create, expire, r.started, r.received, r.served)
	if remaining <= 0 {
		e.Message = "the token that came has ended already"
		return Keys{}, e
	}
	return Keys{
		AccessKeyID:     token.AccessKeyID,
		AccessKeySecret: setting.NewSecret(token.AccessKeySecret),
		SecurityToken:   setting.NewSecret(token.SecurityToken),
		Expires:         r.started.Add(remaining),
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
