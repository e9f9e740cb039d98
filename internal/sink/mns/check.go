package mns

import (
	"context"

	"mnsrelay/internal/relay"
)

var _ relay.Checker = (*Endpoint)(nil)

// Check is part of relay.Checker.
func (e *Endpoint) Check(ctx context.Context) []relay.Finding {
	credential := e.refresher.Check(ctx, e.credentials, nil)
	if credential.Verdict == relay.Failed {
		return []relay.Finding{credential}
	}
	defer e.queue.Close()
	return append([]relay.Finding{credential}, e.queue.CheckSink(ctx)...)
}
