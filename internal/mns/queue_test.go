package mns_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// script is a server that answers as a test says, and counts its connections.
type script struct {
	*httptest.Server

	opened, closed atomic.Int32
}

func serve(t *testing.T, answer http.HandlerFunc) *script {
	t.Helper()
	s := &script{}
	s.Server = httptest.NewUnstartedServer(answer)
	s.Config.ConnState = s.count
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func (s *script) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		s.opened.Add(1)
	case http.StateClosed, http.StateHijacked:
		s.closed.Add(1)
	case http.StateActive, http.StateIdle:
	}
}

// observations counts what a queue tells Observe.
type observations struct {
	mu    sync.Mutex
	seen  []string
	total map[string]int
}

func (o *observations) observe(op, code string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.total == nil {
		o.total = make(map[string]int)
	}
	o.seen = append(o.seen, op+" "+code)
	o.total[op+" "+code]++
}

func (o *observations) all() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]string(nil), o.seen...)
}

func (o *observations) count(what string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.total[what]
}

func newSource(t *testing.T, url string, change func(*mns.Config, *mns.Deps)) *mns.Source {
	t.Helper()
	cfg := mns.Config{Name: "sms", Endpoint: url, Queue: "q", Wait: 30 * time.Second}
	deps := mns.Deps{Credentials: static("id", "secret")}
	if change != nil {
		change(&cfg, &deps)
	}
	s, err := mns.NewSource(cfg, deps)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func mnsError(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_, _ = fmt.Fprintf(w, `<?xml version="1.0"?><Error xmlns="http://mns.aliyuncs.com/doc/v1/"><Code>%s</Code>`+
		`<Message>said so</Message><RequestId>5EAD</RequestId><HostId>h</HostId></Error>`, code)
}

func empty(w http.ResponseWriter) { mnsError(w, http.StatusNotFound, "MessageNotExist") }

func messages(w io.Writer, visibility time.Duration, bodies ...string) {
	now := time.Now()
	_, _ = io.WriteString(w, `<Messages xmlns="http://mns.aliyuncs.com/doc/v1/">`)
	for i, body := range bodies {
		_, _ = fmt.Fprintf(w, "<Message><MessageId>id-%d</MessageId><ReceiptHandle>handle-%d==</ReceiptHandle><MessageBody>%s</MessageBody>"+
			"<EnqueueTime>1449556920975</EnqueueTime><NextVisibleTime>%d</NextVisibleTime><DequeueCount>3</DequeueCount></Message>",
			i, i, body, now.Add(visibility).UnixMilli())
	}
	_, _ = io.WriteString(w, "</Messages>")
}

func TestReceive(t *testing.T) {
	var uri, host, token atomic.Value
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		uri.Store(r.Method + " " + r.RequestURI)
		host.Store(r.Host)
		token.Store(r.Header.Get("Security-Token"))
		messages(w, 30*time.Second, "one", "&lt;two&gt;")
	})
	var seen observations
	keys := static("id", "secret")
	keys.keys.SecurityToken = setting.NewSecret("token")
	s := newSource(t, server.URL, func(_ *mns.Config, d *mns.Deps) { d.Observe, d.Credentials = seen.observe, keys })

	before := time.Now()
	ds, err := s.Receive(t.Context(), 16, true)
	require.NoError(t, err)
	require.Equal(t, "GET /queues/q/messages?numOfMessages=16&waitseconds=30", uri.Load())
	require.Equal(t, strings.TrimPrefix(server.URL, "http://"), host.Load())
	require.Equal(t, "token", token.Load())
	require.Len(t, ds, 2)
	require.Equal(t, relay.Message{
		ID: "id-1", Source: "sms", Queue: "q", Body: []byte("<two>"), EnqueuedAt: time.UnixMilli(1449556920975), Attempt: 3,
	}, ds[1].Message)
	require.Equal(t, "handle-1==", ds[1].Receipt)
	for _, d := range ds {
		// A second for the last request, up to another that the Date header leaves open.
		require.WithinRange(t, d.Deadline, before.Add(27900*time.Millisecond), time.Now().Add(29*time.Second))
	}
	require.Equal(t, []string{"receive OK"}, seen.all())

	_, err = s.Receive(t.Context(), 99, false)
	require.NoError(t, err)
	require.Equal(t, "GET /queues/q/messages?numOfMessages=16&waitseconds=0", uri.Load(), "the queue's own wait would hold without it")
	require.EqualValues(t, 1, server.opened.Load(), "connections are kept")
}

func TestDeadlineFollowsTheServersClock(t *testing.T) {
	const ahead = 3 * time.Hour
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now().Add(ahead)
		w.Header().Set("Date", now.UTC().Format(http.TimeFormat))
		_, _ = fmt.Fprintf(w, "<Messages><Message><MessageId>i</MessageId><ReceiptHandle>r</ReceiptHandle><NextVisibleTime>%d</NextVisibleTime></Message>"+
			"<Message><MessageId>j</MessageId><ReceiptHandle>s</ReceiptHandle><NextVisibleTime>%d</NextVisibleTime></Message></Messages>",
			now.Add(10*time.Second).UnixMilli(), now.Add(20*time.Second).UnixMilli())
	})
	s := newSource(t, server.URL, nil)
	before := time.Now()
	ds, err := s.Receive(t.Context(), 16, false)
	require.NoError(t, err)
	require.WithinRange(t, ds[0].Deadline, before.Add(7900*time.Millisecond), time.Now().Add(9*time.Second))
	require.Equal(t, 10*time.Second, ds[1].Deadline.Sub(ds[0].Deadline), "each has its own")
}

func TestAnswersThatAreNoMessages(t *testing.T) {
	for name, tt := range map[string]struct {
		answer   http.HandlerFunc
		class    relay.Class
		says     string
		observed string
		status   int
		code     string
	}{
		"gateway": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusBadGateway)
				_, _ = io.WriteString(w, "<html><body>secret page<br></body></html>")
			}, relay.ClassServer, "502 Bad Gateway, not an answer of MNS", "receive status_502", 502, "",
		},
		"unavailable": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
			relay.ClassServer, "503 Service Unavailable", "receive status_503", 503, "",
		},
		"page of a 404": {
			func(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) },
			relay.ClassServer, "404 Not Found, not an answer of MNS", "receive status_404", 404, "",
		},
		"redirect": {
			func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
			relay.ClassServer, "302", "receive status_302", 302, "",
		},
		"internal": {
			func(w http.ResponseWriter, _ *http.Request) { mnsError(w, 500, "InternalError") },
			relay.ClassServer, "receive: 500 InternalError: said so (request 5EAD)", "receive InternalError", 500, "InternalError",
		},
		"throttled": {
			func(w http.ResponseWriter, _ *http.Request) { mnsError(w, 403, "QpsLimitExceeded") },
			relay.ClassThrottled, "QpsLimitExceeded", "receive QpsLimitExceeded", 403, "QpsLimitExceeded",
		},
		"too many": {
			func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) },
			relay.ClassThrottled, "429", "receive status_429", 429, "",
		},
		"no queue": {
			func(w http.ResponseWriter, _ *http.Request) { mnsError(w, 404, "QueueNotExist") },
			relay.ClassNotFound, "QueueNotExist", "receive QueueNotExist", 404, "QueueNotExist",
		},
		"expired": {
			func(w http.ResponseWriter, _ *http.Request) { mnsError(w, 403, "InvalidSecurityToken.Expired") },
			relay.ClassAuth, "InvalidSecurityToken.Expired", "receive status_403", 403, "InvalidSecurityToken.Expired",
		},
		"a code made up": {
			func(w http.ResponseWriter, _ *http.Request) { mnsError(w, 418, "Tea\x1b[31m\nPot") },
			relay.ClassUnknown, "418 Tea [31m Pot", "receive status_418", 418, "Tea [31m Pot",
		},
		"malformed": {
			func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "<Messages><Message><MessageId>i</MessageId>")
			},
			relay.ClassServer, "well-formed", "receive malformed", 200, "",
		},
		"a page with 200": {
			func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html></html>") },
			relay.ClassServer, "well-formed", "receive malformed", 200, "",
		},
		"no handle": {
			func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "<Messages><Message><MessageId>i</MessageId><NextVisibleTime>5</NextVisibleTime></Message></Messages>")
			}, relay.ClassServer, "well-formed", "receive malformed", 200, "",
		},
		"endless": {
			func(w http.ResponseWriter, _ *http.Request) {
				for block := make([]byte, 1<<16); ; {
					if _, err := w.Write(block); err != nil {
						return
					}
				}
			}, relay.ClassServer, "longer than", "receive malformed", 0, "",
		},
		"cut": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(w, "<Messages>")
			}, relay.ClassNetwork, "closed the connection", "receive network", 0, "",
		},
		"reset": {
			func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
			relay.ClassNetwork, "closed the connection", "receive network", 0, "",
		},
		"no HTTP": {
			func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err == nil {
					_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH secret\r\n\r\n\r\n")
					_ = conn.Close()
				}
			}, relay.ClassServer, "no HTTP", "receive malformed", 0, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				calls.Add(1)
				tt.answer(w, r)
			})
			var seen observations
			s := newSource(t, server.URL, func(_ *mns.Config, d *mns.Deps) { d.Observe = seen.observe })
			ds, err := s.Receive(t.Context(), 16, true)
			require.Nil(t, ds)
			var e *mns.Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, tt.class, relay.ClassOf(err), err)
			require.ErrorContains(t, err, tt.says)
			require.NotContains(t, err.Error(), "secret")
			require.NotContains(t, err.Error(), "\x1b")
			require.Equal(t, tt.status, e.Status)
			require.Equal(t, tt.code, e.Code)
			require.Equal(t, []string{tt.observed}, seen.all())
			require.EqualValues(t, 1, calls.Load(), "a receive is never sent twice: each may lease a batch")
		})
	}
}

func TestEmptyQueueIsNoError(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) { empty(w) })
	s := newSource(t, server.URL, nil)
	ds, err := s.Receive(t.Context(), 16, true)
	require.NoError(t, err)
	require.Nil(t, ds)
	ms, err := s.Queue().Peek(t.Context(), 4)
	require.NoError(t, err)
	require.Nil(t, ms)
}

func TestNetworkErrors(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	s := newSource(t, "http://"+l.Addr().String(), nil)
	_, err = s.Receive(t.Context(), 1, false)
	require.Equal(t, relay.ClassNetwork, relay.ClassOf(err), err)

	hang := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s = newSource(t, hang.URL, func(c *mns.Config, _ *mns.Deps) { c.RequestTimeout = 50 * time.Millisecond })
	_, err = s.Receive(t.Context(), 1, false)
	require.Equal(t, relay.ClassNetwork, relay.ClassOf(err), err)
	require.ErrorContains(t, err, "no answer in time")

	s = newSource(t, "http://127.0.0.1:1", func(c *mns.Config, d *mns.Deps) {
		c.DialTimeout = 20 * time.Millisecond
		d.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, errors.New("the resolver's own words")
		}
	})
	_, err = s.Receive(t.Context(), 1, false)
	require.Equal(t, relay.ClassNetwork, relay.ClassOf(err), err)
	require.ErrorContains(t, err, "the resolver's own words")
}

func TestNoKeysMeansNoRequest(t *testing.T) {
	var calls, dials atomic.Int32
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); empty(w) })
	keys := static("", "")
	noToken := errors.New("no token yet")
	keys.set(credentials.Keys{}, noToken)
	var seen observations
	s := newSource(t, server.URL, func(_ *mns.Config, d *mns.Deps) {
		d.Credentials, d.Observe = keys, seen.observe
		d.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dials.Add(1)
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
	})
	for range 3 {
		_, err := s.Receive(t.Context(), 1, false)
		require.ErrorIs(t, err, noToken)
		require.Equal(t, relay.ClassAuth, relay.ClassOf(err))
	}
	require.Zero(t, calls.Load())
	require.Empty(t, seen.all())

	keys.set(credentials.Keys{AccessKeyID: "id", AccessKeySecret: setting.NewSecret("s")}, nil)
	_, err := s.Receive(t.Context(), 1, false)
	require.NoError(t, err)
	require.EqualValues(t, 1, dials.Load())
}

func TestCancellingAPollClosesItsConnectionOnly(t *testing.T) {
	polling := make(chan struct{}, 1)
	gone := make(chan time.Time, 1)
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		case strings.Contains(r.RequestURI, "waitseconds=30"):
			polling <- struct{}{}
			<-r.Context().Done()
			gone <- time.Now()
		default:
			empty(w)
		}
	})
	var seen observations
	s := newSource(t, server.URL, func(_ *mns.Config, d *mns.Deps) { d.Observe = seen.observe })

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := s.Receive(ctx, 16, true)
		failed <- err
	}()
	<-polling
	settle := func() {
		errs := s.Settle(t.Context(), []relay.Settlement{{Delivery: relay.Delivery{Receipt: "r"}, Delete: true}})
		require.Equal(t, []error{nil}, errs)
	}
	settle()
	require.EqualValues(t, 2, server.opened.Load(), "a settlement does not wait behind a poll")

	cancelled := time.Now()
	cancel()
	err := <-failed
	require.Less(t, time.Since(cancelled), 200*time.Millisecond)
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, (<-gone).Sub(cancelled), 200*time.Millisecond, "the server is told at once")

	settle()
	require.EqualValues(t, 2, server.opened.Load(), "the other connection lives on")
	require.Equal(t, 1, seen.count("receive canceled"))

	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = s.Receive(ctx, 16, true)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestCancellingADialReturnsAtOnce(t *testing.T) {
	dialling := make(chan struct{}, 1)
	s := newSource(t, "http://127.0.0.1:1", func(_ *mns.Config, d *mns.Deps) {
		d.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			dialling <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-dialling
		cancel()
	}()
	_, err := s.Receive(ctx, 16, true)
	require.ErrorIs(t, err, context.Canceled)

	// Close ends a dial too.
	failed := make(chan error, 1)
	go func() {
		_, err := s.Receive(context.WithoutCancel(ctx), 16, true)
		failed <- err
	}()
	<-dialling
	require.NoError(t, s.Close())
	require.Error(t, <-failed)
	_, err = s.Receive(t.Context(), 1, false)
	require.ErrorContains(t, err, "closed")
}

func TestConnectionThatTheServerHasClosedIsReplacedBeforeUse(t *testing.T) {
	var calls atomic.Int32
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); empty(w) })
	s := newSource(t, server.URL, nil)
	for i := range 20 {
		_, err := s.Receive(t.Context(), 1, false)
		require.NoError(t, err, "call %d", i)
		server.CloseClientConnections()
		require.Eventually(t, func() bool { return server.closed.Load() == server.opened.Load() }, time.Second, time.Millisecond)
	}
	require.EqualValues(t, 20, calls.Load())
	require.EqualValues(t, 20, server.opened.Load())
}

func TestServerThatSaysCloseIsBelieved(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		empty(w)
	})
	s := newSource(t, server.URL, nil)
	for range 3 {
		_, err := s.Receive(t.Context(), 1, false)
		require.NoError(t, err)
	}
	require.EqualValues(t, 3, server.opened.Load())
}

func TestTLS(t *testing.T) {
	server := &script{}
	server.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { empty(w) }))
	server.Config.ConnState = server.count
	server.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())

	trusting := newSource(t, server.URL, func(c *mns.Config, _ *mns.Deps) {
		c.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	})
	for range 3 {
		_, err := trusting.Receive(t.Context(), 1, false)
		require.NoError(t, err)
	}
	require.EqualValues(t, 1, server.opened.Load())

	doubting := newSource(t, server.URL, nil)
	_, err := doubting.Receive(t.Context(), 1, false)
	require.Equal(t, relay.ClassNetwork, relay.ClassOf(err))
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, err, &unknown)

	old := httptest.NewUnstartedServer(nil)
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}
	old.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	old.StartTLS()
	t.Cleanup(old.Close)
	weak := newSource(t, old.URL, func(c *mns.Config, _ *mns.Deps) {
		c.TLS = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
	})
	_, err = weak.Receive(t.Context(), 1, false)
	require.Equal(t, relay.ClassNetwork, relay.ClassOf(err))
}

func TestPrefixOfAGatewayIsSentAndNotSigned(t *testing.T) {
	var uri atomic.Value
	server := serve(t, func(w http.ResponseWriter, r *http.Request) { uri.Store(r.RequestURI); empty(w) })
	s := newSource(t, server.URL+"/mns/v1/", nil)
	_, err := s.Receive(t.Context(), 1, false)
	require.NoError(t, err)
	require.Equal(t, "/mns/v1/queues/q/messages?numOfMessages=1&waitseconds=0", uri.Load())
}

func TestRefusedKeysAreReported(t *testing.T) {
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) { mnsError(w, http.StatusForbidden, "AccessDenied") })
	keys := static("id", "secret")
	s := newSource(t, server.URL, func(_ *mns.Config, d *mns.Deps) { d.Credentials = keys })
	_, err := s.Receive(t.Context(), 1, false)
	require.Equal(t, relay.ClassAuth, relay.ClassOf(err))
	require.Equal(t, 1, keys.refusals())
	require.Equal(t, "id", keys.refused[0].AccessKeyID)

	throttling := serve(t, func(w http.ResponseWriter, _ *http.Request) { mnsError(w, http.StatusForbidden, "QpsLimitExceeded") })
	s2 := newSource(t, throttling.URL, func(_ *mns.Config, d *mns.Deps) { d.Credentials = keys })
	_, err = s2.Receive(t.Context(), 1, false)
	require.Equal(t, relay.ClassThrottled, relay.ClassOf(err))
	require.Equal(t, 1, keys.refusals(), "the keys are not to blame, whatever the status")

	// Before anything was received, nobody knows what a 403 to something else means.
	_, err = s.Attributes(t.Context())
	require.Equal(t, relay.ClassAuth, relay.ClassOf(err))
	require.NotErrorIs(t, err, relay.ErrNotPermitted)
	require.Equal(t, 1, keys.refusals())
}

func TestKeysThatMayOnlyReceiveAndDelete(t *testing.T) {
	var forbidden atomic.Int32
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		case r.Method == http.MethodGet && strings.Contains(r.RequestURI, "waitseconds"):
			empty(w)
		default:
			forbidden.Add(1)
			mnsError(w, http.StatusForbidden, "AccessDenied")
		}
	})
	keys := static("id", "secret")
	logs, said := observer.New(zap.DebugLevel)
	s := newSource(t, server.URL, func(_ *mns.Config, d *mns.Deps) { d.Credentials, d.Log = keys, zap.New(logs) })
	_, err := s.Receive(t.Context(), 1, false)
	require.NoError(t, err)

	held := relay.Delivery{Receipt: "r", Deadline: time.Now().Add(time.Minute)}
	use := func() {
		_, err := s.Attributes(t.Context())
		require.ErrorIs(t, err, relay.ErrNotPermitted)
		_, err = s.Queue().Peek(t.Context(), 1)
		require.ErrorIs(t, err, relay.ErrNotPermitted)
		_, err = s.Extend(t.Context(), held)
		require.ErrorIs(t, err, relay.ErrNotPermitted)
		errs := s.Settle(t.Context(), []relay.Settlement{{Delivery: held, Delay: time.Second}, {Delivery: held, Delete: true}})
		require.ErrorIs(t, errs[0], relay.ErrNotPermitted)
		require.NoError(t, errs[1])
	}
	for range 3 {
		use()
	}
	require.EqualValues(t, 3, forbidden.Load(), "each is asked once")
	require.Zero(t, keys.refusals(), "no reason for new keys")
	require.Equal(t, 3, said.Len(), "each is said once")

	keys.set(credentials.Keys{AccessKeyID: "new", AccessKeySecret: setting.NewSecret("s")}, nil)
	_, err = s.Receive(t.Context(), 1, false)
	require.NoError(t, err)
	use()
	require.EqualValues(t, 6, forbidden.Load(), "other keys are asked again")
	require.Equal(t, 3, said.Len())

	// Keys that have ended are refused everything: that says nothing of what they may.
	ended := credentials.Keys{AccessKeyID: "ended", AccessKeySecret: setting.NewSecret("s")}
	keys.set(ended, nil)
	_, err = s.Receive(t.Context(), 1, false)
	require.NoError(t, err)
	ended.Expires = time.Now().Add(-time.Second)
	keys.set(ended, nil)
	_, err = s.Extend(t.Context(), held)
	require.NotErrorIs(t, err, relay.ErrNotPermitted)
	require.Equal(t, relay.ClassAuth, relay.ClassOf(err))
}

// What was granted after it was refused is found out with the same keys.
func TestWhatWasRefusedIsAskedForAgain(t *testing.T) {
	var asked atomic.Int32
	var granted atomic.Bool
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet:
			empty(w)
		case granted.Load():
			asked.Add(1)
			_, _ = fmt.Fprintf(w, "<ChangeVisibility><ReceiptHandle>new</ReceiptHandle><NextVisibleTime>%d</NextVisibleTime></ChangeVisibility>",
				time.Now().Add(45*time.Second).UnixMilli())
		default:
			asked.Add(1)
			mnsError(w, http.StatusForbidden, "AccessDenied")
		}
	})
	logs, said := observer.New(zap.DebugLevel)
	s := newSource(t, server.URL, func(_ *mns.Config, d *mns.Deps) { d.Credentials, d.Log = static("id", "secret"), zap.New(logs) })
	_, err := s.Receive(t.Context(), 1, false)
	require.NoError(t, err)
	held := relay.Delivery{Receipt: "r", Deadline: time.Now().Add(time.Minute)}
	extend := func() error { _, err := s.Extend(t.Context(), held); return err }

	require.ErrorIs(t, extend(), relay.ErrNotPermitted)
	granted.Store(true)
	require.ErrorIs(t, extend(), relay.ErrNotPermitted)
	require.EqualValues(t, 1, asked.Load(), "not asked for a while")
	s.SetDeniedFor(0)
	require.NoError(t, s.Settle(t.Context(), []relay.Settlement{{Delivery: held, Delay: time.Second}})[0], "by whatever is next")
	s.SetDeniedFor(time.Hour)
	require.NoError(t, extend(), "it works again")

	granted.Store(false)
	require.ErrorIs(t, extend(), relay.ErrNotPermitted)
	require.Equal(t, 2, said.Len(), "said again, for it had worked")
}

// A page of something in between does not say what the keys may.
func TestAGatewaysPageRefusesNothing(t *testing.T) {
	var asked atomic.Int32
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			empty(w)
			return
		}
		asked.Add(1)
		w.WriteHeader(http.StatusForbidden)
	})
	s := newSource(t, server.URL, nil)
	_, err := s.Receive(t.Context(), 1, false)
	require.NoError(t, err)
	for range 3 {
		_, err := s.Extend(t.Context(), relay.Delivery{Receipt: "r", Deadline: time.Now().Add(time.Minute)})
		require.Error(t, err)
		require.NotErrorIs(t, err, relay.ErrNotPermitted)
	}
	require.EqualValues(t, 3, asked.Load())
}

func TestExtendAsksForAsLongAsTheLeaseWas(t *testing.T) {
	var uri atomic.Value
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			messages(w, 45*time.Second, "a")
			return
		}
		uri.Store(r.Method + " " + r.RequestURI)
		_, _ = fmt.Fprintf(w, "<ChangeVisibility><ReceiptHandle>new</ReceiptHandle><NextVisibleTime>%d</NextVisibleTime></ChangeVisibility>",
			time.Now().Add(45*time.Second).UnixMilli())
	})
	s := newSource(t, server.URL, nil)
	ds, err := s.Receive(t.Context(), 16, false)
	require.NoError(t, err)
	ds[0].Receipt = "1-a+b/c&d=="
	renewed, err := s.Extend(t.Context(), ds[0])
	require.NoError(t, err)
	require.Regexp(t, `^PUT /queues/q/messages\?receiptHandle=1-a%2Bb/c%26d==&visibilityTimeout=4[456]$`, uri.Load())
	require.Equal(t, "new", renewed.Receipt)
	require.Equal(t, ds[0].Message, renewed.Message)
	require.WithinDuration(t, time.Now().Add(44*time.Second), renewed.Deadline, 1200*time.Millisecond)
}

func TestExtendOfALostLease(t *testing.T) {
	for code, status := range map[string]int{"MessageNotExist": 404, "ReceiptHandleError": 400, "InvalidArgument": 400} {
		t.Run(code, func(t *testing.T) {
			server := serve(t, func(w http.ResponseWriter, _ *http.Request) { mnsError(w, status, code) })
			s := newSource(t, server.URL, nil)
			_, err := s.Extend(t.Context(), relay.Delivery{Receipt: "r", Deadline: time.Now().Add(time.Minute)})
			require.ErrorIs(t, err, relay.ErrLeaseLost)
		})
	}
	var calls atomic.Int32
	server := serve(t, func(w http.ResponseWriter, _ *http.Request) { calls.Add(1); mnsError(w, 500, "InternalError") })
	s := newSource(t, server.URL, nil)
	_, err := s.Extend(t.Context(), relay.Delivery{Receipt: "r", Deadline: time.Now()})
	require.ErrorIs(t, err, relay.ErrLeaseLost, "past its deadline")
	require.Zero(t, calls.Load())
	_, err = s.Extend(t.Context(), relay.Delivery{Receipt: "r", Deadline: time.Now().Add(time.Minute)})
	require.NotErrorIs(t, err, relay.ErrLeaseLost)
	require.Equal(t, relay.ClassServer, relay.ClassOf(err))
}

func TestCountsOfZeroAreUnknownUntilOneWasNot(t *testing.T) {
	var active atomic.Int32
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.RequestURI != "/queues/q" {
			http.NotFound(w, r)
			return
		}
		_, _ = fmt.Fprintf(w, `<Queue xmlns="x"><QueueName>q</QueueName><ActiveMessages>%d</ActiveMessages><InactiveMessages>0</InactiveMessages>`+
			`<VisibilityTimeout>30</VisibilityTimeout><PollingWaitSeconds>3</PollingWaitSeconds><MessageRetentionPeriod>345600</MessageRetentionPeriod>`+
			`<MaximumMessageSize>65536</MaximumMessageSize></Queue>`, active.Load())
	})
	s := newSource(t, server.URL, nil)
	a, err := s.Attributes(t.Context())
	require.NoError(t, err)
	require.Equal(t, mns.Attributes{
		VisibilityTimeout: 30 * time.Second, PollingWait: 3 * time.Second, Retention: 96 * time.Hour, MaxMessageSize: 65536,
	}, a)
	active.Store(7)
	a, err = s.Attributes(t.Context())
	require.NoError(t, err)
	require.True(t, a.Counted)
	require.EqualValues(t, 7, a.Active)
	active.Store(0)
	a, err = s.Attributes(t.Context())
	require.NoError(t, err)
	require.True(t, a.Counted, "it tells")
}

func TestSend(t *testing.T) {
	var status atomic.Int32
	var answer, asked atomic.Value
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil {
			asked.Store(r.Method + " " + r.RequestURI + " " + string(body))
		}
		w.WriteHeader(int(status.Load()))
		_, _ = io.WriteString(w, answer.Load().(string))
	})
	s := newSource(t, server.URL, nil)
	q := s.Queue()

	status.Store(201)
	answer.Store(`<Messages xmlns="x"><Message><MessageId>i</MessageId><MessageBodyMD5>M</MessageBodyMD5></Message></Messages>`)
	sent, err := q.BatchSend(t.Context(), []mns.Outgoing{{Body: []byte("a<b")}})
	require.NoError(t, err)
	require.Equal(t, []mns.Sent{{ID: "i"}}, sent)
	require.Contains(t, asked.Load(), "POST /queues/q/messages <?xml")
	require.Contains(t, asked.Load(), "<Message><MessageBody>a&lt;b</MessageBody></Message></Messages>")

	status.Store(500)
	answer.Store(`<Messages><Message><MessageId>i</MessageId></Message><Message><ErrorCode>InternalError</ErrorCode><ErrorMessage>m</ErrorMessage></Message></Messages>`)
	sent, err = q.BatchSend(t.Context(), []mns.Outgoing{{Body: []byte("a")}, {Body: []byte("b")}})
	require.NoError(t, err)
	require.Equal(t, "i", sent[0].ID)
	require.NoError(t, sent[0].Err)
	require.ErrorContains(t, sent[1].Err, "InternalError")

	answer.Store(`<Messages><Message><MessageId>i</MessageId></Message></Messages>`)
	_, err = q.BatchSend(t.Context(), []mns.Outgoing{{}, {}})
	require.Error(t, err, "an answer that tells of fewer messages")

	answer.Store(`<Message><MessageId>i</MessageId></Message>`)
	_, err = q.BatchSend(t.Context(), []mns.Outgoing{{}})
	require.Error(t, err, "an answer to something else")

	status.Store(400)
	answer.Store(`<Error><Code>InvalidArgument</Code></Error>`)
	_, err = q.BatchSend(t.Context(), []mns.Outgoing{{Body: []byte("a")}})
	require.ErrorContains(t, err, "InvalidArgument")
	require.NotErrorIs(t, err, relay.ErrLeaseLost)

	_, err = q.BatchSend(t.Context(), []mns.Outgoing{{Body: []byte{0}}})
	require.ErrorContains(t, err, "base64")
}
