package relay

import "context"

// Ledger remembers which target has confirmed which message until the message is
// deleted, so that a redelivered message goes only to the sinks that have not confirmed
// it. It is safe for concurrent use.
//
// A ledger never decides about loss: one that forgets, or fails, costs duplicates.
type Ledger interface {
	// Confirmed tells of each key whether it is recorded. On an error the caller takes
	// all for not recorded.
	Confirmed(ctx context.Context, keys []LedgerKey) ([]bool, error)
	// Record remembers keys for the ledger's time to live.
	Record(ctx context.Context, keys []LedgerKey) error
	// Forget drops keys whose message has been deleted.
	Forget(ctx context.Context, keys []LedgerKey) error
}

// LedgerKey is one confirm: that of Message by the sink of a route.
type LedgerKey struct {
	Source, Message, Route, Sink string
}

// recall asks the ledger about redelivered messages and takes out of plans what has been
// confirmed before.
func (p *Pipeline) recall(ctx context.Context, b *batch, plans [][]int) {
	if p.deps.Ledger == nil {
		return
	}
	var keys []LedgerKey
	for _, t := range p.targets {
		for _, i := range plans[t.index] {
			if b.messages[i].Attempt > 1 {
				keys = append(keys, p.key(t, &b.messages[i]))
			}
		}
	}
	if len(keys) == 0 {
		return
	}
	known, err := p.deps.Ledger.Confirmed(ctx, keys)
	if err != nil {
		return // the ledger has said so: duplicates, no loss
	}
	for _, t := range p.targets {
		var left []int
		for _, i := range plans[t.index] {
			if b.messages[i].Attempt > 1 {
				was := known[0]
				known = known[1:]
				if was {
					b.confirms[b.at(t, i)] = recorded
					p.deps.Stats.skipped(t.Name.Sink)
					continue
				}
			}
			left = append(left, i)
		}
		plans[t.index] = left
	}
}

// record tells the ledger which targets have confirmed the messages that index names.
func (p *Pipeline) record(ctx context.Context, b *batch, index []int) {
	if p.deps.Ledger == nil {
		return
	}
	keys := make([]LedgerKey, 0, len(index)*len(p.targets))
	b.mu.Lock()
	for _, t := range p.targets {
		for _, i := range index {
			if c := &b.confirms[b.at(t, i)]; *c == confirmed && !b.gone[i] {
				*c = recorded
				keys = append(keys, p.key(t, &b.messages[i]))
			}
		}
	}
	b.mu.Unlock()
	if len(keys) > 0 {
		_ = p.deps.Ledger.Record(ctx, keys) // the ledger has said so: duplicates, no loss
	}
}

// recordEarly records what a target has confirmed of messages that still wait for
// other targets: a crash before those have answered then costs no duplicate.
func (p *Pipeline) recordEarly(ctx context.Context, b *batch, index []int) {
	if p.deps.Ledger == nil || p.required < 2 {
		return
	}
	var waiting []int
	b.mu.Lock()
	for _, i := range index {
		if b.verdicts[i].pending > 0 {
			waiting = append(waiting, i)
		}
	}
	b.mu.Unlock()
	if len(waiting) > 0 {
		p.record(ctx, b, waiting)
	}
}

// forget drops what the ledger knows of messages that have been deleted.
func (p *Pipeline) forget(ctx context.Context, b *batch, deleted []int) {
	if p.deps.Ledger == nil || len(deleted) == 0 {
		return
	}
	keys := make([]LedgerKey, 0, len(deleted)*len(p.targets))
	b.mu.Lock()
	for _, t := range p.targets {
		for _, i := range deleted {
			if b.confirms[b.at(t, i)] == recorded {
				keys = append(keys, p.key(t, &b.messages[i]))
			}
		}
	}
	b.mu.Unlock()
	if len(keys) > 0 {
		_ = p.deps.Ledger.Forget(ctx, keys) // they expire by themselves
	}
}

func (p *Pipeline) key(t *target, m *Message) LedgerKey {
	return LedgerKey{Source: p.cfg.Source, Message: m.ID, Route: t.Name.Route, Sink: t.Name.Sink}
}
