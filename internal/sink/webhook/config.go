package webhook

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/time/rate"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// Config holds the settings of a webhook. Start from Defaults.
type Config struct {
	// URL is where messages are posted: https://, or http:// with a warning unless
	// its host is this machine. User info in it is sent as basic authorization. Path and
	// query may hold {{ }} templates, whose values are percent-encoded: none begins
	// another segment or parameter.
	URL setting.URL `yaml:"url" schema:"required"`
	// Settings are those that a route may set otherwise.
	Settings `yaml:",inline"`
	// Username and Password are sent as basic authorization; BearerToken as a bearer's.
	// One of these, the URL's user info and a header authorization may be set. A password or
	// token that comes whole from a file is read again when it is older than a second; a user
	// name with a reload.
	Username    string         `yaml:"username"`
	Password    setting.Secret `yaml:"password"`
	BearerToken setting.Secret `yaml:"bearer_token"`
	// TLS says whom to trust and who we are, for https. Its files are read again for each
	// connection.
	TLS setting.TLS `yaml:"tls"`
	// Signing signs requests.
	Signing Signing `yaml:"signing"`
	// Concurrency is how many requests may be under way at once, over all routes
	// that lead here: 1 to 4096.
	Concurrency int `yaml:"concurrency" schema:"min=1,max=4096"`
	// RateLimit bounds how often a request begins, over all routes that lead here.
	RateLimit RateLimit `yaml:"rate_limit"`
	// Network says which addresses may be connected to.
	Network Network `yaml:"network"`
}

// Settings are the settings of a webhook that a route may set otherwise.
type Settings struct {
	// Method is POST, PUT or PATCH.
	Method string `yaml:"method" schema:"enum=POST|PUT|PATCH"`
	// Config says what of a message is sent.
	format.Config `yaml:",inline"`
	// Batch says how messages share requests.
	Batch Batch `yaml:"batch"`
	// Compression of the body is none or gzip, which is sent as the content encoding.
	Compression string `yaml:"compression" schema:"enum=none|gzip"`
	// Headers are sent with every request, beside those of the relay itself. A
	// route's own are added to the sink's. Values may hold {{ }} templates.
	Headers map[string]setting.Secret `yaml:"headers"`
	// Timeout bounds a whole exchange, from the connection to the last byte of the
	// answer: more than 0, at most 10 minutes.
	Timeout time.Duration `yaml:"timeout" schema:"positive"`
	// Retry is how often a request is tried before its message goes back to the
	// queue, as long as its lease lasts.
	Retry Retry `yaml:"retry"`
}

// Batch says how many messages share a request, whose body is then a JSON array of what
// the format makes of each.
type Batch struct {
	// MaxMessages is how many a request holds at most: 1, which is no batch, to 256.
	MaxMessages int `yaml:"max_messages" schema:"min=1,max=256"`
	// MaxBytes is how long their bodies may be together, as they came; a longer one goes
	// alone. 1 KiB to 64 MiB.
	MaxBytes setting.Size `yaml:"max_bytes"`
	// Linger is how long a message waits for others: 0 to 10 s.
	Linger time.Duration `yaml:"linger"`
}

// Signing holds the secrets of the Standard Webhooks signature.
type Signing struct {
	// Secrets are each whsec_ and 24 to 64 bytes in base64. More than one while they are
	// rotated: each signs.
	Secrets []setting.Secret `yaml:"secrets"`
}

// Retry says how tries of one request follow each other.
type Retry struct {
	// MaxAttempts counts the first try too: 1 to 20; 1 is no retry.
	MaxAttempts int `yaml:"max_attempts" schema:"min=1,max=20"`
	// Initial is the longest pause after the first try, from 1 ms; it doubles up to Max,
	// which is at most 5 minutes. Pauses are random below that.
	Initial time.Duration `yaml:"initial" schema:"positive"`
	Max     time.Duration `yaml:"max" schema:"positive"`
}

// RateLimit is a token bucket.
type RateLimit struct {
	// PerSecond is how many requests may begin in a second, 0.01 to 1000000; 0: no limit.
	PerSecond float64 `yaml:"per_second" schema:"min=0,max=1000000"`
	// Burst is how many may begin at once after a pause, 1 to 1000000; 0: as many as a
	// second allows, one at least.
	Burst int `yaml:"burst" schema:"min=0,max=1000000"`
}

func (r RateLimit) limit() rate.Limit {
	if r.PerSecond == 0 {
		return rate.Inf
	}
	return rate.Limit(r.PerSecond)
}

func (r RateLimit) burst() int {
	if r.Burst == 0 {
		return max(1, int(r.PerSecond))
	}
	return r.Burst
}

// Network opens what is closed by default: see the package comment.
type Network struct {
	// Allow holds networks that may be connected to, as 10.0.0.0/8 or fd00::/8.
	Allow []string `yaml:"allow"`
}

// Defaults gives the settings that apply where the configuration is silent.
func Defaults() *Config {
	return &Config{
		Settings: Settings{
			Method:      http.MethodPost,
			Config:      format.Defaults(),
			Batch:       Batch{MaxMessages: 1, MaxBytes: setting.MiB, Linger: 100 * time.Millisecond},
			Compression: compressionNone,
			Timeout:     10 * time.Second,
			Retry:       Retry{MaxAttempts: 3, Initial: 200 * time.Millisecond, Max: 5 * time.Second},
		},
		Concurrency: 16,
	}
}

const (
	maxTimeout     = 10 * time.Minute
	maxAttempts    = 20
	maxPause       = 5 * time.Minute
	maxConcurrency = 4096
	minRate        = 0.01
	maxRate        = 1_000_000
)

const (
	maxBatch      = 256 // of which an answer can tell, in maxAnswer
	minBatchBytes = setting.KiB
	maxBatchBytes = 64 * setting.MiB
	maxLinger     = 10 * time.Second
)

const (
	compressionNone = "none"
	compressionGzip = "gzip"
)

// Validate reports every problem at once, each a *setting.Problem.
func (c *Config) Validate() error {
	problems := []error{c.validateURL(), c.validateSettings()}
	report := func(err error) { problems = append(problems, err) }

	for i, secret := range c.Signing.Secrets {
		if _, err := ParseKey(secret.Reveal()); err != nil {
			report(setting.Problemf("signing.secrets["+strconv.Itoa(i)+"]", "%v", err))
		}
	}
	report(c.validateAuthorization())
	if _, template, err := c.parseURL(); err == nil && template != nil && c.Batch.MaxMessages > 1 {
		report(setting.Problemf("batch.max_messages", "%s", batchURLHint))
	}
	report(c.TLS.Validate("tls"))
	if c.Concurrency < 1 || c.Concurrency > maxConcurrency {
		report(setting.Problemf("concurrency", "is %d; write a number from 1 to %d", c.Concurrency, maxConcurrency))
	}
	if r := c.RateLimit.PerSecond; r != 0 && !(r >= minRate && r <= maxRate) {
		report(setting.Problemf("rate_limit.per_second", "is %v; write a number from %v to %d, or 0 for no limit", r, minRate, maxRate))
	}
	switch b := c.RateLimit.Burst; {
	case b < 0 || b > maxRate:
		report(setting.Problemf("rate_limit.burst", "is %d; write a number from 1 to %d, or 0 for as many as a second allows", b, maxRate))
	case b > 0 && c.RateLimit.PerSecond == 0:
		report(setting.Problemf("rate_limit.burst", "there is no limit that it could exceed: write per_second too"))
	}
	for i, network := range c.Network.Allow {
		if _, err := parseNetwork(network); err != nil {
			report(setting.Problemf("network.allow["+strconv.Itoa(i)+"]", "%v", err))
		}
	}
	return errors.Join(problems...)
}

func (c *Config) validateURL() error {
	if c.URL.IsZero() {
		return setting.Problemf("url", "is missing; write where to post, as in https://hooks.example.com/sms")
	}
	u, _, err := c.parseURL()
	if err != nil {
		return err
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return setting.Problemf("url", "has the scheme %q; write https:// or http://", u.Scheme)
	case u.Hostname() == "":
		return setting.Problemf("url", "has no host")
	case strings.ContainsFunc(u.RawQuery, func(r rune) bool { return r <= ' ' || r > '~' }):
		return setting.Problemf("url", "has a query with a space or a character beyond ASCII; percent-encode it, or write it in {{ }}")
	case u.Fragment != "":
		return setting.Problemf("url", "has a fragment (#), which is never sent; remove it, or write %%23 for a literal #")
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return setting.Problemf("url", "has the port %s; write one from 1 to 65535", port)
		}
	}
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return nil //nolint:nilerr // a name: what it resolves to is checked on each dial
	}
	g, err := newGuard(c.Network.Allow)
	if err != nil {
		return nil //nolint:nilerr // reported under network.allow
	}
	if err := g.check(addr); err != nil {
		return setting.Problemf("url", "%v", err)
	}
	return nil
}

// validateAuthorization reports what would be sent as authorization twice.
func (c *Config) validateAuthorization() error {
	problems := []error{setting.Credentials(c.Username, c.Password)}
	var ways []string
	if u, _, err := c.parseURL(); err == nil && u.User != nil {
		ways = append(ways, "user info in url")
	}
	if c.Username != "" {
		ways = append(ways, "username")
		if strings.Contains(c.Username, ":") {
			problems = append(problems, setting.Problemf("username", "has a colon, which ends the name in basic authorization; use another user"))
		}
	}
	if !c.BearerToken.IsZero() {
		ways = append(ways, "bearer_token")
		if _, err := bearer(c.BearerToken.Reveal()); err != nil {
			problems = append(problems, setting.Problemf("bearer_token", "%v", err))
		}
	}
	for name := range c.Headers {
		if strings.EqualFold(name, "authorization") {
			ways = append(ways, "headers."+name)
		}
	}
	if len(ways) > 1 {
		problems = append(problems, setting.Problemf("", "has %s: each would be sent as authorization; keep one", strings.Join(ways, " and ")))
	}
	return errors.Join(problems...)
}

// parseURL reads the URL; where it is a template it gives that too, and the URL as it is
// with x for each of its values. Its error is made of problems.
func (c *Config) parseURL() (*url.URL, *expr.Template, error) {
	raw := c.URL.Reveal()
	literal, _, templated := strings.Cut(raw, "{{")
	if !templated {
		u, err := c.URL.Parse()
		if err != nil {
			return nil, nil, setting.Problemf("url", "%v", err)
		}
		return u, nil, nil
	}
	_, rest, found := strings.Cut(literal, "://")
	if !found || !strings.ContainsAny(rest, "/?") {
		return nil, nil, setting.Problemf("url", "has a {{ }} before its path, and where messages go cannot depend on what they say; write scheme, host and port out")
	}
	template, err := expr.CompileSetting("url", raw)
	if err != nil {
		return nil, nil, err
	}
	u, err := setting.NewURL(template.Sample("x")).Parse()
	if err != nil {
		return nil, nil, setting.Problemf("url", "%v", err)
	}
	if hasDotSegment(u) {
		return nil, nil, setting.Problemf("url", "has . or .. in its path; write the path without")
	}
	return u, template, nil
}

// Warnings reports what works and is better changed, each a *setting.Problem.
func (c *Config) Warnings() []error {
	u, _, err := c.parseURL()
	if err != nil || u.Scheme != "http" || setting.IsLoopback(u.Hostname()) {
		return nil
	}
	return []error{setting.Problemf("url", "is http://: messages and headers travel unencrypted; write https://")}
}

func (s *Settings) validateSettings() error {
	var problems []error
	report := func(err error) { problems = append(problems, err) }

	if !slices.Contains([]string{http.MethodPost, http.MethodPut, http.MethodPatch}, s.Method) {
		report(setting.Problemf("method", "is %q; write POST, PUT or PATCH", s.Method))
	}
	if _, err := s.Formatter(); err != nil {
		report(err)
	}
	report(s.validateBatch())
	if s.Compression != compressionNone && s.Compression != compressionGzip {
		report(setting.Problemf("compression", "is %q; write none or gzip", s.Compression))
	}
	if s.Timeout <= 0 || s.Timeout > maxTimeout {
		report(setting.Problemf("timeout", "is %v; write a duration above 0s, at most %v", s.Timeout, maxTimeout))
	}
	if s.Retry.MaxAttempts < 1 || s.Retry.MaxAttempts > maxAttempts {
		report(setting.Problemf("retry.max_attempts", "is %d; write a number from 1, which is no retry, to %d", s.Retry.MaxAttempts, maxAttempts))
	}
	if s.Retry.Initial < time.Millisecond || s.Retry.Initial > maxPause {
		report(setting.Problemf("retry.initial", "is %v; write a duration from 1ms to %v", s.Retry.Initial, maxPause))
	}
	if s.Retry.Max < s.Retry.Initial || s.Retry.Max > maxPause {
		report(setting.Problemf("retry.max", "is %v; write a duration from that of initial to %v", s.Retry.Max, maxPause))
	}
	seen := make(map[string]string, len(s.Headers))
	for _, name := range slices.Sorted(maps.Keys(s.Headers)) {
		path := "headers." + name
		lower := strings.ToLower(name)
		if other, found := seen[lower]; found {
			report(setting.Problemf(path, "is the same header as %q; keep one", other))
		}
		seen[lower] = name
		template, err := expr.CompileSetting(path, s.Headers[name].Reveal())
		if err != nil {
			report(err)
			continue
		}
		if rest, is := strings.CutPrefix(lower, eventPrefix); is {
			report(s.CheckExtension(path, eventPrefix, rest))
		}
		if lower == "content-type" {
			report(s.CheckContentType(path, template.Sample("")))
		}
		switch {
		case s.Batch.MaxMessages > 1 && !template.Literal():
			report(setting.Problemf(path, "has a {{ }}, and the messages of a batch share their headers; write a text, or leave batch out"))
		case !httpguts.ValidHeaderFieldName(name):
			report(setting.Problemf("headers", "has the name %q, which HTTP does not allow; use letters, digits and -", name))
		case reserved(lower):
			report(setting.Problemf(path, "is set by the relay or by HTTP itself; remove it"))
		case !httpguts.ValidHeaderFieldValue(template.Sample("")):
			report(setting.Problemf(path, "has a line break or another control character in its value"))
		}
	}
	return errors.Join(problems...)
}

func (s *Settings) validateBatch() error {
	b := s.Batch
	var problems []error
	if b.MaxMessages < 1 || b.MaxMessages > maxBatch {
		problems = append(problems, setting.Problemf("batch.max_messages", "is %d; write a number from 1, which is no batch, to %d", b.MaxMessages, maxBatch))
	}
	if b.MaxBytes < minBatchBytes || b.MaxBytes > maxBatchBytes {
		problems = append(problems, setting.Problemf("batch.max_bytes", "is %v; write a size from %v to %v", b.MaxBytes, minBatchBytes, maxBatchBytes))
	}
	if b.Linger < 0 || b.Linger > maxLinger {
		problems = append(problems, setting.Problemf("batch.linger", "is %v; write a duration from 0s to %v", b.Linger, maxLinger))
	}
	if b.MaxMessages > 1 && !s.Batches() {
		problems = append(problems, setting.Problemf("format", "is %s, whose attributes are headers, and the messages of a batch share those; write cloudevents, or leave batch out", s.Format))
	}
	return errors.Join(problems...)
}

// batchURLHint says why a batch cannot go where each message says.
const batchURLHint = "is more than 1, and url has a {{ }}: the messages of a batch go to one URL; write it out, or leave batch out"

// reserved tells whether a header, in lower case, is not the configuration's to set:
// those of one hop (RFC 9110, 7.6.1), those that net/http derives from the request,
// and the relay's own.
func reserved(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
		"te", "trailer", "transfer-encoding", "upgrade", "host", "content-length", "expect":
		return true
	}
	return strings.HasPrefix(name, "webhook-") || strings.HasPrefix(name, "x-mnsrelay-")
}

func parseNetwork(s string) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%q is not a network; write one as 10.0.0.0/8, a single address as 10.1.2.3/32", s)
	case prefix.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%q is an IPv4 network written as IPv6; write it as 10.0.0.0/8", s)
	}
	return prefix.Masked(), nil
}

// Open makes the endpoint of a validated Config.
func (c *Config) Open(deps relay.SinkDeps) (relay.Endpoint, error) { return New(c, deps) }
