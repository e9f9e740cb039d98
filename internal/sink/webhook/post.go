package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"mnsrelay/internal/format"
	"mnsrelay/internal/relay"
)

// maxAnswer is how much of an answer's body is read, in bytes, and how long its headers may be.
const maxAnswer = 64 << 10

// poster makes requests of messages and sends them.
type poster struct {
	endpoint *Endpoint
	request  *http.Request // what all requests have in common
	headers  []header
	// secret are the headers whose value does not stand in the configuration.
	secret  []string
	format  *format.Formatter
	timeout time.Duration
	gzip    bool
	room    int // how many headers a request usually has
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
	return p.send(request, &seen, nil)
}

// rejected is the result of a message of which no request can be made.
func (p *poster) rejected(err error) relay.Result {
	r := p.endpoint.failed(err)
	r.Outcome = relay.Rejected
	return r
}

// answer is what came of an answer beside its status.
type answer struct {
	encoding string
	body     *bytes.Buffer
}

// send sends a request that seen watches and judges its answer, which it keeps where keep is
// not nil.
func (p *poster) send(request *http.Request, seen *attempt, keep *answer) relay.Result {
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
	body := io.Discard
	if keep != nil {
		keep.encoding, body = strings.Join(resp.Header.Values("Content-Encoding"), ", "), keep.body
	}
	_, err = io.CopyN(body, resp.Body, maxAnswer)
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

// busyError is an answer that says that there were too many requests.
type busyError struct{ error }

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
