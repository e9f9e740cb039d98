package emulator

import (
	"fmt"
	"net/http"
)

// wireError is an answer that is not a success: an Error document of MNS or an
// error of the RPC services.
type wireError struct {
	status  int
	code    string
	message string
}

func (e *wireError) Error() string { return fmt.Sprintf("%d %s: %s", e.status, e.code, e.message) }

func wireErrorf(status int, code, format string, args ...any) *wireError {
	return &wireError{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

// invalidArgument is 400 InvalidArgument (MNS: error codes).
func invalidArgument(format string, args ...any) *wireError {
	return wireErrorf(http.StatusBadRequest, "InvalidArgument", format, args...)
}

func outOfRange(name string, low, high int64, unit string) *wireError {
	return invalidArgument("The value of %s should between %d and %d %s.", name, low, high, unit)
}

func malformedXML(format string, args ...any) *wireError {
	return wireErrorf(http.StatusBadRequest, "MalformedXML", "The XML you provided was not well-formed: "+format, args...)
}

func queueNotExist() *wireError {
	return &wireError{http.StatusNotFound, "QueueNotExist", "The queue name you provided is not exist."}
}

// messageNotExist is the answer of an empty queue, and of a receipt handle whose
// lease has ended.
func messageNotExist() *wireError {
	return &wireError{http.StatusNotFound, "MessageNotExist", "Message not exist."}
}

// receiptHandleError is the answer to what never was a handle of the queue.
func receiptHandleError() *wireError {
	return &wireError{http.StatusBadRequest, "ReceiptHandleError", "The receipt handle you provide is not valid."}
}

func accessDenied() *wireError {
	return &wireError{http.StatusForbidden, "AccessDenied", "The OwnerId that your Access Key Id associated to is forbidden for this operation."}
}
