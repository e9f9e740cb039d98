package relay

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// Sink delivers messages to one destination, with the settings of one route. It is
// called concurrently; what is in flight is the confirm window.
type Sink interface {
	// Deliver tries each message once and calls done(i, r) once for each ms[i], in
	// any order and from any goroutine, before it returns. A message for which
	// done was not called counts as Retry. Delivered is said only after the far
	// side has confirmed. When ctx ends, Deliver returns without delay.
	Deliver(ctx context.Context, ms []Message, done func(i int, r Result))
}

// ErrSinkDown is what a sink wraps in the error of a Retry where the far side was gone,
// blocked or not connected yet: that is no failed try of the message, whatever the
// health is by the time the result is looked at.
var ErrSinkDown = errors.New("the sink is down")

// Endpoint is a configured sink: it owns the connections that its bound sinks
// share.
type Endpoint interface {
	// Run keeps the connections up until ctx ends, reconnecting for ever, then
	// closes them and returns nil. An error means that it cannot go on at all.
	// Sinks are used only while Run runs.
	Run(ctx context.Context) error
	// Health tells the present health and gives a channel that is closed when it
	// changes. What fails because the far side is gone is told of here first: a Retry
	// while the health is Up counts as a failed try, one while it is Down does not.
	Health() (Health, <-chan struct{})
	// Bind makes the Sink for one target of a route. Overrides, if not nil, decodes
	// the route's own settings over a copy of the sink's per-message settings.
	Bind(with Overrides) (Sink, error)
}

// Unbinder is a Sink that holds something of its endpoint: a channel, or an exchange that the
// endpoint looks after and tells the health of. A reload that changes a source binds its
// targets anew, to an endpoint that goes on.
type Unbinder interface {
	// Unbind gives that back. It is called once, after the last Deliver.
	Unbind()
}

// Overrides decodes what a route sets otherwise (`with:`) into settings, a pointer
// to a struct that holds the sink's own values. A key the struct does not have is
// an error.
type Overrides func(settings any) error

// Retries is how often a sink's failed messages are tried again while they are under
// lease, before they go back to the queue.
type Retries struct {
	// Attempts counts every try of one receive: 1 means no retry.
	Attempts int
	// Initial is the longest pause before the second try; it doubles up to Max. The
	// pause is random below that.
	Initial, Max time.Duration
	// Timeout is how long one try may take.
	Timeout time.Duration
}

// Retrier is a Sink with retries of its own.
type Retrier interface {
	Retries() Retries
}

// Resumer is an Endpoint that may have been told by the far side to leave it alone. Resume
// makes it try again: an operator who reloads the configuration may have mended the far
// side, even where the configuration is the same.
type Resumer interface {
	Resume()
}

// SinkDeps are what every sink is opened with.
type SinkDeps struct {
	// Name is the sink's name in the configuration.
	Name string
	// Instance names this process to the far side, in a connection name or user
	// agent: "mnsrelay/VERSION (HOST)".
	Instance string
	Log      *zap.Logger
}

// Reporter tells the health of what a sink delivers to; every Endpoint is one.
type Reporter interface {
	Health() (Health, <-chan struct{})
}
