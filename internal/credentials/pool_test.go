package credentials_test

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
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
	"mnsrelay/internal/setting"
)

// run runs refreshers until the test ends, or until the function is called.
func runAll(t *testing.T, refreshers ...*credentials.Refresher) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, r := range refreshers {
		all.Go(func() { _ = r.Run(ctx) })
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
	pool := credentials.NewPool()
	get := func(c credentials.Config, queue string) *credentials.Refresher {
		c.Defaults(func(string) string { return "" })
		require.NoError(t, c.Validate())
		r, err := pool.Refresher("x", &c, credentials.Deps{Queue: queue, Log: zap.NewNop()})
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

// Two hundred that begin at once are spread: ten calls a second, and again when they are
// refreshed. Keys that nobody is asked for do not wait.
func TestTwoHundredCredentials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const sources = 200
		pool := credentials.NewPool()
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		begun := time.Now()
		var refreshers []*credentials.Refresher
		var issuers []*issuer
		for range sources {
			issuers = append(issuers, &issuer{t: t, life: time.Hour, takes: 300 * time.Millisecond})
			r := credentials.PoolRefresher(pool, issuers[len(issuers)-1], &credentials.Config{Type: credentials.TypeMNSToken, RefreshBefore: 2 * time.Minute}, credentials.Deps{Log: zap.NewNop()})
			refreshers = append(refreshers, r)
			all.Go(func() { _ = r.Run(ctx) })
		}
		static := credentials.PoolRefresher(pool, &issuer{t: t}, &credentials.Config{Type: credentials.TypeStatic}, credentials.Deps{Log: zap.NewNop()})
		all.Go(func() { _ = static.Run(ctx) })
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
	r, err := credentials.NewPool().Refresher("sms", c, credentials.Deps{Log: zap.New(core)})
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
	p, err := token.Provider(credentials.Deps{Queue: "Alicom-Queue-1-SmsReport"})
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
