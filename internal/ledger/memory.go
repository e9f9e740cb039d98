package ledger

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"mnsrelay/internal/relay"
)

// Memory is a ledger of this process: exact, bounded, and gone with the process.
//
// When it is full it keeps the confirms that were asked for and drops those that never
// were. Under a flood of redeliveries, where messages come round one after another, to
// drop the oldest would forget each just before it is asked for.
type Memory struct {
	entries *otter.Cache[relay.LedgerKey, struct{}]
	clock   clock
	evicted atomic.Uint64

	mu     sync.Mutex
	upkeep []func() // that the cache has asked for
}

var _ Ledger = (*Memory)(nil)

// NewMemory makes a ledger of cfg.MaxEntries and cfg.TTL.
func NewMemory(cfg Config) (*Memory, error) {
	m := &Memory{clock: clock{start: time.Now()}}
	entries, err := otter.New(&otter.Options[relay.LedgerKey, struct{}]{
		MaximumSize:      cfg.MaxEntries,
		ExpiryCalculator: otter.ExpiryWriting[relay.LedgerKey, struct{}](cfg.TTL),
		Executor:         m.later,
		Clock:            &m.clock,
		OnAtomicDeletion: func(e otter.DeletionEvent[relay.LedgerKey, struct{}]) {
			if e.Cause == otter.CauseOverflow {
				m.evicted.Add(1)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("make the ledger: %w", err)
	}
	// The goroutine that would clean up on ticks has found none; this waits for its end.
	entries.StopAllGoroutines()
	m.entries = entries
	return m, nil
}

// Confirmed is part of relay.Ledger. It fails only if ctx has ended.
func (m *Memory) Confirmed(ctx context.Context, keys []relay.LedgerKey) ([]bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.clock.read()
	defer m.keepUp()
	confirmed := make([]bool, len(keys))
	for i := range keys {
		_, confirmed[i] = m.entries.GetIfPresent(keys[i])
	}
	return confirmed, nil
}

// Record is part of relay.Ledger. It fails only if ctx has ended.
func (m *Memory) Record(ctx context.Context, keys []relay.LedgerKey) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.clock.read()
	defer m.keepUp()
	for _, key := range keys {
		// An id may be a piece of a whole batch's text, which must not live as long.
		key.Message = strings.Clone(key.Message)
		m.entries.Set(key, struct{}{})
	}
	return nil
}

// Forget is part of relay.Ledger. It fails only if ctx has ended.
func (m *Memory) Forget(ctx context.Context, keys []relay.LedgerKey) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.clock.read()
	defer m.keepUp()
	for i := range keys {
		m.entries.Invalidate(keys[i])
	}
	return nil
}

// Status is part of Ledger.
func (m *Memory) Status() Status {
	return Status{Entries: m.entries.EstimatedSize(), Evicted: m.evicted.Load()}
}

// Close drops everything.
func (m *Memory) Close() error {
	m.entries.InvalidateAll()
	return nil
}

// later takes upkeep that the cache asks for: what evicts and expires. It costs the same
// for one entry as for a batch, so it waits for the end of a call, which does it itself:
// no goroutine outlives a call.
func (m *Memory) later(upkeep func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.upkeep = append(m.upkeep, upkeep)
}

func (m *Memory) keepUp() {
	m.mu.Lock()
	upkeep := m.upkeep
	m.upkeep = nil
	m.mu.Unlock()
	for _, do := range upkeep {
		do()
	}
}

// clock counts from its start by the monotonic clock: a wall clock that is set shortens
// and lengthens nothing. It is read once a call, not once a key. It does not tick: what has
// expired is never seen, and its room is taken back by the writes that need it.
type clock struct {
	start time.Time
	now   atomic.Int64
}

func (c *clock) read() { c.now.Store(int64(time.Since(c.start))) }

// NowNano is part of otter.Clock.
func (c *clock) NowNano() int64 { return c.now.Load() }

// Tick is part of otter.Clock.
func (*clock) Tick(time.Duration) <-chan time.Time { return nil }
