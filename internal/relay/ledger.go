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
