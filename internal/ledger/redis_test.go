package ledger_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/ledger"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/relaytest"
	"mnsrelay/internal/setting"
	"mnsrelay/test/redisserver"
)

func redisConfig(url string) ledger.Config {
	return ledger.Config{Type: ledger.TypeRedis, TTL: time.Hour, URL: setting.NewURL(url)}
}

func openRedis(tb testing.TB, cfg ledger.Config, deps ledger.Deps) *ledger.Redis {
	tb.Helper()
	l, err := ledger.NewRedis(cfg, deps)
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, l.Close()) })
	return l
}

// client talks to a server as its administrator.
func client(tb testing.TB, s *redisserver.Server) *redis.Client {
	tb.Helper()
	options, err := redis.ParseURL(s.URL())
	require.NoError(tb, err)
	c := redis.NewClient(options)
	tb.Cleanup(func() { require.NoError(tb, c.Close()) })
	return c
}

func TestRedis(t *testing.T) {
	relaytest.TestLedger(t, relaytest.LedgerHarness{
		Open: func(t *testing.T, ttl time.Duration) relay.Ledger { //nolint:thelper // A harness.
			cfg := redisConfig(redisserver.Start(t, redisserver.Config{}).URL())
			cfg.TTL = ttl
			return openRedis(t, cfg, ledger.Deps{})
		},
		Eventually: 2 * time.Second,
	})
}

func TestRedisIsSharedByReplicas(t *testing.T) {
	server := redisserver.Start(t, redisserver.Config{})
	one := openRedis(t, redisConfig(server.URL()), ledger.Deps{})
	other := openRedis(t, redisConfig(server.URL()), ledger.Deps{})
	apart := openRedis(t, redisConfig(server.URL()+"/7"), ledger.Deps{})
	keys := keysOf(0, 3)
	require.NoError(t, one.Record(t.Context(), keys[:2]))
	answers, err := other.Confirmed(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, []bool{true, true, false}, answers)
	answers, err = apart.Confirmed(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, []bool{false, false, false}, answers, "another database is another ledger")
}

func TestRedisKeys(t *testing.T) {
	server := redisserver.Start(t, redisserver.Config{})
	l := openRedis(t, redisConfig(server.URL()), ledger.Deps{})
	long := strings.Repeat("x", 1<<20)
	require.NoError(t, l.Record(t.Context(), []relay.LedgerKey{{}, {Source: "a b\r\n", Message: long, Route: "{x}", Sink: "*"}}))

	c := client(t, server)
	names, err := c.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	require.Len(t, names, 2)
	for _, name := range names {
		require.Regexp(t, `^mnsrelay:ledger:[A-Za-z0-9_-]{43}$`, name)
		ttl, err := c.PTTL(t.Context(), name).Result()
		require.NoError(t, err)
		require.Greater(t, ttl, time.Hour-time.Minute)
		require.LessOrEqual(t, ttl, time.Hour)
	}
}

// reads is how often the server has read from its connections.
func reads(t *testing.T, c *redis.Client) int {
	t.Helper()
	info, err := c.Info(t.Context(), "stats").Result()
	require.NoError(t, err)
	found := regexp.MustCompile(`total_reads_processed:(\d+)`).FindStringSubmatch(info)
	require.Len(t, found, 2)
	n, err := strconv.Atoi(found[1])
	require.NoError(t, err)
	return n
}

func TestRedisMakesOneRoundTripACall(t *testing.T) {
	server := redisserver.Start(t, redisserver.Config{})
	l := openRedis(t, redisConfig(server.URL()), ledger.Deps{})
	c := client(t, server)
	keys := keysOf(0, 256)
	require.NoError(t, l.Record(t.Context(), keys), "connects")
	for name, call := range map[string]func() error{
		"confirmed": func() error { _, err := l.Confirmed(t.Context(), keys); return err },
		"record":    func() error { return l.Record(t.Context(), keys) },
		"forget":    func() error { return l.Forget(t.Context(), keys) },
	} {
		before := reads(t, c)
		require.NoError(t, call())
		// 256 commands are up to 40 KB, written 4 KiB at a time, of which none waits for a reply.
		require.LessOrEqual(t, reads(t, c)-before, 12, name)
	}
	clients, err := c.ClientList(t.Context()).Result()
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(clients, "\n"), "one connection is the ledger's, one the test's")
}

// What a peak needed of connections is closed again.
func TestRedisKeepsFewConnections(t *testing.T) {
	server := redisserver.Start(t, redisserver.Config{})
	l := openRedis(t, redisConfig(server.URL()), ledger.Deps{})
	c := client(t, server)
	require.NoError(t, c.Ping(t.Context()).Err())
	server.Pause() // so that all of them wait at once
	var calls sync.WaitGroup
	for range 16 {
		calls.Go(func() { _, _ = l.Confirmed(t.Context(), keysOf(0, 16)) })
	}
	moment := time.NewTimer(50 * time.Millisecond)
	<-moment.C
	server.Resume()
	calls.Wait()
	stats, err := c.Info(t.Context(), "stats").Result()
	require.NoError(t, err)
	received, err := strconv.Atoi(regexp.MustCompile(`total_connections_received:(\d+)`).FindStringSubmatch(stats)[1])
	require.NoError(t, err)
	require.Greater(t, received, 1+4, "the test's, and a peak")
	for range 16 { // each call closes what is too many
		_, err := l.Confirmed(t.Context(), keysOf(0, 16))
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool {
		list, err := c.ClientList(t.Context()).Result()
		require.NoError(t, err)
		return strings.Count(list, "\n") <= 1+4
	}, 5*time.Second, 10*time.Millisecond)
}

// secret has every character that a URL, a log or an error could trip over.
const secret = `p:a/s#s@w?o%r&d "'{}`

func TestRedisPassword(t *testing.T) {
	server := redisserver.Start(t, redisserver.Config{Password: secret})
	keys := keysOf(0, 2)

	l := openRedis(t, redisConfig(server.URL()), ledger.Deps{})
	require.NoError(t, l.Record(t.Context(), keys))

	for name, url := range map[string]string{
		"wrong": strings.Replace(server.URL(), "default:", "default:not-", 1),
		"none":  "redis://" + server.Addr(),
		"user":  strings.Replace(server.URL(), "default:", "nobody:", 1),
	} {
		cfg := redisConfig(url)
		l := openRedis(t, cfg, ledger.Deps{})
		_, err := l.Confirmed(t.Context(), keys)
		require.Error(t, err, name)
		printed := fmt.Sprintf("%v %+v %#v %v %+v %#v", err, err, err, cfg, cfg, cfg)
		require.NotContains(t, printed, "p:a", name)
		require.NotContains(t, printed, "p%3Aa", name)
	}
}

func TestRedisNeedsThreeCommandsOnItsOwnKeys(t *testing.T) {
	server := redisserver.Start(t, redisserver.Config{})
	c := client(t, server)
	require.NoError(t, c.ACLSetUser(t.Context(), "relay", "on", ">pass", "~mnsrelay:ledger:*", "+exists", "+set", "+del").Err())
	l := openRedis(t, redisConfig("redis://relay:pass@"+server.Addr()), ledger.Deps{})
	keys := keysOf(0, 2)
	require.NoError(t, l.Record(t.Context(), keys))
	answers, err := l.Confirmed(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, []bool{true, true}, answers)
	require.NoError(t, l.Forget(t.Context(), keys))
}

func TestRedisThatIsFullFails(t *testing.T) {
	server := redisserver.Start(t, redisserver.Config{})
	l := openRedis(t, redisConfig(server.URL()), ledger.Deps{})
	keys := keysOf(0, 2)
	require.NoError(t, l.Record(t.Context(), keys[:1]))
	require.NoError(t, client(t, server).ConfigSet(t.Context(), "maxmemory", "1").Err())
	require.ErrorContains(t, l.Record(t.Context(), keys), "OOM")
	answers, err := l.Confirmed(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, []bool{true, false}, answers)
	require.NoError(t, l.Forget(t.Context(), keys), "a full server still forgets")
}

// certificate makes a certificate for 127.0.0.1, the files of it for a server and the pool
// for its clients.
func certificate(t *testing.T) (certFile, keyFile string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "redis"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	write := func(name, kind string, bytes []byte) string {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}), 0o600))
		return path
	}
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots = x509.NewCertPool()
	roots.AddCert(parsed)
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", private), roots
}

func TestRedisTLS(t *testing.T) {
	certFile, keyFile, roots := certificate(t)
	server := redisserver.Start(t, redisserver.Config{Password: secret, CertFile: certFile, KeyFile: keyFile})
	require.True(t, strings.HasPrefix(server.URL(), "rediss://"))
	keys := keysOf(0, 2)

	l := openRedis(t, redisConfig(server.URL()), ledger.Deps{RootCAs: roots})
	require.NoError(t, l.Record(t.Context(), keys))
	answers, err := l.Confirmed(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, []bool{true, true}, answers)

	stranger := openRedis(t, redisConfig(server.URL()), ledger.Deps{RootCAs: x509.NewCertPool()})
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, stranger.Record(t.Context(), keys), &unknown)

	elsewhere := strings.Replace(server.URL(), "127.0.0.1", "localhost", 1)
	var name x509.HostnameError
	require.ErrorAs(t, openRedis(t, redisConfig(elsewhere), ledger.Deps{RootCAs: roots}).Record(t.Context(), keys), &name)

	plain := strings.Replace(server.URL(), "rediss:", "redis:", 1)
	require.Error(t, openRedis(t, redisConfig(plain), ledger.Deps{}).Record(t.Context(), keys))
}

// answering starts a server that gives answer to every command.
func answering(t *testing.T, answer string) (url string) {
	t.Helper()
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	t.Cleanup(func() {
		require.NoError(t, listener.Close())
		running.Wait()
	})
	running.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close() //nolint:errcheck // The client has left.
				answerAll(c, answer)
			})
		}
	})
	return "redis://" + listener.Addr().String()
}

func answerAll(c io.ReadWriter, answer string) {
	in := bufio.NewReader(c)
	for {
		header, err := in.ReadString('\n')
		if err != nil {
			return
		}
		words, err := strconv.Atoi(strings.Trim(header, "*\r\n"))
		if err != nil {
			return
		}
		for range 2 * words {
			if _, err := in.ReadString('\n'); err != nil {
				return
			}
		}
		if _, err := io.WriteString(c, answer+"\r\n"); err != nil {
			return
		}
	}
}

func TestRedisOddServers(t *testing.T) {
	keys := keysOf(0, 3)
	for name, c := range map[string]struct{ answer, want string }{
		"a node of a cluster":      {"-MOVED 3999 10.0.0.1:6379", "name the cluster's proxy"},
		"a replica":                {"-READONLY You can't write against a read only replica.", "READONLY"},
		"one that loads":           {"-LOADING Redis is loading the dataset in memory", "LOADING"},
		"one that is no Redis":     {"HTTP/1.1 400 Bad Request", ""},
		"one that answers nothing": {"", ""},
		"one that answers text":    {"+OK", ""},
		"one that answers a list":  {"*1\r\n:1", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := openRedis(t, redisConfig(answering(t, c.answer)), ledger.Deps{})
			answers, err := l.Confirmed(t.Context(), keys)
			require.ErrorContains(t, err, c.want)
			require.Nil(t, answers)
		})
	}
}

func TestRedisConnectsToNothingAtFirst(t *testing.T) {
	server := redisserver.Start(t, redisserver.Config{})
	openRedis(t, redisConfig(server.URL()), ledger.Deps{})
	stats, err := client(t, server).Info(t.Context(), "stats").Result()
	require.NoError(t, err)
	require.Contains(t, stats, "total_connections_received:1\r\n", "the one of this question")
}

// BenchmarkRedis is what a batch costs with a server on loopback: asked for, recorded and
// forgotten.
func BenchmarkRedis(b *testing.B) {
	const size = 16
	l := openRedis(b, redisConfig(redisserver.Start(b, redisserver.Config{}).URL()), ledger.Deps{})
	ctx := context.Background()
	keys := keysOf(0, size)
	b.ReportAllocs()
	for b.Loop() {
		_, err := l.Confirmed(ctx, keys)
		require.NoError(b, err)
		require.NoError(b, l.Record(ctx, keys))
		require.NoError(b, l.Forget(ctx, keys))
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/size, "ns/message")
}
