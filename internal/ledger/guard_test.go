package ledger_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/ledger"
	"mnsrelay/internal/relay"
)

// The bounds that a guard promises.
const (
	callBound = 250 * time.Millisecond
	patience  = 3
	pause     = time.Second
)

var errBroken = errors.New("broken")

// fake is a ledger that confirms everything while it works.
type fake struct {
	err    atomic.Pointer[error]
	hang   atomic.Bool
	calls  atomic.Int64
	closed atomic.Bool
	answer func(keys []relay.LedgerKey) []bool
}

func (f *fake) fail(err error) { f.err.Store(&err) }

func (f *fake) call(ctx context.Context) error {
	f.calls.Add(1)
	if f.hang.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *fake) Confirmed(ctx context.Context, keys []relay.LedgerKey) ([]bool, error) {
	answers := slices.Repeat([]bool{true}, len(keys))
	if f.answer != nil {
		answers = f.answer(keys)
	}
	return answers, f.call(ctx)
}

func (f *fake) Record(ctx context.Context, _ []relay.LedgerKey) error { return f.call(ctx) }
func (f *fake) Forget(ctx context.Context, _ []relay.LedgerKey) error { return f.call(ctx) }

func (f *fake) Close() error {
	f.closed.Store(true)
	return nil
}

func guard(l relay.Ledger) (*ledger.Guard, *observer.ObservedLogs) {
	core, logs := observer.New(zapcore.DebugLevel)
	return ledger.NewGuard(l, zap.New(core)), logs
}

// ask requires that the guard answers, and gives whether key 0 is confirmed.
func ask(t *testing.T, g *ledger.Guard) bool {
	t.Helper()
	answers, err := g.Confirmed(t.Context(), keysOf(0, 2))
	require.NoError(t, err)
	require.Len(t, answers, 2)
	require.Equal(t, answers[0], answers[1])
	return answers[0]
}

func messages(logs *observer.ObservedLogs) []string {
	var texts []string
	for _, entry := range logs.All() {
		texts = append(texts, entry.Level.String()+": "+entry.Message)
	}
	return texts
}

var beganAndEnded = []string{
	"warn: the ledger fails: what sinks confirm is not remembered, and a message that comes again may reach a sink twice",
	"info: the ledger works again",
}

func TestGuardHandsOn(t *testing.T) {
	f := &fake{}
	g, logs := guard(f)
	require.True(t, ask(t, g))
	require.NoError(t, g.Record(t.Context(), keysOf(0, 2)))
	require.NoError(t, g.Forget(t.Context(), keysOf(0, 2)))
	require.EqualValues(t, 3, f.calls.Load())

	answers, err := g.Confirmed(t.Context(), nil)
	require.NoError(t, err)
	require.Empty(t, answers)
	require.NoError(t, g.Record(t.Context(), nil))
	require.EqualValues(t, 3, f.calls.Load(), "nothing is asked about nothing")

	require.Zero(t, logs.Len())
	require.Equal(t, ledger.Status{Failures: map[string]uint64{"confirmed": 0, "record": 0, "forget": 0}}, g.Status())
	require.NoError(t, g.Close())
	require.True(t, f.closed.Load())
}

func TestGuardNeverFails(t *testing.T) {
	f := &fake{}
	f.fail(errBroken)
	g, _ := guard(f)
	require.False(t, ask(t, g), "what failed is not confirmed, whatever came with the error")
	require.NoError(t, g.Record(t.Context(), keysOf(0, 1)))
	require.NoError(t, g.Forget(t.Context(), keysOf(0, 1)))

	status := g.Status()
	require.ErrorIs(t, status.Err, errBroken)
	require.False(t, status.Since.IsZero())
	require.Equal(t, map[string]uint64{"confirmed": 1, "record": 1, "forget": 1}, status.Failures)
}

func TestGuardLeavesCallsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.hang.Store(true)
		g, logs := guard(f)
		for range patience {
			begun := time.Now()
			require.False(t, ask(t, g))
			require.Equal(t, callBound, time.Since(begun))
		}
		for range 10 {
			begun := time.Now()
			for range 100 {
				require.False(t, ask(t, g))
				require.NoError(t, g.Record(t.Context(), keysOf(0, 1)))
			}
			require.Zero(t, time.Since(begun), "while calls are left out they take no time")
			time.Sleep(pause) //nolint:forbidigo // The bubble's time.
			require.False(t, ask(t, g))
			require.Equal(t, pause+callBound, time.Since(begun), "one is tried")
		}
		require.EqualValues(t, patience+10, f.calls.Load())
		require.Equal(t, beganAndEnded[:1], messages(logs))
		require.EqualValues(t, patience+10*101, g.Status().Failures["confirmed"])
		require.EqualValues(t, 10*100, g.Status().Failures["record"])

		f.hang.Store(false)
		require.False(t, ask(t, g), "the pause is not over")
		time.Sleep(pause) //nolint:forbidigo // The bubble's time.
		require.True(t, ask(t, g))
		require.True(t, ask(t, g))
		require.Equal(t, beganAndEnded, messages(logs))
		ended := logs.All()[1].ContextMap()
		require.Equal(t, 11*pause+(patience-1+10)*callBound, ended["after"], "since the first failure")
		require.EqualValues(t, patience+10*201+1, ended["failures"])
		require.NoError(t, g.Status().Err)
		require.Zero(t, g.Status().Since)
	})
}

func TestGuardTriesOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.hang.Store(true)
		g, _ := guard(f)
		all := func() {
			var batches sync.WaitGroup
			for range 50 {
				batches.Go(func() { _ = g.Record(t.Context(), keysOf(0, 1)) })
			}
			batches.Wait()
		}
		begun := time.Now()
		all()
		require.Equal(t, callBound, time.Since(begun))
		require.EqualValues(t, 50, f.calls.Load(), "nobody knew yet")
		for i := range 5 {
			time.Sleep(pause) //nolint:forbidigo // The bubble's time.
			all()
			require.EqualValues(t, 50+i+1, f.calls.Load())
		}
	})
}

func TestGuardSaysLittleOfALedgerThatFlaps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		g, logs := guard(f)
		for range 1000 {
			f.fail(errBroken)
			require.False(t, ask(t, g))
			f.err.Store(nil)
			require.True(t, ask(t, g), "one failure leaves nothing out")
			time.Sleep(pause / 100) //nolint:forbidigo // The bubble's time.
		}
		require.Equal(t, beganAndEnded[:1], messages(logs))
		time.Sleep(pause) //nolint:forbidigo // The bubble's time.
		require.True(t, ask(t, g))
		require.Equal(t, beganAndEnded, messages(logs))
		require.EqualValues(t, 1000, g.Status().Failures["confirmed"])
	})
}

func TestGuardDoesNotBlameTheLedgerForItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		g, logs := guard(f)
		f.hang.Store(true)
		for range 10 * patience {
			ctx, cancel := context.WithTimeout(t.Context(), callBound/10)
			begun := time.Now()
			answers, err := g.Confirmed(ctx, keysOf(0, 1))
			require.NoError(t, err)
			require.Equal(t, []bool{false}, answers)
			require.Equal(t, callBound/10, time.Since(begun))
			cancel()
		}
		ended, end := context.WithCancel(t.Context())
		end()
		calls := f.calls.Load()
		answers, err := g.Confirmed(ended, keysOf(0, 1))
		require.NoError(t, err)
		require.Equal(t, []bool{false}, answers)
		require.NoError(t, g.Record(ended, keysOf(0, 1)))
		require.Equal(t, calls, f.calls.Load(), "a caller that has left asks nothing")

		require.Zero(t, logs.Len())
		require.NoError(t, g.Status().Err)
		f.hang.Store(false)
		require.True(t, ask(t, g), "nothing is left out")
	})
}

func TestGuardTriesAgainAfterACallerThatLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{}
		f.hang.Store(true)
		g, _ := guard(f)
		for range patience {
			ask(t, g)
		}
		time.Sleep(pause) //nolint:forbidigo // The bubble's time.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.NoError(t, g.Record(ctx, keysOf(0, 1)), "the one that is tried")
		f.hang.Store(false)
		require.True(t, ask(t, g))
	})
}

func TestGuardTakesNoAnswerForAnother(t *testing.T) {
	for name, answer := range map[string][]bool{"none": nil, "too few": {true}, "too many": {true, true, true}} {
		t.Run(name, func(t *testing.T) {
			g, _ := guard(&fake{answer: func([]relay.LedgerKey) []bool { return answer }})
			require.False(t, ask(t, g))
		})
	}
}
