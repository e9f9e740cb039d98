package credentials_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// run runs refreshers until the test ends, or until the function is called.
func runAll(t *testing.T, refreshers ...*credentials.Refresher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, r := range refreshers {
		all.Go(func() { _ = r.Run(ctx, "sms") })
	}
	stop = sync.OnceFunc(func() {
		cancel()
		all.Wait()
	})
	t.Cleanup(stop)
	return stop
}

// Those that have the same credential have the same refresher, and it works as long as one
// of them does; those with the same base ask with the same keys.
func TestSharedCredentials(t *testing.T) {
	t.Parallel()
	a := newAccount(t, func(c *emulator.Config) { c.TokenLife = 3 * time.Second })
	pool := credentials.NewPool(zap.NewNop())
	get := func(c credentials.Config, queue string) *credentials.Refresher {
		c.Defaults(func(string) string { return "" })
		require.NoError(t, c.Validate())
		r, err := pool.Refresher(&c, queue)
		require.NoError(t, err)
		return r
	}
	one, other := get(*a.oidc(), "a"), get(*a.oidc(), "b")
	require.Same(t, one, other, "a role is good for every queue")
	token := credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport", Endpoint: setting.NewURL(a.url), Base: a.ecs()}
	sms, up := get(token, "Alicom-Queue-1-SmsReport"), get(token, "Alicom-Queue-1-SmsUp")
	require.NotSame(t, sms, up, "a token is for a queue")
	require.Same(t, sms, get(token, "Alicom-Queue-1-SmsReport"))
	token.RefreshBefore = time.Minute
	require.NotSame(t, sms, get(token, "Alicom-Queue-1-SmsReport"))

	// Two files that hold the same now may hold different keys tomorrow.
	static := func(path string) credentials.Config {
		return credentials.Config{Type: credentials.TypeStatic, AccessKeyID: secret("LTAI"), AccessKeySecret: setting.FileSecret(baseSecret, path)}
	}
	require.NotSame(t, get(static("/a"), ""), get(static("/b"), ""))
	require.Same(t, get(static("/a"), "x"), get(static("/a"), "y"))

	stopOne := runAll(t, one)
	runAll(t, other, sms, up)
	for _, r := range []*credentials.Refresher{one, sms, up} {
		<-r.Ready()
	}
	require.EqualValues(t, 1, a.Requests()[emulator.OpOIDC]["OK"])
	require.EqualValues(t, 2, a.Requests()[emulator.OpToken]["OK"])
	// The name of the role and its keys, once for both tokens.
	require.EqualValues(t, 2, a.Requests()[emulator.OpMetadata]["OK"])

	stopOne()
	before := one.Status().Refreshes
	require.Eventually(t, func() bool { return one.Status().Refreshes > before }, 5*time.Second, 10*time.Millisecond, "the other goes on")
	_, err := one.Current()
	require.NoError(t, err)
}

// (The tests with a clock of their own run alone: in parallel with others the race detector of
// Go 1.26 fails a check of its own now and then.)
//
// Two hundred that begin at once are spread: ten calls a second, and again when they are
// refreshed. Keys that nobody is asked for do not wait.
func TestTwoHundredCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sources = 200
		pool := credentials.NewPool(zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		begun := time.Now()
		var refreshers []*credentials.Refresher
		var issuers []*issuer
		for range sources {
			issuers = append(issuers, &issuer{t: t, life: time.Hour, takes: 300 * time.Millisecond})
			r := credentials.PoolRefresher(pool, issuers[len(issuers)-1], &credentials.Config{Type: credentials.TypeMNSToken, RefreshBefore: 2 * time.Minute})
			refreshers = append(refreshers, r)
			all.Go(func() { _ = r.Run(ctx, "sms") })
		}
		static := credentials.PoolRefresher(pool, &issuer{t: t}, &credentials.Config{Type: credentials.TypeStatic})
		all.Go(func() { _ = static.Run(ctx, "sms") })
		<-static.Ready()
		require.Zero(t, time.Since(begun))
		for _, r := range refreshers {
			<-r.Ready()
		}
		require.LessOrEqual(t, time.Since(begun), 21*time.Second)
		<-time.After(2 * time.Hour)
		cancel()
		all.Wait()
		var calls []time.Time
		for _, i := range issuers {
			require.GreaterOrEqual(t, len(i.calls), 3)
			calls = append(calls, i.calls...)
		}
		slices.SortFunc(calls, time.Time.Compare)
		for i := range calls[:len(calls)-10] {
			require.GreaterOrEqual(t, calls[i+10].Sub(calls[i]), time.Second-time.Microsecond, "calls %d to %d", i, i+10)
		}
	})
}

// Any number that are refused hold up none whose keys are about to end.
func TestUrgentCredentialsGoFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := credentials.NewPool(zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		run := func(i *issuer) *credentials.Refresher {
			r := credentials.PoolRefresher(pool, i, &credentials.Config{Type: credentials.TypeMNSToken, RefreshBefore: 2 * time.Minute})
			all.Go(func() { _ = r.Run(ctx, "x") })
			return r
		}
		good := run(&issuer{t: t, life: time.Minute})
		<-good.Ready()
		for range 200 {
			run(&issuer{t: t, failure: errors.New("no such key")})
		}
		for range 100 {
			keys := current(t, good)
			pass(10 * time.Second)
			require.Positive(t, time.Until(keys.Expires))
			require.WithinDuration(t, time.Now(), good.Status().LastRefresh, 41*time.Second)
		}
		cancel()
		all.Wait()
	})
}

// Any number of sources whose keys MNS refuses hold up none for long.
func TestRefusedKeysHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := credentials.NewPool(zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		run := func(i *issuer) *credentials.Refresher {
			r := credentials.PoolRefresher(pool, i, &credentials.Config{Type: credentials.TypeMNSToken, RefreshBefore: 2 * time.Minute})
			all.Go(func() { _ = r.Run(ctx, "x") })
			return r
		}
		for range 60 {
			r := run(&issuer{t: t, life: time.Hour})
			all.Go(func() {
				tick := time.NewTicker(5 * time.Second)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						keys, _ := r.Current()
						r.Refused(keys)
					case <-ctx.Done():
						return
					}
				}
			})
		}
		<-time.After(30 * time.Second) // until they are refused again and again
		once := &issuer{t: t, life: time.Hour, failure: errors.New("not now")}
		late := run(once)
		<-time.After(2 * time.Second)
		once.set(func(i *issuer) { i.failure = nil })
		begun := time.Now()
		<-late.Ready()
		require.Less(t, time.Since(begun), 20*time.Second)
		begun = time.Now()
		<-run(&issuer{t: t, life: time.Hour}).Ready()
		require.Less(t, time.Since(begun), time.Second, "a first fetch does not wait for those")
		cancel()
		all.Wait()
	})
}

// An answer counts as soon as it is there, however long a second call has to wait.
func TestAnAnswerWaitsForNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := credentials.NewPool(zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		run := func(i *issuer) *credentials.Refresher {
			r := credentials.PoolRefresher(pool, i, &credentials.Config{Type: credentials.TypeMNSToken, RefreshBefore: 2 * time.Minute})
			all.Go(func() { _ = r.Run(ctx, "x") })
			return r
		}
		for range 200 {
			run(&issuer{t: t, failure: errors.New("no such key")})
		}
		<-time.After(time.Minute)
		begun := time.Now()
		slow := run(&issuer{t: t, life: time.Minute, takes: 3500 * time.Millisecond})
		<-slow.Ready()
		require.Less(t, time.Since(begun), 4*time.Second)
		for range 300 {
			<-time.After(time.Second)
			current(t, slow)
		}
		cancel()
		all.Wait()
	})
}

// A base whose server hangs is asked once more beside, as others are.
func TestABaseThatHangsAtFirst(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/base" && calls.Add(1) == 1 {
			<-r.Context().Done()
			return
		}
		end := time.Now().UTC().Add(time.Hour).Format(time.RFC3339)
		_, _ = io.WriteString(w, `{"Code":"Success","AccessKeyId":"STS.uri","AccessKeySecret":"s","SecurityToken":"t","Expiration":"`+end+`",
			"Credentials":{"AccessKeyId":"STS.role","AccessKeySecret":"s","SecurityToken":"t","Expiration":"`+end+`"}}`)
	})
	c := &credentials.Config{
		Type: credentials.TypeRAMRoleARN, RoleARN: "acs:ram::1:role/r", Endpoint: setting.NewURL(server),
		Base: &credentials.Config{Type: credentials.TypeCredentialsURI, URI: setting.NewURL(server + "/base")},
	}
	c.Defaults(func(string) string { return "" })
	require.NoError(t, c.Validate())
	r, err := credentials.NewPool(zap.NewNop()).Refresher(c, "")
	require.NoError(t, err)
	begun := time.Now()
	runAll(t, r)
	<-r.Ready()
	require.Less(t, time.Since(begun), 5*time.Second)
}

// Every call counts, those for the clock's sake and those for base keys too.
func TestEveryCallHasATurn(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var calls []time.Time
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		calls = append(calls, time.Now())
		mu.Unlock()
		now := time.Now().UTC().Add(8 * time.Hour)
		w.Header().Set("Date", now.Format(http.TimeFormat))
		if signed, err := time.Parse(time.RFC3339, r.URL.Query().Get("Timestamp")); err == nil && now.Sub(signed).Abs() > 15*time.Minute {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"Code":"InvalidTimeStamp.Expired","Message":"no","RequestId":"A"}`)
			return
		}
		end := now.Add(time.Hour).Format(time.RFC3339)
		_, _ = io.WriteString(w, `{"Code":"Success","AccessKeyId":"STS.uri","AccessKeySecret":"s","SecurityToken":"t","Expiration":"`+end+`",
			"Credentials":{"AccessKeyId":"STS.role","AccessKeySecret":"s","SecurityToken":"t","Expiration":"`+end+`"}}`)
	})
	pool := credentials.NewPool(zap.NewNop())
	for n := range 10 {
		c := &credentials.Config{
			Type: credentials.TypeRAMRoleARN, RoleARN: "acs:ram::1:role/r", Endpoint: setting.NewURL(server),
			Base: &credentials.Config{Type: credentials.TypeCredentialsURI, URI: setting.NewURL(fmt.Sprint(server, "/", n))},
		}
		c.Defaults(func(string) string { return "" })
		require.NoError(t, c.Validate())
		r, err := pool.Refresher(c, "")
		require.NoError(t, err)
		runAll(t, r)
		defer func() { <-r.Ready() }()
	}
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(calls) == 30 // for each the base's, the one that is refused and the one that is not
	}, 10*time.Second, 10*time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	require.Greater(t, calls[29].Sub(calls[0]), 2500*time.Millisecond)
}

// Nothing is kept of credentials that nobody has any more.
func TestThePoolForgets(t *testing.T) {
	t.Parallel()
	pool := credentials.NewPool(zap.NewNop())
	c := &credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport", AccessKeyID: secret("LTAI"), AccessKeySecret: secret(baseSecret)}
	c.Defaults(func(string) string { return "" })
	require.NoError(t, c.Validate())
	func() {
		r, err := pool.Refresher(c, "a")
		require.NoError(t, err)
		refreshers, bases := pool.Sizes()
		require.Equal(t, []int{1, 1}, []int{refreshers, bases})
		runtime.GC()
		again, err := pool.Refresher(c, "a")
		require.NoError(t, err)
		require.Same(t, r, again)
	}()
	require.Eventually(t, func() bool {
		runtime.GC()
		refreshers, bases := pool.Sizes()
		return refreshers == 0 && bases == 0
	}, 5*time.Second, 10*time.Millisecond)
	r, err := pool.Refresher(c, "a")
	require.NoError(t, err)
	require.NotNil(t, r)
}

// The log names those that use a credential now, whoever made it.
func TestTheLogNamesTheUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		source := &issuer{t: t, failure: errors.New("down")}
		r := credentials.NewRefresher(source, &credentials.Config{Type: credentials.TypeMNSToken}, zap.New(core))
		var all sync.WaitGroup
		run := func(user string) (stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			all.Go(func() { _ = r.Run(ctx, user) })
			synctest.Wait()
			return cancel
		}
		stopA, stopB := run("a"), run("b")
		stopA()
		pass(10 * time.Second)
		source.set(func(i *issuer) { i.failure = errors.New("down in another way") })
		pass(10 * time.Second)
		stops := []func(){stopB}
		for n := range 8 {
			stops = append(stops, run(strconv.Itoa(n)))
		}
		source.set(func(i *issuer) { i.failure = nil })
		pass(10 * time.Second)
		var users []any
		for _, entry := range logs.All() {
			users = append(users, entry.ContextMap()["used_by"])
		}
		require.Equal(t, []any{[]any{"a"}, []any{"b"}, []any{"b", "0", "1", "2", "3", "and 4 more"}}, users)
		for _, stop := range stops {
			stop()
		}
		all.Wait()
	})
}

// A base whose server hangs costs nobody more than a third of an attempt while its keys are
// in force, and one of those that share it.
func TestABaseThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &issuer{t: t, life: time.Hour}
		base := credentials.Cached(source)
		get := func(patience time.Duration) (credentials.Keys, time.Duration, error) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			begun := time.Now()
			keys, err := base.Retrieve(ctx)
			return keys, time.Since(begun), err
		}
		old, _, err := get(9 * time.Second)
		require.NoError(t, err)
		source.set(func(i *issuer) { i.takes = 10 * time.Hour })
		<-time.After(50 * time.Minute)

		var all sync.WaitGroup
		all.Go(func() {
			keys, took, err := get(9 * time.Second)
			require.NoError(t, err)
			require.True(t, old.Same(keys))
			require.Equal(t, 3*time.Second, took)
		})
		synctest.Wait()
		for range 10 {
			keys, took, err := get(9 * time.Second)
			require.NoError(t, err)
			require.True(t, old.Same(keys))
			require.Zero(t, took, "while another asks")
		}
		all.Wait()
		calls := source.count()
		_, took, err := get(9 * time.Second)
		require.NoError(t, err)
		require.Zero(t, took, "so soon after a failure")
		require.Equal(t, calls, source.count())

		// When they have ended, all that wait wait for one attempt, and say for what.
		<-time.After(11 * time.Minute)
		for range 10 {
			all.Go(func() {
				_, took, err := get(9 * time.Second)
				require.Error(t, err)
				require.Equal(t, 9*time.Second, took)
				if e, is := errors.AsType[*credentials.Error](err); is {
					require.Equal(t, "wait for the base's keys: call for base keys: no answer in time: check that the endpoint is right and can be reached from here", err.Error())
					require.Equal(t, relay.ClassNetwork, e.Class())
				}
			})
		}
		all.Wait()
		require.InDelta(t, calls+3, source.count(), 1, "one fetch, and once more beside each three seconds")

		// One that goes before the answer leaves the asking to another.
		source.set(func(i *issuer) { i.takes = 2 * time.Second })
		all.Go(func() {
			_, _, err := get(time.Second)
			require.Error(t, err)
		})
		synctest.Wait()
		keys, took, err := get(9 * time.Second)
		require.NoError(t, err)
		require.False(t, old.Same(keys))
		require.Equal(t, 3*time.Second, took)
		all.Wait()
	})
}

// Keys from files are read again: what is replaced is used within seconds or as soon as
// MNS refuses the old ones, and a file that is empty or gone leaves the old ones in use.
func TestKeysFromFilesThatChange(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	write := func(name, text string) setting.Secret {
		path := filepath.Join(folder, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return setting.FileSecret(text, path)
	}
	c := &credentials.Config{Type: credentials.TypeStatic, AccessKeyID: write("id", "LTAIone"), AccessKeySecret: write("secret", baseSecret)}
	require.NoError(t, c.Validate())
	core, logs := observer.New(zap.InfoLevel)
	r, err := credentials.NewPool(zap.New(core)).Refresher(c, "")
	require.NoError(t, err)
	runAll(t, r)
	<-r.Ready()
	require.Equal(t, "LTAIone", current(t, r).AccessKeyID)

	write("id", "LTAItwo")
	write("secret", tokenSecret)
	r.Refused(current(t, r))
	require.Eventually(t, func() bool { return current(t, r).AccessKeyID == "LTAItwo" }, 2*time.Second, 5*time.Millisecond, "at once where the old ones are refused")

	write("id", "LTAIthree")
	require.Eventually(t, func() bool { return current(t, r).AccessKeyID == "LTAIthree" }, 8*time.Second, 10*time.Millisecond, "by itself")

	write("secret", "")
	require.Eventually(t, func() bool { return r.Status().LastError != "" }, 8*time.Second, 10*time.Millisecond)
	require.Contains(t, r.Status().LastError, "the file of access_key_id or access_key_secret is empty")
	require.Equal(t, "LTAIthree", current(t, r).AccessKeyID)
	require.NoError(t, os.Remove(filepath.Join(folder, "secret")))
	require.Eventually(t, func() bool { return logs.FilterMessage("credential not refreshed").Len() == 2 }, 8*time.Second, 10*time.Millisecond)
	write("secret", baseSecret)
	require.Eventually(t, func() bool { return r.Status().LastError == "" }, 5*time.Second, 10*time.Millisecond, "within five seconds")
	require.Equal(t, baseSecret, current(t, r).AccessKeySecret.Reveal())
	require.Less(t, logs.Len(), 5, "%v", logs.All())
	for _, entry := range logs.All() {
		requireNoSecret(t, entry.Message)
		requireNoSecret(t, entry.ContextMap())
	}
}

// A base whose keys a server refuses is asked for others, once.
func TestABaseThatIsRefused(t *testing.T) {
	t.Parallel()
	a := newAccount(t, nil)
	token := &credentials.Config{Type: credentials.TypeMNSToken, MessageType: "SmsReport", Endpoint: setting.NewURL(a.url), Base: a.oidc()}
	token.Defaults(func(string) string { return "" })
	p, err := token.Provider("Alicom-Queue-1-SmsReport")
	require.NoError(t, err)
	for range 3 {
		_, err = p.Retrieve(t.Context())
		require.NoError(t, err)
	}
	require.EqualValues(t, 1, a.Requests()[emulator.OpOIDC]["OK"], "its keys are kept")
	require.Positive(t, a.RevokeTokens())
	_, err = p.Retrieve(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2, a.Requests()[emulator.OpOIDC]["OK"])

	// Nothing is kept of a base that does not end: it may be another the next time.
	var asked atomic.Int64
	static := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"Code":"InvalidAccessKeyId.NotFound","Message":"no"}`))
	})
	c := tokenConfig(static)
	_, err = provider(t, c).Retrieve(t.Context())
	require.ErrorContains(t, err, "InvalidAccessKeyId.NotFound")
	require.EqualValues(t, 1, asked.Load(), "the same keys are not sent again")
}
