package audit

import (
	"context"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"mnsrelay/internal/relay"
)

// Logged is an audit that goes to the log.
type Logged struct {
	keys    *Keys
	log     *zap.Logger
	counter *Counter
}

var _ relay.Auditor = (*Logged)(nil)

// NewLogged takes what makes keys and the log. Its lines are written whatever the log's
// level is: an audit must not end because somebody wants to read less.
func NewLogged(keys *Keys, log *zap.Logger, counter *Counter) *Logged {
	return &Logged{keys: keys, counter: counter, log: log.Named(relay.AuditLogger).WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return always{core}
	}))}
}

// Record is part of relay.Auditor.
func (l *Logged) Record(e relay.AuditEntry) {
	line := l.keys.line(&e)
	fields := make([]zap.Field, 0, 9)
	fields = append(fields, zap.String("audit", string(line.Audit)), zap.String("message_id", line.MessageID), zap.String("source", line.Source))
	for _, f := range [...][2]string{
		{"route", line.Route},
		{"sink", line.Sink},
		{"target", line.Target},
		{"reason", line.Reason},
		{"key", line.Key},
		{"key_hash", line.KeyHash},
	} {
		if f[1] != "" {
			fields = append(fields, zap.String(f[0], f[1]))
		}
	}
	fields = append(fields, zap.Int("attempt", line.Attempt))
	if line.Seconds > 0 {
		fields = append(fields, zap.Float64("duration", line.Seconds))
	}
	l.log.Info("message audited", fields...)
	l.counter.written.Add(1)
}

// Flush is part of relay.Auditor. A line of the log is written when Record returns.
func (l *Logged) Flush(context.Context) {}

// always is a core that takes entries of every level.
type always struct{ zapcore.Core }

// Enabled is part of zapcore.LevelEnabler.
func (always) Enabled(zapcore.Level) bool { return true }

// With is part of zapcore.Core.
func (c always) With(fields []zapcore.Field) zapcore.Core { return always{c.Core.With(fields)} }

// Check is part of zapcore.Core. The core below would ask for its own level.
func (c always) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return checked.AddCore(entry, c.Core)
}
