// Package telemetry makes what is passed to everything else: the logger, the metrics
// registry and, where traces are wanted, what makes spans and brings them to a collector.
package telemetry

import (
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Formats of a log line.
const (
	FormatJSON    = "json"
	FormatConsole = "console"
)

// NewLogger makes a logger that writes to w, one line an entry, not coloured, and
// gives its level to change while it is in use. Level is debug, info, warn or
// error; format is FormatJSON or FormatConsole. Of lines that repeat, at info and above, ten are
// written and then one every ten seconds, which counts the others; Sync writes what is left of
// them. Times are RFC 3339 in UTC, in milliseconds.
func NewLogger(level, format string, w io.Writer) (*zap.Logger, zap.AtomicLevel, error) {
	parsed, err := zapcore.ParseLevel(level)
	if err != nil || parsed > zapcore.ErrorLevel {
		return nil, zap.AtomicLevel{}, fmt.Errorf("read log level %q: write debug, info, warn or error", level)
	}
	keys := zapcore.EncoderConfig{
		TimeKey:        "time",
		LevelKey:       "level",
		NameKey:        "logger",
		MessageKey:     "message",
		StacktraceKey:  "stack",
		LineEnding:     zapcore.DefaultLineEnding,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeTime:     encodeTime,
		EncodeDuration: zapcore.StringDurationEncoder,
		EncodeName:     zapcore.FullNameEncoder,
	}
	var encoder zapcore.Encoder
	switch format {
	case FormatJSON:
		// A number, so that a log store can compare and sum it.
		keys.EncodeDuration = zapcore.SecondsDurationEncoder
		encoder = zapcore.NewJSONEncoder(keys)
	case FormatConsole:
		encoder = zapcore.NewConsoleEncoder(keys)
	default:
		return nil, zap.AtomicLevel{}, fmt.Errorf("read log format %q: write %s or %s", format, FormatJSON, FormatConsole)
	}
	atomic := zap.NewAtomicLevelAt(parsed)
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), atomic)
	return zap.New(newRepeats(core), zap.ErrorOutput(zapcore.Lock(zapcore.AddSync(w)))), atomic, nil
}

func encodeTime(t time.Time, enc zapcore.PrimitiveArrayEncoder) {
	enc.AppendString(t.UTC().Format("2006-01-02T15:04:05.000Z"))
}
