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
//
// Nearly every confirm is forgotten milliseconds after it was recorded, when its message
// has been deleted. A map is enough for these, and takes a tenth of the time: only what
// stays until the map is full goes to the cache, which evicts.
type Memory struct {
	clock   clock
	ttl     time.Duration
	entries *otter.Cache[relay.LedgerKey, int64] // as fresh
	evicted atomic.Uint64

	mu sync.Mutex
	// fresh are the latest confirms, with when they were recorded by clock. It never has
	// more than room.
	fresh  map[relay.LedgerKey]int64
	room   int
	tidied int64 // when, by clock

	upkeepMu sync.Mutex
	upkeep   []func() // that the cache has asked for
}

var _ Ledger = (*Memory)(nil)

// maxFresh is how many confirms are kept in the map at most: what several sources at full
// speed have in flight.
const maxFresh = 4096

// NewMemory makes a ledger of cfg.MaxEntries and cfg.TTL.
func NewMemory(cfg Config) (*Memory, error) {
	const share = 16 // of a small ledger: evictions are to be the cache's, which chooses well
	m := &Memory{
		clock: clock{start: time.Now()}, ttl: cfg.TTL,
		fresh: make(map[relay.LedgerKey]int64), room: min(maxFresh, cfg.MaxEntries/share),
	}
	entries, err := otter.New(&otter.Options[relay.LedgerKey, int64]{
		MaximumSize: cfg.MaxEntries - m.room,
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[relay.LedgerKey, int64]) time.Duration {
			return m.left(e.Value, e.SnapshotAtNano)
		}),
		Executor: m.later,
		Clock:    &m.clock,
		OnAtomicDeletion: func(e otter.DeletionEvent[relay.LedgerKey, int64]) {
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
	now := m.clock.read()
	defer m.keepUp()
	confirmed := make([]bool, len(keys))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tidy(now)
	for i := range keys {
		if recorded, found := m.fresh[keys[i]]; found && m.left(recorded, now) > 0 {
			confirmed[i] = true
		} else {
			_, confirmed[i] = m.entries.GetIfPresent(keys[i])
		}
	}
	return confirmed, nil
}

// Record is part of relay.Ledger. It fails only if ctx has ended.
func (m *Memory) Record(ctx context.Context, keys []relay.LedgerKey) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	now := m.clock.read()
	defer m.keepUp()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tidy(now)
	for _, key := range keys {
		// An id may be a piece of a whole batch's text, which must not live as long.
		key.Message = strings.Clone(key.Message)
		if m.fresh[key] = now; len(m.fresh) > m.room {
			m.spill(now)
		}
	}
	return nil
}

// spill moves what is fresh to the cache, where it expires when it would have here. The
// cache's upkeep is done in between: it waits for that where too much has come together.
func (m *Memory) spill(now int64) {
	const together = 64
	moved := 0
	for key, recorded := range m.fresh {
		if m.left(recorded, now) <= 0 {
			continue
		}
		m.entries.Set(key, recorded)
		if moved++; moved%together == 0 {
			m.keepUp()
		}
	}
	clear(m.fresh)
}

// tidy drops what has expired, every now and then: nothing else would where confirms are
// forgotten as soon as they are recorded.
func (m *Memory) tidy(now int64) {
	const every = time.Minute
	if time.Duration(now-m.tidied) < every {
		return
	}
	m.tidied = now
	for key, recorded := range m.fresh {
		if m.left(recorded, now) <= 0 {
			delete(m.fresh, key)
		}
	}
	m.entries.CleanUp()
}

// left is how long a confirm is still remembered.
func (m *Memory) left(recorded, now int64) time.Duration {
	return m.ttl - time.Duration(now-recorded)
}

// Forget is part of relay.Ledger. It fails only if ctx has ended.
func (m *Memory) Forget(ctx context.Context, keys []relay.LedgerKey) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.clock.read()
	defer m.keepUp()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range keys {
		delete(m.fresh, keys[i])
	}
	if m.entries.EstimatedSize() == 0 {
		return nil
	}
	for i := range keys {
		m.entries.Invalidate(keys[i])
	}
	return nil
}

// Status is part of Ledger.
func (m *Memory) Status() Status {
	now := m.clock.read()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tidy(now)
	return Status{Entries: len(m.fresh) + m.entries.EstimatedSize(), Counted: true, Evicted: m.evicted.Load()}
}

// Close drops everything.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.fresh)
	m.entries.InvalidateAll()
	return nil
}

// later takes upkeep that the cache asks for: what evicts and expires. It costs the same
// for one entry as for a batch, so it waits for the end of a call, which does it itself:
// no goroutine outlives a call.
func (m *Memory) later(upkeep func()) {
	m.upkeepMu.Lock()
	defer m.upkeepMu.Unlock()
	m.upkeep = append(m.upkeep, upkeep)
}

func (m *Memory) keepUp() {
	m.upkeepMu.Lock()
	upkeep := m.upkeep
	m.upkeep = nil
	m.upkeepMu.Unlock()
	for _, do := range upkeep {
		do()
	}
}

// clock counts from its start by the monotonic clock: a wall clock that is set shortens
// and lengthens nothing. It is read once a call, not once a key. It does not tick: what has
// expired is never seen, and its room is taken back by tidy and by the writes that need it.
type clock struct {
	start time.Time
	now   atomic.Int64
}

func (c *clock) read() int64 {
	now := int64(time.Since(c.start))
	c.now.Store(now)
	return now
}

// NowNano is part of otter.Clock.
func (c *clock) NowNano() int64 { return c.now.Load() }

// Tick is part of otter.Clock.
func (*clock) Tick(time.Duration) <-chan time.Time { return nil }
