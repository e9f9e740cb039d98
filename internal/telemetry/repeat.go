package telemetry

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"mnsrelay/internal/relay"
)

// What repeats is bounded: of the lines that are alike, the first repeatFirst are written, and
// from then on one every repeatEvery, until there was none for as long.
const (
	repeatFirst = 10
	repeatEvery = 10 * time.Second
	// maxKinds bounds what is remembered. Above it lines are alike by their message alone.
	maxKinds = 1000
)

// fieldSuppressed counts the lines that were left out, beside the one that has it.
const fieldSuppressed = "suppressed"

// repeats is a core that bounds what repeats, at info and above; whoever asks for debug wants
// all of it. Zap's own sampler would not do: it takes the failures of two sources for one
// kind, and does not say how many lines it dropped, nor that it dropped any.
type repeats struct {
	zapcore.Core
	kinds *kinds
	place string // the fields of With that tell one place from another
}

func newRepeats(core zapcore.Core) *repeats {
	return &repeats{Core: core, kinds: &kinds{of: make(map[kind]*repeated)}}
}

// With is part of zapcore.Core.
func (r *repeats) With(fields []zapcore.Field) zapcore.Core {
	return &repeats{Core: r.Core.With(fields), kinds: r.kinds, place: r.place + placeOf(fields)}
}

// Check is part of zapcore.Core.
func (r *repeats) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if r.Enabled(entry.Level) {
		return checked.AddCore(entry, r)
	}
	return checked
}

// Write is part of zapcore.Core.
func (r *repeats) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	if entry.Level < zapcore.InfoLevel || entry.Level > zapcore.ErrorLevel || entry.LoggerName == relay.AuditLogger {
		return r.Core.Write(entry, fields)
	}
	k := kind{level: entry.Level, logger: entry.LoggerName, message: entry.Message, place: r.place + placeOf(fields)}
	if r.kinds.leaveOut(k, line{core: r.Core, entry: entry, fields: fields}) {
		return nil
	}
	return r.Core.Write(entry, fields)
}

// Sync is part of zapcore.Core. It writes the last line of each kind that was left out.
func (r *repeats) Sync() error {
	r.kinds.flush()
	return r.Core.Sync()
}

// kind is what lines have in common that are alike.
type kind struct {
	level                  zapcore.Level
	logger, message, place string
}

// line is one that can be written later.
type line struct {
	core   zapcore.Core
	entry  zapcore.Entry
	fields []zapcore.Field
}

// repeated is what is remembered of a kind.
type repeated struct {
	written int
	left    int  // left out since the last line
	last    line // the last of those
	timer   *time.Timer
}

type kinds struct {
	mu sync.Mutex
	of map[kind]*repeated
}

// leaveOut tells whether a line is one too many, and keeps it then.
func (ks *kinds) leaveOut(k kind, l line) bool {
	ks.mu.Lock()
	defer ks.mu.Unlock()
	if _, known := ks.of[k]; !known && len(ks.of) >= maxKinds {
		k.place = ""
	}
	seen := ks.of[k]
	if seen == nil {
		seen = &repeated{}
		seen.timer = time.AfterFunc(repeatEvery, func() { ks.look(k, seen) })
		ks.of[k] = seen
	}
	if seen.written < repeatFirst {
		seen.written++
		return false
	}
	seen.left++
	l.fields = slices.Clone(l.fields) // the caller may use its own again
	seen.last = l
	return true
}

// look writes what was left out of a kind since the last look, or forgets the kind.
func (ks *kinds) look(k kind, seen *repeated) {
	ks.mu.Lock()
	if ks.of[k] != seen {
		ks.mu.Unlock()
		return
	}
	last, left := seen.take()
	if left == 0 {
		delete(ks.of, k)
	} else {
		seen.timer.Reset(repeatEvery)
	}
	ks.mu.Unlock()
	last.write(left)
}

// flush writes what was left out, and forgets all kinds.
func (ks *kinds) flush() {
	ks.mu.Lock()
	all := ks.of
	ks.of = make(map[kind]*repeated)
	ks.mu.Unlock()
	for _, seen := range all {
		seen.timer.Stop()
		last, left := seen.take()
		last.write(left)
	}
}

// take gives what was left out, and the last of it.
func (s *repeated) take() (last line, left int) {
	last, left = s.last, s.left
	s.last, s.left = line{}, 0
	return last, left
}

// write writes a line that stands for as many that were left out, itself among them.
func (l line) write(left int) {
	switch {
	case left == 0:
		return
	case left > 1:
		l.fields = append(l.fields, zap.Int(fieldSuppressed, left-1))
	}
	_ = l.core.Write(l.entry, l.fields) // nobody is left to be told
}

// placeOf gives the fields that say where a line comes from, or what it is about. Their values
// are the configuration's or one of a few; those that change with each message, such as its
// id or the text of an error, are none of them.
func placeOf(fields []zapcore.Field) string {
	var b strings.Builder
	for _, f := range fields {
		switch f.Key {
		case "source", "route", "sink", "reason", "address", "exchange", "queue", "url", "operation", "setting", "part", "used_by", "warning":
		default:
			continue
		}
		b.WriteString(f.Key + "=")
		if f.Type == zapcore.StringType {
			b.WriteString(f.String)
		} else {
			_, _ = fmt.Fprint(&b, f.Interface)
		}
		b.WriteByte(0)
	}
	return b.String()
}
