package mns

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the signature of MNS is HMAC-SHA1
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	ali_mns "github.com/aliyun/aliyun-mns-go-sdk"
	sdkcredentials "github.com/aliyun/credentials-go/credentials"
	"github.com/valyala/fasthttp"

	"mnsrelay/internal/credentials"
)

const (
	// placeholder is what the SDK's constructor is given; it panics on an address
	// that has not exactly five parts.
	placeholder = "http://account.mns.region.aliyuncs.invalid"
	// maxAnswer bounds the body of an answer: 16 messages of 64 KiB in which every
	// byte is written as an entity of 6, and 2 MiB for the rest.
	maxAnswer = 16*64<<10*6 + 2<<20
	// idleTime is how long a connection is kept without use. A middle box that
	// forgets connections without a word does so after a minute or more.
	idleTime = 30 * time.Second
	// skewed is the difference of the clocks from which on the transport signs with
	// the server's date. MNS refuses a date that is 15 minutes off.
	skewed = time.Minute
)

// lane carries one call at a time over an SDK client and a connection of its own. It
// is the client's transport and its credential.
type lane struct {
	queue  *Queue
	client ali_mns.MNSClient
	header map[string]string
	scan   scanner

	mu sync.Mutex
	// conn is nil without a connection; raw is what lies under it: conn itself or
	// the TCP connection below TLS. Only who makes the call sets them; abort reads raw.
	conn, raw net.Conn
	stopDial  context.CancelFunc
	ended     bool

	in        *bufio.Reader
	out       *bufio.Writer
	idleSince time.Time

	// Of the call that is made:
	resource string
	keys     credentials.Keys
	keyErr   error
	req      *fasthttp.Request
	resp     *fasthttp.Response
	sent     time.Time
	got      time.Time
	err      error // of the transport
	readErr  error // of the connection

	model *sdkcredentials.CredentialModel // of keys
}

var (
	_ fasthttp.RoundTripper     = (*lane)(nil)
	_ sdkcredentials.Credential = (*lane)(nil)
)

func newLane(q *Queue) *lane {
	const buffer = 4 << 10 // MNS's header is some 500 bytes
	l := &lane{queue: q, header: make(map[string]string, 8)}
	l.in = bufio.NewReaderSize(reader{l}, buffer)
	l.out = bufio.NewWriterSize(nil, buffer)
	l.client = ali_mns.NewAliMNSClientWithConfig(ali_mns.AliMNSClientConfig{
		EndPoint: placeholder, Credential: l, MaxConnsPerHost: 1,
	})
	l.client.SetTransport(l)
	return l
}

// call is one request.
type call struct {
	op       string
	method   ali_mns.Method
	resource string
	body     []byte
	// timeout is for the whole call once there is a connection.
	timeout time.Duration
}

// do makes one call. Without an error the answer is in l.resp until release. When ctx
// ends, do returns its error without delay and the lane has no connection.
func (l *lane) do(ctx context.Context, c call) error {
	l.resource, l.err, l.readErr, l.keyErr = c.resource, nil, nil, nil
	if err := l.connect(ctx, c.timeout); err != nil {
		return err
	}
	// An abort that has begun is waited for: it must not meet the lane's next call.
	aborted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(aborted)
		l.abort()
	})

	clear(l.header)
	_, err := l.client.Send(c.method, l.header, c.body, c.resource)
	// The SDK never gives its requests back.
	if l.req != nil {
		fasthttp.ReleaseRequest(l.req)
		l.req = nil
	}
	if !stop() {
		<-aborted
		l.disconnect()
	}
	if err == nil {
		return nil
	}
	l.release()
	if l.keyErr != nil {
		return l.keyErr // nothing was sent: the connection is as it was
	}
	l.disconnect()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case l.err != nil:
		return l.err
	}
	return err
}

// release gives the answer back.
func (l *lane) release() {
	if l.resp != nil {
		fasthttp.ReleaseResponse(l.resp)
		l.resp = nil
	}
}

// connect sees to a connection that is not known to be dead, for a call of at most
// timeout.
func (l *lane) connect(ctx context.Context, timeout time.Duration) error {
	if l.conn != nil {
		// The deadline comes first: the last call's has passed, perhaps, and would be
		// taken for a dead connection.
		if time.Since(l.idleSince) < idleTime && l.conn.SetDeadline(time.Now().Add(timeout)) == nil && alive(l.raw) {
			return nil
		}
		l.disconnect()
	}
	q := l.queue
	ctx, cancel := context.WithTimeout(ctx, q.cfg.DialTimeout)
	defer cancel()
	l.mu.Lock()
	l.stopDial = cancel
	l.mu.Unlock()
	raw, err := q.dial(ctx, "tcp", q.endpoint.addr)
	if err != nil {
		return contextError(ctx, err)
	}
	conn := raw
	if q.tls != nil {
		secured := tls.Client(raw, q.tls)
		if err := secured.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return contextError(ctx, fmt.Errorf("TLS handshake: %w", err))
		}
		conn = secured
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		_ = raw.Close()
		return fmt.Errorf("set deadline: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		_ = raw.Close()
		return errClosed
	}
	l.conn, l.raw = conn, raw
	l.in.Reset(reader{l})
	l.out.Reset(conn)
	return nil
}

// contextError prefers the caller's reason to that of the network.
func contextError(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// disconnect closes the connection, if there is one. It does not wait for a goodbye of
// TLS that a stalled peer would hold up.
func (l *lane) disconnect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.raw != nil {
		_ = l.raw.Close()
	}
	l.conn, l.raw = nil, nil
}

// abort ends the call under way.
func (l *lane) abort() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.raw != nil {
		_ = l.raw.Close()
	}
}

// end is an abort after which the lane makes no call any more.
func (l *lane) end() {
	l.mu.Lock()
	l.ended = true
	if l.stopDial != nil {
		l.stopDial()
	}
	l.mu.Unlock()
	l.abort()
}

// reader reads from the lane's connection and remembers why it could not.
type reader struct{ l *lane }

func (r reader) Read(b []byte) (int, error) {
	n, err := r.l.conn.Read(b)
	if err != nil {
		r.l.readErr = err
	}
	return n, err
}

// RoundTrip sends the SDK's request to the endpoint and reads the answer, once.
func (l *lane) RoundTrip(_ *fasthttp.HostClient, req *fasthttp.Request, resp *fasthttp.Response) (retry bool, err error) {
	l.req, l.resp = req, resp
	uri := req.URI()
	uri.SetHost(l.queue.endpoint.host)
	if p := l.queue.endpoint.prefix; p != "" {
		uri.SetPath(p + string(uri.Path()))
	}
	l.sent = time.Now()
	if skew := l.queue.clock.skew(l.sent); skew > skewed || skew < -skewed {
		l.sign(req, l.queue.clock.server(l.sent))
	}
	l.err = l.exchange(req, resp)
	l.got = time.Now()
	return false, l.err
}

func (l *lane) exchange(req *fasthttp.Request, resp *fasthttp.Response) error {
	err := req.Write(l.out)
	if err == nil {
		err = l.out.Flush()
	}
	if err != nil {
		return noAnswer(err)
	}
	if err := resp.ReadLimitBody(l.in, maxAnswer); err != nil {
		switch {
		case l.readErr != nil:
			return noAnswer(l.readErr)
		case errors.Is(err, fasthttp.ErrBodyTooLarge):
			return &badAnswer{fmt.Sprintf("the answer is longer than %d bytes", maxAnswer)}
		}
		// Its own text may quote the answer.
		return &badAnswer{"the answer is no HTTP"}
	}
	if resp.ConnectionClose() || l.in.Buffered() > 0 {
		l.disconnect()
	}
	return nil
}

// badAnswer is an answer that is no use at all.
type badAnswer struct{ what string }

func (b *badAnswer) Error() string { return b.what }

func noAnswer(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the server closed the connection: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// sign signs the request again, with another date (MNS: signature). The SDK has set
// every header that is signed.
func (l *lane) sign(req *fasthttp.Request, date time.Time) {
	h := &req.Header
	h.Set(ali_mns.DATE, date.UTC().Format(http.TimeFormat))
	mac := hmac.New(sha1.New, []byte(l.keys.AccessKeySecret.Reveal()))
	_, _ = fmt.Fprintf(mac, "%s\n%s\n%s\n%s\n%s:%s\n/%s", h.Method(),
		h.Peek(ali_mns.CONTENT_MD5), h.ContentType(), h.Peek(ali_mns.DATE),
		ali_mns.MQ_VERSION, h.Peek(ali_mns.MQ_VERSION), l.resource)
	h.Set(ali_mns.AUTHORIZATION, "MNS "+l.keys.AccessKeyID+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// GetCredential is what the SDK signs the next request with.
func (l *lane) GetCredential() (*sdkcredentials.CredentialModel, error) {
	keys, err := l.queue.credentials.Current()
	if err != nil {
		l.keyErr = &keyError{err}
		return nil, l.keyErr
	}
	if l.model == nil || !keys.Same(l.keys) {
		secret, token := keys.AccessKeySecret.Reveal(), keys.SecurityToken.Reveal()
		l.model = &sdkcredentials.CredentialModel{
			AccessKeyId: &keys.AccessKeyID, AccessKeySecret: &secret, SecurityToken: &token,
		}
	}
	l.keys = keys
	return l.model, nil
}

// keyError says that there are no keys to sign with: nothing was sent.
type keyError struct{ err error }

func (k *keyError) Error() string { return "get keys: " + k.err.Error() }
func (k *keyError) Unwrap() error { return k.err }

// The rest of the SDK's credential, which nothing calls.

// GetAccessKeyId is the id of the present keys.
func (l *lane) GetAccessKeyId() (*string, error) { //nolint:revive // the SDK's name
	m, err := l.GetCredential()
	if err != nil {
		return nil, err
	}
	return m.AccessKeyId, nil
}

// GetAccessKeySecret is the secret of the present keys.
func (l *lane) GetAccessKeySecret() (*string, error) {
	m, err := l.GetCredential()
	if err != nil {
		return nil, err
	}
	return m.AccessKeySecret, nil
}

// GetSecurityToken is the token of the present keys, empty for permanent ones.
func (l *lane) GetSecurityToken() (*string, error) {
	m, err := l.GetCredential()
	if err != nil {
		return nil, err
	}
	return m.SecurityToken, nil
}

// GetBearerToken gives none: MNS knows no bearer tokens.
func (l *lane) GetBearerToken() *string { return new(string) }

// GetType is the kind of keys.
func (l *lane) GetType() *string {
	kind := "sts"
	return &kind
}

// lanes are a queue's lanes that are free, and those that carry a call.
type lanes struct {
	queue *Queue

	mu     sync.Mutex
	free   []*lane // the one used last at the end
	busy   map[*lane]struct{}
	closed bool
	sweep  *time.Timer // nil: not set
}

func (p *lanes) get() (*lane, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errClosed
	}
	var l *lane
	if n := len(p.free); n > 0 {
		l, p.free[n-1] = p.free[n-1], nil
		p.free = p.free[:n-1]
	} else {
		l = newLane(p.queue)
	}
	p.busy[l] = struct{}{}
	return l, nil
}

func (p *lanes) put(l *lane) {
	l.release()
	l.idleSince = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.busy, l)
	if p.closed {
		l.disconnect()
	}
	if l.conn == nil {
		return // there is nothing to keep; the next call had better find a connection
	}
	p.free = append(p.free, l)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(idleTime, p.drop)
	}
}

// drop ends the lanes that were not used for idleTime.
func (p *lanes) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sweep = nil
	if p.closed {
		return
	}
	n := 0
	for n < len(p.free) && time.Since(p.free[n].idleSince) >= idleTime {
		p.free[n].disconnect()
		n++
	}
	p.free = append(p.free[:0], p.free[n:]...)
	clear(p.free[len(p.free):cap(p.free)])
	if len(p.free) > 0 {
		p.sweep = time.AfterFunc(idleTime-time.Since(p.free[0].idleSince), p.drop)
	}
}

// close ends every call under way and every connection.
func (p *lanes) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.sweep != nil {
		p.sweep.Stop()
	}
	for _, l := range p.free {
		l.disconnect()
	}
	p.free = nil
	for l := range p.busy {
		l.end()
	}
}
