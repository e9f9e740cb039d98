package app

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"mnsrelay/internal/audit"
	"mnsrelay/internal/config"
	"mnsrelay/internal/relay"
)

// auditing is the audit of one configuration at work.
type auditing struct {
	fingerprint string
	auditor     relay.Auditor // nil: there is none
	writer      *audit.Writer // nil: nothing has to run

	stop  context.CancelFunc
	ended chan struct{}
}

func newAuditing(cfg *config.Config, sinks map[string]*sink, counter *audit.Counter, log *zap.Logger) (*auditing, error) {
	a := &auditing{fingerprint: cfg.AuditFingerprint(), ended: make(chan struct{})}
	if cfg.Audit.To == "" {
		return a, nil
	}
	keys, err := audit.NewKeys(&cfg.Audit)
	if err != nil {
		return nil, fmt.Errorf("make the audit: %w", err)
	}
	if cfg.Audit.To == audit.ToLog {
		a.auditor = audit.NewLogged(keys, log, counter)
		return a, nil
	}
	out, can := sinks[cfg.Audit.To].endpoint.(audit.Appender)
	if !can {
		return nil, fmt.Errorf("make the audit: sink %q takes no lines", cfg.Audit.To)
	}
	a.writer = audit.NewWriter(keys, out, log.With(zap.String("sink", cfg.Audit.To)), counter)
	a.auditor = a.writer
	return a, nil
}

// start writes until end.
func (a *auditing) start(ctx context.Context) {
	if a.writer == nil {
		return
	}
	ctx, a.stop = context.WithCancel(ctx)
	go func() {
		defer close(a.ended)
		a.writer.Run(ctx)
	}()
}

// end writes what is left, for a second at most. Nothing is recorded afterwards.
func (a *auditing) end() {
	if a.writer == nil {
		return
	}
	a.stop()
	<-a.ended
}
