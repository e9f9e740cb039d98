// Package webhook is the sink that posts each message to a URL.
//
// A message counts as delivered when the complete answer, body included, came within
// the timeout and its status is 2xx. At most 64 KiB of an answer are read; one that
// is longer has not come completely. The message's id travels as webhook-id, the
// same on each redelivery, so that the endpoint can recognise a duplicate.
//
// An endpoint's answers are not trusted. Redirects are not followed, compression is
// not offered, headers and bodies are bounded, and nothing that the endpoint sends is
// quoted in an error beyond a few words. Which address is connected to is checked
// when the connection is made, after DNS, so that a name cannot lead to loopback, to
// private networks or to a cloud's metadata unless network.allow says so. A proxy of the
// environment (HTTPS_PROXY and its kin) is asked for a tunnel to the address that was
// checked, never for the name.
//
// What the configuration says by {{ }} of the URL and of headers is worked out for each
// message. A value can fill a place and never make one: in the URL it is percent-encoded,
// in a header a line break rejects the message.
//
// There is no connection whose loss would tell of an outage, so messages tell: after five
// that failed in a row the endpoint's health is Down, and one message every five seconds
// finds out when it is back (relay.Breaker). An answer of 401, 403 or 404 is a failure
// like the others: an operator's mistake must not drain a queue.
package webhook

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

const (
	// maxAnswer is how much of an answer's body is read, in bytes, and how long its
	// headers may be.
	maxAnswer = 64 << 10
	// idleTimeout closes connections that are not used.
	idleTimeout = 90 * time.Second
	// An HTTP/2 connection on which nothing came for pingAfter is asked whether it
	// lives and closed after pingTimeout: all requests share it, so a dead one
	// would fail them all.
	pingAfter   = 10 * time.Second
	pingTimeout = 5 * time.Second
)

// errStopped is why a delivery fails once Run's ctx has ended.
var errStopped = errors.New("the webhook is closed")

// Endpoint owns the connections to one URL. Make it with New.
type Endpoint struct {
	settings    Settings
	url         *url.URL         // without user info; of a template a sample
	template    *expr.Template   // of the URL; nil: it is the same for all messages
	show        string           // how errors name the URL: its path may be a secret, too
	written     bool             // the URL stands in the configuration: it is no secret
	auth        *renewed[string] // the authorization header; nil: none
	signer      *signer          // nil: requests are not signed
	agent       string
	connections *connections
	transport   *transport
	log         *zap.Logger
	breaker     *relay.Breaker

	// rate bounds how often a request begins; limit how many are under way.
	rate  *rate.Limiter
	limit *limit
	// stopped is closed when Run's ctx has ended.
	stopped chan struct{}

	mu      sync.Mutex
	trouble string // what was last logged as refused; empty: nothing
}

var (
	_ relay.Endpoint = (*Endpoint)(nil)
	_ relay.Sink     = (*Sink)(nil)
	_ relay.Retrier  = (*Sink)(nil)
	_ relay.Resumer  = (*Endpoint)(nil)
)

// New makes the endpoint of a validated Config.
func New(c *Config, deps relay.SinkDeps) (*Endpoint, error) {
	u, template, err := c.parseURL()
	if err != nil {
		return nil, fmt.Errorf("read the URL: %w", err)
	}
	g, err := newGuard(c.Network.Allow)
	if err != nil {
		return nil, fmt.Errorf("read network.allow: %w", err)
	}
	s, err := newSigner(c.Signing.Secrets, deps.Log)
	if err != nil {
		return nil, err
	}
	auth, err := newAuthorization(c, u.User, deps.Log)
	if err != nil {
		return nil, err
	}
	e := &Endpoint{
		settings: c.Settings,
		auth:     auth,
		signer:   s,
		url:      u,
		template: template,
		show:     u.Scheme + "://" + u.Host,
		written:  c.URL.Written(),
		agent:    deps.Instance,
		log:      deps.Log,
		breaker:  relay.NewBreaker(relay.BreakerConfig{}, deps.Log),
		rate:     rate.NewLimiter(c.RateLimit.limit(), c.RateLimit.burst()),
		limit:    newLimit(c.Concurrency, deps.Log),
		stopped:  make(chan struct{}),
	}
	u.User = nil // sent as a header
	e.connections = newConnections(newDialer(c, g))
	e.transport = newTransport(func() *http.Transport { return e.newPool(c) })
	return e, nil
}

// newPool makes a pool of connections.
func (e *Endpoint) newPool(c *Config) *http.Transport {
	return &http.Transport{
		DialContext:       e.connections.dial,
		DialTLSContext:    e.connections.dialTLS,
		ForceAttemptHTTP2: true,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, WriteByteTimeout: c.Timeout},
		// net/http goes on with a dial after its request has ended; the limit
		// bounds those, too.
		MaxConnsPerHost:        c.Concurrency,
		MaxIdleConnsPerHost:    c.Concurrency,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswer,
		DisableCompression:     true,
	}
}

// Run ends the requests under way and closes the connections when ctx ends.
// Connections are made as requests need them.
func (e *Endpoint) Run(ctx context.Context) error {
	<-ctx.Done()
	close(e.stopped)
	e.breaker.Close("closed")
	e.limit.close()
	e.transport.close()
	e.connections.close()
	return nil
}

// Health is what the answers tell; Down once Run has ended.
func (e *Endpoint) Health() (relay.Health, <-chan struct{}) { return e.breaker.Health() }

// Bind makes a Sink with the settings that a route sets otherwise.
func (e *Endpoint) Bind(with relay.Overrides) (relay.Sink, error) {
	settings := e.settings
	settings.Headers = maps.Clone(settings.Headers) // with adds to it
	if with != nil {
		if err := with(&settings); err != nil {
			return nil, err
		}
		if err := settings.validateSettings(); err != nil {
			return nil, err
		}
		for name := range settings.Headers {
			if strings.EqualFold(name, "authorization") && e.auth != nil {
				return nil, setting.Problemf("headers."+name, "the sink sends an authorization of its own, by url, username or bearer_token; write it into the sink's headers instead, and this one here")
			}
		}
	}
	if settings.Batch.MaxMessages > 1 && e.template != nil {
		return nil, setting.Problemf("batch.max_messages", "%s", batchURLHint)
	}
	request := &http.Request{Method: settings.Method, URL: e.url, Header: http.Header{}}
	request.Header.Set("User-Agent", e.agent)
	formatter, err := settings.Compile()
	if err != nil {
		return nil, err
	}
	p := &poster{endpoint: e, request: request, format: formatter, timeout: settings.Timeout, gzip: settings.Compression == compressionGzip}
	for name, value := range settings.Headers {
		if !value.Written() {
			p.secret = append(p.secret, http.CanonicalHeaderKey(name))
		}
		if strings.HasPrefix(strings.ToLower(name), eventPrefix) {
			p.extensions = append(p.extensions, name)
		}
		template, err := expr.CompileSetting("headers."+name, value.Reveal())
		if err != nil {
			return nil, err
		}
		if template.Literal() {
			request.Header.Set(name, template.Sample(""))
		} else {
			p.headers = append(p.headers, header{name: name, value: template})
		}
	}
	s := &Sink{endpoint: e, poster: p, retries: relay.Retries{
		Attempts: settings.Retry.MaxAttempts,
		Initial:  settings.Retry.Initial,
		Max:      settings.Retry.Max,
		Timeout:  settings.Timeout,
	}}
	if settings.Batch.MaxMessages > 1 {
		s.gather = &gatherer{Batch: settings.Batch, sink: s}
	}
	return s, nil
}

// Sink posts messages with the settings of one route. Make it with Endpoint.Bind.
type Sink struct {
	endpoint *Endpoint
	poster   *poster
	retries  relay.Retries
	// gather is nil where each message has a request of its own.
	gather *gatherer
}

// Retries is how often a failed message is posted again under its lease.
func (s *Sink) Retries() relay.Retries { return s.retries }

// Deliver posts each message once, as many requests at a time as the endpoint's
// concurrency allows.
func (s *Sink) Deliver(ctx context.Context, ms []relay.Message, done func(i int, r relay.Result)) {
	ctx, stop := s.endpoint.whileRunning(ctx)
	defer stop()
	if s.gather != nil {
		s.gather.deliver(ctx, ms, done)
		return
	}
	type slot struct {
		i     int
		began time.Time
	}
	idle := make(chan slot)
	var posts sync.WaitGroup
	for i := range ms {
		if err := s.endpoint.acquire(ctx); err != nil {
			done(i, s.endpoint.failed(relay.Fail(reasonStopped, err)))
			continue
		}
		mine := slot{i, time.Now()}
		select {
		case idle <- mine: // A goroutine whose request has ended, for its stack has grown already.
			continue
		default:
		}
		posts.Go(func() {
			for more := true; more; mine, more = <-idle {
				m := &ms[mine.i]
				r := s.endpoint.breaker.Do(ctx, func() relay.Result { return s.poster.post(ctx, m) })
				s.endpoint.limit.release(mine.began, loadOf(r))
				done(mine.i, r)
			}
		})
	}
	close(idle)
	posts.Wait()
}

// whileRunning gives a context that ends with ctx, and when Run has ended.
func (e *Endpoint) whileRunning(ctx context.Context) (running context.Context, stop func()) {
	running, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-e.stopped:
			cancel(errStopped)
		case <-running.Done():
		}
	})
	return running, func() {
		cancel(nil)
		watch.Wait()
	}
}

// acquire waits until a request may begin, or until ctx or the endpoint has ended. Where
// a slot is free all the same, the request does not begin: its context has ended.
func (e *Endpoint) acquire(ctx context.Context) error {
	if err := e.limit.acquire(ctx); err != nil {
		return err
	}
	// In this order: a rate that is waited for first would be spent by those that wait for a
	// slot, and they would begin all at once.
	if err := e.rate.Wait(ctx); err != nil {
		e.limit.release(time.Now(), loadSame)
		return err
	}
	return nil
}

// loadOf is what a result says about the load of the endpoint.
func loadOf(r relay.Result) load {
	var busy *busyError
	switch {
	case errors.Is(r.Err, relay.ErrSinkDown):
		return loadSame // it was not sent, and its error holds that of another
	case r.Outcome == relay.Delivered:
		return loadFine
	case errors.As(r.Err, &busy):
		return loadHeavy
	}
	return loadSame
}

// poster makes requests of messages and sends them.
type poster struct {
	endpoint *Endpoint
	request  *http.Request // what all requests have in common
	headers  []header
	// extensions are the headers that hold an event's extensions.
	extensions []string
	// secret are the headers whose value does not stand in the configuration.
	secret  []string
	format  *format.Formatter
	timeout time.Duration
	gzip    bool
}

// post sends a message.
func (p *poster) post(ctx context.Context, m *relay.Message) relay.Result {
	ctx, cancel := context.WithTimeoutCause(ctx, p.timeout, errTimeout)
	defer cancel()
	var seen attempt
	request, body, err := p.newRequest(seen.watch(ctx), m)
	if err != nil {
		return p.rejected(err)
	}
	p.setBody(request, body)
	return p.send(request, &seen, io.Discard)
}

// rejected is the result of a message of which no request can be made.
func (p *poster) rejected(err error) relay.Result {
	r := p.endpoint.failed(err)
	r.Outcome = relay.Rejected
	return r
}

// send sends a request that seen watches and judges its answer, whose body it writes to
// answer.
func (p *poster) send(request *http.Request, seen *attempt, answer io.Writer) relay.Result {
	ctx := request.Context()
	// RoundTrip and no http.Client: it follows no redirect, keeps no cookie and
	// puts no URL into its errors.
	resp, err := p.endpoint.roundTrip(request, seen)
	if err != nil {
		err = classify(ctx, err)
		if p.endpoint.connections.dialer.asked.Load() {
			err = fmt.Errorf("%w (the receiver asks for a client certificate: set or check tls.cert_file and tls.key_file)", err)
		}
		return p.endpoint.failed(err)
	}
	p.endpoint.connections.dialer.asked.Store(false)
	defer resp.Body.Close() //nolint:errcheck // the answer was read as far as it matters
	_, err = io.CopyN(answer, resp.Body, maxAnswer)
	complete := errors.Is(err, io.EOF) // CopyN's word for "it ended before the limit"

	v := judge(resp.StatusCode)
	if v.outcome == relay.Delivered {
		switch {
		case complete:
			p.endpoint.report("")
			return relay.Result{Outcome: relay.Delivered}
		case err == nil:
			return p.endpoint.failed(relay.Fail(reasonAnswerTooLong,
				fmt.Errorf("status %d, but its body is %d bytes or longer: answer a webhook with a short body", resp.StatusCode, maxAnswer)))
		}
		return p.endpoint.failed(classify(ctx, fmt.Errorf("read the answer of status %d: %w", resp.StatusCode, err)))
	}
	text := strings.TrimRight(strconv.Itoa(resp.StatusCode)+" "+http.StatusText(resp.StatusCode), " ")
	if v.advice != "" {
		text += ": " + v.advice
		p.endpoint.report(text)
	}
	err = errors.New("the endpoint answered " + text)
	if v.busy {
		err = &busyError{err}
	}
	result := p.endpoint.failed(relay.Fail(v.reason, err))
	result.Outcome = v.outcome
	if v.outcome == relay.Retry {
		result.RetryAfter = retryAfter(resp.Header, time.Now())
	}
	switch {
	case resp.StatusCode == http.StatusGone && p.endpoint.template == nil:
		p.endpoint.breaker.Hold(relay.UntilResumed, result.Err)
	case v.busy && result.RetryAfter > 0:
		p.endpoint.breaker.Hold(result.RetryAfter, result.Err)
	}
	return result
}

// roundTrip sends a request, and once more where the connection had been used before and
// was closed before an answer began: a receiver may close it at any time, and just then.
// Of what it may have got twice the receiver knows the id. net/http itself would go through
// all idle connections, and does nothing about a connection of HTTP/2 that is reset.
func (e *Endpoint) roundTrip(request *http.Request, seen *attempt) (*http.Response, error) {
	pool := e.transport.get()
	resp, err := pool.RoundTrip(request)
	if err == nil || !seen.reused.Load() || seen.answered.Load() || request.Context().Err() != nil || !isClosed(err) {
		return resp, err
	}
	if request.GetBody != nil {
		if request.Body, err = request.GetBody(); err != nil {
			return nil, err
		}
	}
	return pool.RoundTrip(request)
}

// attempt is what net/http tells of the connection of a request.
type attempt struct {
	reused, answered atomic.Bool
	trace            httptrace.ClientTrace
}

// watch gives the context for the request.
func (a *attempt) watch(ctx context.Context) context.Context {
	a.trace.GotConn = func(c httptrace.GotConnInfo) { a.reused.Store(c.Reused) }
	a.trace.GotFirstResponseByte = func() { a.answered.Store(true) }
	return httptrace.WithClientTrace(ctx, &a.trace)
}

// isClosed tells whether an error says that the other side has closed the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.Contains(err.Error(), "server closed idle connection") || strings.Contains(err.Error(), "client connection lost")
}

// busyError is an answer that says that there were too many requests.
type busyError struct{ error }

// Resume asks an endpoint again that said that it is gone, or to be left alone.
func (e *Endpoint) Resume() { e.breaker.Resume() }

// roomForHeaders is how many a request has beside those that all have in common, as long as
// it is no dead letter and no event.
const roomForHeaders = 8

// emptyRequest gives what all requests have in common, with headers that may be added to.
func (p *poster) emptyRequest(ctx context.Context) *http.Request {
	request := p.request.WithContext(ctx) // and not Clone: what is shared is only read
	request.Header = make(http.Header, len(p.request.Header)+roomForHeaders)
	maps.Copy(request.Header, p.request.Header)
	return request
}

// newRequest makes the request of a message, all but its body, which is as it is signed.
func (p *poster) newRequest(ctx context.Context, m *relay.Message) (request *http.Request, body []byte, err error) {
	request = p.emptyRequest(ctx)
	h := request.Header
	if err := p.fill(request, m); err != nil {
		return nil, nil, err
	}
	payload, err := p.format.Format(m)
	if err != nil {
		return nil, nil, err
	}
	contentType, err := payload.ContentTypeOr(h.Get("Content-Type"))
	if err != nil {
		return nil, nil, err
	}
	h.Set("Content-Type", contentType)
	if payload.Attributes != nil {
		for _, name := range p.extensions {
			h.Set(name, eventSafe(h.Get(name)))
		}
	}
	for _, a := range payload.Attributes {
		h.Set(eventPrefix+a.Name, eventSafe(a.Value))
	}
	describe(h, m)
	p.prove(h, idOf(m), payload.Body)
	return request, payload.Body, nil
}

// describe sets the headers that say of a message what its body does not.
func describe(h http.Header, m *relay.Message) {
	for name, value := range m.Headers {
		if name != relay.HeaderDeadError { // words in printable ASCII, for people
			value = headerSafe(value)
		}
		h.Set(name, value)
	}
}

// prove sets the id of a request and what proves where it comes from.
func (p *poster) prove(h http.Header, id string, body []byte) {
	h.Set(HeaderID, id)
	if p.endpoint.auth != nil {
		h.Set("Authorization", p.endpoint.auth.current())
	}
	if p.endpoint.signer != nil {
		p.endpoint.signer.sign(h, id, body, time.Now())
	}
	if p.gzip && len(body) > 0 {
		h.Set("Content-Encoding", "gzip")
	}
}

// setBody gives a request its body, compressed where that is wanted.
func (p *poster) setBody(request *http.Request, body []byte) {
	request.Body = http.NoBody
	if len(body) == 0 {
		return
	}
	if p.gzip {
		body = compress(body)
	}
	request.ContentLength = int64(len(body))
	// For requests that are sent again on another connection.
	request.GetBody = func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(body)), nil
	}
	request.Body, _ = request.GetBody()
}

// compress gives the body as gzip.
func compress(body []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(body) // into memory
	_ = w.Close()
	return b.Bytes()
}

// failed is the result of a failure: Retry, with the endpoint's name.
func (e *Endpoint) failed(err error) relay.Result {
	return relay.Result{Err: fmt.Errorf("post to %s: %w", e.show, err)}
}

// report logs an answer that only an operator can mend, once until it changes, and
// its end, for which text is empty.
func (e *Endpoint) report(text string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.trouble == text {
		return
	}
	e.trouble = text
	if text == "" {
		e.log.Info("the webhook accepts messages again", zap.String("url", e.show))
		return
	}
	e.log.Error("the webhook refuses messages", zap.String("url", e.show), zap.String("answer", text))
}

// idOf is the message's id as a header has it. Standard Webhooks signs it with a dot after
// it, so it has none itself.
func idOf(m *relay.Message) string {
	return strings.ReplaceAll(headerSafe(m.ID), ".", "%2E")
}

// eventPrefix begins the headers that hold an event's attributes in binary mode.
const eventPrefix = "ce-"

// eventSafe makes an attribute of an event fit for a header (CloudEvents HTTP protocol
// binding 1.0.2, 3.1.3.2).
func eventSafe(value string) string {
	return strings.ReplaceAll(headerSafe(value), `"`, "%22")
}

// headerSafe makes a text fit for a header, so that the same text always gives the
// same value and different texts different ones: bytes that are not visible ASCII,
// and %, become %XX.
func headerSafe(s string) string {
	const hex = "0123456789ABCDEF"
	safe := func(c byte) bool { return c > ' ' && c < 0x7f && c != '%' }
	first := 0
	for first < len(s) && safe(s[first]) {
		first++
	}
	if first == len(s) {
		return s
	}
	var b strings.Builder
	b.WriteString(s[:first])
	for i := first; i < len(s); i++ {
		c := s[i]
		if safe(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}
