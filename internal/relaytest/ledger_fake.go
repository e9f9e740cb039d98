package relaytest

import (
	"context"
	"sync"

	"mnsrelay/internal/relay"
)

// Ledger is a relay.Ledger in memory that can be made to fail.
type Ledger struct {
	mu   sync.Mutex
	keys map[relay.LedgerKey]bool
	err  error
}

var _ relay.Ledger = (*Ledger)(nil)

// NewLedger makes an empty Ledger.
func NewLedger() *Ledger { return &Ledger{keys: make(map[relay.LedgerKey]bool)} }

// Fail makes every call give err; nil: no more.
func (l *Ledger) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

// Len counts the keys that are recorded.
func (l *Ledger) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.keys)
}

// Confirmed is part of relay.Ledger.
func (l *Ledger) Confirmed(_ context.Context, keys []relay.LedgerKey) ([]bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := make([]bool, len(keys))
	for i, key := range keys {
		known[i] = l.keys[key]
	}
	return known, l.err
}

// Record is part of relay.Ledger.
func (l *Ledger) Record(_ context.Context, keys []relay.LedgerKey) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	for _, key := range keys {
		l.keys[key] = true
	}
	return nil
}

// Forget is part of relay.Ledger.
func (l *Ledger) Forget(_ context.Context, keys []relay.LedgerKey) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	for _, key := range keys {
		delete(l.keys, key)
	}
	return nil
}
