package credentials

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"mnsrelay/internal/relay"
)

// Error says why keys could not be fetched from a server. Its text holds no secret
// and says what to do.
type Error struct {
	// Op is the call, as the server's documentation names it.
	Op string
	// Code is the server's error code; empty where its answer had none.
	Code string
	// Status is the HTTP status; 0 where no answer came.
	Status int
	// RequestID is what the server's support asks for; may be empty.
	RequestID string
	// Message says what happened, in the server's words where it had any.
	Message string
	// Err is the cause where no answer came, without the request's URL.
	Err error
}

// Error gives the whole text. Of two attempts that failed alike only the request id
// differs.
func (e *Error) Error() string {
	text := e.summary()
	if e.RequestID != "" {
		text += " (request id " + e.RequestID + ")"
	}
	return text
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Class tells what kind of trouble it is.
func (e *Error) Class() relay.Class {
	switch {
	case strings.HasPrefix(e.Code, "Throttling"), e.Status == 429:
		return relay.ClassThrottled
	case e.Err != nil && e.Status == 0:
		return relay.ClassNetwork
	case e.Status >= 500, e.Code == "", e.Code == codeOK, e.Code == codeSuccess,
		e.Status == http.StatusOK && (e.Op == opMetadata || e.Op == opURI), // whose codes nobody lists
		strings.HasPrefix(e.Code, "isp.") && e.Code != codeRAMDenied:       // the provider's own trouble
		return relay.ClassServer
	}
	return relay.ClassAuth
}

// summary is the text without what changes from attempt to attempt.
func (e *Error) summary() string {
	text := "call " + e.Op + ": "
	switch {
	case e.Status == 0:
	case e.Code == "":
		text += fmt.Sprintf("HTTP %d: ", e.Status)
	default:
		text += fmt.Sprintf("%s (HTTP %d): ", e.Code, e.Status)
	}
	text += e.Message
	if mend := e.mend(); mend != "" {
		text += ": " + mend
	}
	return text
}

// mend says what to do about the codes that every API of Alibaba Cloud has in common
// (OpenAPI: common error codes) and the one with which those of Alicom say that RAM
// forbids the call.
func (e *Error) mend() string {
	switch code := e.Code; {
	case strings.HasPrefix(code, "InvalidAccessKeyId"):
		return "check that access_key_id is right and that the key is enabled"
	case code == "SignatureDoesNotMatch", code == "IncompleteSignature":
		return "check that access_key_secret belongs to access_key_id"
	case strings.HasPrefix(code, "InvalidSecurityToken"), code == "MissingSecurityToken":
		return "the security token has ended or belongs to other keys: give new ones"
	case strings.HasPrefix(code, "InvalidTimeStamp"), code == "IllegalTimestamp":
		return "the clock of this machine is wrong: set it"
	case strings.HasPrefix(code, "EntityNotExist.Role"):
		return "check role_arn: the account has no such role"
	case strings.HasPrefix(code, "AuthenticationFail.OIDCToken.Expired"):
		return "the projected token has ended: check that the kubelet replaces the file, and the clock of the node"
	case strings.HasPrefix(code, "AuthenticationFail.OIDCToken"):
		return "check the projected token: its audience has to be sts.aliyuncs.com, and its issuer that of oidc_provider_arn"
	case strings.HasPrefix(code, "AuthenticationFail"), strings.HasPrefix(code, "EntityNotExist.OIDCProvider"):
		return "check oidc_provider_arn, and that the role's trust policy names this provider and service account"
	case e.Op == opAssumeRole && (strings.HasPrefix(code, "Forbidden") || strings.HasPrefix(code, "NoPermission")):
		return "let the owner of the key call sts:AssumeRole, and check the role's trust policy and the external_id that it may ask for"
	case strings.HasPrefix(code, "Forbidden"), strings.HasPrefix(code, "NoPermission"), code == codeRAMDenied:
		return "grant the owner of the key the right to call " + e.Op + " for this queue"
	case strings.HasPrefix(code, "Throttling"):
		return "too many calls from this account; it is tried again"
	case e.Status == 0:
		return "check that the endpoint is right and can be reached from here"
	}
	return ""
}

// kindOf names what a failure is to whoever reads the log: of two of the same kind, one is
// told.
func kindOf(err error) string {
	e, is := errors.AsType[*Error](err)
	switch {
	case !is:
		return err.Error()
	case e.Code != "":
		return fmt.Sprintf("%s %s %d", e.Op, e.Code, e.Status)
	}
	return strings.ReplaceAll(err.Error(), e.Error(), e.summary())
}

// networkError makes an Error of a call that got no answer. It does not keep err
// itself: its text may hold the URL with its signature, and local ports, which
// change with every attempt.
func networkError(op string, err error) *Error {
	cause, message := err, ""
	var dns *net.DNSError
	var operation *net.OpError
	var address *url.Error
	switch {
	case errors.Is(err, context.Canceled):
		cause, message = context.Canceled, "cancelled"
	case isTimeout(err):
		cause, message = os.ErrDeadlineExceeded, "no answer in time"
	case errors.As(err, &dns):
		what := "the name server does not answer"
		if dns.IsNotFound {
			what = "no such host"
		}
		cause = errors.New("look up " + dns.Name + ": " + what)
	case errors.As(err, &operation):
		cause = &net.OpError{Op: operation.Op, Net: operation.Net, Addr: operation.Addr, Err: operation.Err}
	default:
		for errors.As(cause, &address) {
			cause = address.Err
		}
	}
	if message == "" {
		message = oneLine(cause.Error())
	}
	return &Error{Op: op, Message: message, Err: cause}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// identifier gives s if it looks like an error code or a request id: what a server
// sends in their place may be anything.
func identifier(s string) string {
	if regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$`).MatchString(s) {
		return s
	}
	return ""
}

// clean makes a message of the server's fit for a log: one line, not long, without
// what was signed (an answer to a wrong signature quotes it, tokens included) and
// without the secrets of keys.
func clean(message string, keys Keys) string {
	for _, quoted := range []string{"server string to sign", "string to sign is", "StringToSign"} {
		if i := strings.Index(strings.ToLower(message), strings.ToLower(quoted)); i >= 0 {
			message = message[:i]
		}
	}
	for _, secret := range []string{keys.AccessKeyID, keys.AccessKeySecret.Reveal(), keys.SecurityToken.Reveal()} {
		if secret == "" {
			continue
		}
		for _, form := range []string{secret, url.QueryEscape(secret), url.QueryEscape(url.QueryEscape(secret))} {
			message = strings.ReplaceAll(message, form, "***")
		}
	}
	return oneLine(message)
}

func oneLine(s string) string {
	const most = 300
	s = strings.Trim(strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " "), " .,;:")
	if len(s) <= most {
		return s
	}
	cut := most
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}
