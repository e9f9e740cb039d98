// Package broker is what the sinks that connect to a message broker share: how its address
// is read, how it is dialled, and when it is dialled again, and what names an event has there.
// It knows no protocol.
package broker

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"
)

const (
	// Between two tries to connect lies a random time below a bound that doubles
	// from the first to the last; it starts over after a connection that lasted.
	firstReconnect = 50 * time.Millisecond
	lastReconnect  = 800 * time.Millisecond
	lasted         = 5 * time.Second
	// silentLogin is the bound after a connection that ended during the login
	// without a word: wrong credentials or a broker that is going down.
	silentLogin = 5 * time.Second
	// refusedLogin lies between two tries with credentials that were refused: more
	// would lock accounts and fill the broker's log.
	refusedLogin = 30 * time.Second
)

// LoginError is a connection that the broker ended over the login.
type LoginError struct {
	// Message says so in words, without what the broker said: it may repeat what it was
	// sent.
	Message string
	// Refused says that the broker refused the credentials, and did not only hang up.
	Refused bool
}

func (e *LoginError) Error() string { return e.Message }

// Keeper keeps a connection up, to one of several addresses at a time.
type Keeper struct {
	// Addresses are tried in turn, from a random one on, so that replicas spread over
	// them.
	Addresses []string
	// Session is one connection to the address with an index, from dial to end: its error
	// says why it ended. It calls connected when the connection stands.
	Session func(ctx context.Context, index int, connected func()) error
	// Disconnected is told why there is no connection.
	Disconnected func(err error)
	Log          *zap.Logger
}

// Run connects for ever, until ctx ends. What repeats itself is logged once.
func (k *Keeper) Run(ctx context.Context) {
	said := make([]string, len(k.Addresses)) // what was last logged of each
	failures, refusals := 0, 0
	for i := rand.N(len(k.Addresses)); ctx.Err() == nil; i = (i + 1) % len(k.Addresses) { //nolint:gosec // No secret.
		began := time.Now()
		err := k.Session(ctx, i, func() {
			k.Log.Info("connected to the broker", zap.String("address", k.Addresses[i]))
			said[i] = ""
		})
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said[i] {
			said[i] = text
			k.Log.Warn("no connection to the broker", zap.String("address", k.Addresses[i]), zap.Error(err))
		}
		k.Disconnected(err)
		if time.Since(began) > lasted {
			failures = 0
		}
		bound := min(firstReconnect<<min(failures, 10), lastReconnect)
		failures++
		var login *LoginError
		switch {
		case !errors.As(err, &login):
			refusals = 0
		case login.Refused:
			// Another node may know the user, so only a whole round counts.
			if refusals++; refusals >= len(k.Addresses) {
				bound = 0
				wait(ctx, refusedLogin)
			}
		default:
			bound = max(bound, min(firstReconnect<<min(failures, 10), silentLogin))
		}
		if bound > 0 {
			wait(ctx, rand.N(bound)) //nolint:gosec // Jitter is no secret.
		}
	}
}

// wait returns after d, or when ctx ends.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

const (
	// What a broker refuses for now is tried again after a time that doubles from the first
	// to the last.
	firstRecheck = 250 * time.Millisecond
	lastRecheck  = 10 * time.Second
)

// Again is when something that has failed so often is tried again, at random; it counts
// this time.
func Again(failures *int) time.Time {
	pause := min(firstRecheck<<min(*failures, 10), lastRecheck)
	*failures++
	return time.Now().Add(pause/2 + rand.N(pause/2)) //nolint:gosec // Jitter is no secret.
}
