package relay

import (
	"context"
	"errors"
)

// Source is one queue. It is safe for concurrent use.
type Source interface {
	// Receive leases up to limit messages, at most 16. With wait it blocks until a
	// message comes or the source's own wait has passed. Nothing there: nil, nil.
	// Cancelling ctx ends the call at once.
	Receive(ctx context.Context, limit int, wait bool) ([]Delivery, error)
	// Extend renews the lease of d for as long as the queue's first lease was and
	// gives the new receipt and deadline; the old receipt is dead from then on.
	// ErrLeaseLost: another receiver may have the message. ErrNotPermitted: the
	// credential may not renew. Any other error: try again until d.Deadline.
	Extend(ctx context.Context, d Delivery) (Delivery, error)
	// Settle deletes or returns deliveries and gives an error or nil for each, in
	// order. It may wait 20 ms to share a request with other calls. Only nil says
	// that the queue did what was asked. ErrLeaseLost: the receipt is no longer
	// valid. ErrNotPermitted: the credential may not change the visibility; the
	// message comes back when its lease ends.
	Settle(ctx context.Context, ss []Settlement) []error
}

// ErrLeaseLost says that a receipt is no longer valid: the lease has ended or was
// renewed by a later receipt.
var ErrLeaseLost = errors.New("lease lost")

// ErrNotPermitted says that the credential works but may not do this. It is no
// reason to fetch a new one.
var ErrNotPermitted = errors.New("not permitted")

// Class is the kind of trouble that a source reports; how long a poller waits
// before it asks again depends on it.
type Class uint8

// The classes. ClassUnknown is everything that no adapter has classified.
const (
	ClassUnknown   Class = iota
	ClassThrottled       // the server limits the rate
	ClassAuth            // the credential is refused
	ClassNotFound        // the queue does not exist
	ClassNetwork         // no answer: DNS, dial, TLS, reset, timeout
	ClassServer          // an answer that says the server failed, or that is not MNS
	ClassNoKeys          // there is nothing to sign with, so nothing was asked
)

func (c Class) String() string {
	switch c {
	case ClassUnknown:
		return "unknown"
	case ClassThrottled:
		return "throttled"
	case ClassAuth:
		return "auth"
	case ClassNotFound:
		return "not_found"
	case ClassNetwork:
		return "network"
	case ClassServer:
		return "server"
	case ClassNoKeys:
		return "no_keys"
	}
	return "unknown"
}

// ClassOf finds the class that an adapter gave to err: the Class method of the
// first error in its chain that has one.
func ClassOf(err error) Class {
	var c interface{ Class() Class }
	if errors.As(err, &c) {
		return c.Class()
	}
	return ClassUnknown
}
