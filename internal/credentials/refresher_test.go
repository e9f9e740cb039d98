package credentials_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/credentials"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer is a provider whose tokens live for life. It counts calls, wants three seconds
// between two that run at once, and can be told to fail, to take its time, to hang until it
// is told not to, or to give the same token until that ends, as a server that caches does.
type issuer struct {
	t *testing.T

	mu       sync.Mutex
	life     time.Duration // 0: for ever
	takes    time.Duration
	failure  error
	caches   bool
	issued   credentials.Keys
	calls    []time.Time
	running  int
	deadline time.Duration // of the last call's context
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.calls)
}

// given tells how long the last call may take.
func (i *issuer) given() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.deadline
}

func (i *issuer) Retrieve(ctx context.Context) (credentials.Keys, error) {
	i.mu.Lock()
	if n := len(i.calls); i.running > 0 && time.Since(i.calls[n-1]) < 3*time.Second {
		i.t.Error("two calls at once")
	}
	i.calls = append(i.calls, time.Now())
	i.running++
	deadline, _ := ctx.Deadline()
	i.deadline = time.Until(deadline)
	takes := i.takes
	i.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.running--
	if ctx.Err() != nil {
		return credentials.Keys{}, ctx.Err()
	}
	if i.failure != nil {
		return credentials.Keys{}, i.failure
	}
	now := time.Now()
	if !i.caches || !now.Before(i.issued.Expires) {
		i.issued = credentials.Keys{
			AccessKeyID:     fmt.Sprintf("STS.key-number-%04d", len(i.calls)),
			AccessKeySecret: secret(tokenSecret),
			SecurityToken:   secret(tokenToken),
		}
		if i.life != 0 {
			i.issued.Expires = now.Add(i.life)
		}
	}
	return i.issued, nil
}

// start runs a refresher within the bubble until the test's end, and gives its log.
func start(t *testing.T, provider credentials.Provider, before time.Duration) (*credentials.Refresher, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	config := &credentials.Config{Type: credentials.TypeMNSToken, RefreshBefore: before}
	refresher := credentials.NewRefresher(provider, config, zap.New(core))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- refresher.Run(ctx, "sms") }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		for _, entry := range logs.All() {
			requireNoSecret(t, entry.Message)
			requireNoSecret(t, entry.ContextMap())
		}
		requireNoSecret(t, refresher.Status())
	})
	synctest.Wait()
	return refresher, logs
}

// pass lets time go by, and what is due happen.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func current(t *testing.T, r *credentials.Refresher) credentials.Keys {
	t.Helper()
	keys, err := r.Current()
	require.NoError(t, err)
	return keys
}

func isReady(r *credentials.Refresher) bool {
	select {
	case <-r.Ready():
		return true
	default:
		return false
	}
}

func TestKeysAreReplacedBeforeTheyEnd(t *testing.T) {
	for _, tt := range []struct {
		name         string
		life, before time.Duration
		// first and last bound when the next keys are fetched.
		first, last time.Duration
	}{
		{"as asked", time.Hour, 2 * time.Minute, 57*time.Minute + 30*time.Second, 58 * time.Minute},
		{"an Alicom token", 10 * time.Minute, 2 * time.Minute, 7*time.Minute + 30*time.Second, 8 * time.Minute},
		{"a third of a short life", 3 * time.Second, 2 * time.Minute, 1750 * time.Millisecond, 2 * time.Second},
		{"a third of a long life", time.Hour, 59 * time.Minute, 35 * time.Minute, 40 * time.Minute},
		{"not too often", 600 * time.Millisecond, 2 * time.Minute, 500 * time.Millisecond, 500 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &issuer{t: t, life: tt.life}
				refresher, logs := start(t, source, tt.before)
				for range 20 * 100 {
					current(t, refresher)
					pass(tt.last / 100)
				}
				require.GreaterOrEqual(t, source.count(), 20)
				for n, call := range source.calls[1:] {
					gap := call.Sub(source.calls[n])
					require.GreaterOrEqual(t, gap, tt.first)
					require.LessOrEqual(t, gap, tt.last)
				}
				require.Empty(t, logs.All(), "nothing is logged while all is well")
			})
		})
	}
}

func TestRefreshesAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		times := map[time.Duration]int{}
		for range 100 {
			refresher, _ := start(t, &issuer{t: t, life: 10 * time.Minute}, 2*time.Minute)
			times[refresher.Status().NextRefresh.Sub(time.Now().UTC()).Truncate(time.Second)]++
		}
		require.Greater(t, len(times), 10)
		for at := range times {
			require.GreaterOrEqual(t, at, 450*time.Second)
			require.LessOrEqual(t, at, 480*time.Second)
		}
	})
}

func TestNoRequestWaitsForARefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: 10 * time.Minute}
		refresher, _ := start(t, source, 2*time.Minute)
		old := current(t, refresher)
		source.set(func(i *issuer) { i.takes = 9 * time.Second })
		// A fetch is under way: the old keys are given at once.
		for source.count() == 1 {
			pass(time.Second)
		}
		began := time.Now()
		require.True(t, old.Same(current(t, refresher)))
		require.Equal(t, began, time.Now())
		pass(9 * time.Second)
		require.False(t, old.Same(current(t, refresher)))
	})
}

func TestAnOutageLongerThanTheKeysLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("the server is down")
		source := &issuer{t: t, life: 10 * time.Minute}
		refresher, logs := start(t, source, 2*time.Minute)
		require.True(t, isReady(refresher))
		keys := current(t, refresher)
		source.set(func(i *issuer) { i.failure = down })

		// The old keys serve to their very end.
		pass(10*time.Minute - 1)
		require.True(t, keys.Same(current(t, refresher)))
		status := refresher.Status()
		require.Equal(t, "the server is down", status.LastError)
		require.WithinDuration(t, keys.Expires.Add(-135*time.Second), status.FailingSince, 15*time.Second)
		failed := status.Failures
		// 120 to 150 s of attempts that settle at 1.2 to 2.8 s each.
		require.Greater(t, failed, uint64(42))
		require.Less(t, failed, uint64(130))

		pass(1)
		_, err := refresher.Current()
		require.ErrorIs(t, err, credentials.ErrExpired)
		require.ErrorIs(t, err, down)
		require.True(t, isReady(refresher), "ready is latched")

		// It is tried on, and recovers by itself within five seconds.
		pass(time.Hour)
		require.Greater(t, refresher.Status().Failures, failed+3600/5)
		source.set(func(i *issuer) { i.failure = nil })
		pass(5 * time.Second)
		require.False(t, keys.Same(current(t, refresher)))
		status = refresher.Status()
		require.Empty(t, status.LastError)
		require.Zero(t, status.FailingSince)
		require.EqualValues(t, 2, status.Refreshes)

		require.Equal(t, 2, logs.Len(), "one line when it began, one when it ended")

		// The next trouble begins with short waits again.
		source.set(func(i *issuer) { i.failure = down })
		calls := source.count()
		refresher.Refused(current(t, refresher))
		pass(350 * time.Millisecond)
		require.Equal(t, calls+2, source.count())
		require.Equal(t, "credential not refreshed", logs.All()[0].Message)
		require.Equal(t, true, logs.All()[0].ContextMap()["in_force"])
		require.Equal(t, "credential refreshed again", logs.All()[1].Message)
	})
}

func TestTheNearerTheEndTheMoreUrgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: time.Minute}
		refresher, _ := start(t, source, 20*time.Second)
		for range 10 {
			// The server comes back 400 ms before the end.
			keys := current(t, refresher)
			source.set(func(i *issuer) { i.failure = errors.New("down") })
			pass(time.Until(keys.Expires) - 400*time.Millisecond)
			source.set(func(i *issuer) { i.failure = nil })
			pass(399 * time.Millisecond)
			require.False(t, keys.Same(current(t, refresher)))
		}
		require.Less(t, source.count(), 10*30)
	})
}

func TestKeysThatNeverCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wrong := &credentials.Error{Op: "QueryTokenForMnsQueue", Code: "InvalidAccessKeyId.NotFound", Status: 404, RequestID: "A", Message: "no such key"}
		source := &issuer{t: t, life: time.Hour, failure: fmt.Errorf("get token: %w", wrong)}
		refresher, logs := start(t, source, time.Minute)
		require.False(t, isReady(refresher))
		_, err := refresher.Current()
		require.ErrorIs(t, err, credentials.ErrNotFetched)
		require.ErrorContains(t, err, "check that access_key_id is right")
		require.Zero(t, refresher.Status().Expires)
		require.Zero(t, refresher.Status().LastRefresh)

		// The same failure with another request id is no news; another failure is.
		for n := range 10 {
			source.set(func(i *issuer) {
				other := *wrong
				other.RequestID = strconv.Itoa(n)
				i.failure = fmt.Errorf("get token: %w", &other)
			})
			pass(10 * time.Second)
		}
		require.Equal(t, 1, logs.Len())
		require.Equal(t, false, logs.All()[0].ContextMap()["in_force"])
		source.set(func(i *issuer) { i.failure = errors.New("another") })
		pass(time.Minute)
		require.Equal(t, 2, logs.Len())

		source.set(func(i *issuer) { i.failure = nil })
		pass(5 * time.Second)
		require.True(t, isReady(refresher))
		current(t, refresher)
		require.Equal(t, 3, logs.Len())
	})
}

func TestBeforeTheFirstAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refresher, _ := start(t, &issuer{t: t, life: time.Hour, takes: time.Second}, time.Minute)
		_, err := refresher.Current()
		require.EqualError(t, err, credentials.ErrNotFetched.Error())
		require.ErrorIs(t, err, credentials.ErrNotFetched)
		refresher.Refused(credentials.Keys{})
		pass(time.Second)
		require.True(t, isReady(refresher))
		current(t, refresher)
		require.Zero(t, refresher.Status().RefusedSince)
	})
}

func TestAnAttemptThatHangs(t *testing.T) {
	for _, tt := range []struct{ life, patience time.Duration }{
		{10 * time.Minute, 10 * time.Second},
		{30 * time.Second, 5 * time.Second},
		{3 * time.Second, time.Second},
		{0, 10 * time.Second},
	} {
		t.Run(tt.life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &issuer{t: t, life: tt.life}
				refresher, _ := start(t, source, 2*time.Minute)
				require.Equal(t, 10*time.Second, source.given(), "the first attempt")
				if tt.life == 0 {
					return
				}
				source.set(func(i *issuer) { i.takes = time.Hour })
				for source.count() == 1 {
					pass(100 * time.Millisecond)
				}
				require.Equal(t, tt.patience, source.given())
				pass(tt.patience)
				require.EqualValues(t, 1, refresher.Status().Failures)
				require.Equal(t, int(1+(tt.patience+3*time.Second-1)/(3*time.Second)), source.count(), "asked once more beside each three seconds")
			})
		})
	}
}

// A server that hangs keeps what was sent to it for ever. It gives keys again within five
// seconds of its return, whatever was under way then, and whether keys have come before or not.
func TestAServerThatHangs(t *testing.T) {
	for _, life := range []time.Duration{0, time.Hour, 10 * time.Minute} {
		for hung := 20 * time.Second; hung < 36*time.Second; hung += 700 * time.Millisecond {
			t.Run(fmt.Sprint(life, " ", hung), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					source := &issuer{t: t, life: life, takes: time.Hour}
					if life > 0 {
						source.takes = 0
					}
					refresher, logs := start(t, source, 2*time.Minute)
					if life > 0 {
						source.set(func(i *issuer) { i.takes = time.Hour })
						refresher.Refused(current(t, refresher))
					}
					pass(hung)
					require.NotEmpty(t, refresher.Status().LastError)
					source.set(func(i *issuer) { i.takes = 100 * time.Millisecond })
					pass(5 * time.Second)
					require.Empty(t, refresher.Status().LastError)
					require.Zero(t, refresher.Status().RefusedSince)
					current(t, refresher)
					require.Equal(t, 2, logs.Len(), "%v", logs.All())
				})
			})
		}
	}
}

// A server that is slow has its time.
func TestAServerThatIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: time.Hour, takes: 9500 * time.Millisecond}
		refresher, logs := start(t, source, 2*time.Minute)
		pass(9500 * time.Millisecond)
		current(t, refresher)
		require.Equal(t, 4, source.count())
		require.Zero(t, logs.Len())
	})
}

// How long the last keys lived says nothing about the server once they have ended.
func TestASlowServerAfterKeysOfSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: 5 * time.Second}
		refresher, _ := start(t, source, 2*time.Minute)
		source.set(func(i *issuer) { i.takes, i.life = 1500*time.Millisecond, time.Hour })
		pass(10 * time.Second)
		require.Greater(t, time.Until(current(t, refresher).Expires), time.Minute)
	})
}

// stuck is a provider that knows no context.
type stuck struct{ release chan struct{} }

func (s stuck) Retrieve(context.Context) (credentials.Keys, error) {
	<-s.release
	return credentials.Keys{}, errors.New("late")
}

// An attempt that does not end when it is told to holds up neither the next nor the end.
func TestAnAttemptThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		provider := stuck{make(chan struct{})}
		refresher := credentials.NewRefresher(provider, &credentials.Config{Type: credentials.TypeOIDCRoleARN}, zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- refresher.Run(ctx, "x") }()
		pass(11 * time.Second)
		require.Contains(t, refresher.Status().LastError, "no answer in time")
		cancel()
		begun := time.Now()
		require.NoError(t, <-ended)
		require.Less(t, time.Since(begun), time.Second)
		close(provider.release)
	})
}

// Failures that take turns are a line each, not one for each attempt.
func TestFailuresThatTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: time.Hour}
		refresher, logs := start(t, source, time.Minute)
		refresher.Refused(current(t, refresher))
		for n := range 300 {
			source.set(func(i *issuer) {
				i.failure = &credentials.Error{Op: "AssumeRole", Status: 503 - n%2, Message: "not now"}
			})
			pass(time.Second)
		}
		require.Equal(t, 2, logs.Len())
		for n := range 300 {
			source.set(func(i *issuer) { i.failure = fmt.Errorf("trouble number %d", n) })
			pass(time.Second)
		}
		require.Equal(t, 8, logs.Len())
		source.set(func(i *issuer) { i.failure = nil })
		pass(5 * time.Second)
		require.Equal(t, "credential refreshed again", logs.All()[8].Message)
		source.set(func(i *issuer) { i.failure = errors.New("again") })
		refresher.Refused(current(t, refresher))
		pass(5 * time.Second)
		require.Equal(t, 10, logs.Len(), "the next trouble is told")
	})
}

func TestRefusedKeysAreReplacedOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: time.Hour, takes: 0}
		refresher, _ := start(t, source, 2*time.Minute)
		refused := current(t, refresher)
		source.set(func(i *issuer) { i.takes = time.Second })
		began := time.Now()
		var group sync.WaitGroup
		for range 100 {
			group.Go(func() { refresher.Refused(refused) })
		}
		group.Wait()
		require.Equal(t, began, time.Now(), "nobody waits")
		require.Equal(t, began.UTC(), refresher.Status().RefusedSince)
		require.True(t, refused.Same(current(t, refresher)), "there is nothing better yet")
		pass(500 * time.Millisecond)
		refresher.Refused(refused) // while the fetch is under way
		pass(500 * time.Millisecond)
		require.Equal(t, 2, source.count())
		require.False(t, refused.Same(current(t, refresher)))
		require.Zero(t, refresher.Status().RefusedSince)

		// Requests that were under way with the old keys come back: no news.
		for range 100 {
			refresher.Refused(refused)
		}
		pass(time.Minute)
		require.Equal(t, 2, source.count())
	})
}

func TestKeysThatAreAlwaysRefused(t *testing.T) {
	for _, caches := range []bool{false, true} {
		t.Run(fmt.Sprint("the server caches: ", caches), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				source := &issuer{t: t, life: time.Hour, caches: caches}
				refresher, _ := start(t, source, 2*time.Minute)
				for range 10 * 60 * 10 { // ten times a second for ten minutes
					refresher.Refused(current(t, refresher))
					pass(100 * time.Millisecond)
				}
				// Each 18 s to 42 s after the one before, the first eight aside.
				require.Greater(t, source.count(), 600/42)
				require.Less(t, source.count(), 600/18+8)
				if caches {
					require.NotZero(t, refresher.Status().RefusedSince)
				}

				// The keys of the last are good: no more calls, and after a time of
				// peace a refusal is heard at once again.
				calls := source.count()
				pass(5 * time.Minute)
				require.LessOrEqual(t, source.count(), calls+1)
				for source.count() < calls+2 {
					pass(time.Minute)
				}
				calls = source.count()
				refresher.Refused(current(t, refresher))
				pass(time.Millisecond)
				require.Equal(t, calls+1, source.count())
				refresher.Refused(current(t, refresher))
				pass(350 * time.Millisecond)
				require.Equal(t, calls+2, source.count())
			})
		})
	}
}

func TestRefusedWhileTheServerIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: time.Hour}
		refresher, _ := start(t, source, 2*time.Minute)
		refused := current(t, refresher)
		source.set(func(i *issuer) { i.failure = errors.New("down") })
		refresher.Refused(refused)
		pass(time.Minute)
		require.True(t, refused.Same(current(t, refresher)))
		require.Greater(t, source.count(), 10, "the refresh that was asked for is tried on")
		require.Less(t, source.count(), 50)
		source.set(func(i *issuer) { i.failure = nil })
		pass(5 * time.Second)
		require.False(t, refused.Same(current(t, refresher)))
	})
}

func TestStaticKeysThatAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t}
		refresher, logs := start(t, source, 0)
		keys := current(t, refresher)
		require.True(t, isReady(refresher))
		require.Zero(t, refresher.Status().NextRefresh)
		pass(1000 * time.Hour)
		refresher.Refused(keys)
		refused := time.Now()
		pass(1000 * time.Hour)
		refresher.Refused(keys)
		pass(time.Hour)
		require.Equal(t, 1, source.count(), "there is nothing to fetch")
		require.True(t, keys.Same(current(t, refresher)))
		require.Equal(t, refused.UTC(), refresher.Status().RefusedSince)
		require.Empty(t, logs.All())
	})
}

func TestKeysThatHadEndedWhenTheyCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: -time.Second}
		refresher, _ := start(t, source, time.Minute)
		pass(time.Minute)
		_, err := refresher.Current()
		require.ErrorIs(t, err, credentials.ErrNotFetched)
		require.False(t, isReady(refresher))
		require.Less(t, source.count(), 50)
	})
}

func TestAServerThatGivesTheSameTokenUntilItEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: 10 * time.Minute, caches: true}
		refresher, _ := start(t, source, 2*time.Minute)
		for range 10 * 60 * 60 { // an hour
			pass(100 * time.Millisecond)
			if _, err := refresher.Current(); err != nil {
				require.ErrorIs(t, err, credentials.ErrExpired)
				pass(500 * time.Millisecond)
				current(t, refresher)
			}
		}
		require.Less(t, source.count(), 6*15, "a few calls a token, no storm at its end")
	})
}

// Tokens of three seconds, asked for ten thousand times a second: nobody is given one
// that is about to end, failed attempts and slow answers notwithstanding.
func TestTokensOfThreeSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: 3 * time.Second, takes: 20 * time.Millisecond}
		refresher, logs := start(t, source, 2*time.Minute)
		<-refresher.Ready()
		least := time.Hour
		for n := range 120_000 {
			keys := current(t, refresher)
			least = min(least, time.Until(keys.Expires))
			// Every seventh second begins with a failure that lasts for 100 ms.
			switch n % 7000 {
			case 0:
				source.set(func(i *issuer) { i.failure = errors.New("hiccup") })
			case 100:
				source.set(func(i *issuer) { i.failure = nil })
			}
			<-time.After(time.Millisecond)
		}
		require.Greater(t, least, 400*time.Millisecond)
		require.Greater(t, source.count(), 120/3)
		require.Less(t, source.count(), 120)
		require.LessOrEqual(t, logs.Len(), 2*18, "two lines for each trouble at most")
	})
}

func TestRunEndsWithinAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.DebugLevel)
		source := &issuer{t: t, life: time.Hour, takes: time.Hour}
		refresher := credentials.NewRefresher(source, &credentials.Config{}, zap.New(core))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- refresher.Run(ctx, "sms") }()
		pass(time.Second)
		began := time.Now()
		cancel()
		require.NoError(t, <-ended)
		require.Equal(t, began, time.Now())
		require.Zero(t, refresher.Status().Failures, "the end is no failure")
		require.Empty(t, logs.All())
	})
}

func TestStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: time.Hour}
		refresher, _ := start(t, source, 0)
		began := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
		require.Equal(t, credentials.Status{
			Type: credentials.TypeMNSToken, Expires: began.Add(time.Hour), LastRefresh: began, NextRefresh: began.Add(time.Hour), Refreshes: 1,
		}, refresher.Status())
	})
}
