package ledger

import (
	"context"
	"io"
	"maps"
	"sync"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/relay"
)

const (
	// patience is how many failures in a row make the guard leave calls out.
	patience = 3
	// pause is for how long calls are left out until one is tried again.
	pause = time.Second
)

// Guard keeps a ledger that fails from doing harm. Its calls never fail: what cannot be
// asked is not confirmed, what cannot be recorded or forgotten is not, which costs
// duplicates. A call takes callTimeout at most; after patience failures in a row calls
// are left out, and one in each pause is tried, so that a ledger that hangs does not hold
// up every batch. A failure is counted, and logged when failures begin and when they have
// ended, at most once a pause.
type Guard struct {
	ledger relay.Ledger
	log    *zap.Logger

	mu       sync.Mutex
	failures map[string]uint64
	// row is how many calls in a row have failed; from patience on, calls are left out
	// until retry, and trying says that the one which may be tried is under way.
	row    int
	retry  time.Time
	trying bool
	// err is the last failure of those that have not ended; since, when they began; last,
	// the time of the latest; count, how many calls they have cost.
	err         error
	since, last time.Time
	count       int
}

var _ Ledger = (*Guard)(nil)

// NewGuard guards ledger, which it closes if that is an io.Closer.
func NewGuard(ledger relay.Ledger, log *zap.Logger) *Guard {
	return &Guard{ledger: ledger, log: log, failures: map[string]uint64{
		OperationConfirmed: 0, OperationRecord: 0, OperationForget: 0,
	}}
}

// Confirmed is part of relay.Ledger. Its error is always nil.
func (g *Guard) Confirmed(ctx context.Context, keys []relay.LedgerKey) ([]bool, error) {
	var confirmed []bool
	worked := g.call(ctx, OperationConfirmed, len(keys), func(ctx context.Context) (err error) {
		confirmed, err = g.ledger.Confirmed(ctx, keys)
		return err
	})
	if !worked || len(confirmed) != len(keys) {
		confirmed = make([]bool, len(keys))
	}
	return confirmed, nil
}

// Record is part of relay.Ledger. Its error is always nil.
func (g *Guard) Record(ctx context.Context, keys []relay.LedgerKey) error {
	g.call(ctx, OperationRecord, len(keys), func(ctx context.Context) error { return g.ledger.Record(ctx, keys) })
	return nil
}

// Forget is part of relay.Ledger. Its error is always nil.
func (g *Guard) Forget(ctx context.Context, keys []relay.LedgerKey) error {
	g.call(ctx, OperationForget, len(keys), func(ctx context.Context) error { return g.ledger.Forget(ctx, keys) })
	return nil
}

// call tells whether f was called and worked.
func (g *Guard) call(ctx context.Context, operation string, keys int, f func(context.Context) error) (worked bool) {
	if keys == 0 || ctx.Err() != nil || !g.admit(operation) {
		return false
	}
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := f(bounded)
	g.done(operation, err, ctx.Err() != nil)
	return err == nil
}

// admit tells whether a call may be made; one that may not counts as failed.
func (g *Guard) admit(operation string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.row < patience {
		return true
	}
	if g.trying || time.Now().Before(g.retry) {
		g.failures[operation]++
		g.count++
		return false
	}
	g.trying = true
	return true
}

// done takes note of how a call went. The failure of one whose caller has left says
// nothing about the ledger.
func (g *Guard) done(operation string, err error, left bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trying = false
	now := time.Now()
	if err == nil {
		g.row = 0
		// A ledger that fails now and then is not back at each success.
		if g.err != nil && now.Sub(g.last) >= pause {
			g.log.Info("the ledger works again", zap.Duration("after", now.Sub(g.since)), zap.Int("failures", g.count))
			g.err, g.since, g.count = nil, time.Time{}, 0
		}
		return
	}
	if left {
		return
	}
	if g.err == nil {
		g.since = now
		g.log.Warn("the ledger fails: what sinks confirm is not remembered, and a message that comes again may reach a sink twice",
			zap.String("operation", operation), zap.Error(err))
	}
	g.err, g.last = err, now
	g.failures[operation]++
	g.count++
	if g.row++; g.row >= patience {
		g.retry = now.Add(pause)
	}
}

// Status is part of Ledger.
func (g *Guard) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Status{Err: g.err, Since: g.since, Failures: maps.Clone(g.failures)}
}

// Close closes the ledger.
func (g *Guard) Close() error {
	if c, ok := g.ledger.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
