package webhook

import (
	"encoding/base64"
	"sync"
	"time"

	"mnsrelay/internal/setting"
)

// rereadAfter is how old a secret from a file may get before the file is read again.
const rereadAfter = time.Second

// renewed is a secret that follows its file.
type renewed struct {
	secret setting.Secret

	mu   sync.Mutex
	text string
	read time.Time
}

// current gives the secret as its file had it at most rereadAfter ago.
func (r *renewed) current() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.read.IsZero() || now.Sub(r.read) >= rereadAfter {
		r.text, r.read = r.secret.Current(), now
	}
	return r.text
}

// authorization makes the header of that name; empty: none is configured.
type authorization struct {
	username string
	password *renewed // of basic authentication (RFC 7617)
	bearer   *renewed // RFC 6750
}

func newAuthorization(c *Config) authorization {
	switch {
	case !c.BearerToken.IsZero():
		return authorization{bearer: &renewed{secret: c.BearerToken}}
	case c.Username != "":
		return authorization{username: c.Username, password: &renewed{secret: c.Password}}
	}
	return authorization{}
}

func (a authorization) header() string {
	switch {
	case a.bearer != nil:
		return "Bearer " + a.bearer.current()
	case a.password != nil:
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(a.username+":"+a.password.current()))
	}
	return ""
}
