// Package mns is the sink that sends messages to another MNS queue: a destination like
// any other, or the place for dead letters.
//
// A message counts as delivered when MNS has answered its send with a message id of its
// own. Messages go in requests of up to 16 bodies and 64 KiB; of a request that was
// taken in part, only the rest is tried again. A message of MNS has a body and nothing
// else: format raw sends that alone, so id and headers are lost, and format envelope
// sends all of it in JSON. Dead letters always go in envelopes, for the reason must not
// be lost. What is too large to be sent is Rejected: a dead letter stays in its queue
// then.
//
// # Health
//
// The endpoint is Down until its first credential has come and the queue has told its
// attributes, the one request that changes nothing. Keys that may only send are refused
// those; that answer shows that the server and the keys are good, so the endpoint is Up
// and the first send tells the rest. A send that fails as a whole makes it Down before
// its messages are answered for, so that they are held and not counted as failed. From
// then on the attributes are asked for at growing distances, 5 s at most, and where they
// come the endpoint is on Probe until a send has worked.
package mns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

const (
	// concurrentRequests bounds the requests at a time: each takes a connection.
	concurrentRequests = 16
	// checkTimeout bounds the question whether the queue is there.
	checkTimeout = 10 * time.Second
	// retryFirst and retryMost bound the wait between two tries to find out whether
	// messages are taken again, jitter aside.
	retryFirst  = 200 * time.Millisecond
	retryMost   = 5 * time.Second
	retryJitter = 0.3
)

var (
	errStopped = errors.New("the sink is closed")
	errTimeout = errors.New("no answer within the timeout")
)

// Endpoint is one queue with its credential. Make it with New.
type Endpoint struct {
	settings  Settings
	endpoint  setting.URL
	name      string // of the queue
	refresher *credentials.Refresher
	// credentials are what refresher fetches by.
	credentials *credentials.Config
	queue       *mns.Queue
	monitor     *relay.Monitor
	log         *zap.Logger

	// slots holds a token for each request under way.
	slots chan struct{}
	// stopped is closed when Run's ctx has ended.
	stopped chan struct{}
	// trouble tells watch of a send that failed; size 1.
	trouble chan struct{}

	mu sync.Mutex
	// unproven: a send has failed and none has worked since.
	unproven bool
	// proved: all has worked since watch last looked.
	proved bool
	closed bool
}

var (
	_ relay.Endpoint  = (*Endpoint)(nil)
	_ relay.Sink      = (*Sink)(nil)
	_ relay.Previewer = (*Sink)(nil)
)

// New makes the endpoint of a validated Config. It opens no connection.
func New(c *Config, deps relay.SinkDeps) (*Endpoint, error) {
	keys := c.Credentials
	keys.Defaults(os.Getenv)
	provider, err := keys.Provider(c.Queue)
	if err != nil {
		return nil, err
	}
	e := &Endpoint{
		settings:    c.Settings,
		endpoint:    c.Endpoint,
		name:        c.Queue,
		refresher:   credentials.NewRefresher(provider, &keys, deps.Log),
		credentials: &keys,
		monitor:     relay.NewMonitor(relay.Down, "the credential is being fetched"),
		log:         deps.Log,
		slots:       make(chan struct{}, concurrentRequests),
		stopped:     make(chan struct{}),
		trouble:     make(chan struct{}, 1),
	}
	e.queue, err = mns.NewQueue(mns.Config{
		Name: deps.Name, Endpoint: c.Endpoint.Reveal(), Queue: c.Queue,
		// Every call has a context that ends sooner: a route may have a timeout of its own.
		RequestTimeout: maxTimeout, DialTimeout: maxTimeout,
	}, mns.Deps{Credentials: e.refresher, Log: deps.Log})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Run keeps the credential fresh and watches the queue until ctx ends; then it ends the
// requests under way and closes the connections. It may run once.
func (e *Endpoint) Run(ctx context.Context) error {
	var refreshing sync.WaitGroup
	refreshing.Go(func() { _ = e.refresher.Run(ctx, e.name) }) // it has no error
	e.watch(ctx)

	close(e.stopped)
	e.mu.Lock()
	e.closed = true
	e.monitor.Set(relay.Down, "closed")
	e.mu.Unlock()
	e.queue.Close()
	for range cap(e.slots) {
		e.slots <- struct{}{} // for good: no request starts any more
	}
	refreshing.Wait()
	return nil
}

// Health tells whether the queue takes messages.
func (e *Endpoint) Health() (relay.Health, <-chan struct{}) { return e.monitor.Health() }

// Bind makes a Sink with the settings that a route sets otherwise.
func (e *Endpoint) Bind(with relay.Overrides) (relay.Sink, error) {
	settings := e.settings
	if with != nil {
		if err := with(&settings); err != nil {
			return nil, err
		}
		if err := settings.validate(); err != nil {
			return nil, err
		}
	}
	return &Sink{endpoint: e, settings: settings}, nil
}

// watch brings the health up again whenever it is down.
func (e *Endpoint) watch(ctx context.Context) {
	if !e.awaitCredential(ctx) {
		return
	}
	pause := &backoff.ExponentialBackOff{
		InitialInterval: retryFirst, MaxInterval: retryMost, Multiplier: 2, RandomizationFactor: retryJitter,
	}
	pause.Reset()
	for {
		select {
		case <-e.trouble: // the answer to what is asked now is newer
		default:
		}
		err := e.check(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			e.down(err)
		default:
			e.answers()
			select {
			case <-e.trouble:
			case <-ctx.Done():
				return
			}
			if e.takeProved() {
				pause.Reset()
			}
		}
		select {
		case <-time.After(pause.NextBackOff()):
		case <-ctx.Done():
			return
		}
	}
}

// awaitCredential waits for the first credential and tells meanwhile why there is none.
func (e *Endpoint) awaitCredential(ctx context.Context) bool {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-e.refresher.Ready():
			return true
		case <-look.C:
			if cause := e.refresher.Status().LastError; cause != "" {
				e.down(fmt.Errorf("there is no credential: %s", cause))
			}
		case <-ctx.Done():
			return false
		}
	}
}

// check asks for the queue's attributes. Keys that are good and may not read them are
// no error.
func (e *Endpoint) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, errTimeout)
	defer cancel()
	keys, _ := e.refresher.Current() // without keys the call says so
	_, err := e.queue.Attributes(ctx)
	switch {
	case err == nil, mns.NotAllowed(err):
		return nil
	case errors.Is(context.Cause(ctx), errTimeout):
		return fmt.Errorf("attributes: %w", errTimeout)
	}
	e.refused(keys, err)
	return err
}

// refused has other keys fetched if these were refused.
func (e *Endpoint) refused(keys credentials.Keys, err error) {
	if answer, is := errors.AsType[*mns.Error](err); is && answer.Status != 0 && answer.Class() == relay.ClassAuth {
		e.refresher.Refused(keys)
	}
}

// answers notes that the queue is there.
func (e *Endpoint) answers() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if h, _ := e.monitor.Health(); h.State != relay.Down {
		return // a send knows better
	}
	if e.unproven {
		e.set(relay.Probe, "the last send failed; trying with one message")
		return
	}
	e.proved = true
	e.set(relay.Up, "")
}

// takes notes a send that worked.
func (e *Endpoint) takes() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.unproven, e.proved = false, true
	e.set(relay.Up, "")
}

// takesNot notes a send that failed as a whole.
func (e *Endpoint) takesNot(err error) {
	e.mu.Lock()
	e.unproven = true
	e.mu.Unlock()
	e.down(err)
	select {
	case e.trouble <- struct{}{}:
	default:
	}
}

func (e *Endpoint) takeProved() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	proved := e.proved
	e.proved = false
	return proved
}

func (e *Endpoint) down(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.set(relay.Down, hinted(err))
}

// set changes the health, unless it is closed, and logs what an operator would miss.
func (e *Endpoint) set(state relay.State, reason string) {
	if e.closed {
		return
	}
	before, _ := e.monitor.Health()
	if !e.monitor.Set(state, reason) {
		return
	}
	switch state {
	case relay.Down:
		e.log.Warn("the queue takes no messages", zap.String("queue", e.name), zap.String("reason", reason))
	case relay.Up:
		e.log.Info("the queue takes messages", zap.String("queue", e.name), zap.Duration("after", time.Since(before.Since)))
	case relay.Probe:
	}
}

// hinted adds to an error what an operator can do about it.
func hinted(err error) string {
	text := err.Error()
	switch {
	case mns.NotAllowed(err):
		text += "; allow the keys mns:SendMessage on the queue"
	case relay.ClassOf(err) == relay.ClassNotFound:
		text += "; create the queue, or check the endpoint and the name"
	}
	return text
}
