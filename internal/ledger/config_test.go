package ledger_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/ledger"
	"mnsrelay/internal/setting"
)

// problems are the messages of what errors.Join has joined.
func problems(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	require.True(t, ok)
	var texts []string
	for _, err := range joined.Unwrap() {
		var p *setting.Problem
		require.True(t, errors.As(err, &p)) //nolint:testifylint // The type is the point.
		texts = append(texts, err.Error())
	}
	return texts
}

func TestValidate(t *testing.T) {
	redis := func(url string) ledger.Config {
		return ledger.Config{Type: "redis", TTL: time.Hour, URL: setting.NewURL(url)}
	}
	const (
		badPath   = "url: has a path that is not the number of a database: write redis://host:6379/0"
		badScheme = "url: must begin with redis:// or, with TLS, rediss://"
	)
	for name, c := range map[string]struct {
		cfg  ledger.Config
		want []string
	}{
		"the defaults":      {cfg: ledger.Defaults()},
		"a host":            {cfg: redis("redis://host")},
		"an IPv6 address":   {cfg: redis("redis://[::1]:6379/0")},
		"everything":        {cfg: redis("rediss://user:p%40ss@host:6380/15")},
		"a password only":   {cfg: redis("rediss://:p%40ss@host")},
		"the zero value":    {want: []string{`type: must be memory or redis, not ""`, "ttl: is 0s; write a time from 1s to 168h0m0s"}},
		"no URL":            {cfg: redis(""), want: []string{"url: is missing; write where Redis is, as in rediss://user:password@redis:6379/0"}},
		"no host":           {cfg: redis("redis://:6379"), want: []string{"url: names no host: write redis://host:6379/0"}},
		"no scheme":         {cfg: redis("host:6379"), want: []string{"url: not a complete URL: write scheme://host"}},
		"another scheme":    {cfg: redis("http://host"), want: []string{badScheme}},
		"a name for number": {cfg: redis("redis://host/main"), want: []string{badPath}},
		"a negative number": {cfg: redis("redis://host/-1"), want: []string{badPath}},
		"two numbers":       {cfg: redis("redis://host/1/2"), want: []string{badPath}},
		"a query":           {cfg: redis("redis://host/0?read_timeout=1h"), want: []string{"url: takes no settings after the database: remove what follows ? or #"}},
		"a bad password": {cfg: redis("redis://user:pa ss%zz@host"), want: []string{
			"url: not a URL; special characters in a user name or password must be percent-encoded, or use the username and password settings",
		}},
		"a URL of memory": {
			cfg:  ledger.Config{Type: "memory", TTL: time.Hour, MaxEntries: 1, URL: setting.NewURL("redis://host")},
			want: []string{"url: has a meaning for type: redis only: remove it"},
		},
		"much wrong": {
			cfg: ledger.Config{Type: "memory", TTL: 169 * time.Hour, MaxEntries: -1},
			want: []string{
				"max_entries: is -1; write a number from 1 to 100000000",
				"ttl: is 169h0m0s; write a time from 1s to 168h0m0s",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, problems(t, c.cfg.Validate()))
		})
	}
}
