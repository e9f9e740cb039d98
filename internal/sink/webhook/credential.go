package webhook

import (
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/setting"
)

// rereadAfter is how old a secret from a file may get before the file is read again.
const rereadAfter = time.Second

// renewed is a secret that follows its file, as parse understands it. What cannot be read,
// or is no such secret, is logged once and does not replace the last one.
type renewed[T any] struct {
	setting string // where it is written
	secret  setting.Secret
	parse   func(text string) (T, error)
	log     *zap.Logger

	mu     sync.Mutex
	value  T
	text   string
	read   time.Time
	failed bool
}

func newRenewed[T any](name string, secret setting.Secret, parse func(string) (T, error), log *zap.Logger) (*renewed[T], error) {
	value, err := parse(secret.Reveal())
	if err != nil {
		return nil, setting.Problemf(name, "%v", err)
	}
	return &renewed[T]{setting: name, secret: secret, parse: parse, log: log, value: value, text: secret.Reveal()}, nil
}

// current gives the secret as its file had it at most rereadAfter ago.
func (r *renewed[T]) current() T {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.read) < rereadAfter {
		return r.value
	}
	r.read = now
	text, err := r.secret.Read()
	if err == nil && text != r.text {
		var value T
		if value, err = r.parse(text); err == nil {
			r.value, r.text = value, text
			r.log.Info("a secret was replaced", zap.String("setting", r.setting))
		}
	}
	if err != nil && !r.failed {
		r.log.Error("the new secret is not valid or cannot be read; the previous one stays in use",
			zap.String("setting", r.setting), zap.Error(err))
	}
	r.failed = err != nil
	return r.value
}

// newAuthorization makes the header of that name from what a validated Config has, user info
// of its URL included; nil for none.
func newAuthorization(c *Config, user *url.Userinfo, log *zap.Logger) (*renewed[string], error) {
	switch {
	case user != nil:
		password, _ := user.Password() // none is allowed here
		return newRenewed("url", setting.NewSecret(password), func(password string) (string, error) {
			return basicHeader(user.Username(), password), nil
		}, log)
	case !c.BearerToken.IsZero():
		return newRenewed("bearer_token", c.BearerToken, bearer, log)
	case c.Username != "":
		return newRenewed("password", c.Password, func(password string) (string, error) {
			if password == "" {
				return "", errors.New("is empty")
			}
			return basicHeader(c.Username, password), nil
		}, log)
	}
	return nil, nil //nolint:nilnil // No authorization.
}

// bearer makes the header of a token (RFC 6750).
func bearer(token string) (string, error) {
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("is empty, or has a space, a line break or another character that a token cannot have")
	}
	return "Bearer " + token, nil
}

// basicHeader makes the header of a name and password (RFC 7617).
func basicHeader(username, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(username+":"+password))
}
