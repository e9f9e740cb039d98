package emulator

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// queueOf gives the queue of the request.
func (s *Server) queueOf(c *call) (*queue, *wireError) {
	if err := validQueueName(c.queue); err != nil {
		return nil, err
	}
	if q := s.queue(c.queue); q != nil {
		return q, nil
	}
	return nil, queueNotExist()
}

// number reads a parameter of the query that has to be a whole number.
func (c *call) number(name string, low, high, otherwise int) (n int, found bool, _ *wireError) {
	value, found := c.param(name)
	if !found {
		return otherwise, false, nil
	}
	n, err := strconv.Atoi(value)
	if err != nil {
		return 0, true, wireErrorf(http.StatusBadRequest, "InvalidQueryString", "Http request URL contains invalid querystring item %q.", name)
	}
	if n < low || n > high {
		return 0, true, outOfRange(name, int64(low), int64(high), "")
	}
	return n, true, nil
}

// receiveMessages is MNS: ReceiveMessage and BatchReceiveMessage.
func (s *Server) receiveMessages(c *call) answer {
	q, err := s.queueOf(c)
	if err != nil {
		return failed(err)
	}
	maximum, batch, err := c.number("numOfMessages", 1, maxBatch, 1)
	if err != nil {
		return failed(err)
	}
	seconds, waits, err := c.number("waitseconds", 0, int(maxWait/time.Second), 0)
	if err != nil {
		return failed(err)
	}
	wait := func(config QueueConfig) time.Duration {
		if waits {
			return time.Duration(seconds) * time.Second
		}
		return config.PollingWait
	}
	leases, err := q.receive(c.Context(), maximum, wait, s.config.MaxLongPolls, s.closing)
	if err != nil {
		return failed(err)
	}
	return s.messagesAnswer(q, leases, batch, true)
}

// peekMessages is MNS: PeekMessage and BatchPeekMessage.
func (s *Server) peekMessages(c *call) answer {
	q, err := s.queueOf(c)
	if err != nil {
		return failed(err)
	}
	maximum, batch, err := c.number("numOfMessages", 1, maxBatch, 1)
	if err != nil {
		return failed(err)
	}
	seen, err := q.peek(maximum)
	if err != nil {
		return failed(err)
	}
	return s.messagesAnswer(q, seen, batch, false)
}

// messagesAnswer writes what a receive or, without handles, a peek gives.
func (s *Server) messagesAnswer(q *queue, leases []lease, batch, handles bool) answer {
	if len(leases) == 0 {
		return failed(messageNotExist())
	}
	size := 256
	for i := range leases {
		size += len(leases[i].text) + 512
	}
	body := append(make([]byte, 0, size), xmlHeader...)
	if batch {
		body = append(body, "<Messages"+xmlNamespace+">"...)
		for i := range leases {
			body = append(body, "<Message>"...)
			body = s.appendMessage(body, q, &leases[i], handles)
		}
		body = append(body, "</Messages>"...)
	} else {
		body = append(body, "<Message"+xmlNamespace+">"...)
		body = s.appendMessage(body, q, &leases[0], handles)
	}
	return doneXML(http.StatusOK, body)
}

// appendMessage writes the content of a Message element and its end.
func (s *Server) appendMessage(b []byte, q *queue, l *lease, handle bool) []byte {
	b = appendSent(b, l)
	if handle {
		b = s.appendHandle(b, q, l)
	}
	b = append(b, "<MessageBody>"...)
	b = append(b, l.text...)
	b = append(b, "</MessageBody>"...)
	b = appendNumber(b, "EnqueueTime", s.wireMillis(l.enqueued))
	if handle {
		b = appendNumber(b, "NextVisibleTime", s.wireMillis(l.visibleAt))
	}
	first := l.firstDequeue
	if first != 0 {
		first = s.wireMillis(first)
	}
	b = appendNumber(b, "FirstDequeueTime", first)
	b = appendNumber(b, "DequeueCount", l.dequeues)
	b = appendNumber(b, "Priority", int64(l.priority))
	b = append(b, l.beside...)
	return append(b, "</Message>"...)
}

// appendSent writes what a send tells of a message.
func appendSent(b []byte, l *lease) []byte {
	b = append(b, "<MessageId>"...)
	b = append(b, l.id...)
	b = append(b, "</MessageId><MessageBodyMD5>"...)
	at := len(b)
	b = hex.AppendEncode(b, l.md5[:])
	copy(b[at:], bytes.ToUpper(b[at:]))
	return append(b, "</MessageBodyMD5>"...)
}

func (s *Server) appendHandle(b []byte, q *queue, l *lease) []byte {
	b = append(b, "<ReceiptHandle>"...)
	b = q.appendHandle(b, l.seq, l.generation)
	return append(b, "</ReceiptHandle>"...)
}

// sendMessages is MNS: SendMessage and BatchSendMessage.
func (s *Server) sendMessages(c *call) answer {
	q, err := s.queueOf(c)
	if err != nil {
		return failed(err)
	}
	out, batch, err := readMessages(c.body)
	if err != nil {
		return failed(err)
	}
	if len(out) == 0 || len(out) > maxBatch {
		return failed(outOfRange("the number of messages", 1, maxBatch, ""))
	}
	leases, err := q.send(out)
	if err != nil {
		return failed(err)
	}
	body := append(make([]byte, 0, 128+256*len(leases)), xmlHeader...)
	if batch {
		body = append(body, "<Messages"+xmlNamespace+">"...)
	}
	for i := range leases {
		if batch {
			body = append(body, "<Message>"...)
		} else {
			body = append(body, "<Message"+xmlNamespace+">"...)
		}
		body = appendSent(body, &leases[i])
		if leases[i].visibleAt != 0 { // with a delay: it can be deleted before it is visible
			body = s.appendHandle(body, q, &leases[i])
		}
		body = append(body, "</Message>"...)
	}
	if batch {
		body = append(body, "</Messages>"...)
	}
	return doneXML(http.StatusCreated, body)
}

func readMessages(body []byte) (out []outgoing, batch bool, _ *wireError) {
	x := &xmlReader{data: body}
	root, err := x.root()
	if err != nil {
		return nil, false, err
	}
	switch root {
	case "Message":
		one, err := readMessage(x)
		if err != nil {
			return nil, false, err
		}
		out = append(out, one)
	case "Messages":
		batch = true
		err := x.children(func(name string) *wireError {
			if name != "Message" {
				return x.skip()
			}
			one, err := readMessage(x)
			out = append(out, one)
			return err
		})
		if err != nil {
			return nil, false, err
		}
	default:
		return nil, false, schemaError(root)
	}
	return out, batch, x.end()
}

func schemaError(cause string) *wireError {
	return invalidArgument("The XML you provided did not validate against our published schema, cause by %s.", cause)
}

func readMessage(x *xmlReader) (outgoing, *wireError) {
	one := outgoing{delay: -1, priority: usualPriority}
	hasBody := false
	err := x.children(func(name string) *wireError {
		var err *wireError
		var n int
		switch name {
		case "MessageBody":
			hasBody = true
			one.body, err = x.content()
		case "DelaySeconds":
			n, err = x.number(name, 0, int(maxDelay/time.Second), "seconds")
			one.delay = time.Duration(n) * time.Second
		case "Priority":
			one.priority, err = x.number(name, 1, lowestPriority, "")
		case systemProperties:
			one.system, err = readProperties(x, systemProperty)
		case userProperties:
			one.user, err = readProperties(x, userProperty)
		default: // what this version of the protocol does not know
			err = x.skip()
		}
		return err
	})
	if err == nil && !hasBody {
		err = schemaError("a message without MessageBody")
	}
	return one, err
}

// number reads the element just started as a whole number in a range.
func (x *xmlReader) number(name string, low, high int, unit string) (int, *wireError) {
	text, err := x.content()
	if err != nil {
		return 0, err
	}
	n, notNumber := strconv.Atoi(string(bytes.TrimSpace(text)))
	if notNumber != nil {
		return 0, schemaError(name)
	}
	if n < low || n > high {
		return 0, outOfRange(name, int64(low), int64(high), unit)
	}
	return n, nil
}

// deleteMessages is MNS: DeleteMessage and BatchDeleteMessage.
func (s *Server) deleteMessages(c *call) answer {
	q, err := s.queueOf(c)
	if err != nil {
		return failed(err)
	}
	handle, single := c.param("ReceiptHandle")
	if single {
		failures, err := q.delete([]string{handle})
		if err != nil {
			return failed(err)
		}
		if len(failures) > 0 {
			return failed(failures[0].err)
		}
		return done(http.StatusNoContent)
	}
	if len(c.body) == 0 {
		return failed(badRequest("MissingReceiptHandle", "ReceiptHandle is required."))
	}
	handles, err := readHandles(c.body)
	if err != nil {
		return failed(err)
	}
	if len(handles) == 0 || len(handles) > maxBatch {
		return failed(outOfRange("the number of receipt handles", 1, maxBatch, ""))
	}
	failures, err := q.delete(handles)
	if err != nil {
		return failed(err)
	}
	if len(failures) == 0 {
		return done(http.StatusNoContent)
	}
	body := append([]byte(xmlHeader), "<Errors"+xmlNamespace+">"...)
	for _, f := range failures {
		body = append(body, "<Error>"...)
		body = appendElement(body, "ErrorCode", f.err.code)
		body = appendElement(body, "ErrorMessage", f.err.message)
		body = appendElement(body, "ReceiptHandle", f.handle)
		body = append(body, "</Error>"...)
	}
	body = append(body, "</Errors>"...)
	return answer{status: http.StatusNotFound, code: failures[0].err.code, contentType: typeXML, body: body}
}

func readHandles(body []byte) ([]string, *wireError) {
	x := &xmlReader{data: body}
	root, err := x.root()
	if err != nil {
		return nil, err
	}
	if root != "ReceiptHandles" {
		return nil, schemaError(root)
	}
	var handles []string
	err = x.children(func(name string) *wireError {
		if name != "ReceiptHandle" {
			return x.skip()
		}
		handle, err := x.content()
		handles = append(handles, string(bytes.TrimSpace(handle)))
		return err
	})
	if err != nil {
		return nil, err
	}
	return handles, x.end()
}

// changeVisibility is MNS: ChangeMessageVisibility.
func (s *Server) changeVisibility(c *call) answer {
	q, err := s.queueOf(c)
	if err != nil {
		return failed(err)
	}
	handle, found := c.param("receiptHandle")
	if !found {
		return failed(badRequest("MissingReceiptHandle", "ReceiptHandle is required."))
	}
	seconds, found, err := c.number("visibilityTimeout", 1, int(maxVisibility/time.Second), 0)
	if err != nil {
		return failed(err)
	}
	if !found {
		return failed(badRequest("MissingVisibilityTimeout", "VisibilityTimeout is required."))
	}
	l, err := q.changeVisibility(handle, time.Duration(seconds)*time.Second)
	if err != nil {
		return failed(err)
	}
	body := append([]byte(xmlHeader), "<ChangeVisibility"+xmlNamespace+">"...)
	body = s.appendHandle(body, q, &l)
	body = appendNumber(body, "NextVisibleTime", s.wireMillis(l.visibleAt))
	body = append(body, "</ChangeVisibility>"...)
	return doneXML(http.StatusOK, body)
}

// getQueueAttributes is MNS: GetQueueAttributes.
func (s *Server) getQueueAttributes(c *call) answer {
	q, err := s.queueOf(c)
	if err != nil {
		return failed(err)
	}
	body := append([]byte(xmlHeader), "<Queue"+xmlNamespace+">"...)
	body = s.appendAttributes(body, q.attributes())
	return doneXML(http.StatusOK, append(body, "</Queue>"...))
}

func (s *Server) appendAttributes(b []byte, a queueAttributes) []byte {
	if s.config.HideCounts {
		a.stats = QueueStats{}
	}
	b = appendElement(b, "QueueName", a.name)
	b = appendNumber(b, "CreateTime", s.wireMillis(a.created)/1000)
	b = appendNumber(b, "LastModifyTime", s.wireMillis(a.modified)/1000)
	b = appendNumber(b, "DelaySeconds", int64(a.config.Delay/time.Second))
	b = appendNumber(b, "MaximumMessageSize", int64(a.config.MaximumMessageSize))
	b = appendNumber(b, "MessageRetentionPeriod", int64(a.config.MessageRetentionPeriod/time.Second))
	b = appendNumber(b, "VisibilityTimeout", int64(a.config.VisibilityTimeout/time.Second))
	b = appendNumber(b, "PollingWaitSeconds", int64(a.config.PollingWait/time.Second))
	b = appendNumber(b, "ActiveMessages", int64(a.stats.Active))
	b = appendNumber(b, "InactiveMessages", int64(a.stats.Inactive))
	b = appendNumber(b, "DelayMessages", int64(a.stats.Delayed))
	if a.config.MaxReceives > 0 {
		b = append(b, "<DlqPolicy>"...)
		b = appendElement(b, "Enabled", "true")
		b = appendElement(b, "DeadLetterTargetQueue", a.config.DeadLetterQueue)
		b = appendNumber(b, "MaxReceiveCount", int64(a.config.MaxReceives))
		b = append(b, "</DlqPolicy>"...)
	}
	logging := "False"
	if a.config.LoggingEnabled {
		logging = "True"
	}
	return appendElement(b, "LoggingEnabled", logging)
}

// putQueue is MNS: CreateQueue and, with metaoverride, SetQueueAttributes.
func (s *Server) putQueue(c *call) answer {
	if err := validQueueName(c.queue); err != nil {
		return failed(err)
	}
	change, err := readAttributes(c.body)
	if err != nil {
		return failed(err)
	}
	if override, _ := c.param("metaoverride"); strings.EqualFold(override, "true") {
		q, err := s.queueOf(c)
		if err != nil {
			return failed(err)
		}
		if err := q.setAttributes(change); err != nil {
			return failed(err)
		}
		return done(http.StatusNoContent)
	}
	var config QueueConfig
	config.setDefaults()
	change(&config)
	created, err := s.createQueue(c.queue, config)
	if err != nil {
		return failed(err)
	}
	if !created {
		return done(http.StatusNoContent)
	}
	a := done(http.StatusCreated)
	a.location = queueURL(c.Request, c.queue)
	return a
}

func queueURL(r *http.Request, name string) string {
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	return scheme + r.Host + "/queues/" + name
}

// readAttributes gives the change that a Queue document asks for.
func readAttributes(body []byte) (func(*QueueConfig), *wireError) {
	var changes []func(*QueueConfig)
	change := func(c *QueueConfig) {
		for _, f := range changes {
			f(c)
		}
	}
	if len(bytes.TrimSpace(body)) == 0 {
		return change, nil
	}
	x := &xmlReader{data: body}
	root, err := x.root()
	if err != nil {
		return nil, err
	}
	if root != "Queue" {
		return nil, schemaError(root)
	}
	err = x.children(func(name string) *wireError {
		if name == "LoggingEnabled" {
			text, err := x.content()
			enabled := strings.EqualFold(string(bytes.TrimSpace(text)), "true")
			changes = append(changes, func(c *QueueConfig) { c.LoggingEnabled = enabled })
			return err
		}
		set := map[string]func(*QueueConfig, int){
			"DelaySeconds":           func(c *QueueConfig, n int) { c.Delay = time.Duration(n) * time.Second },
			"MaximumMessageSize":     func(c *QueueConfig, n int) { c.MaximumMessageSize = n },
			"MessageRetentionPeriod": func(c *QueueConfig, n int) { c.MessageRetentionPeriod = time.Duration(n) * time.Second },
			"VisibilityTimeout":      func(c *QueueConfig, n int) { c.VisibilityTimeout = time.Duration(n) * time.Second },
			"PollingWaitSeconds":     func(c *QueueConfig, n int) { c.PollingWait = time.Duration(n) * time.Second },
		}[name]
		if set == nil {
			return x.skip()
		}
		n, err := x.number(name, 0, int(maxRetention/time.Second), "")
		changes = append(changes, func(c *QueueConfig) { set(c, n) })
		return err
	})
	if err != nil {
		return nil, err
	}
	return change, x.end()
}

// deleteQueue is MNS: DeleteQueue.
func (s *Server) deleteQueue(c *call) answer {
	if _, err := s.queueOf(c); err != nil {
		return failed(err)
	}
	if !s.DeleteQueue(c.queue) {
		return failed(queueNotExist())
	}
	return done(http.StatusNoContent)
}

// maxListed is how many queues a list holds at most, and by default (MNS:
// ListQueue, x-mns-ret-number).
const maxListed = 1000

// listQueues is MNS: ListQueue.
func (s *Server) listQueues(c *call) answer {
	limit := maxListed
	if value := c.Header.Get("X-Mns-Ret-Number"); value != "" {
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > maxListed {
			return failed(outOfRange("x-mns-ret-number", 1, maxListed, ""))
		}
		limit = n
	}
	prefix, marker := c.Header.Get("X-Mns-Prefix"), c.Header.Get("X-Mns-Marker")
	names := slices.DeleteFunc(s.Queues(), func(name string) bool {
		return !strings.HasPrefix(name, prefix) || cmp.Less(name, marker)
	})
	next := ""
	if len(names) > limit { // the marker names the first queue of the next page
		next = names[limit]
		names = names[:limit]
	}
	body := append([]byte(xmlHeader), "<Queues"+xmlNamespace+">"...)
	for _, name := range names {
		body = append(body, "<Queue>"...)
		body = appendElement(body, "QueueURL", queueURL(c.Request, name))
		if q := s.queue(name); q != nil && strings.EqualFold(c.Header.Get("X-Mns-With-Meta"), "true") {
			body = s.appendAttributes(body, q.attributes())
		}
		body = append(body, "</Queue>"...)
	}
	if next != "" {
		body = appendElement(body, "NextMarker", next)
	}
	return doneXML(http.StatusOK, append(body, "</Queues>"...))
}
