package mns

import (
	"bytes"
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"mnsrelay/internal/relay"
)

// received is one Message of an answer to receive and peek. The fields point into the
// answer.
type received struct {
	id, receipt, body   field
	system, user        field // properties
	enqueued, next      int64 // milliseconds since 1970, the server's time
	attempt, dequeuedAt int64
}

// messageFields are the children of Message that are read (MNS: BatchReceiveMessage,
// BatchPeekMessage).
func messageFields() []string {
	return []string{
		"MessageBody", "MessageId", "ReceiptHandle", "NextVisibleTime", "EnqueueTime", "DequeueCount", "FirstDequeueTime",
		"SystemProperties", "UserProperties",
	}
}

// readMessages calls each for every message of an answer, which is a list of messages
// or a single one. It reads the answer to its end first of all that matters: an answer
// that is cut gives an error even where its first messages are whole, and then none of
// them counts.
func readMessages(s *scanner, data []byte, each func(received) error) error {
	s.reset(data)
	root, err := s.root()
	if err != nil {
		return err
	}
	var fields [9]field
	names := messageFields()
	one := func() error {
		if err := s.record(names, fields[:]); err != nil {
			return err
		}
		m := received{body: fields[0], id: fields[1], receipt: fields[2], system: fields[7], user: fields[8]}
		for i, n := range []*int64{&m.next, &m.enqueued, &m.attempt, &m.dequeuedAt} {
			if *n, err = fields[3+i].number(); err != nil {
				return err
			}
		}
		if len(m.id.value) == 0 {
			return errMalformed
		}
		return each(m)
	}
	switch string(root) {
	case "Message":
		err = one()
	case "Messages":
		err = s.children("Message", one)
	default:
		err = errMalformed
	}
	if err != nil {
		return err
	}
	return s.finish()
}

// children calls each for every child of that name, which must read it to its end, of
// the element that has begun.
func (s *scanner) children(name string, each func() error) error {
	for {
		t, err := s.next()
		if err != nil {
			return err
		}
		switch t {
		case tokenStart:
			if string(s.name) == name {
				err = each()
			} else {
				err = s.pass()
			}
			if err != nil {
				return err
			}
		case tokenEnd:
			return nil
		case tokenText:
		case tokenEOF:
			return errMalformed
		}
	}
}

// one reads a document that is a single record.
func (s *scanner) one(data []byte, root string, names []string, fields []field) error {
	s.reset(data)
	name, err := s.root()
	if err != nil {
		return err
	}
	if string(name) != root {
		return errMalformed
	}
	if err := s.record(names, fields); err != nil {
		return err
	}
	return s.finish()
}

// readError reads an Error document (MNS: error response).
func readError(s *scanner, data []byte) (code, message, requestID string, err error) {
	var fields [3]field
	if err := s.one(data, "Error", []string{"Code", "Message", "RequestId"}, fields[:]); err != nil {
		return "", "", "", err
	}
	if len(fields[0].value) == 0 {
		return "", "", "", errMalformed
	}
	return clean(string(fields[0].value)), clean(string(fields[1].value)), clean(string(fields[2].value)), nil
}

// refusal is what MNS said of one of several handles or messages.
type refusal struct {
	receipt       []byte
	code, message string
}

// readRefusals reads the Errors document that names the handles that were not deleted
// (MNS: BatchDeleteMessage).
func readRefusals(s *scanner, data []byte, each func(refusal)) error {
	s.reset(data)
	root, err := s.root()
	if err != nil {
		return err
	}
	if string(root) != "Errors" {
		return errMalformed
	}
	var fields [3]field
	names := []string{"ErrorCode", "ErrorMessage", "ReceiptHandle"}
	err = s.children("Error", func() error {
		if err := s.record(names, fields[:]); err != nil {
			return err
		}
		each(refusal{
			receipt: bytes.TrimSpace(fields[2].value),
			code:    clean(string(fields[0].value)),
			message: clean(string(fields[1].value)),
		})
		return nil
	})
	if err != nil {
		return err
	}
	return s.finish()
}

// isRefusals tells an Errors document from an Error document.
func isRefusals(s *scanner, data []byte) bool {
	s.reset(data)
	root, err := s.root()
	return err == nil && string(root) == "Errors"
}

// readLease reads the answer to a change of visibility (MNS:
// ChangeMessageVisibility): the new handle and when the message is visible again.
func readLease(s *scanner, data []byte) (receipt string, next int64, err error) {
	var fields [2]field
	if err := s.one(data, "ChangeVisibility", []string{"ReceiptHandle", "NextVisibleTime"}, fields[:]); err != nil {
		return "", 0, err
	}
	next, err = fields[1].number()
	if err != nil {
		return "", 0, err
	}
	receipt = string(bytes.TrimSpace(fields[0].value))
	if receipt == "" || next <= 0 {
		return "", 0, errMalformed
	}
	return receipt, next, nil
}

// readAttributes reads the answer to a query of a queue (MNS: GetQueueAttributes).
func readAttributes(s *scanner, data []byte) (Attributes, error) {
	names := []string{
		"ActiveMessages", "InactiveMessages", "DelayMessages", "VisibilityTimeout", "PollingWaitSeconds",
		"MessageRetentionPeriod", "DelaySeconds", "MaximumMessageSize",
	}
	var fields [8]field
	if err := s.one(data, "Queue", names, fields[:]); err != nil {
		return Attributes{}, err
	}
	var values [8]int64
	for i := range fields {
		var err error
		if values[i], err = fields[i].number(); err != nil {
			return Attributes{}, err
		}
	}
	policy, err := readPolicy(s, data)
	if err != nil {
		return Attributes{}, err
	}
	return Attributes{
		DeadLetterPolicy: policy,
		Active:           values[0], Inactive: values[1], Delayed: values[2],
		Counted:           fields[0].value != nil && fields[1].value != nil,
		VisibilityTimeout: time.Duration(values[3]) * time.Second,
		PollingWait:       time.Duration(values[4]) * time.Second,
		Retention:         time.Duration(values[5]) * time.Second,
		Delay:             time.Duration(values[6]) * time.Second,
		MaxMessageSize:    values[7],
	}, nil
}

// readPolicy reads the dead-letter policy out of a queue's attributes; the zero value: there
// is none, it is switched off, or the endpoint does not tell.
func readPolicy(s *scanner, data []byte) (policy DeadLetterPolicy, err error) {
	s.reset(data)
	if _, err := s.root(); err != nil {
		return policy, err
	}
	names := []string{"Enabled", "MaxReceiveCount", "DeadLetterTargetQueue"}
	err = s.children("DlqPolicy", func() error {
		var fields [3]field
		if err := s.record(names, fields[:]); err != nil {
			return err
		}
		n, err := fields[1].number()
		if err == nil && strings.EqualFold(strings.TrimSpace(string(fields[0].value)), "true") {
			policy = DeadLetterPolicy{MaxReceives: int(n), Queue: clean(string(fields[2].value))}
		}
		return err
	})
	return policy, err
}

// readSent reads the answer to a send (MNS: BatchSendMessage).
func readSent(s *scanner, data []byte) ([]Sent, error) {
	s.reset(data)
	root, err := s.root()
	switch {
	case err != nil:
		return nil, err
	case string(root) != "Messages":
		return nil, errMalformed
	}
	var (
		sent   []Sent
		fields [3]field
	)
	err = s.children("Message", func() error {
		if err := s.record([]string{"MessageId", "ErrorCode", "ErrorMessage"}, fields[:]); err != nil {
			return err
		}
		entry := Sent{ID: string(bytes.TrimSpace(fields[0].value))}
		if entry.ID == "" {
			code := clean(string(fields[1].value))
			if code == "" {
				return errMalformed
			}
			entry.Err = &Error{Op: OpSend, Code: code, Message: clean(string(fields[2].value)), class: classify(0, code)}
		}
		sent = append(sent, entry)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sent, s.finish()
}

const (
	xmlHead   = `<?xml version="1.0" encoding="UTF-8"?>`
	namespace = ` xmlns="http://mns.aliyuncs.com/doc/v1/"`
)

// appendHandles writes the body of a batch delete (MNS: BatchDeleteMessage).
func appendHandles(dst []byte, receipts []string) []byte {
	dst = append(dst, xmlHead+"<ReceiptHandles"+namespace+">"...)
	for _, r := range receipts {
		dst = append(dst, "<ReceiptHandle>"...)
		dst = appendEscaped(dst, r)
		dst = append(dst, "</ReceiptHandle>"...)
	}
	return append(dst, "</ReceiptHandles>"...)
}

var errNotText = errors.New("the body has bytes that no XML document can carry: encode it as base64")

// appendMessage writes one of the messages to send (MNS: BatchSendMessage).
func appendMessage(dst []byte, m Outgoing) ([]byte, error) {
	if !isText(m.Body) {
		return nil, errNotText
	}
	dst = append(dst, "<Message><MessageBody>"...)
	dst = appendEscaped(dst, m.Body)
	dst = append(dst, "</MessageBody>"...)
	if m.Delay > 0 {
		dst = append(dst, "<DelaySeconds>"...)
		dst = strconv.AppendInt(dst, seconds(m.Delay), 10)
		dst = append(dst, "</DelaySeconds>"...)
	}
	return append(dst, "</Message>"...), nil
}

// isText tells whether every character of b may stand in an XML document.
func isText(b []byte) bool {
	for i := 0; i < len(b); {
		c := b[i]
		if c < utf8.RuneSelf {
			if c < ' ' && c != '\t' && c != '\n' && c != '\r' {
				return false
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(b[i:])
		if (r == utf8.RuneError && n == 1) || r == 0xfffe || r == 0xffff {
			return false
		}
		i += n
	}
	return true
}

// appendEscaped writes character data. The carriage return is written as a reference:
// a parser would read it as a line feed otherwise.
func appendEscaped[T string | []byte](dst []byte, text T) []byte {
	from := 0
	for i := range len(text) {
		var with string
		switch text[i] {
		case '&':
			with = "&amp;"
		case '<':
			with = "&lt;"
		case '>':
			with = "&gt;"
		case '\r':
			with = "&#xD;"
		default:
			continue
		}
		dst = append(dst, text[from:i]...)
		dst = append(dst, with...)
		from = i + 1
	}
	return append(dst, text[from:]...)
}

// seconds rounds up to whole seconds.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// millis is the time of a number of milliseconds since 1970; none for 0.
func millis(ms int64) time.Time {
	if ms <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// message copies what is kept of m: the body into memory of its own, id and handle
// into one string.
func (m *received) message(of *Config) (message relay.Message, receipt string) {
	var both strings.Builder
	both.Grow(len(m.id.value) + len(m.receipt.value))
	both.Write(m.id.value)
	both.Write(m.receipt.value)
	keep := both.String()
	body := m.body.value
	if !m.body.owned {
		body = bytes.Clone(body)
	}
	return relay.Message{
		ID:         keep[:len(m.id.value)],
		Source:     of.Name,
		Queue:      of.Queue,
		Body:       body,
		EnqueuedAt: millis(m.enqueued),
		Attempt:    int(m.attempt),
		Trace:      m.trace(),
	}, keep[len(m.id.value):]
}
