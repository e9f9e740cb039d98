package telemetry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/telemetry"
)

// logLine is what the tests read of a line.
type logLine struct {
	Level      zapcore.Level `json:"level"`
	Message    string        `json:"message"`
	Source     string        `json:"source"`
	Reason     string        `json:"reason"`
	MessageID  string        `json:"message_id"`
	Error      string        `json:"error"`
	Suppressed int           `json:"suppressed"`
}

// output is what a logger writes, read line by line.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

// lines gives what was written since the last call.
func (o *output) lines(t *testing.T) (all []logLine) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	for decoder := json.NewDecoder(&o.text); decoder.More(); {
		var l logLine
		require.NoError(t, decoder.Decode(&l))
		all = append(all, l)
	}
	o.text.Reset()
	return all
}

// stoodFor counts the entries that lines stand for.
func stoodFor(lines []logLine) (n int) {
	for _, l := range lines {
		n += 1 + l.Suppressed
	}
	return n
}

func newLog(t *testing.T, level string) (*zap.Logger, *output) {
	t.Helper()
	out := new(output)
	log, _, err := telemetry.NewLogger(level, telemetry.FormatJSON, out)
	require.NoError(t, err)
	return log, out
}

// dead is what the relay says of a dead letter.
func dead(log *zap.Logger, i int, reason string) {
	log.Warn("message dead-lettered", zap.String("message_id", strconv.Itoa(i)), zap.String("reason", reason),
		zap.Error(errors.New("cause "+strconv.Itoa(i))), zap.Int("attempt", i%16))
}

func TestAFailureThatRepeatsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, out := newLog(t, "info")
		log = log.With(zap.String("source", "sms"))
		for i := 1; i <= 25_000; i++ { // for 25 s
			dead(log, i, "unroutable")
			<-time.After(time.Millisecond)
		}
		lines := out.lines(t)
		require.Len(t, lines, 12, "the first ten, and one every ten seconds")
		for i, l := range lines[:10] {
			require.Equal(t, strconv.Itoa(i+1), l.MessageID)
			require.Zero(t, l.Suppressed)
		}
		require.InDelta(t, 10_000, stoodFor(lines[:11]), 1)
		require.Equal(t, "cause "+lines[11].MessageID, lines[11].Error, "it is a line of its own, and the last")

		<-time.After(10 * time.Second)
		synctest.Wait()
		end := out.lines(t)
		require.Len(t, end, 1, "one when it ends")
		require.Equal(t, "25000", end[0].MessageID)
		require.Equal(t, 25_000, stoodFor(append(lines, end...)), "each line is counted")

		<-time.After(10 * time.Second)
		synctest.Wait()
		require.Empty(t, out.lines(t))
		dead(log, 1, "unroutable")
		require.Len(t, out.lines(t), 1, "it has ended, so another is said at once")
	})
}

func TestTenThousandFailuresAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, out := newLog(t, "info")
		var all sync.WaitGroup
		for w := range 10 {
			all.Go(func() {
				for i := range 1000 {
					dead(log, w*1000+i, "unroutable")
				}
			})
		}
		all.Wait()
		require.Len(t, out.lines(t), 10)
		_ = log.Sync()
		rest := out.lines(t)
		require.Len(t, rest, 1, "what is left is written when the process ends")
		require.Equal(t, 9_989, rest[0].Suppressed)
		<-time.After(time.Minute)
		synctest.Wait()
		require.Empty(t, out.lines(t), "and not twice")
	})
}

func TestKindsDoNotHideEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, out := newLog(t, "info")
		sms := log.With(zap.String("source", "sms"))
		for i := range 1000 {
			dead(sms, i, "unroutable")
		}
		require.Len(t, out.lines(t), 10)
		for name, say := range map[string]func(){
			"another source":  func() { dead(log.With(zap.String("source", "voice")), 1, "unroutable") },
			"another reason":  func() { dead(sms, 1, "expression") },
			"another message": func() { sms.Warn("lease lost") },
			"another level":   func() { sms.Error("message dead-lettered", zap.String("reason", "unroutable")) },
			"another logger":  func() { dead(sms.Named("api"), 1, "unroutable") },
			"an error": func() {
				log.Error("a part of the relay has ended; the process needs a restart", zap.String("part", "sms"))
			},
		} {
			say()
			require.Len(t, out.lines(t), 1, name)
		}
		dead(sms, 1, "unroutable")
		require.Empty(t, out.lines(t), "and it goes on")
		_ = log.Sync()
	})
}

// Warnings of a configuration differ in nothing but their text, and each of them counts.
func TestWarningsOfAConfigurationAreAllSaid(t *testing.T) {
	log, out := newLog(t, "info")
	for i := range 30 {
		log.Warn("configuration warning", zap.Stringer("warning", time.Duration(i)))
	}
	require.Len(t, out.lines(t), 30)
}

func TestWhatIsNeverLeftOut(t *testing.T) {
	log, out := newLog(t, "debug")
	for i := range 100 {
		log.Debug("queue attributes not read", zap.Int("n", i))
		log.Named(relay.AuditLogger).Info("delivered", zap.Int("n", i))
	}
	require.Len(t, out.lines(t), 200)
	for range 100 {
		log.Info("sink delivers again")
	}
	require.Len(t, out.lines(t), 10, "what flaps says so in pairs")
	_ = log.Sync()
}

// A place that the far side could name does not make the memory grow.
func TestKindsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, out := newLog(t, "info")
		for i := range 5000 {
			dead(log, i, "reason "+strconv.Itoa(i))
		}
		lines := out.lines(t)
		require.Len(t, lines, 1010)
		<-time.After(20 * time.Second)
		synctest.Wait()
		require.Equal(t, 5000, stoodFor(append(lines, out.lines(t)...)))
		dead(log, 1, "reason 4999")
		require.Len(t, out.lines(t), 1, "all were forgotten")
	})
}

// A level that changes while the relay runs holds for what repeats as well.
func TestTheLevelHoldsForWhatRepeats(t *testing.T) {
	out := new(output)
	log, level, err := telemetry.NewLogger("error", telemetry.FormatJSON, out)
	require.NoError(t, err)
	dead(log, 1, "unroutable")
	require.Empty(t, out.lines(t))
	level.SetLevel(zap.WarnLevel)
	dead(log, 1, "unroutable")
	require.Len(t, out.lines(t), 1)
	level.SetLevel(zap.ErrorLevel)
	dead(log, 1, "unroutable")
	require.Empty(t, out.lines(t))
}
