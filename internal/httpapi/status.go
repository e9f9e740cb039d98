package httpapi

import (
	"context"
	"time"

	"mnsrelay/internal/relay"
)

// Relay is what the API shows. Every method answers from memory, without waiting
// for anything outside the process: the API answers within 100 ms whatever the
// brokers do. What they return holds no secret. They are called concurrently.
type Relay interface {
	// Status is the present state of everything; the caller may keep it.
	Status() Status
	// Ready is true once every credential and every required sink has worked once
	// and every source has been received from once, until a drain begins. Where it
	// is false, waiting says in words what has not worked yet.
	Ready() (ok bool, waiting []string)
	// Live is an error only for what a restart would mend. A broker that is down is
	// none of it.
	Live() error
	// Pause stops a source from receiving, and Resume lets it; they wait for nothing.
	// ErrNotFound: there is no source of that name.
	Pause(source string) error
	Resume(source string) error
	// Reload reads the configuration again and gives what is then in force. It returns
	// once the change has begun, or with the reason why there is none; ctx bounds the
	// wait for a reload that is still under way.
	Reload(ctx context.Context) (Configuration, error)
}

// Status is the answer of GET /api/v1/status. Lists are ordered by name, routes as
// they are written.
type Status struct {
	// Instance is filled in by the server.
	Instance string    `json:"instance"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	State    State     `json:"state"`
	// Configuration is the one in force.
	Configuration Configuration `json:"configuration"`
	Sources       []Source      `json:"sources"`
	Sinks         []Sink        `json:"sinks"`
	Routes        []Route       `json:"routes"`
}

// State is where the process is in its life.
type State string

// The states of the process.
const (
	Starting State = "starting"
	Running  State = "running"
	Draining State = "draining"
)

// Source is one queue and its pipeline.
type Source struct {
	Name  string `json:"name"`
	Queue string `json:"queue"`
	// State is what the pipeline is doing.
	State relay.SourceState `json:"state"`
	// Reason says in words why the state is not running or, where it is, what to be
	// warned of.
	Reason  string `json:"reason,omitempty"`
	Pollers int64  `json:"pollers"`
	// Returned counts messages that were given back to the queue, by reason.
	Returned map[string]uint64 `json:"returned"`
	// Retried counts tries that failed and are made again, by reason.
	Retried map[string]uint64 `json:"retried"`
	// DeadLettered counts messages that the dead-letter sink has, by reason; they are
	// among the deleted.
	DeadLettered map[string]uint64 `json:"dead_lettered"`
	// GivenUp counts deliveries that failed and are not tried again, by reason.
	GivenUp map[string]uint64 `json:"given_up"`
	Balance Balance           `json:"balance"`
	// LastReceive is when messages were last received.
	LastReceive time.Time   `json:"last_receive,omitzero"`
	LastError   *Error      `json:"last_error,omitempty"`
	Credential  *Credential `json:"credential,omitempty"`
	// QueueMessages is absent where the queue does not tell.
	QueueMessages *QueueMessages `json:"queue_messages,omitempty"`
}

// Balance accounts for every message that was received since the process started.
type Balance struct {
	Received   uint64 `json:"received"`
	Deleted    uint64 `json:"deleted"`
	Returned   uint64 `json:"returned"`
	LostLeases uint64 `json:"lost_leases"`
	InFlight   int64  `json:"in_flight"`
	// Exact says that received is the sum of the others.
	Exact bool `json:"exact"`
}

// NewBalance fills in Exact.
func NewBalance(received, deleted, returned, lostLeases uint64, inFlight int64) Balance {
	return Balance{
		Received:   received,
		Deleted:    deleted,
		Returned:   returned,
		LostLeases: lostLeases,
		InFlight:   inFlight,
		Exact:      inFlight >= 0 && received == deleted+returned+lostLeases+uint64(inFlight),
	}
}

// Error is something that went wrong.
type Error struct {
	Text string    `json:"text"`
	Time time.Time `json:"time"`
	// Class is the kind of trouble, a relay.Class.
	Class string `json:"class,omitempty"`
}

// Credential is what a source signs its requests with.
type Credential struct {
	// Type is the credential's type in the configuration: static, mns_token...
	Type string `json:"type"`
	// Expires is absent where the credential does not expire, or is not there yet.
	Expires time.Time `json:"expires,omitzero"`
	// LastRefresh is when the credential was last fetched with success.
	LastRefresh time.Time `json:"last_refresh,omitzero"`
	LastError   *Error    `json:"last_error,omitempty"`
}

// QueueMessages are the counts that the queue gives of itself, approximate. A
// count that it does not give is absent, which is not the same as 0.
type QueueMessages struct {
	Active   *int64 `json:"active,omitempty"`
	Inactive *int64 `json:"inactive,omitempty"`
	Delayed  *int64 `json:"delayed,omitempty"`
}

// Sink is one destination.
type Sink struct {
	Name string `json:"name"`
	Type string `json:"type"`
	// State is up, down or probe: one message at a time, to find out.
	State string `json:"state"`
	// Reason says in words why the state is not up.
	Reason string `json:"reason,omitempty"`
	// Since is when the state began.
	Since     time.Time `json:"since"`
	Delivered uint64    `json:"delivered"`
	// Failed counts tries that did not deliver, by reason.
	Failed map[string]uint64 `json:"failed"`
}

// Route says which sources go to which sinks.
type Route struct {
	Name string   `json:"name"`
	From []string `json:"from"`
	To   []Target `json:"to"`
}

// Target is one sink of a route.
type Target struct {
	Sink     string `json:"sink"`
	Required bool   `json:"required"`
}

// whole makes the lists and maps that are nil empty: the API gives [] and {}, never
// null.
func (s Status) whole() Status {
	s.Sources = list(s.Sources)
	for i := range s.Sources {
		s.Sources[i].Returned = counts(s.Sources[i].Returned)
		s.Sources[i].Retried = counts(s.Sources[i].Retried)
		s.Sources[i].DeadLettered = counts(s.Sources[i].DeadLettered)
		s.Sources[i].GivenUp = counts(s.Sources[i].GivenUp)
	}
	s.Sinks = list(s.Sinks)
	for i := range s.Sinks {
		s.Sinks[i].Failed = counts(s.Sinks[i].Failed)
	}
	s.Routes = list(s.Routes)
	for i := range s.Routes {
		s.Routes[i].From, s.Routes[i].To = list(s.Routes[i].From), list(s.Routes[i].To)
	}
	return s
}

// list copies, so that the caller's Status is left alone.
func list[T any](l []T) []T { return append([]T{}, l...) }

func counts(m map[string]uint64) map[string]uint64 {
	if m == nil {
		return map[string]uint64{}
	}
	return m
}
