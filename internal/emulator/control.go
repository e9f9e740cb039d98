package emulator

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
)

// controlHelp is what GET /_emulator/ answers.
const controlHelp = `The controls of the MNS emulator. They need no signature.

GET    /_emulator/queues                  every queue with its attributes and counts
GET    /_emulator/queues/NAME             one queue
PUT    /_emulator/queues/NAME             create it: {} or {"visibility_timeout":"30s","delay":"0s",
                                          "maximum_message_size":65536,"message_retention_period":"96h",
                                          "polling_wait":"0s"}
DELETE /_emulator/queues/NAME             delete it with its messages
POST   /_emulator/queues/NAME/messages    send: {"body":"text"}, {"body":"text","encode":"base64"},
                                          with "delay":"5s" and "priority":1..16, or a list of these
GET    /_emulator/faults                  the faults in force, with their hits
POST   /_emulator/faults                  add one, as in
                                          {"operation":"receive","status":503,"code":"InternalError","count":3}
                                          {"operation":"delete","connection":"drop_after","rate":0.1}
                                          {"operation":"token","status":200,"code":"isv.NO_PERMISSION"}
                                          {"queue":"NAME","delay":"2s"}
                                          {"operation":"receive","status":502,"body":"<html>bad gateway</html>"}
                                          {"operation":"sts","per_second":10,"status":400,"code":"Throttling.User"}
                                          operation: receive peek send delete visibility attributes queues
                                          token sts oidc metadata_token metadata uri unknown, none: all;
                                          connection: drop_before drop_after cut_body; delay before,
                                          answer_delay after the operation; per_second: only what is above
DELETE /_emulator/faults                  end every fault
DELETE /_emulator/faults/ID               end one
GET    /_emulator/tokens                  the credentials issued, without their secrets
DELETE /_emulator/tokens                  revoke them
GET    /_emulator/clock                   the server's time and its offset
PUT    /_emulator/clock                   {"offset":"20m"} moves it
GET    /_emulator/policy                  what requests and issued credentials may do
PUT    /_emulator/policy                  {"server":"receive-and-delete"}, {"tokens":"full"}, {"oidc":"full"};
                                          also sts metadata uri
POST   /_emulator/oidc-token              a token as a pod has it, to write to a file: {} or {"life":"10m",
                                          "audience":"a","subject":"system:serviceaccount:n:s","issuer":"i"}
GET    /_emulator/metadata                the role of the ECS instance and its metadata mode
PUT    /_emulator/metadata                {"role":"NAME"}, {"role":""} for none, {"token_required":true}
GET    /_emulator/requests                requests so far by operation and code
DELETE /_emulator/requests                count from 0 again
`

// maxControlBody bounds the body of a control.
const maxControlBody = 64 << 20

// controlFunc answers a control: a value that is written as JSON, or an error in
// plain words.
type controlFunc func(r *http.Request) (any, error)

// controlError is an error of a control with its status.
type controlError struct {
	status int
	words  string
}

func (e *controlError) Error() string { return e.words }

func controlErrorf(status int, format string, args ...any) error {
	return &controlError{status, fmt.Sprintf(format, args...)}
}

func noSuchQueue(name string) error {
	return controlErrorf(http.StatusNotFound, "there is no queue %q: create it with PUT /_emulator/queues/%s", name, name)
}

func (s *Server) controlHandler() http.Handler {
	mux := http.NewServeMux()
	for pattern, f := range map[string]controlFunc{
		"GET /_emulator/queues":                  s.controlListQueues,
		"GET /_emulator/queues/{name}":           s.controlGetQueue,
		"PUT /_emulator/queues/{name}":           s.controlPutQueue,
		"DELETE /_emulator/queues/{name}":        s.controlDeleteQueue,
		"POST /_emulator/queues/{name}/messages": s.controlSend,
		"GET /_emulator/faults":                  func(*http.Request) (any, error) { return s.Faults(), nil },
		"POST /_emulator/faults":                 s.controlAddFault,
		"DELETE /_emulator/faults":               s.controlClearFaults,
		"DELETE /_emulator/faults/{id}":          s.controlRemoveFault,
		"GET /_emulator/tokens":                  s.controlTokens,
		"DELETE /_emulator/tokens":               s.controlRevoke,
		"GET /_emulator/clock":                   s.controlClock,
		"PUT /_emulator/clock":                   s.controlSetClock,
		"GET /_emulator/policy":                  s.controlPolicy,
		"PUT /_emulator/policy":                  s.controlSetPolicy,
		"POST /_emulator/oidc-token":             s.controlMintOIDC,
		"GET /_emulator/metadata":                s.controlMetadata,
		"PUT /_emulator/metadata":                s.controlSetMetadata,
		"GET /_emulator/requests":                func(*http.Request) (any, error) { return s.Requests(), nil },
		"DELETE /_emulator/requests": func(*http.Request) (any, error) {
			s.ResetRequests()
			return nil, nil //nolint:nilnil // nil is the empty answer.
		},
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxControlBody)
			value, err := f(r)
			writeControl(w, value, err)
		})
	}
	mux.HandleFunc("/_emulator/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/_emulator/" && r.Method == http.MethodGet {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			_, _ = io.WriteString(w, controlHelp)
			return
		}
		writeControl(w, nil, controlErrorf(http.StatusNotFound, "there is no control %s %s: GET /_emulator/ lists them", r.Method, r.URL.Path))
	})
	return mux
}

func writeControl(w http.ResponseWriter, value any, err error) {
	if err != nil {
		status := http.StatusBadRequest
		if known, ok := errors.AsType[*controlError](err); ok {
			status = known.status
		}
		http.Error(w, err.Error(), status)
		return
	}
	if value == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if text, ok := value.(controlText); ok {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, string(text)) // a client that has gone is not told
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(value) // a client that has gone is not told
}

// readControl reads the JSON of a control into value, strictly.
func readControl(r *http.Request, value any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(value); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("the request has no body: GET /_emulator/ shows what to write")
		}
		return fmt.Errorf("read the request's JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("read the request's JSON: more follows after its end")
	}
	return nil
}

// queueSettings is a QueueConfig in JSON.
type queueSettings struct {
	VisibilityTimeout      Duration `json:"visibility_timeout"`
	Delay                  Duration `json:"delay"`
	MaximumMessageSize     int      `json:"maximum_message_size"`
	MessageRetentionPeriod Duration `json:"message_retention_period"`
	PollingWait            Duration `json:"polling_wait"`
	LoggingEnabled         bool     `json:"logging_enabled"`
}

type queueView struct {
	Name       string        `json:"name"`
	CreatedAt  time.Time     `json:"created_at"`
	Attributes queueSettings `json:"attributes"`
	Messages   QueueStats    `json:"messages"`
}

func (s *Server) viewQueue(q *queue) queueView {
	a := q.attributes()
	return queueView{
		Name:      a.name,
		CreatedAt: time.UnixMilli(s.wireMillis(a.created)).UTC(),
		Attributes: queueSettings{
			VisibilityTimeout:      Duration(a.config.VisibilityTimeout),
			Delay:                  Duration(a.config.Delay),
			MaximumMessageSize:     a.config.MaximumMessageSize,
			MessageRetentionPeriod: Duration(a.config.MessageRetentionPeriod),
			PollingWait:            Duration(a.config.PollingWait),
			LoggingEnabled:         a.config.LoggingEnabled,
		},
		Messages: a.stats,
	}
}

func (s *Server) controlListQueues(*http.Request) (any, error) {
	views := []queueView{}
	for _, name := range s.Queues() {
		if q := s.queue(name); q != nil {
			views = append(views, s.viewQueue(q))
		}
	}
	return views, nil
}

func (s *Server) controlGetQueue(r *http.Request) (any, error) {
	q := s.queue(r.PathValue("name"))
	if q == nil {
		return nil, noSuchQueue(r.PathValue("name"))
	}
	return s.viewQueue(q), nil
}

func (s *Server) controlPutQueue(r *http.Request) (any, error) {
	var wanted queueSettings
	if r.ContentLength != 0 {
		if err := readControl(r, &wanted); err != nil {
			return nil, err
		}
	}
	name := r.PathValue("name")
	err := s.CreateQueue(name, QueueConfig{
		VisibilityTimeout:      time.Duration(wanted.VisibilityTimeout),
		Delay:                  time.Duration(wanted.Delay),
		MaximumMessageSize:     wanted.MaximumMessageSize,
		MessageRetentionPeriod: time.Duration(wanted.MessageRetentionPeriod),
		PollingWait:            time.Duration(wanted.PollingWait),
		LoggingEnabled:         wanted.LoggingEnabled,
	})
	if err != nil {
		return nil, plain(err)
	}
	s.log.Info("queue created", zap.String("queue", name))
	return s.controlGetQueue(r)
}

// plain turns a wire error into words without its code.
func plain(err error) error {
	if wire, ok := errors.AsType[*wireError](err); ok {
		return controlErrorf(wire.status, "%s", wire.message)
	}
	return err
}

func (s *Server) controlDeleteQueue(r *http.Request) (any, error) {
	name := r.PathValue("name")
	if !s.DeleteQueue(name) {
		return nil, noSuchQueue(name)
	}
	s.log.Info("queue deleted", zap.String("queue", name))
	return nil, nil //nolint:nilnil // nil is the empty answer.
}

type controlMessage struct {
	Body     string   `json:"body"`
	Encode   string   `json:"encode"`
	Delay    Duration `json:"delay"`
	Priority int      `json:"priority"`
}

func (s *Server) controlSend(r *http.Request) (any, error) {
	name := r.PathValue("name")
	if s.queue(name) == nil {
		return nil, noSuchQueue(name)
	}
	var raw json.RawMessage
	if err := readControl(r, &raw); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(string(raw), "[") {
		raw = slices.Concat([]byte("["), raw, []byte("]"))
	}
	var wanted []controlMessage
	decoder := json.NewDecoder(strings.NewReader(string(raw)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&wanted); err != nil {
		return nil, fmt.Errorf("read the messages: %w", err)
	}
	messages := make([]Message, len(wanted))
	for i, m := range wanted {
		messages[i] = Message{Body: []byte(m.Body), Delay: time.Duration(m.Delay), Priority: m.Priority}
		switch m.Encode {
		case "":
		case "base64":
			messages[i].Body = base64.StdEncoding.AppendEncode(nil, []byte(m.Body))
		default:
			return nil, fmt.Errorf("there is no encoding %q: write base64 or leave encode out", m.Encode)
		}
	}
	ids, err := s.SendAll(name, messages)
	if err != nil {
		return nil, plain(err)
	}
	return map[string][]string{"ids": ids}, nil
}

func (s *Server) controlAddFault(r *http.Request) (any, error) {
	var fault Fault
	if err := readControl(r, &fault); err != nil {
		return nil, err
	}
	added, err := s.addFault(fault)
	if err != nil {
		return nil, err
	}
	s.log.Info("fault added", zap.String("fault", added.ID), zap.String("op", string(added.Operation)))
	return added, nil
}

func (s *Server) controlClearFaults(*http.Request) (any, error) {
	s.ClearFaults()
	s.log.Info("faults cleared")
	return nil, nil //nolint:nilnil // nil is the empty answer.
}

func (s *Server) controlRemoveFault(r *http.Request) (any, error) {
	if !s.RemoveFault(r.PathValue("id")) {
		return nil, controlErrorf(http.StatusNotFound, "there is no fault %q: GET /_emulator/faults lists them", r.PathValue("id"))
	}
	s.log.Info("fault removed", zap.String("fault", r.PathValue("id")))
	return nil, nil //nolint:nilnil // nil is the empty answer.
}

type tokenView struct {
	AccessKeyID string    `json:"access_key_id"`
	Issuer      Op        `json:"issuer"`
	Role        string    `json:"role,omitempty"`
	Policy      Policy    `json:"policy"`
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at"`
	Alive       bool      `json:"alive"`
}

func (s *Server) controlTokens(*http.Request) (any, error) {
	views := []tokenView{}
	now := s.wireTime()
	for c := range s.credentials.all {
		views = append(views, tokenView{
			AccessKeyID: c.id, Issuer: c.issuer, Role: c.role, Policy: c.policy,
			CreatedAt: c.created.UTC(), ExpiresAt: c.expires.UTC(), Alive: c.alive(now),
		})
	}
	slices.SortFunc(views, func(a, b tokenView) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return views, nil
}

func (s *Server) controlRevoke(*http.Request) (any, error) {
	return map[string]int{"revoked": s.RevokeTokens()}, nil
}

func (s *Server) controlClock(*http.Request) (any, error) {
	return map[string]any{"now": s.wireTime().UTC(), "offset": Duration(s.ClockOffset())}, nil
}

func (s *Server) controlSetClock(r *http.Request) (any, error) {
	var wanted struct {
		Offset *Duration `json:"offset"`
	}
	if err := readControl(r, &wanted); err != nil {
		return nil, err
	}
	if wanted.Offset == nil {
		return nil, errors.New(`there is no offset: write {"offset":"20m"}, {"offset":"0s"} for none`)
	}
	s.SetClockOffset(time.Duration(*wanted.Offset))
	return s.controlClock(r)
}

// policyView holds policies by what they bind: "server" for every request to MNS,
// "tokens" for those with Dybaseapi's tokens, else the operation that issues.
type policyView map[string]Policy

func policyName(issuer Op) string {
	if issuer == OpToken {
		return "tokens"
	}
	return string(issuer)
}

func (s *Server) controlPolicy(*http.Request) (any, error) {
	view := policyView{"server": loadPolicy(&s.policy)}
	for _, issuer := range issuers() {
		view[policyName(issuer)] = s.issuedPolicy(issuer)
	}
	return view, nil
}

func (s *Server) controlSetPolicy(r *http.Request) (any, error) {
	var wanted policyView
	if err := readControl(r, &wanted); err != nil {
		return nil, err
	}
	set := map[string]func(Policy) error{"server": s.SetPolicy}
	for _, issuer := range issuers() {
		set[policyName(issuer)] = func(policy Policy) error { return s.SetIssuedPolicy(issuer, policy) }
	}
	for name, policy := range wanted {
		if set[name] == nil {
			return nil, fmt.Errorf("there is no %q that a policy binds: write one of %v", name, slices.Sorted(maps.Keys(set)))
		}
		if err := set[name](policy); err != nil {
			return nil, err
		}
	}
	return s.controlPolicy(r)
}

// controlText is an answer that is no JSON.
type controlText string

// controlMintOIDC answers the token alone, to be written to a file as it is.
func (s *Server) controlMintOIDC(r *http.Request) (any, error) {
	var token OIDCToken
	if r.ContentLength != 0 {
		if err := readControl(r, &token); err != nil {
			return nil, err
		}
	}
	return controlText(s.MintOIDCToken(token)), nil
}

type metadataView struct {
	Role          *string `json:"role"`
	TokenRequired *bool   `json:"token_required"`
}

func (s *Server) controlMetadata(*http.Request) (any, error) {
	s.metadata.mu.Lock()
	defer s.metadata.mu.Unlock()
	role, required := s.metadata.role, s.metadata.tokenRequired
	return metadataView{&role, &required}, nil
}

func (s *Server) controlSetMetadata(r *http.Request) (any, error) {
	var wanted metadataView
	if err := readControl(r, &wanted); err != nil {
		return nil, err
	}
	if wanted.Role != nil {
		if err := s.SetInstanceRole(*wanted.Role); err != nil {
			return nil, err
		}
	}
	if wanted.TokenRequired != nil {
		s.RequireMetadataToken(*wanted.TokenRequired)
	}
	return s.controlMetadata(r)
}
