package check_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"mnsrelay/internal/check"
	"mnsrelay/internal/config"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/valyala/fasthttp.(*Client).mCleaner"))
}

const (
	keyID  = "LTAIkeyOfTheTests1"
	secret = "the-secret-of-the-key"
)

// start gives an emulator with the queue orders, and one of Alicom's.
func start(t *testing.T) (server *emulator.Server, at, alicom string) {
	t.Helper()
	server, err := emulator.New(emulator.Config{AccessKeys: []emulator.AccessKey{{ID: keyID, Secret: setting.NewSecret(secret)}}})
	require.NoError(t, err)
	at, err = server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	alicom = server.AlicomQueue("SmsReport")
	for _, name := range []string{"orders", alicom} {
		if _, found := server.QueueStats(name); !found {
			require.NoError(t, server.CreateQueue(name, emulator.QueueConfig{}))
		}
		_, err := server.Send(name, []byte("left alone"))
		require.NoError(t, err)
	}
	return server, at, alicom
}

// isolated keeps the default chain from what is on the machine.
func isolated(t *testing.T) {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
	for _, name := range []string{"ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "SECURITY_TOKEN", "ROLE_ARN", "OIDC_PROVIDER_ARN", "OIDC_TOKEN_FILE", "CREDENTIALS_URI"} {
		t.Setenv("ALIBABA_CLOUD_"+name, "")
	}
}

func parse(t *testing.T, text string) *config.Config {
	t.Helper()
	cfg, _, err := config.Parse("test", []byte(text), config.Environment{})
	require.NoError(t, err)
	return cfg
}

// looked gives the lines of a configuration of one source, without what its sink is.
func looked(t *testing.T, timeout time.Duration, source string) check.Report {
	t.Helper()
	report, err := check.Run(t.Context(), parse(t, "sources: {sms: "+source+"}\nsinks: {out: {type: file, path: '-'}}\n"), check.Options{Instance: "test", Timeout: timeout})
	require.NoError(t, err)
	require.Equal(t, check.Sink, report[len(report)-1].Kind)
	return report[:len(report)-1]
}

// requireLine demands a line about a thing with the verdict and the text.
func requireLine(t *testing.T, r check.Report, what string, verdict relay.Verdict, text string) check.Line {
	t.Helper()
	for _, line := range r {
		if strings.HasPrefix(line.What, what) {
			require.Equal(t, verdict, line.Verdict, "%+v", r)
			require.Contains(t, line.Text, text)
			return line
		}
	}
	require.Fail(t, "there is no line about "+what, "%+v", r)
	return check.Line{}
}

func static(at, queue, id, secret string) string {
	return "{endpoint: '" + at + "', queue: " + queue + ", to: out, credentials: {type: static, access_key_id: " + id + ", access_key_secret: " + secret + "}}"
}

func token(at, queue, id, secret string) string {
	return "{endpoint: '" + at + "', queue: " + queue + ", to: out, credentials: {type: mns_token, message_type: SmsReport, endpoint: '" + at + "', access_key_id: " + id + ", access_key_secret: " + secret + "}}"
}

// Nothing is wrong, and nothing was received.
func TestSource(t *testing.T) {
	isolated(t)
	server, at, alicom := start(t)
	r := looked(t, 5*time.Second, static(at, "orders", keyID, secret))
	require.Zero(t, r.Count(relay.Failed), "%+v", r)
	require.Equal(t, 1, r.Count(relay.Unknown), "%+v", r)
	requireLine(t, r, "receive", relay.Unknown, "it needs mns:ReceiveMessage")
	requireLine(t, r, "credential", relay.OK, "static, account not known, access key LTAI***sts1, without an end")
	requireLine(t, r, "clock", relay.OK, "as the server's")
	requireLine(t, r, "queue orders", relay.OK, "")
	requireLine(t, r, "peek", relay.OK, "the credential may")
	requireLine(t, r, "delete", relay.OK, "the credential may")

	r = looked(t, 5*time.Second, token(at, alicom, keyID, secret))
	require.Zero(t, r.Count(relay.Failed), "%+v", r)
	line := requireLine(t, r, "credential", relay.OK, "until "+time.Now().UTC().Format("2006-01-"))
	require.Contains(t, line.Text, " UTC, here ")
	require.Equal(t, "type", line.Details[0].Name)
	require.Equal(t, "expires", line.Details[2].Name)

	for _, name := range []string{"orders", alicom} {
		stats, found := server.QueueStats(name)
		require.True(t, found)
		require.Equal(t, 1, stats.Active)
	}
	requireNoReceive(t, server)
}

func requireNoReceive(t *testing.T, server *emulator.Server) {
	t.Helper()
	require.NotContains(t, server.Requests(), emulator.OpReceive)
	require.NotContains(t, server.Requests(), emulator.OpSend)
}

func TestSourceOfARole(t *testing.T) {
	isolated(t)
	server, at, alicom := start(t)
	role := server.RoleARN("relay")
	base := "{type: ram_role_arn, role_arn: '" + role + "', endpoint: '" + at + "', access_key_id: " + keyID + ", access_key_secret: " + secret + "}"
	r := looked(t, 5*time.Second, "{endpoint: '"+at+"', queue: "+alicom+", to: out, credentials: {type: mns_token, message_type: SmsReport, endpoint: '"+at+"', base: "+base+"}}")
	require.Zero(t, r.Count(relay.Failed), "%+v", r)
	requireLine(t, r, "credential", relay.OK, "mns_token by ram_role_arn, account "+emulator.DefaultAccountID+", "+role)

	r = looked(t, 5*time.Second, "{endpoint: '"+at+"', queue: orders, to: out, credentials: {type: default}}")
	require.Len(t, r, 1)
	requireLine(t, r, "credential", relay.Failed, "find keys: there are none in the environment")
}

// What a token of Alicom's may be allowed to is enough.
func TestTokenThatMayReceiveAndDeleteOnly(t *testing.T) {
	isolated(t)
	server, at, alicom := start(t)
	require.NoError(t, server.SetTokenPolicy(emulator.PolicyReceiveDelete))
	r := looked(t, 5*time.Second, token(at, alicom, keyID, secret))
	require.Zero(t, r.Count(relay.Failed), "%+v", r)
	requireLine(t, r, "keys", relay.OK, "the server takes them")
	requireLine(t, r, "attributes", relay.OK, "may not")
	requireLine(t, r, "peek", relay.OK, `may not; only "queue peek", "explain --peek" and mode: shadow need it`)
	requireLine(t, r, "delete", relay.OK, "as tokens of Alicom queues, which is enough")

	shadow := strings.Replace(token(at, alicom, keyID, secret), "{", "{mode: shadow, ", 1)
	r = looked(t, 5*time.Second, shadow)
	require.Equal(t, 1, r.Count(relay.Failed), "%+v", r)
	requireLine(t, r, "peek", relay.Failed, "so that mode: shadow sees nothing")
	require.NoError(t, server.SetTokenPolicy(emulator.PolicyFull))
	r = looked(t, 5*time.Second, shadow)
	require.Zero(t, r.Count(relay.Failed), "%+v", r)
	requireLine(t, r, "peek", relay.OK, "may")
}

// knowNoNames makes this process ask a name server on loopback that knows no name.
func knowNoNames(t *testing.T) {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			var q dnsmessage.Message
			if q.Unpack(buffer[:n]) != nil {
				continue
			}
			q.Response, q.RCode, q.Additionals = true, dnsmessage.RCodeNameError, nil
			if answer, err := q.Pack(); err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	})
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		_ = conn.Close()
		serving.Wait()
	})
}

func TestWrongSources(t *testing.T) {
	isolated(t)
	knowNoNames(t)
	server, at, alicom := start(t)
	closed := "http://" + unused(t)
	for name, tt := range map[string]struct {
		source string
		fault  *emulator.Fault
		what   string
		text   string
	}{
		"a wrong secret":                    {static(at, "orders", keyID, "wrong"), nil, "keys", "the secret does not belong to the access key: check access_key_secret (SignatureDoesNotMatch 403)"},
		"an unknown key":                    {static(at, "orders", "LTAInobody", secret), nil, "keys", "the server does not know the access key: check access_key_id"},
		"a wrong secret of a token":         {token(at, alicom, keyID, "wrong"), nil, "credential", "check that access_key_secret belongs to access_key_id"},
		"an unknown key of a token":         {token(at, alicom, "LTAInobody", secret), nil, "credential", "check that access_key_id is right"},
		"an unknown queue":                  {static(at, "nowhere", keyID, secret), nil, "queue nowhere", "there is no such queue: create it, or correct queue and endpoint"},
		"no permission at all":              {static(at, "orders", keyID, secret), &emulator.Fault{Status: 403, Code: "AccessDenied"}, "delete", "the keys are good, and may not delete from the queue: grant them mns:ReceiveMessage"},
		"a token that has ended":            {static(at, "orders", keyID, secret), &emulator.Fault{Status: 403, Code: "SecurityTokenExpired"}, "keys", "may have ended or been revoked"},
		"a server in trouble":               {static(at, "orders", keyID, secret), &emulator.Fault{Status: 503, Code: "InternalError"}, "server", "InternalError 503"},
		"another server":                    {static(at, "orders", keyID, secret), &emulator.Fault{Status: 200, Body: "<html>"}, "server", "no MNS: check the endpoint"},
		"a server that is silent":           {static(at, "orders", keyID, secret), &emulator.Fault{Delay: emulator.Duration(time.Minute)}, "server", "no answer in time"},
		"an endpoint that does not resolve": {static("https://nowhere.invalid", "orders", keyID, secret), nil, "server", "correct the host's name"},
		"an endpoint where nothing listens": {static(closed, "orders", keyID, secret), nil, "server", "nothing listens there: check host and port"},
		"an endpoint without TLS":           {static(strings.Replace(at, "http:", "https:", 1), "orders", keyID, secret), nil, "server", "does not speak TLS: check scheme and port"},
		"Dybaseapi where nothing listens":   {strings.Replace(token(at, alicom, keyID, secret), "SmsReport, endpoint: '"+at, "SmsReport, endpoint: '"+closed, 1), nil, "credential", "connection refused: check that the endpoint is right and can be reached from here"},
		"Dybaseapi that forbids":            {token(at, alicom, keyID, secret), &emulator.Fault{Operation: emulator.OpToken, Status: 200, Code: "isp.RAM_PERMISSION_DENY"}, "credential", "grant the owner of the key the right to call"},
		"Dybaseapi that does not answer":    {token(at, alicom, keyID, secret), &emulator.Fault{Operation: emulator.OpToken, Delay: emulator.Duration(time.Minute)}, "credential", "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			server.ClearFaults()
			if tt.fault != nil {
				_, err := server.AddFault(*tt.fault)
				require.NoError(t, err)
			}
			timeout := 10 * time.Second
			if tt.fault != nil && tt.fault.Delay > 0 {
				timeout = time.Second
			}
			began := time.Now()
			r := looked(t, timeout, tt.source)
			require.Less(t, time.Since(began), timeout+5*time.Second)
			require.Equal(t, 1, r.Count(relay.Failed), "%+v", r)
			requireLine(t, r, tt.what, relay.Failed, tt.text)
			for _, line := range r {
				require.NotContains(t, line.Text, secret)
			}
		})
	}
	requireNoReceive(t, server)
}

// A clock that is wrong is said, and keeps nothing from working.
func TestSkewedClock(t *testing.T) {
	isolated(t)
	server, at, alicom := start(t)
	for offset, text := range map[time.Duration]string{
		20 * time.Minute:  "the clock of this machine is 20m0s behind the server's: set it",
		-20 * time.Minute: "the clock of this machine is 20m0s ahead of the server's: set it",
	} {
		server.SetClockOffset(offset)
		for _, source := range []string{static(at, "orders", keyID, secret), token(at, alicom, keyID, secret)} {
			r := looked(t, 5*time.Second, source)
			require.Zero(t, r.Count(relay.Failed), "%+v", r)
			line := requireLine(t, r, "clock", relay.OK, text)
			require.InDelta(t, offset.Seconds(), line.Details[0].Value, 1)
		}
	}
}

// unused is an address of loopback where nothing listens.
func unused(t *testing.T) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, listener.Close())
	return listener.Addr().String()
}

// Sources that share a credential fetch it once; lines come in the order of the file;
// nobody waits for another.
func TestSeveralParts(t *testing.T) {
	isolated(t)
	server, at, _ := start(t)
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = silent.Close() })
	hook := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request") }))
	t.Cleanup(hook.Close)
	credential := "{type: ram_role_arn, role_arn: '" + server.RoleARN("relay") + "', endpoint: '" + at + "', access_key_id: " + keyID + ", access_key_secret: " + secret + "}"
	source := "{endpoint: '" + at + "', queue: orders, to: [z, a], dead_letter: lost, credentials: " + credential + "}"
	cfg := parse(t, `
sources: {c: `+source+`, b: `+source+`, a: `+source+`}
sinks:
  z: {type: amqp091, url: 'amqp://`+silent.Addr().String()+`/', exchange: x}
  y: {type: amqp10, url: 'amqp://`+silent.Addr().String()+`', address: x}
  m: {type: mns, endpoint: '`+at+`', queue: orders, credentials: `+credential+`}
  lost: {type: file, path: '`+filepath.Join(t.TempDir(), "missing", "lost.jsonl")+`'}
  a: {type: webhook, url: '`+hook.URL+`', network: {allow: [127.0.0.0/8]}}
ledger: {type: redis, url: 'redis://`+unused(t)+`/0'}
`)
	began := time.Now()
	r, err := check.Run(t.Context(), cfg, check.Options{Instance: "test", Timeout: 2 * time.Second})
	require.NoError(t, err)
	require.Less(t, time.Since(began), 5*time.Second, "they are looked at side by side")
	var order []string
	for _, line := range r {
		if name := string(line.Kind) + " " + line.Name; len(order) == 0 || order[len(order)-1] != name {
			order = append(order, name)
		}
	}
	require.Equal(t, []string{"source c", "source b", "source a", "sink z", "sink y", "sink m", "sink lost", "sink a", "ledger "}, order)
	require.Equal(t, 4, r.Count(relay.Failed), "%+v", r)
	requireLine(t, r, "connection to "+silent.Addr().String(), relay.Failed, "log in: no answer within 2s")
	requireLine(t, r, "folder", relay.Failed, "make the folder, or mount it")
	requireLine(t, r, "redis", relay.Failed, "nothing listens there")
	require.EqualValues(t, 2, server.Requests()[emulator.OpSTS]["OK"], "once for the sources, once for the sink")
}

// STS is asked about keys only where it is named, or the queue is Alibaba Cloud's.
func TestOwner(t *testing.T) {
	isolated(t)
	_, at, alicom := start(t)
	var asked url.Values
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked = req.URL.Query()
		_, _ = w.Write([]byte(`{"AccountId": "42", "Arn": "acs:ram::42:user/relay", "RequestId": "x"}`))
	}))
	t.Cleanup(sts.Close)
	u, err := url.Parse(sts.URL)
	require.NoError(t, err)
	for _, source := range []string{static(at, "orders", keyID, secret), token(at, alicom, keyID, secret)} {
		cfg := parse(t, "sources: {sms: "+source+"}\nsinks: {out: {type: file, path: '-'}}\n")
		r, err := check.Run(t.Context(), cfg, check.Options{Timeout: 5 * time.Second, STS: u})
		require.NoError(t, err)
		require.Zero(t, r.Count(relay.Failed), "%+v", r)
		requireLine(t, r, "credential", relay.OK, ", account 42, acs:ram::42:user/relay, access key ")
		require.Equal(t, "GetCallerIdentity", asked.Get("Action"))
		require.Equal(t, keyID, asked.Get("AccessKeyId"), "the keys of the operator's, not those of the token")
	}
	// Keys that may not ask are none the worse.
	sts.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	cfg := parse(t, "sources: {sms: "+static(at, "orders", keyID, secret)+"}\nsinks: {out: {type: file, path: '-'}}\n")
	r, err := check.Run(t.Context(), cfg, check.Options{Timeout: 5 * time.Second, STS: u})
	require.NoError(t, err)
	require.Zero(t, r.Count(relay.Failed), "%+v", r)
	requireLine(t, r, "credential", relay.OK, "account not known: STS does not tell: call GetCallerIdentity: HTTP 403")

	// The emulator tells whose the keys are that it issued, too.
	emulated, err := url.Parse(at)
	require.NoError(t, err)
	cfg = parse(t, "sources: {sms: {endpoint: '"+at+"', queue: orders, to: out, credentials: {type: credentials_uri, uri: '"+at+"/credentials'}}}\nsinks: {out: {type: file, path: '-'}}\n")
	r, err = check.Run(t.Context(), cfg, check.Options{Timeout: 5 * time.Second, STS: emulated})
	require.NoError(t, err)
	requireLine(t, r, "credential", relay.OK, "account 1234567890123456, acs:ram::1234567890123456:")
}

func TestInterrupted(t *testing.T) {
	isolated(t)
	_, at, _ := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := check.Run(ctx, parse(t, "sources: {sms: "+static(at, "orders", keyID, secret)+"}\nsinks: {out: {type: file, path: '-'}}\n"), check.Options{Timeout: time.Minute})
	require.ErrorIs(t, err, context.Canceled)
}
