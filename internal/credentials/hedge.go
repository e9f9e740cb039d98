package credentials

import (
	"cmp"
	"context"
	"time"
)

// hedgeAfter is when a server that has not answered is asked once more beside: the first
// answer counts, so that one that hung gives keys within five seconds of its return, and one
// that is slow has its time.
const hedgeAfter = 3 * time.Second

// abandonAfter is how long an attempt may take to end once its time is over: what reads a
// file may not be told.
const abandonAfter = 100 * time.Millisecond

// fetched is what came of asking for keys.
type fetched struct {
	keys Keys
	err  error
}

// hedged asks for keys, and where no answer comes, once more beside, when turn says so. The
// first answer counts; it ends the others. ctx bounds it all, each attempt has patience.
func hedged(ctx context.Context, patience time.Duration, turn func(context.Context) error, retrieve func(context.Context) (Keys, error)) (Keys, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan fetched, patience/hedgeAfter+2) // room for all: none waits for a reader
	begun := make(chan struct{}, 1)                      // holds the right to begin another
	ask := func(wait func(context.Context) error) {
		if wait(ctx) != nil {
			return
		}
		begun <- struct{}{}
		attempt, end := context.WithTimeout(ctx, patience)
		defer end()
		keys, err := retrieve(attempt)
		answers <- fetched{keys, err}
	}
	go ask(noTurn)
	hedge := time.NewTicker(hedgeAfter)
	defer hedge.Stop()
	late := time.NewTimer(patience + abandonAfter)
	defer late.Stop()
	for {
		select {
		case a := <-answers:
			return a.keys, a.err
		case <-late.C:
			return Keys{}, networkError(opKeys, context.DeadlineExceeded)
		case <-ctx.Done():
			// The answer of an attempt that was told to end says more.
			select {
			case a := <-answers:
				return a.keys, a.err
			case <-time.After(abandonAfter):
				return Keys{}, networkError(opKeys, ctx.Err())
			}
		case <-hedge.C:
			select {
			case <-begun:
				go ask(func(ctx context.Context) error { return cmp.Or(turn(ctx), ctx.Err()) })
			default: // the last one still waits for its turn
			}
		}
	}
}

// opKeys is what an Error calls the asking where it cannot tell the call.
const opKeys = "for keys"
