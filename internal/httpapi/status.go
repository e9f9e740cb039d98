package httpapi

import (
	"context"
	"errors"

	"mnsrelay/api"
)

// ErrNotFound is what a Relay wraps where it has nothing of the name it was given.
var ErrNotFound = errors.New("not found")

// Relay is what the API shows. Every method answers from memory, without waiting
// for anything outside the process: the API answers within 100 ms whatever the
// brokers do. What they return holds no secret. They are called concurrently. The
// instance in what they return is filled in by the server.
type Relay interface {
	// Status is the present state of everything; the caller may keep it. Lists are ordered
	// by name, routes as they are written.
	Status() api.Status
	// History is that of the rates.
	History() api.History
	// Failures are the last ones of a source, or of all where it is empty, the newest first.
	Failures(source string) []api.Failure
	// Message tells what is known of a message. Where the ledger is outside the process it
	// is asked, for as long as ctx lasts. ErrNotFound: nothing is known.
	Message(ctx context.Context, id string) (api.MessageState, error)
	// Configuration is the one in force, and its text without secrets.
	Configuration() (api.Configuration, string)
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
	Reload(ctx context.Context) (api.Configuration, error)
}

// whole makes the lists and maps that are nil empty: the API gives [] and {}, never
// null.
func whole(s api.Status) api.Status {
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

func counts(m api.Counts) api.Counts {
	if m == nil {
		return api.Counts{}
	}
	return m
}
