package main

import (
	"context"
	"strconv"
	"time"

	"mnsrelay/internal/ledger"
	"mnsrelay/internal/relay"
)

// ledger is what the ledger in memory takes of a message that is delivered at its first
// receive: its confirm is recorded before the delete and forgotten after it, in batches.
func (w *world) ledger() ([]*contest, error) {
	const inMemory = "ledger in memory"
	messages := w.scaled(1_000_000)
	return []*contest{{
		Scenario: "ledger", What: "record and forget, in this process", contenders: []string{inMemory},
		run: func(ctx context.Context, _ string, _ int) (run, error) {
			memory, err := ledger.NewMemory(ledger.Defaults())
			if err != nil {
				return nil, err
			}
			ids := make([]string, messages)
			for i := range ids {
				ids[i] = "5F290C926D472878-2-14D9529" + strconv.Itoa(10_000_000+i)
			}
			began := time.Now()
			for from := 0; from < messages; from += batch {
				keys := make([]relay.LedgerKey, 0, batch)
				for _, id := range ids[from:min(from+batch, messages)] {
					keys = append(keys, relay.LedgerKey{Source: sourceName(0), Message: id, Route: "all", Sink: sinkName(0)})
				}
				if err := memory.Record(ctx, keys); err != nil {
					return nil, err
				}
				if err := memory.Forget(ctx, keys); err != nil {
					return nil, err
				}
			}
			took := time.Since(began)
			return run{ledgerCost: float64(took.Nanoseconds()) / 1e3 / float64(messages)}, memory.Close()
		},
		targets: []target{{of: inMemory, quantity: ledgerCost, bound: 1}},
	}}, nil
}
