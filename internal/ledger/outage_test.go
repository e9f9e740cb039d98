package ledger_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/ledger"
	"mnsrelay/internal/relay"
	"mnsrelay/test/redisserver"
)

// margin is what a busy machine may add to a bound. The outages last longer.
const margin = time.Second

// recovery is how long after its server a ledger may still fail: the client of Redis and
// the guard both try once a second.
const recovery = 2*pause + callBound + margin

func open(t *testing.T, url string, deps ledger.Deps) (ledger.Ledger, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	deps.Log = zap.New(core)
	l, err := ledger.Open(redisConfig(url), deps)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l, logs
}

// traffic is what pipelines do with a ledger: batches that ask, record and forget, side by
// side.
type traffic struct {
	stop    context.CancelFunc
	batches sync.WaitGroup
	// slowest is the longest call in nanoseconds; wrong, how many keys were confirmed
	// that nobody had recorded; worked, how many batches found what they had recorded.
	slowest, wrong, worked atomic.Int64
}

func startTraffic(t *testing.T, l relay.Ledger) *traffic {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	tr := &traffic{stop: stop}
	t.Cleanup(tr.end)
	for batch := range 8 {
		tr.batches.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for round := 0; ctx.Err() == nil; round++ {
				tr.round(ctx, l, fmt.Sprintf("%d-%d", batch, round))
				<-tick.C
			}
		})
	}
	return tr
}

func (tr *traffic) end() {
	tr.stop()
	tr.batches.Wait()
}

func (tr *traffic) round(ctx context.Context, l relay.Ledger, name string) {
	// Two batches for each: those of recorded are recorded, those of never are not.
	var recorded, never []relay.LedgerKey
	for i := range 16 {
		key := relay.LedgerKey{Source: "reports", Message: fmt.Sprintf("%s-%d", name, i), Route: "all", Sink: "broker"}
		recorded = append(recorded, key)
		key.Sink = "hook"
		never = append(never, key)
	}
	tr.timed(func() { _ = l.Record(ctx, recorded) })
	found := 0
	tr.timed(func() {
		answers, _ := l.Confirmed(ctx, append(recorded, never...))
		for i, confirmed := range answers {
			if confirmed && i >= len(recorded) {
				tr.wrong.Add(1)
			} else if confirmed {
				found++
			}
		}
	})
	if found == len(recorded) {
		tr.worked.Add(1)
	}
	tr.timed(func() { _ = l.Forget(ctx, recorded) })
}

func (tr *traffic) timed(call func()) {
	begun := time.Now()
	call()
	took := int64(time.Since(begun))
	for {
		slowest := tr.slowest.Load()
		if took <= slowest || tr.slowest.CompareAndSwap(slowest, took) {
			return
		}
	}
}

// working waits until batches work, for at most within.
func (tr *traffic) working(t *testing.T, within time.Duration) {
	t.Helper()
	before := tr.worked.Load()
	require.Eventually(t, func() bool { return tr.worked.Load() > before+100 }, within, 5*time.Millisecond)
}

// failing waits until the ledger fails.
func failing(t *testing.T, l ledger.Ledger) {
	t.Helper()
	require.Eventually(t, func() bool { return l.Status().Err != nil }, callBound+margin, time.Millisecond)
}

func TestRedisOutage(t *testing.T) {
	certFile, keyFile, roots := certificate(t)
	for server, cfg := range map[string]redisserver.Config{
		"plain": {},
		"TLS":   {Password: secret, CertFile: certFile, KeyFile: keyFile},
	} {
		for name, outage := range map[string]func(*redisserver.Server) (end func()){
			"killed":  func(s *redisserver.Server) func() { s.Kill(); return s.Start },
			"stopped": func(s *redisserver.Server) func() { s.Stop(); return s.Start },
			"hanging": func(s *redisserver.Server) func() { s.Pause(); return s.Resume },
		} {
			// One after the other: a call has 250 ms, which a busy machine takes as well as a
			// server that is away.
			t.Run(server+" "+name, func(t *testing.T) {
				s := redisserver.Start(t, cfg)
				l, logs := open(t, s.URL(), ledger.Deps{RootCAs: roots})
				tr := startTraffic(t, l)
				tr.working(t, 10*time.Second)
				require.NoError(t, l.Status().Err)

				end := outage(s)
				failing(t, l)
				wait(t, 2*callBound)
				worked := tr.worked.Load()
				wait(t, 2*pause)
				require.Equal(t, worked, tr.worked.Load(), "the server is away")
				end()
				tr.working(t, recovery)
				require.Eventually(t, func() bool { return l.Status().Err == nil }, recovery, time.Millisecond)
				tr.working(t, 10*time.Second)
				tr.end()

				require.Equal(t, beganAndEnded, messages(logs))
				require.Less(t, time.Duration(tr.slowest.Load()), callBound+margin)
				require.Zero(t, tr.wrong.Load(), "nothing is confirmed that was not recorded")
				for operation, failures := range l.Status().Failures {
					require.Positive(t, failures, operation)
				}
				require.NotContains(t, fmt.Sprint(logs.All()), "p:a")
			})
		}
	}
}

func TestRedisRestartedInTheMiddle(t *testing.T) {
	s := redisserver.Start(t, redisserver.Config{})
	l, logs := open(t, s.URL(), ledger.Deps{})
	keys := keysOf(0, 4)
	require.NoError(t, l.Record(t.Context(), keys))
	tr := startTraffic(t, l)
	tr.working(t, 10*time.Second)
	s.Kill()
	s.Start()
	require.Eventually(t, func() bool { return logs.Len() > 0 && l.Status().Err == nil }, 2*recovery, time.Millisecond)
	tr.working(t, recovery)
	tr.end()
	require.Equal(t, beganAndEnded, messages(logs))
	require.Zero(t, tr.wrong.Load())
	answers, err := l.Confirmed(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, []bool{false, false, false, false}, answers, "a server that forgot costs duplicates")
}

func TestRedisRestartedWhileIdle(t *testing.T) {
	s := redisserver.Start(t, redisserver.Config{})
	l, logs := open(t, s.URL(), ledger.Deps{})
	require.NoError(t, l.Record(t.Context(), keysOf(0, 4)))
	s.Kill()
	s.Start()
	require.NoError(t, l.Record(t.Context(), keysOf(0, 4)))
	answers, err := l.Confirmed(t.Context(), keysOf(0, 4))
	require.NoError(t, err)
	require.Equal(t, []bool{true, true, true, true}, answers, "a connection that has died is seen before it is used")
	require.Zero(t, logs.Len())
}

func TestRedisDownAtTheStart(t *testing.T) {
	s := redisserver.Start(t, redisserver.Config{})
	s.Kill()
	l, logs := open(t, s.URL(), ledger.Deps{})
	tr := startTraffic(t, l)
	failing(t, l)
	// Longer than the client of Redis tries by itself.
	wait(t, 3*pause)
	s.Start()
	tr.working(t, recovery)
	tr.end()
	require.Equal(t, beganAndEnded, messages(logs))
	require.Contains(t, logs.All()[0].ContextMap()["error"], "connection refused")
	require.Less(t, time.Duration(tr.slowest.Load()), callBound+margin)
}

func TestRedisClosesWhileItHangs(t *testing.T) {
	certFile, keyFile, roots := certificate(t)
	s := redisserver.Start(t, redisserver.Config{CertFile: certFile, KeyFile: keyFile})
	s.Pause()
	l, _ := open(t, s.URL(), ledger.Deps{RootCAs: roots})
	tr := startTraffic(t, l)
	failing(t, l)
	tr.end()
	begun := time.Now()
	require.NoError(t, l.Close())
	require.Less(t, time.Since(begun), margin)
	// That the handshakes under way end is seen by TestMain.
}

func wait(t *testing.T, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}

func TestOpen(t *testing.T) {
	cfg := ledger.Defaults()
	l, err := ledger.Open(cfg, ledger.Deps{Log: zap.NewNop()})
	require.NoError(t, err)
	require.IsType(t, &ledger.Memory{}, l)
	require.NoError(t, l.Close())

	cfg.TTL = 0
	_, err = ledger.Open(cfg, ledger.Deps{Log: zap.NewNop()})
	require.ErrorContains(t, err, "ttl")

	_, err = ledger.NewRedis(redisConfig("redis://relay:"+strings.Repeat("s", 40)+"@host/x"), ledger.Deps{})
	require.ErrorContains(t, err, "not the number of a database")
	require.NotContains(t, err.Error(), "sss")
}
