// Package webhook is the sink that posts messages to a URL, each in a request of its own or in
// a batch, whose id is made of its messages' and whose answer may tell of each.
//
// A request counts as taken when the complete answer, body included, came within the timeout
// and its status is 2xx. At most 64 KiB of an answer are read; one that is longer has not
// come completely. A message's id travels as webhook-id or, in a batch, in the body, the same
// on each redelivery, so that the endpoint can recognise a duplicate.
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
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
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
	pools       *pools
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
	e.pools = newPools(func() *http.Transport { return e.newPool(c) })
	return e, nil
}

// Run ends the requests under way and closes the connections when ctx ends.
// Connections are made as requests need them.
func (e *Endpoint) Run(ctx context.Context) error {
	<-ctx.Done()
	close(e.stopped)
	e.breaker.Close("closed")
	e.limit.close()
	e.pools.close()
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
	formatter, err := settings.Formatter()
	if err != nil {
		return nil, err
	}
	p := &poster{endpoint: e, request: request, format: formatter, timeout: settings.Timeout, gzip: settings.Compression == compressionGzip}
	for name, value := range settings.Headers {
		if !value.Written() {
			p.secret = append(p.secret, http.CanonicalHeaderKey(name))
		}
		event := settings.Format == format.CloudEventsBinary && strings.HasPrefix(strings.ToLower(name), eventPrefix)
		template, err := expr.CompileSetting("headers."+name, value.Reveal())
		if err != nil {
			return nil, err
		}
		if template.Literal() {
			request.Header.Set(name, headerValue(template.Sample(""), event))
		} else {
			p.headers = append(p.headers, header{name: name, event: event, value: template})
		}
	}
	p.room = p.usualHeaders()
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

// Deliver posts each message, in a request of its own or in a batch, as many requests at a time
// as the endpoint's concurrency allows. A request is sent again where its connection had
// been closed before, and what a batch is refused with in smaller ones.
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
			done(i, s.endpoint.failed(err))
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
		return unsent(err)
	}
	// In this order: a rate that is waited for first would be spent by those that wait for a
	// slot, and they would begin all at once.
	if err := e.rate.Wait(ctx); err != nil {
		e.limit.release(time.Now(), loadSame)
		<-ctx.Done() // as in pace
		return unsent(context.Cause(ctx))
	}
	return nil
}

// pace waits until another request of those that have a slot may begin.
func (e *Endpoint) pace(ctx context.Context) error {
	if err := e.rate.Wait(ctx); err != nil {
		// It fails at once where ctx would end before. Who asked would ask again.
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return nil
}

// unsent is why a message is tried again that was not sent, which is no failed try of it.
func unsent(cause error) error {
	return relay.Fail(reasonStopped, fmt.Errorf("%w: not sent: %w", relay.ErrSinkDown, cause))
}

// Resume asks an endpoint again that said that it is gone, or to be left alone.
func (e *Endpoint) Resume() { e.breaker.Resume() }

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
