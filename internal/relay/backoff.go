package relay

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// pause is a growing time to wait between tries.
type pause struct {
	class   Class
	backoff backoff.BackOff
}

func (p *pause) wait(ctx context.Context) {
	timer := time.NewTimer(p.backoff.NextBackOff())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// backoffFor is how long a poller waits after an error of the class: long where only
// an operator can mend it, short where it passes by itself.
func backoffFor(class Class) backoff.BackOff {
	switch class {
	case ClassThrottled:
		return exponential(time.Second, 30*time.Second)
	case ClassAuth:
		return exponential(500*time.Millisecond, 5*time.Second)
	case ClassNotFound:
		return exponential(time.Second, 30*time.Second)
	case ClassNetwork:
		return exponential(200*time.Millisecond, 5*time.Second)
	case ClassNoKeys: // asking costs nothing, and the credential has a pace of its own
		return exponential(100*time.Millisecond, 500*time.Millisecond)
	case ClassServer, ClassUnknown:
		return exponential(500*time.Millisecond, 10*time.Second)
	}
	return exponential(500*time.Millisecond, 10*time.Second)
}

// emptyBackoff is the pause after a poll that came back empty before its time.
func emptyBackoff() backoff.BackOff { return exponential(100*time.Millisecond, 5*time.Second) }

func exponential(initial, limit time.Duration) backoff.BackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = initial
	b.MaxInterval = limit
	b.Multiplier = 2
	b.RandomizationFactor = 0.3
	b.Reset()
	return b
}

// kindOf tells failures apart for the log: by class and code, not by their text.
func kindOf(err error) string {
	var coded interface{ ErrorCode() string }
	if errors.As(err, &coded) {
		return ClassOf(err).String() + " " + coded.ErrorCode()
	}
	return ClassOf(err).String()
}
