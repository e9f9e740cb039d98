package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// The reasons under which failures are counted.
const (
	reasonStopped       = "stopped"          // the caller gave up or the endpoint was closed
	reasonTimeout       = "timeout"          // no connection or no complete answer in time
	reasonAddress       = "address_refused"  // see guard
	reasonDNS           = "dns"              // no address for the host
	reasonConnect       = "connect"          // no TCP connection
	reasonProxy         = "proxy"            // the environment's proxy gives no way
	reasonTLS           = "tls"              // no trust, or no TLS at all
	reasonNetwork       = "network"          // the connection broke, or what came is not HTTP
	reasonAnswerTooLong = "answer_too_long"  // a 2xx whose body does not end
	reasonStatusUnknown = "status_unknown"   // below 200 or above 599
	reasonInvalid       = "invalid_property" // a template gave what HTTP has no place for
	reasonRefused       = "status_4xx"       // a status that no other message need get
	// The following are those of a message in a batch.
	reasonAnswerInvalid    = "answer_invalid"    // what begins as results is none
	reasonUnanswered       = "unanswered"        // there are results, and none for it
	reasonReceiverFailed   = "receiver_failed"   // its result is to try again
	reasonReceiverRejected = "receiver_rejected" // its result is never to
)

// verdict is what a status means.
type verdict struct {
	outcome relay.Outcome
	reason  string
	// advice tells an operator what to do about a status that every message will
	// get; empty for those that pass or concern one message.
	advice string
	// busy says that the endpoint wants fewer requests.
	busy bool
}

// judge tells what an answer's status means. What may be an operator's mistake (401,
// 403, 404, 410) is a retry, so that it does not drain a queue. Redirects are not
// followed: a 301 or 302 would turn the POST into a GET without a body, whose 200
// says nothing, and any of them could lead inside the network.
func judge(status int) verdict {
	switch status {
	case http.StatusRequestTimeout:
		return verdict{reason: "status_408"}
	case http.StatusTooEarly:
		return verdict{reason: "status_425"}
	case http.StatusTooManyRequests:
		return verdict{reason: "status_429", busy: true}
	case http.StatusServiceUnavailable:
		return verdict{reason: "status_5xx", busy: true}
	case http.StatusUnauthorized:
		return verdict{reason: "status_401", advice: "check the authorization header or the URL's user info"}
	case http.StatusForbidden:
		return verdict{reason: "status_403", advice: "check the authorization header and what the endpoint lets this relay do"}
	case http.StatusNotFound:
		return verdict{reason: "status_404", advice: "check the URL's path"}
	case http.StatusGone:
		return verdict{reason: "status_410", advice: "the endpoint says that it is gone for good, and is not asked again before a reload: remove this sink or write its new URL"}
	}
	switch status / 100 {
	case 2:
		return verdict{outcome: relay.Delivered}
	case 3:
		return verdict{outcome: relay.Rejected, reason: "status_3xx", advice: "redirects are not followed: write the address that it redirects to as the URL"}
	case 4:
		return verdict{outcome: relay.Rejected, reason: reasonRefused}
	case 5:
		return verdict{reason: "status_5xx"}
	}
	return verdict{reason: reasonStatusUnknown}
}

// maxRetryAfter caps what an endpoint can ask for.
const maxRetryAfter = time.Hour

// retryAfter reads the Retry-After header, seconds or a date (RFC 9110, 10.2.3). A
// date is measured against the answer's own Date, so that a difference of clocks
// does not matter. Nothing, the past and nonsense are zero.
func retryAfter(h http.Header, now time.Time) time.Duration {
	value := h.Get("Retry-After")
	seconds, err := strconv.ParseInt(value, 10, 64)
	if err == nil || errors.Is(err, strconv.ErrRange) {
		// ParseInt gives the nearest number for one that is out of range.
		return time.Duration(min(max(seconds, 0), int64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// errTimeout is the cause of a request's context when its time is up.
var errTimeout = errors.New("no complete answer in time")

// classify names the reason of an exchange that ended without a complete answer. It
// goes by the context first: what net/http says after a cancellation varies.
func classify(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, errTimeout) {
			return relay.Fail(reasonTimeout, cause)
		}
		return relay.Fail(reasonStopped, cause)
	}
	var (
		refused   *refusedError
		proxy     *proxyError
		files     *filesError
		dns       *net.DNSError
		op        *net.OpError
		untrusted *tls.CertificateVerificationError
		notTLS    tls.RecordHeaderError
		timeout   net.Error
	)
	switch {
	case errors.As(err, &refused):
		return relay.Fail(reasonAddress, refused)
	case errors.As(err, &proxy):
		return relay.Fail(reasonProxy, err)
	case errors.As(err, &files):
		return relay.Fail(reasonTLS, err)
	case errors.As(err, &dns):
		return relay.Fail(reasonDNS, err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return relay.Fail(reasonTimeout, err)
	case errors.As(err, &untrusted), errors.As(err, &notTLS):
		return relay.Fail(reasonTLS, setting.AdviseTLS(err))
	case errors.As(err, &op):
		switch op.Op {
		case "dial":
			return relay.Fail(reasonConnect, err)
		case "remote error", "local error": // what crypto/tls calls an alert
			return relay.Fail(reasonTLS, setting.AdviseTLS(err))
		}
	}
	return relay.Fail(reasonNetwork, &shortError{err})
}

// shortError keeps an error from quoting at length what the far side sent, as
// net/http does with an answer that is not HTTP.
type shortError struct{ err error }

const maxErrorText = 256

func (e *shortError) Error() string {
	text := e.err.Error()
	if len(text) > maxErrorText {
		return fmt.Sprintf("%s... (%d bytes more)", text[:maxErrorText], len(text)-maxErrorText)
	}
	return text
}

func (e *shortError) Unwrap() error { return e.err }
