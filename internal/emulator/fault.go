package emulator

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"mnsrelay/internal/setting"
)

// Connection is what a fault does to the connection of a request.
type Connection string

const (
	// Keep leaves it alone.
	Keep Connection = ""
	// DropBefore closes it without an answer, before the operation: nothing has
	// happened.
	DropBefore Connection = "drop_before"
	// DropAfter closes it without an answer, after the operation: a receive has
	// leased, a delete has deleted, and the client does not know.
	DropAfter Connection = "drop_after"
	// CutBody closes it in the middle of the answer's body, after the operation.
	CutBody Connection = "cut_body"
)

// Duration is a time.Duration that JSON writes as "1.5s".
type Duration time.Duration

// MarshalText writes the duration as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return errors.New("not a duration: write a number with its unit, as in 500ms or 2s")
	}
	*d = Duration(parsed)
	return nil
}

// Fault is something that goes wrong with requests. The first fault that matches a
// request and whose dice fall on it is applied, alone.
//
// With Status or Body the operation does not run and that is the answer. Otherwise
// it runs, and the delays and Connection apply to it.
type Fault struct {
	// ID names the fault in the controls; AddFault sets it.
	ID string `json:"id,omitempty"`
	// Operation is the kind of request; empty: any.
	Operation Op `json:"operation,omitempty"`
	// Queue is the queue's name; empty: any, and requests that name none.
	Queue string `json:"queue,omitempty"`

	// Status is the HTTP status of the answer, 200 to 599, and Code the code in its
	// error document, that of MNS or of the RPC services, by the request. Status 200
	// with a Code is how Dybaseapi says that it issued no token.
	Status int    `json:"status,omitempty"`
	Code   string `json:"code,omitempty"`
	// Message is the error document's; empty: one that says it was injected.
	Message string `json:"message,omitempty"`
	// Body replaces the error document by anything, as the page of a proxy, and
	// ContentType its type; empty: text/html.
	Body        string `json:"body,omitempty"`
	ContentType string `json:"content_type,omitempty"`

	// Delay passes before the operation, AnswerDelay after it: leases taken by it
	// grow old meanwhile.
	Delay       Duration `json:"delay,omitempty"`
	AnswerDelay Duration `json:"answer_delay,omitempty"`
	// Connection is what happens to the connection.
	Connection Connection `json:"connection,omitempty"`

	// PerSecond is how many matching requests are let through in any second: the fault
	// hits those above. 0: it lets none through.
	PerSecond int `json:"per_second,omitempty"`
	// Rate is the share of matching requests that are hit, above 0 to 1; 0: all.
	Rate float64 `json:"rate,omitempty"`
	// Count is how many requests are hit before the fault ends; 0: no end.
	Count int `json:"count,omitempty"`
	// Hits is how many were hit so far; AddFault sets it to 0.
	Hits int64 `json:"hits"`
}

// Validate reports everything that is wrong with the fault, joined, each a
// *setting.Problem.
func (f *Fault) Validate() error {
	var problems []error
	if f.Operation != "" && !slices.Contains(Ops(), f.Operation) {
		problems = append(problems, setting.Problemf("operation", "there is no operation %q: write one of %v", f.Operation, Ops()))
	}
	if f.Status != 0 && (f.Status < http.StatusOK || f.Status > 599) {
		problems = append(problems, setting.Problemf("status", "%d is no status of an answer: write 200 to 599", f.Status))
	}
	if f.Status == 0 && (f.Code != "" || f.Message != "") {
		problems = append(problems, setting.Problemf("status", "a code or message needs the HTTP status that goes with it"))
	}
	if f.Body != "" && (f.Code != "" || f.Message != "") {
		problems = append(problems, setting.Problemf("body", "write a body, or a code and message, not both"))
	}
	switch f.Connection {
	case Keep, DropBefore, DropAfter, CutBody:
	default:
		problems = append(problems, setting.Problemf("connection", "there is no %q: write %s, %s or %s", f.Connection, DropBefore, DropAfter, CutBody))
	}
	if f.Delay < 0 || f.AnswerDelay < 0 {
		problems = append(problems, setting.Problemf("delay", "must not be negative"))
	}
	if f.Rate < 0 || f.Rate > 1 {
		problems = append(problems, setting.Problemf("rate", "must be above 0 and at most 1"))
	}
	if f.PerSecond < 0 {
		problems = append(problems, setting.Problemf("per_second", "must not be negative"))
	}
	if f.Count < 0 {
		problems = append(problems, setting.Problemf("count", "must not be negative; 0 is no end"))
	}
	if !f.answers() && f.Delay == 0 && f.AnswerDelay == 0 && f.Connection == Keep {
		problems = append(problems, setting.Problemf("", "the fault does nothing: write a status, a body, a delay or a connection"))
	}
	return errors.Join(problems...)
}

func (f *Fault) answers() bool { return f.Status != 0 || f.Body != "" }

func (f *Fault) answer() answer {
	status := f.Status
	if status == 0 {
		status = http.StatusOK
	}
	if f.Body != "" {
		contentType := f.ContentType
		if contentType == "" {
			contentType = "text/html"
		}
		return answer{status: status, code: strconv.Itoa(status), contentType: contentType, body: []byte(f.Body)}
	}
	err := &wireError{status: status, code: f.Code, message: f.Message}
	if err.code == "" {
		err.code = "InternalError"
	}
	if err.message == "" {
		err.message = "This error was injected."
	}
	return failed(err)
}

// activeFault is a Fault in force.
type activeFault struct {
	Fault
	hits atomic.Int64

	mu     sync.Mutex
	passed []time.Time // when the last PerSecond requests were let through
}

// letThrough says whether one more request stays within PerSecond.
func (f *activeFault) letThrough() bool {
	if f.PerSecond == 0 {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if len(f.passed) == f.PerSecond {
		if now.Sub(f.passed[0]) < time.Second {
			return false
		}
		f.passed = f.passed[1:]
	}
	f.passed = append(f.passed, now)
	return true
}

// hit decides whether the fault applies to one more request.
func (f *activeFault) hit() bool {
	if f.letThrough() {
		return false
	}
	if f.Rate > 0 && rand.Float64() >= f.Rate { //nolint:gosec // G404: dice, no secret.
		return false
	}
	n := f.hits.Add(1)
	return f.Count == 0 || n <= int64(f.Count)
}

func (f *activeFault) snapshot() Fault {
	s := f.Fault
	s.Hits = f.hits.Load()
	if f.Count > 0 {
		s.Hits = min(s.Hits, int64(f.Count))
	}
	return s
}

// faultTable holds the faults in force, in the order they were added.
type faultTable struct {
	mu     sync.Mutex // for changes
	lastID int
	active atomic.Pointer[[]*activeFault] // never written to once stored
}

func (t *faultTable) list() []*activeFault {
	if active := t.active.Load(); active != nil {
		return *active
	}
	return nil
}

// match gives the fault that applies to a request.
func (t *faultTable) match(op Op, queue string) *activeFault {
	for _, f := range t.list() {
		if (f.Operation == "" || f.Operation == op) && (f.Queue == "" || f.Queue == queue) && f.hit() {
			return f
		}
	}
	return nil
}

func (t *faultTable) add(f Fault) Fault {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lastID++
	f.ID = strconv.Itoa(t.lastID)
	f.Hits = 0
	active := append(slices.Clone(t.list()), &activeFault{Fault: f})
	t.active.Store(&active)
	return f
}

// remove takes away the faults that match and gives how many did.
func (t *faultTable) remove(match func(*activeFault) bool) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.list()
	active := slices.DeleteFunc(slices.Clone(before), match)
	t.active.Store(&active)
	return len(before) - len(active)
}

// AddFault puts a fault in force, after those that are. Remove ends it.
func (s *Server) AddFault(fault Fault) (remove func(), err error) {
	added, err := s.addFault(fault)
	if err != nil {
		return nil, err
	}
	return func() { s.RemoveFault(added.ID) }, nil
}

func (s *Server) addFault(fault Fault) (Fault, error) {
	if err := fault.Validate(); err != nil {
		return Fault{}, fmt.Errorf("add fault: %w", err)
	}
	return s.faults.add(fault), nil
}

// RemoveFault ends the fault with the id and says whether there was one.
func (s *Server) RemoveFault(id string) bool {
	return s.faults.remove(func(f *activeFault) bool { return f.ID == id }) > 0
}

// ClearFaults ends every fault.
func (s *Server) ClearFaults() { s.faults.remove(func(*activeFault) bool { return true }) }

// Faults gives the faults added and not removed, those whose Count is used up
// among them.
func (s *Server) Faults() []Fault {
	faults := []Fault{}
	for _, f := range s.faults.list() {
		faults = append(faults, f.snapshot())
	}
	return faults
}
