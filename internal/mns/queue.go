package mns

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	ali_mns "github.com/aliyun/aliyun-mns-go-sdk"
	"go.uber.org/zap"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// MaxBatch is how many messages one request carries at most (MNS:
// BatchReceiveMessage, BatchDeleteMessage, BatchSendMessage).
const MaxBatch = 16

// Bounds of waits and visibility timeouts (MNS: BatchReceiveMessage,
// ChangeMessageVisibility).
const (
	MaxWait       = 30 * time.Second
	MinVisibility = time.Second
	MaxVisibility = 12 * time.Hour
)

// Config names a queue and how it is talked to. What is zero has the default that is
// named, but for Wait.
type Config struct {
	// Name is the source's name in the configuration: Message.Source.
	Name string
	// Endpoint is the server's URL, see ParseEndpoint.
	Endpoint string
	Queue    string
	// Wait is how long a receive that waits does so, 0 to 30 s, in whole seconds.
	Wait time.Duration
	// RequestTimeout bounds every request, for a receive on top of its wait: 10 s.
	RequestTimeout time.Duration
	// DialTimeout bounds the way to a connection, TLS included: 10 s.
	DialTimeout time.Duration
	// Linger is how long a batch of deletes that is not full waits for more: 20 ms.
	// Negative: not at all.
	Linger time.Duration
	// TLS is what https is spoken with, nil for the system's authorities. TLS 1.2 is
	// the least in any case.
	TLS *tls.Config
}

// The defaults of Config.
const (
	DefaultRequestTimeout = 10 * time.Second
	DefaultDialTimeout    = 10 * time.Second
	DefaultLinger         = 20 * time.Millisecond
)

// Validate reports every problem at once, joined, each a *setting.Problem.
func (c *Config) Validate() error {
	var problems []error
	if _, err := ParseEndpoint(c.Endpoint); err != nil {
		problems = append(problems, setting.Problemf("endpoint", "%v", err))
	}
	if err := checkQueue(c.Queue); err != nil {
		problems = append(problems, setting.Problemf("queue", "%v", err))
	}
	if c.Wait < 0 || c.Wait > MaxWait || c.Wait%time.Second != 0 {
		problems = append(problems, setting.Problemf("wait", "write whole seconds from 0s to 30s"))
	}
	if c.RequestTimeout < 0 {
		problems = append(problems, setting.Problemf("request_timeout", "must not be negative"))
	}
	if c.DialTimeout < 0 {
		problems = append(problems, setting.Problemf("dial_timeout", "must not be negative"))
	}
	return errors.Join(problems...)
}

// Credentials gives the keys that requests are signed with. It is safe for concurrent
// use.
type Credentials interface {
	// Current gives the present keys at once. It is asked before every request.
	Current() (credentials.Keys, error)
	// Refused says that MNS refused a receive or a delete that was signed with these
	// keys. It does not wait for new ones.
	Refused(credentials.Keys)
}

// Deps are what a Queue and a Source need of others.
type Deps struct {
	Credentials Credentials
	// Log is told once for each operation that the credential may not do it. Nil:
	// nowhere.
	Log *zap.Logger
	// Observe, if not nil, is told of every request that was tried: the operation and
	// OK, a code that MNS documents, status_502 and the like, malformed, network or
	// canceled. No other values come, whatever a server answers.
	Observe func(op, code string)
	// Dial, if not nil, replaces net.Dialer.DialContext.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Queue makes the requests of one queue. It is safe for concurrent use. Its errors are
// an *Error, but for the end of a context, which they wrap.
type Queue struct {
	cfg         Config
	endpoint    Endpoint
	credentials Credentials
	log         *zap.Logger
	observe     func(op, code string)
	dial        func(ctx context.Context, network, addr string) (net.Conn, error)
	tls         *tls.Config // nil: plain
	clock       clock
	lanes       lanes

	mu sync.Mutex
	// works are the keys that last received or deleted.
	works credentials.Keys
	// denied are the operations that were refused.
	denied map[string]denial
	// deniedFor is how long such an operation is not asked for again with the same keys.
	deniedFor time.Duration
}

// denial is an operation that was refused to keys that receive.
type denial struct {
	keys credentials.Keys
	at   time.Time
}

// deniedFor: keys that may not renew cost no request for each message; and where somebody
// grants what the log says is missing, it is found out without a restart. A little less than the
// five minutes from one look at the attributes of an idle queue to the next.
const deniedFor = 5*time.Minute - 20*time.Second

// NewQueue makes a Queue. It opens no connection.
func NewQueue(cfg Config, deps Deps) (*Queue, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("queue %q: %w", cfg.Queue, err)
	}
	if deps.Credentials == nil {
		return nil, fmt.Errorf("queue %q: no credentials", cfg.Queue)
	}
	endpoint, err := ParseEndpoint(cfg.Endpoint)
	if err != nil {
		return nil, fmt.Errorf("queue %q: %w", cfg.Queue, err)
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = DefaultRequestTimeout
	}
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = DefaultDialTimeout
	}
	if cfg.Linger == 0 {
		cfg.Linger = DefaultLinger
	}
	q := &Queue{
		cfg: cfg, endpoint: endpoint, credentials: deps.Credentials, log: deps.Log,
		observe: deps.Observe, dial: deps.Dial,
		clock:  clock{start: time.Now()},
		denied: make(map[string]denial), deniedFor: deniedFor,
	}
	q.lanes = lanes{queue: q, busy: make(map[*lane]struct{})}
	if q.log == nil {
		q.log = zap.NewNop()
	}
	if q.observe == nil {
		q.observe = func(string, string) {}
	}
	if q.dial == nil {
		q.dial = new(net.Dialer).DialContext
	}
	if endpoint.secure {
		q.tls = &tls.Config{MinVersion: tls.VersionTLS12}
		if cfg.TLS != nil {
			q.tls = cfg.TLS.Clone()
		}
		q.tls.MinVersion = max(q.tls.MinVersion, tls.VersionTLS12)
		if q.tls.ServerName == "" {
			q.tls.ServerName = endpoint.name
		}
		if q.tls.ClientSessionCache == nil {
			q.tls.ClientSessionCache = tls.NewLRUClientSessionCache(4)
		}
	}
	return q, nil
}

// Close ends the calls under way, with an error, and every connection. A later call
// gives an error.
func (q *Queue) Close() { q.lanes.close() }

// path is the resource below the queue, with a query.
func (q *Queue) path(rest string) string { return "queues/" + q.cfg.Queue + rest }

// call makes one call and hands its answer to read if the status is one that ok
// accepts. The answer's memory is the lane's: read must copy what it keeps.
func (q *Queue) call(ctx context.Context, c call, read func(l *lane, status int, body []byte) error) error {
	if c.timeout == 0 {
		c.timeout = q.cfg.RequestTimeout
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", c.op, err)
	}
	l, err := q.lanes.get()
	if err != nil {
		return &Error{Op: c.op, Err: err, class: relay.ClassUnknown}
	}
	defer q.lanes.put(l)
	if err := l.do(ctx, c); err != nil {
		return q.unanswered(ctx, c.op, err)
	}
	if date := l.resp.Header.Peek("Date"); len(date) > 0 {
		if t, err := http.ParseTime(string(date)); err == nil {
			q.clock.observe(t, l.sent, l.got)
		}
	}
	return read(l, l.resp.StatusCode(), l.resp.Body())
}

// unanswered names what went wrong where there is no answer to read.
func (q *Queue) unanswered(ctx context.Context, op string, err error) error {
	var (
		key *keyError
		bad *badAnswer
	)
	switch {
	case errors.As(err, &key):
		class := relay.ClassOf(err)
		if class == relay.ClassUnknown {
			class = relay.ClassAuth
		}
		return &Error{Op: op, Err: err, class: class}
	case ctx.Err() != nil:
		q.observe(op, "canceled")
		return fmt.Errorf("%s: %w", op, ctx.Err())
	case errors.As(err, &bad):
		q.observe(op, "malformed")
		return &Error{Op: op, Err: err, class: relay.ClassServer}
	}
	q.observe(op, "network")
	return &Error{Op: op, Err: err, class: relay.ClassNetwork}
}

// answered notes an answer that is whole and says that all went well.
func (q *Queue) answered(op string) {
	q.observe(op, "OK")
	q.mu.Lock()
	delete(q.denied, op)
	q.mu.Unlock()
}

// worked is answered for what proves that the keys are good.
func (q *Queue) worked(op string, keys credentials.Keys) {
	q.answered(op)
	q.mu.Lock()
	q.works = keys
	q.mu.Unlock()
}

// malformed is the error of an answer that could not be read.
func (q *Queue) malformed(op string, status int, err error) error {
	q.observe(op, "malformed")
	return &Error{Op: op, Status: status, Err: err, class: relay.ClassServer}
}

// refused makes the error of an answer that is no success.
func (q *Queue) refused(l *lane, op string, status int, body []byte) *Error {
	e := &Error{Op: op, Status: status}
	// Not an answer of MNS: a gateway's page. The status says enough.
	e.Code, e.Message, e.RequestID, _ = readError(&l.scan, body)
	e.class = classify(status, e.Code)
	q.observe(op, codeLabel(status, e.Code))
	if e.class == relay.ClassAuth {
		q.forbidden(l.keys, e)
	}
	return e
}

// forbidden tells keys that are no longer good from keys that may not do all.
func (q *Queue) forbidden(keys credentials.Keys, e *Error) {
	if e.Op == OpReceive || e.Op == OpDelete {
		q.credentials.Refused(keys)
		return
	}
	if e.Code == "" {
		return // a gateway's, which knows nothing of permissions
	}
	ended := !keys.Expires.IsZero() && !time.Now().Before(keys.Expires)
	q.mu.Lock()
	permitted := q.works.AccessKeyID == "" || !q.works.Same(keys) || ended
	_, said := q.denied[e.Op]
	if !permitted {
		q.denied[e.Op] = denial{keys: keys, at: time.Now()}
	}
	q.mu.Unlock()
	if permitted {
		return
	}
	e.Err, e.class = relay.ErrNotPermitted, relay.ClassUnknown
	if !said {
		q.log.Warn("the credential works but may not do this; going on without it",
			zap.String("operation", e.Op), zap.String("queue", q.cfg.Queue), zap.String("code", e.Code))
	}
}

// permitted gives an error for an operation that was refused to the present keys a while
// ago.
func (q *Queue) permitted(op string) error {
	q.mu.Lock()
	denied, found := q.denied[op]
	q.mu.Unlock()
	if !found || time.Since(denied.at) >= q.deniedFor {
		return nil
	}
	keys, err := q.credentials.Current()
	if err != nil || !keys.Same(denied.keys) {
		return nil //nolint:nilerr // the call itself reports that there are no keys
	}
	return &Error{Op: op, Err: relay.ErrNotPermitted, class: relay.ClassUnknown}
}

// ask is permitted for who makes a request if it is: after a while that finds out whether the
// operation still is refused, and those that come later go by its answer.
func (q *Queue) ask(op string) error {
	if err := q.permitted(op); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if d, found := q.denied[op]; found && time.Since(d.at) >= q.deniedFor {
		q.denied[op] = denial{keys: d.keys, at: time.Now()}
	}
	return nil
}

// BatchReceive leases up to n messages, 1 to 16, and waits up to wait for the first
// (MNS: BatchReceiveMessage, waitseconds). An empty queue gives nil, nil.
func (q *Queue) BatchReceive(ctx context.Context, n int, wait time.Duration) ([]relay.Delivery, error) {
	deliveries, _, err := q.receive(ctx, n, wait)
	return deliveries, err
}

// receive gives how long the leases were as well, 0 where nothing was received.
func (q *Queue) receive(ctx context.Context, n int, wait time.Duration) (deliveries []relay.Delivery, lease time.Duration, err error) {
	n = min(max(n, 1), MaxBatch)
	wait = min(max(wait, 0), MaxWait).Truncate(time.Second)
	c := call{
		op: OpReceive, method: ali_mns.GET, timeout: wait + q.cfg.RequestTimeout,
		// A wait of 0 is written out: left out, the queue's own PollingWaitSeconds
		// would hold.
		resource: q.path("/messages?numOfMessages=" + strconv.Itoa(n) + "&waitseconds=" + strconv.Itoa(int(wait/time.Second))),
	}
	err = q.call(ctx, c, func(l *lane, status int, body []byte) error {
		if status != http.StatusOK {
			e := q.refused(l, OpReceive, status, body)
			if e.Code == codeMessageNotExist {
				q.mu.Lock()
				q.works = l.keys
				q.mu.Unlock()
				return nil
			}
			return e
		}
		now := time.Now()
		server := q.clock.server(now)
		deliveries = make([]relay.Delivery, 0, n)
		err := readMessages(&l.scan, body, func(m received) error {
			if len(m.receipt.value) == 0 || m.next <= 0 {
				return errMalformed
			}
			next := time.UnixMilli(m.next)
			lease = max(lease, next.Sub(server))
			d := relay.Delivery{Deadline: q.deadline(next, now)}
			d.Message, d.Receipt = m.message(&q.cfg)
			deliveries = append(deliveries, d)
			return nil
		})
		if err != nil {
			return q.malformed(OpReceive, status, err)
		}
		q.worked(OpReceive, l.keys)
		return nil
	})
	if err != nil || len(deliveries) == 0 {
		return nil, 0, err
	}
	return deliveries, lease, nil
}

// deadline is when the lease of a message that is visible again at next ends: a second
// earlier, for the last request to get there.
func (q *Queue) deadline(next, now time.Time) time.Time {
	return q.clock.deadline(next, now).Add(-time.Second)
}

// BatchDelete deletes up to 16 messages (MNS: BatchDeleteMessage) and gives an error
// or nil for each handle, in order; one that is no longer valid gives
// relay.ErrLeaseLost. The last result is the error of the request as a whole, of which
// nothing is known for any handle.
func (q *Queue) BatchDelete(ctx context.Context, receipts []string) ([]error, error) {
	results := make([]error, len(receipts))
	if len(receipts) == 0 {
		return results, nil
	}
	if err := q.delete(ctx, appendHandles(nil, receipts), receipts, results); err != nil {
		return nil, err
	}
	return results, nil
}

// delete is BatchDelete with the memory of the caller.
func (q *Queue) delete(ctx context.Context, body []byte, receipts []string, results []error) error {
	c := call{op: OpDelete, method: ali_mns.DELETE, resource: q.path("/messages"), body: body}
	return q.call(ctx, c, func(l *lane, status int, body []byte) error {
		if status/100 == 2 {
			q.worked(OpDelete, l.keys)
			return nil
		}
		if !isRefusals(&l.scan, body) {
			e := q.refused(l, OpDelete, status, body)
			if len(receipts) == 1 {
				return lost(e)
			}
			return e
		}
		var (
			named   int
			foreign bool
		)
		err := readRefusals(&l.scan, body, func(r refusal) {
			named++
			err := q.handleError(status, r)
			found := false
			for i, receipt := range receipts {
				if receipt == string(r.receipt) {
					results[i], found = err, true
				}
			}
			foreign = foreign || !found
		})
		if err != nil || named == 0 || foreign {
			// Which handles it speaks of cannot be told: nothing is known of any.
			clear(results)
			if err == nil {
				err = errors.New("the answer names other handles than the request")
			}
			return q.malformed(OpDelete, status, err)
		}
		q.worked(OpDelete, l.keys)
		return nil
	})
}

// handleError is what one handle of a batch gets.
func (q *Queue) handleError(status int, r refusal) error {
	e := &Error{Op: OpDelete, Status: status, Code: r.code, Message: r.message}
	switch r.code {
	case codeMessageNotExist, codeReceiptHandleError, codeInvalidArgument:
		e.Err = relay.ErrLeaseLost
	default:
		e.class = classify(0, r.code)
	}
	return e
}

// lost turns the error of a call with one handle into ErrLeaseLost where it speaks of
// that handle (MNS: 404 MessageNotExist, 400 ReceiptHandleError, InvalidArgument).
func lost(e *Error) *Error {
	switch e.Code {
	case codeMessageNotExist, codeReceiptHandleError, codeInvalidArgument:
		e.Err = relay.ErrLeaseLost
	}
	return e
}

// Lease is a receipt with the time until which it is good.
type Lease struct {
	Receipt  string
	Deadline time.Time
}

// ChangeVisibility makes the message visible again after timeout, clamped to 1 s to
// 12 h and rounded up to seconds. The handle it gives replaces the old one, which is
// dead (MNS: ChangeMessageVisibility). relay.ErrLeaseLost: the old one was dead
// before. relay.ErrNotPermitted: the keys may only receive and delete.
func (q *Queue) ChangeVisibility(ctx context.Context, receipt string, timeout time.Duration) (Lease, error) {
	if err := q.ask(OpVisibility); err != nil {
		return Lease{}, err
	}
	timeout = min(max(timeout, MinVisibility), MaxVisibility)
	c := call{
		op: OpVisibility, method: ali_mns.PUT,
		resource: q.path("/messages?receiptHandle=" + escapeQuery(receipt) + "&visibilityTimeout=" + strconv.FormatInt(seconds(timeout), 10)),
	}
	var lease Lease
	err := q.call(ctx, c, func(l *lane, status int, body []byte) error {
		if status != http.StatusOK {
			return lost(q.refused(l, OpVisibility, status, body))
		}
		receipt, next, err := readLease(&l.scan, body)
		if err != nil {
			return q.malformed(OpVisibility, status, err)
		}
		q.answered(OpVisibility)
		lease = Lease{Receipt: receipt, Deadline: q.deadline(time.UnixMilli(next), time.Now())}
		return nil
	})
	return lease, err
}

// escapeQuery writes a value into a query. What may stand there stays as it is, base64
// padding for one: the signature covers the query as it is written, and servers differ
// in whether they sign it decoded.
func escapeQuery(value string) string {
	const plain = letters + digits + "-._~=/:,"
	if strings.Trim(value, plain) == "" {
		return value
	}
	var b strings.Builder
	for i := range len(value) {
		if c := value[i]; strings.IndexByte(plain, c) >= 0 {
			b.WriteByte(c)
		} else {
			const hex = "0123456789ABCDEF"
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}

// Attributes are what MNS tells of a queue (MNS: GetQueueAttributes).
type Attributes struct {
	VisibilityTimeout time.Duration
	// PollingWait is how long a receive waits that does not say so itself.
	PollingWait time.Duration
	// Retention is how long a message is kept, consumed or not.
	Retention time.Duration
	// Delay is how long a new message is invisible.
	Delay time.Duration
	// MaxMessageSize is in bytes.
	MaxMessageSize int64
	// Active, Inactive and Delayed are about how many messages are visible, under
	// lease and not visible yet. They mean nothing unless Counted.
	Active, Inactive, Delayed int64
	Counted                   bool
	DeadLetterPolicy          DeadLetterPolicy
}

// DeadLetterPolicy is that of the queue itself, by which MNS moves messages to another
// queue. The management API tells of it (mns-open 2022-01-19: GetQueueAttributes, Data.
// DlqPolicy); where a queue's own endpoint does, it uses the same names. The zero value
// says that nothing is known of any.
type DeadLetterPolicy struct {
	// MaxReceives is after how many receives a message is moved.
	MaxReceives int
	// Queue is where to.
	Queue string
}

// Attributes reads the queue's attributes. relay.ErrNotPermitted: the keys may only
// receive and delete.
func (q *Queue) Attributes(ctx context.Context) (Attributes, error) {
	if err := q.ask(OpAttributes); err != nil {
		return Attributes{}, err
	}
	var attributes Attributes
	err := q.call(ctx, call{op: OpAttributes, method: ali_mns.GET, resource: q.path("")}, func(l *lane, status int, body []byte) error {
		if status != http.StatusOK {
			return q.refused(l, OpAttributes, status, body)
		}
		var err error
		if attributes, err = readAttributes(&l.scan, body); err != nil {
			return q.malformed(OpAttributes, status, err)
		}
		q.answered(OpAttributes)
		return nil
	})
	return attributes, err
}

// Peek shows up to n messages, 1 to 16, without a lease (MNS: BatchPeekMessage). An
// empty queue gives nil, nil. relay.ErrNotPermitted: the keys may only receive and
// delete.
func (q *Queue) Peek(ctx context.Context, n int) ([]relay.Message, error) {
	if err := q.ask(OpPeek); err != nil {
		return nil, err
	}
	var messages []relay.Message
	c := call{
		op: OpPeek, method: ali_mns.GET,
		resource: q.path("/messages?peekonly=true&numOfMessages=" + strconv.Itoa(min(max(n, 1), MaxBatch))),
	}
	err := q.call(ctx, c, func(l *lane, status int, body []byte) error {
		if status != http.StatusOK {
			e := q.refused(l, OpPeek, status, body)
			if e.Code == codeMessageNotExist {
				return nil
			}
			return e
		}
		err := readMessages(&l.scan, body, func(m received) error {
			message, _ := m.message(&q.cfg)
			messages = append(messages, message)
			return nil
		})
		if err != nil {
			return q.malformed(OpPeek, status, err)
		}
		q.answered(OpPeek)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return messages, nil
}

// Outgoing is a message to send.
type Outgoing struct {
	// Body is sent as it is: at most 64 KiB of text (MNS: SendMessage).
	Body []byte
	// Delay is how long it stays invisible, up to 7 days, rounded up to seconds; 0:
	// the queue's own delay.
	Delay time.Duration
}

// Sent is what became of one message of a BatchSend.
type Sent struct {
	ID string
	// Err is an *Error where the message was refused.
	Err error
}

// BatchSend sends up to 16 messages and tells what became of each, in order (MNS:
// BatchSendMessage). The last result is the error of the request as a whole. Where there is
// a body that no XML document can carry, nothing is sent.
func (q *Queue) BatchSend(ctx context.Context, ms []Outgoing) ([]Sent, error) {
	if len(ms) == 0 {
		return nil, nil
	}
	body := append([]byte(nil), xmlHead+"<Messages"+namespace+">"...)
	var err error
	for i := range ms {
		if body, err = appendMessage(body, ms[i]); err != nil {
			return nil, &Error{Op: OpSend, Err: fmt.Errorf("message %d: %w", i, err)}
		}
	}
	var sent []Sent
	c := call{op: OpSend, method: ali_mns.POST, resource: q.path("/messages"), body: append(body, "</Messages>"...)}
	err = q.call(ctx, c, func(l *lane, status int, body []byte) error {
		var err error
		// A batch of which a part was refused has a status of failure and the same
		// document as one that was taken.
		sent, err = readSent(&l.scan, body)
		switch {
		case status/100 != 2 && (err != nil || len(sent) != len(ms)):
			return q.refused(l, OpSend, status, body)
		case err != nil || len(sent) != len(ms):
			return q.malformed(OpSend, status, errMalformed)
		}
		q.answered(OpSend)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sent, nil
}
