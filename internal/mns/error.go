package mns

import (
	"errors"
	"net/http"
	"strconv"
	"strings"

	"mnsrelay/internal/relay"
)

// Operations, as they are named in errors and to Observe.
const (
	OpReceive    = "receive"
	OpDelete     = "delete"
	OpVisibility = "visibility"
	OpAttributes = "attributes"
	OpSend       = "send"
	OpPeek       = "peek"
)

// Error is a call that failed: an answer of the server that says so, or no answer.
type Error struct {
	// Op is one of the operations.
	Op string
	// Status is the HTTP status; 0 where there was no answer, and for one message of a
	// batch that was sent.
	Status int
	// Code, Message and RequestID are what MNS said; empty where the answer did not
	// come from MNS, a gateway's error page for one.
	Code, Message, RequestID string
	// Err is the cause, if there is one beside the answer.
	Err   error
	class relay.Class
}

func (e *Error) Error() string {
	parts := []string{e.Op + ":"}
	if e.Status != 0 {
		parts = append(parts, strconv.Itoa(e.Status))
	}
	said := e.Code
	if said == "" && e.Status != 0 && e.Err == nil {
		said = http.StatusText(e.Status) + ", not an answer of MNS"
	}
	if e.Message != "" {
		said += ": " + e.Message
	}
	if e.Err != nil {
		if said != "" {
			said += ": "
		}
		said += e.Err.Error()
	}
	parts = append(parts, said)
	if e.RequestID != "" {
		parts = append(parts, "(request "+e.RequestID+")")
	}
	return strings.Join(parts, " ")
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Class tells the kind of trouble.
func (e *Error) Class() relay.Class { return e.class }

// ErrorCode is the code that MNS gave; empty where it gave none.
func (e *Error) ErrorCode() string { return e.Code }

var _ interface{ Class() relay.Class } = (*Error)(nil)

var (
	errClosed    = errors.New("the source is closed")
	errMalformed = errors.New("the answer is no whole, well-formed document of MNS")
)

// Codes that the code acts on (MNS: error codes).
const (
	codeMessageNotExist    = "MessageNotExist"
	codeQueueNotExist      = "QueueNotExist"
	codeReceiptHandleError = "ReceiptHandleError"
	codeInvalidArgument    = "InvalidArgument"
	codeAccessDenied       = "AccessDenied"
	codeInvalidKey         = "InvalidAccessKeyId"
	codeSignature          = "SignatureDoesNotMatch"
	codeInternal           = "InternalError"
	codeMalformed          = "MalformedXML"
	codeQPS                = "QpsLimitExceeded"
	codeTimeExpired        = "TimeExpired"
)

// NotAllowed tells that the keys are good and may not do what was asked.
func NotAllowed(err error) bool {
	e, is := errors.AsType[*Error](err)
	return is && (e.Code == codeAccessDenied || errors.Is(err, relay.ErrNotPermitted))
}

// RefusesBody tells an error of a send that speaks of what was sent, so that no later try
// does better (MNS: SendMessage; InvalidArgument for a body above the queue's
// MaximumMessageSize, MalformedXML). MNS may refuse a whole request for one body.
func RefusesBody(err error) bool {
	e, is := errors.AsType[*Error](err)
	return is && e.Op == OpSend && (e.Code == codeInvalidArgument || e.Code == codeMalformed)
}

// classify tells the kind of trouble from the status and the code of an answer.
func classify(status int, code string) relay.Class {
	switch code {
	case codeQPS:
		return relay.ClassThrottled
	case codeAccessDenied, codeInvalidKey, codeSignature:
		return relay.ClassAuth
	case codeQueueNotExist:
		return relay.ClassNotFound
	case codeInternal:
		return relay.ClassServer
	}
	switch {
	case status == http.StatusTooManyRequests:
		return relay.ClassThrottled
	case status == http.StatusForbidden, status == http.StatusUnauthorized:
		return relay.ClassAuth
	case status >= http.StatusInternalServerError, code == "":
		return relay.ClassServer
	}
	return relay.ClassUnknown
}

// codeLabel is what Observe is told of an answer. Only codes that MNS documents are
// passed on, so that no server can make up labels.
func codeLabel(status int, code string) string {
	switch code {
	case codeMessageNotExist, codeQueueNotExist, codeReceiptHandleError, codeInvalidArgument,
		codeAccessDenied, codeInvalidKey, codeSignature, codeInternal, codeQPS,
		codeTimeExpired, codeMalformed, "InvalidDateHeader", "InvalidAuthorizationHeader",
		"InvalidDegist", "InvalidRequestURL", "InvalidQueryString", "MissingAuthorizationHeader",
		"MissingDateHeader", "MissingVersionHeader", "MissingReceiptHandle",
		"MissingVisibilityTimeout", "InvalidQueueName", "QueueNameLengthError":
		return code
	}
	return "status_" + strconv.Itoa(status)
}

// clean makes a server's text fit for a line of a log.
func clean(text string) string {
	const most = 300
	text = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\ufffd' {
			return ' '
		}
		return r
	}, text)), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}
