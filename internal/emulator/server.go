package emulator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Server is the emulator. It is an http.Handler; Start serves it on an address of
// its own. Its methods are safe for concurrent use.
type Server struct {
	config  Config
	log     *zap.Logger
	control http.Handler

	queues sync.Map // name to *queue
	// creating makes the check for a queue and its creation one step.
	creating sync.Mutex

	credentials credentialStore
	nonces      nonceStore
	faults      faultTable
	counters    map[Op]*counter // not written to after New

	metadata metadataServer
	oidcKey  *ecdsa.PrivateKey

	offset atomic.Int64         // nanoseconds; see SetClockOffset
	policy atomic.Value         // Policy
	issued map[Op]*atomic.Value // Policy by issuer; not written to after New

	requestPrefix uint32
	lastRequest   atomic.Uint64

	closing   chan struct{}
	closeOnce sync.Once

	mu     sync.Mutex // guards what Start sets
	server *http.Server
	served chan struct{}

	underWay atomic.Int64
	idle     chan struct{} // size 1: a request ended and none was left
}

var _ http.Handler = (*Server)(nil)

// New makes a server with the queues of config. It opens nothing and starts no
// goroutine. Its error joins *setting.Problem values.
func New(config Config) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.setDefaults()
	s := &Server{
		config:        config,
		log:           config.Log,
		counters:      map[Op]*counter{},
		issued:        map[Op]*atomic.Value{},
		requestPrefix: rand.Uint32(), //nolint:gosec // G404: it tells runs apart and guards nothing.
		closing:       make(chan struct{}),
		idle:          make(chan struct{}, 1),
	}
	for _, op := range Ops() {
		s.counters[op] = &counter{}
	}
	s.policy.Store(config.Policy)
	for _, op := range issuers() {
		s.issued[op] = &atomic.Value{}
		s.issued[op].Store(config.IssuedPolicies[op].stricter(PolicyFull))
	}
	s.issued[OpToken].Store(config.IssuedPolicies[OpToken].stricter(config.TokenPolicy))
	s.metadata = metadataServer{role: config.InstanceRole, tokenRequired: config.MetadataTokenRequired, tokens: map[string]time.Time{}}
	var err error
	if s.oidcKey, err = ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader); err != nil {
		return nil, fmt.Errorf("make the key of OIDC tokens: %w", err)
	}
	for _, key := range config.AccessKeys {
		s.credentials.add(&credential{id: key.ID, secret: key.Secret.Reveal(), policy: PolicyFull})
	}
	for name, queue := range config.Queues {
		if err := s.CreateQueue(name, queue); err != nil {
			return nil, err
		}
	}
	s.control = s.controlHandler()
	return s, nil
}

// Start listens on addr, as in "127.0.0.1:0", and serves until Close. It gives the
// server's URL. The context bounds the listening only.
func (s *Server) Start(ctx context.Context, addr string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		return "", errors.New("start emulator: it was started before")
	}
	var listening net.ListenConfig
	listener, err := listening.Listen(ctx, "tcp", addr)
	if err != nil {
		return "", fmt.Errorf("listen on %q: %w", addr, err)
	}
	s.server = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          zap.NewStdLog(s.log),
	}
	s.served = make(chan struct{})
	go func() {
		defer close(s.served)
		if err := s.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("emulator stopped serving", zap.Error(err))
		}
	}()
	return "http://" + listener.Addr().String(), nil
}

// Close gives waiting polls their empty answer, closes every connection and waits
// until no request is under way. A closed server cannot be started again.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { close(s.closing) })
	s.mu.Lock()
	server, served := s.server, s.served
	s.mu.Unlock()
	if server == nil {
		return nil
	}
	// Answers that are being written get a moment; connections that never brought
	// a request would be waited for longer than that.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	<-served
	for s.underWay.Load() > 0 {
		<-s.idle
	}
	if err != nil {
		return fmt.Errorf("close emulator: %w", err)
	}
	return nil
}

// SetClockOffset moves the server's clock against the real one: the Date header,
// every time in an answer and the checks of dates and tokens follow it. Leases and
// delays last as long as before.
func (s *Server) SetClockOffset(offset time.Duration) {
	s.offset.Store(int64(offset))
	s.log.Info("clock offset set", zap.Duration("offset", offset))
}

// ClockOffset is what SetClockOffset has set.
func (s *Server) ClockOffset() time.Duration { return time.Duration(s.offset.Load()) }

// SetPolicy binds every request to MNS from now on.
func (s *Server) SetPolicy(policy Policy) error {
	return s.setPolicy(&s.policy, "server", policy)
}

// SetTokenPolicy binds the tokens that QueryTokenForMnsQueue issues from now on.
func (s *Server) SetTokenPolicy(policy Policy) error {
	return s.SetIssuedPolicy(OpToken, policy)
}

// SetIssuedPolicy binds the credentials that OpToken, OpSTS, OpOIDC, OpMetadata or
// OpURI issues from now on.
func (s *Server) SetIssuedPolicy(issuer Op, policy Policy) error {
	of := s.issued[issuer]
	if of == nil {
		return fmt.Errorf("%q issues no credentials: write one of %v", issuer, issuers())
	}
	return s.setPolicy(of, string(issuer), policy)
}

func (s *Server) issuedPolicy(issuer Op) Policy { return loadPolicy(s.issued[issuer]) }

func (s *Server) setPolicy(of *atomic.Value, who string, policy Policy) error {
	if !policy.valid() {
		return fmt.Errorf("there is no policy %q: write %s or %s", policy, PolicyFull, PolicyReceiveDelete)
	}
	of.Store(policy)
	s.log.Info("policy set", zap.String("of", who), zap.String("policy", string(policy)))
	return nil
}

func loadPolicy(of *atomic.Value) Policy {
	policy, _ := of.Load().(Policy)
	return policy
}

// RevokeTokens makes every credential issued so far invalid, whatever issued it, and
// gives how many that were.
func (s *Server) RevokeTokens() int {
	n := s.credentials.revoke(s.wireTime())
	s.log.Info("tokens revoked", zap.Int("tokens", n))
	return n
}

// AlicomQueue is the name that the queue of a message type has for the server's
// account, as in Alicom-Queue-1234567890123456-SmsReport.
func (s *Server) AlicomQueue(messageType string) string {
	return "Alicom-Queue-" + s.config.AccountID + "-" + messageType
}

// CreateQueue makes a queue, unless there is one of that name with the same
// attributes.
func (s *Server) CreateQueue(name string, config QueueConfig) error {
	config.setDefaults()
	if _, err := s.createQueue(name, config); err != nil {
		return fmt.Errorf("create queue %q: %w", name, err)
	}
	return nil
}

func (s *Server) createQueue(name string, config QueueConfig) (created bool, _ *wireError) {
	if err := validQueueName(name); err != nil {
		return false, err
	}
	if err := config.validate(); err != nil {
		return false, err
	}
	s.creating.Lock()
	defer s.creating.Unlock()
	if q := s.queue(name); q != nil {
		if q.attributes().config != config {
			return false, wireErrorf(http.StatusConflict, "QueueAlreadyExist", "The queue you want to create is already exist.")
		}
		return false, nil
	}
	s.queues.Store(name, newQueue(name, config, s.clock))
	return true, nil
}

// DeleteQueue removes a queue with its messages and says whether there was one.
func (s *Server) DeleteQueue(name string) bool {
	q, found := s.queues.LoadAndDelete(name)
	if found {
		q.(*queue).close()
	}
	return found
}

func (s *Server) queue(name string) *queue {
	q, _ := s.queues.Load(name)
	found, _ := q.(*queue)
	return found
}

// Queues gives the names of the queues, sorted.
func (s *Server) Queues() []string {
	var names []string
	for name := range s.queues.Range {
		names = append(names, name.(string))
	}
	slices.Sort(names)
	return names
}

// QueueStats counts the messages of a queue; false: there is none of that name.
func (s *Server) QueueStats(name string) (QueueStats, bool) {
	q := s.queue(name)
	if q == nil {
		return QueueStats{}, false
	}
	return q.attributes().stats, true
}

// Message is what SendAll sends.
type Message struct {
	// Body goes as it is. It must be UTF-8 text that XML can carry: anything else
	// goes as base64, as most producers send everything.
	Body []byte
	// Delay is how long the message stays invisible, in whole seconds; 0: as long
	// as the queue's own Delay says.
	Delay time.Duration
	// Priority is 1, the first, to 16; 0: 8, as in MNS.
	Priority int
	// SystemProperties and UserProperties travel beside the body, as texts by name. They
	// must be what XML can carry.
	SystemProperties, UserProperties map[string]string
}

// Send puts one message into a queue, past signatures, policies and faults, and
// gives its id.
func (s *Server) Send(queue string, body []byte) (string, error) {
	ids, err := s.SendAll(queue, []Message{{Body: body}})
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

// SendBase64 is Send of the base64 of body: how Alibaba's own producers send.
func (s *Server) SendBase64(queue string, body []byte) (string, error) {
	return s.Send(queue, base64.StdEncoding.AppendEncode(nil, body))
}

// SendAll puts all of messages, of any number, into a queue, or none of them.
func (s *Server) SendAll(queue string, messages []Message) ([]string, error) {
	q := s.queue(queue)
	if q == nil {
		return nil, fmt.Errorf("send to %q: %w", queue, queueNotExist())
	}
	out := make([]outgoing, len(messages))
	for i, m := range messages {
		if err := xmlText(m.Body); err != nil {
			return nil, fmt.Errorf("send to %q: %w: encode the body as base64", queue, err)
		}
		out[i] = outgoing{body: m.Body, delay: m.Delay, priority: m.Priority, properties: properties{m.SystemProperties, m.UserProperties}}
		if m.Delay == 0 {
			out[i].delay = -1
		}
		if m.Priority == 0 {
			out[i].priority = usualPriority
		}
	}
	leases, err := q.send(out)
	if err != nil {
		return nil, fmt.Errorf("send to %q: %w", queue, err)
	}
	ids := make([]string, len(leases))
	for i := range leases {
		ids[i] = leases[i].id
	}
	return ids, nil
}

// clock is the server's own time in milliseconds, without the offset.
func (s *Server) clock() int64 { return time.Now().UnixMilli() }

// wireTime is the time that the server shows.
func (s *Server) wireTime() time.Time { return time.Now().Add(s.ClockOffset()) }

// wireMillis is how a time of clock's is shown.
func (s *Server) wireMillis(t int64) int64 { return t + s.ClockOffset().Milliseconds() }

// hostID is what error documents name as the host.
func (s *Server) hostID() string {
	return "http://" + s.config.AccountID + ".mns." + region + ".aliyuncs.com"
}

func (s *Server) nextRequestID() string {
	return fmt.Sprintf("%08X%016X", s.requestPrefix, s.lastRequest.Add(1))
}

// answer is what goes out. A zero status leaves the connection without an answer.
type answer struct {
	status      int
	code        string // as counted: OK, or the code of the error
	contentType string
	location    string
	body        []byte
	err         *wireError // rendered by the protocol's own writer if set
}

const okCode = "OK"

// Content types of the services.
const (
	typeXML  = "text/xml;charset=utf-8"
	typeJSON = "application/json;charset=utf-8"
	typeText = "text/plain;charset=utf-8" // of the metadata server
)

func failed(err *wireError) answer { return answer{err: err} }

func done(status int) answer { return answer{status: status, code: okCode} }

func doneXML(status int, body []byte) answer {
	return answer{status: status, code: okCode, contentType: typeXML, body: body}
}

// maxRequestBody leaves room for a batch of the largest bodies, every byte of them
// written as a reference.
const maxRequestBody = maxBatch*maxMessageSize*6 + 64<<10

// ServeHTTP answers a request to any of the services.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.underWay.Add(1)
	defer func() {
		if s.underWay.Add(-1) == 0 {
			select {
			case s.idle <- struct{}{}:
			default:
			}
		}
	}()
	rawPath, _ := requestTarget(r)
	if clean := cleanPath(rawPath); clean == "/_emulator" || strings.HasPrefix(clean, "/_emulator/") {
		s.control.ServeHTTP(w, r)
		return
	}
	requestID := s.nextRequestID()
	c := &call{Request: r}
	var a answer
	body, err := readBody(r)
	if err != nil {
		a = failed(err)
		c.op = OpUnknown
	} else {
		c.body = body
		switch clean := cleanPath(rawPath); {
		case clean == "/":
			c.classifyRPC()
		case clean == metadataRoot || strings.HasPrefix(clean, metadataRoot+"/"):
			c.classifyMetadata(clean)
		case clean == credentialsPath:
			c.classifyURI()
		default:
			c.classify()
		}
		a = s.run(w, c)
	}
	s.write(w, c, requestID, a)
}

func readBody(r *http.Request) ([]byte, *wireError) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil, nil
	}
	if r.ContentLength > maxRequestBody {
		return nil, outOfRange("Content-Length", 0, maxRequestBody, "bytes")
	}
	var body bytes.Buffer
	if r.ContentLength > 0 {
		body.Grow(int(r.ContentLength) + bytes.MinRead)
	}
	if _, err := body.ReadFrom(io.LimitReader(r.Body, maxRequestBody+1)); err != nil {
		return nil, invalidArgument("The request body ended early: %v.", err)
	}
	if body.Len() > maxRequestBody {
		return nil, outOfRange("Content-Length", 0, maxRequestBody, "bytes")
	}
	return body.Bytes(), nil
}

// run applies a fault, if one matches, and the operation.
func (s *Server) run(w http.ResponseWriter, c *call) answer {
	fault := s.faults.match(c.op, c.queue)
	if fault == nil {
		return s.operate(c)
	}
	if !s.pause(c, time.Duration(fault.Delay)) {
		return answer{code: droppedCode}
	}
	var a answer
	switch {
	case fault.Connection == DropBefore:
		return answer{code: droppedCode}
	case fault.answers():
		a = fault.answer()
	default:
		a = s.operate(c)
	}
	if !s.pause(c, time.Duration(fault.AnswerDelay)) {
		return answer{code: droppedCode}
	}
	switch fault.Connection {
	case DropAfter:
		return answer{code: droppedCode}
	case CutBody:
		s.writeCut(w, c, a)
		return answer{code: cutCode}
	case Keep, DropBefore:
	}
	return a
}

// pause waits for d; false: the client has gone or the server closes.
func (s *Server) pause(c *call, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.Context().Done():
	case <-s.closing:
	}
	return false
}

// operate authenticates the request and runs its operation.
func (s *Server) operate(c *call) answer {
	if c.handler == nil {
		if c.params != nil {
			return failed(wireErrorf(http.StatusNotFound, "InvalidAction.NotFound", "Specified api is not found, please check your url and method."))
		}
		return failed(wireErrorf(http.StatusBadRequest, "InvalidRequestURL", "Http request URL format invalid: %s %s is no operation of a queue.", c.Method, c.URL.Path))
	}
	if c.op.mns() {
		key, err := s.authenticate(c)
		if err != nil {
			return failed(err)
		}
		if !key.policy.stricter(loadPolicy(&s.policy)).allows(c.op) {
			return failed(accessDenied())
		}
	}
	return c.handler(s, c)
}

// Codes under which requests without a whole answer are counted.
const (
	droppedCode = "dropped"
	cutCode     = "cut"
)

// render makes the document of an error.
func (s *Server) render(c *call, requestID string, a answer) answer {
	if a.err == nil {
		return a
	}
	switch {
	case c.params != nil:
		return s.renderRPCError(c, requestID, a.err)
	case c.op == OpMetadataToken || c.op == OpMetadata:
		return renderMetadata(a.err)
	case c.op == OpURI:
		return renderURI(a.err)
	}
	body := append([]byte(xmlHeader), "<Error"+xmlNamespace+">"...)
	body = appendElement(body, "Code", a.err.code)
	body = appendElement(body, "Message", a.err.message)
	body = appendElement(body, "RequestId", requestID)
	body = appendElement(body, "HostId", s.hostID())
	body = append(body, "</Error>"...)
	return answer{status: a.err.status, code: a.err.code, contentType: typeXML, body: body}
}

func (s *Server) head(w http.ResponseWriter, requestID string, a answer) {
	h := w.Header()
	h["Date"] = []string{s.wireTime().UTC().Format(http.TimeFormat)}
	h["Server"] = []string{"AliyunMQS"}
	h["X-Mns-Request-Id"] = []string{requestID}
	h["X-Mns-Version"] = []string{mnsVersion}
	if a.contentType != "" {
		h["Content-Type"] = []string{a.contentType}
	}
	if a.location != "" {
		h["Location"] = []string{a.location}
	}
	if a.status != http.StatusNoContent {
		h["Content-Length"] = []string{strconv.Itoa(len(a.body))}
	}
	w.WriteHeader(a.status)
}

func (s *Server) write(w http.ResponseWriter, c *call, requestID string, a answer) {
	a = s.render(c, requestID, a)
	s.counters[c.op].add(a.code)
	if entry := s.log.Check(zap.DebugLevel, "request"); entry != nil {
		entry.Write(zap.String("op", string(c.op)), zap.String("queue", c.queue),
			zap.String("code", a.code), zap.String("request_id", requestID))
	}
	if a.status == 0 {
		panic(http.ErrAbortHandler)
	}
	s.head(w, requestID, a)
	_, _ = w.Write(a.body) // a client that has gone is not told
}

// writeCut writes the head and half the body: its length was promised whole.
func (s *Server) writeCut(w http.ResponseWriter, c *call, a answer) {
	requestID := s.nextRequestID()
	a = s.render(c, requestID, a)
	if a.status == 0 {
		return
	}
	s.head(w, requestID, a)
	_, _ = w.Write(a.body[:len(a.body)/2])
	_ = http.NewResponseController(w).Flush()
}
