package dryrun

import (
	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

// Explanation is what would become of a message.
type Explanation struct {
	// Message is what routes and sinks see: decoded.
	Message relay.Message
	// Routes are those of its source, in order; none where it cannot be decoded.
	Routes []Route
	// Rejected is why the message is rejected, nil if it is not.
	Rejected error
	// DeadLetter is what its dead-letter sink would get; nil: nothing.
	DeadLetter *Delivery
	// End says in words what becomes of it in the queue, and Retained whether it stays there.
	End      string
	Retained bool
}

// Route is what one route would do.
type Route struct {
	// Name and When are those of the configuration; When is empty without a condition.
	Name, When string
	Matches    bool
	// Err is why the condition is neither true nor false: nobody gets the message then.
	Err error
	// Steps are the parts of the condition.
	Steps []expr.Step
	// Deliveries are those to its sinks; none where it does not match.
	Deliveries []Delivery
}

// Delivery is what one sink would get.
type Delivery struct {
	// Route is empty for a dead letter.
	Route, Sink, Type string
	Required          bool
	// Address is what an audit calls the far side (relay.Addressed).
	Address string
	Preview relay.Preview
	// Err is why the sink would reject the message.
	Err error
}

// Deliveries are all that would be made, dead letter included.
func (e *Explanation) Deliveries() (made []Delivery) {
	for _, r := range e.Routes {
		for _, d := range r.Deliveries {
			if d.Err == nil {
				made = append(made, d)
			}
		}
	}
	if e.DeadLetter != nil && e.DeadLetter.Err == nil {
		made = append(made, *e.DeadLetter)
	}
	return made
}
