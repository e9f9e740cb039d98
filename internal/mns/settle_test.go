package mns_test

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// pipes is a network in memory, on which time can stand still.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.conns:
		return conn, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// request is one batch delete or visibility change that a server saw.
type request struct {
	at       time.Duration
	receipts []string
	delay    string
}

// queueServer answers deletes and visibility changes as a test says and remembers them.
type queueServer struct {
	start  time.Time
	answer func(n int, w http.ResponseWriter, r request)

	mu       sync.Mutex
	requests []request
	open     int
}

func (s *queueServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	seen := request{at: time.Since(s.start), delay: r.URL.Query().Get("visibilityTimeout")}
	if r.Method == http.MethodDelete {
		var body struct{ ReceiptHandle []string }
		if err := xml.NewDecoder(r.Body).Decode(&body); err != nil {
			mnsError(w, http.StatusBadRequest, "MalformedXML")
			return
		}
		seen.receipts = body.ReceiptHandle
	} else {
		seen.receipts = []string{r.URL.Query().Get("receiptHandle")}
	}
	s.mu.Lock()
	n := len(s.requests)
	s.requests = append(s.requests, seen)
	s.mu.Unlock()
	if s.answer != nil {
		s.answer(n, w, seen)
		return
	}
	accept(w, seen)
}

func accept(w http.ResponseWriter, r request) {
	if r.delay == "" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	_, _ = fmt.Fprintf(w, "<ChangeVisibility><ReceiptHandle>new</ReceiptHandle><NextVisibleTime>%d</NextVisibleTime></ChangeVisibility>",
		time.Now().Add(time.Minute).UnixMilli())
}

func (s *queueServer) seen() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *queueServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

// bubble is a test with a clock of its own.
type bubble struct {
	*testing.T

	source *mns.Source
	server *queueServer
}

// inBubble runs a test of a source against a server, on a clock of its own.
func inBubble(t *testing.T, answer func(n int, w http.ResponseWriter, r request), change func(*mns.Config, *mns.Deps),
	test func(b *bubble),
) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		network := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}
		handler := &queueServer{start: time.Now(), answer: answer}
		server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Hour, ConnState: func(_ net.Conn, state http.ConnState) {
			handler.mu.Lock()
			defer handler.mu.Unlock()
			switch state {
			case http.StateNew:
				handler.open++
			case http.StateClosed, http.StateHijacked:
				handler.open--
			case http.StateActive, http.StateIdle:
			}
		}}
		var serving sync.WaitGroup
		serving.Go(func() { _ = server.Serve(network) })

		cfg := mns.Config{Name: "sms", Endpoint: "http://mns.test", Queue: "q"}
		deps := mns.Deps{Credentials: static("id", "secret"), Dial: network.dial}
		if change != nil {
			change(&cfg, &deps)
		}
		s, err := mns.NewSource(cfg, deps)
		require.NoError(t, err)
		defer func() {
			require.NoError(t, s.Close())
			require.NoError(t, server.Close())
			serving.Wait()
			<-time.After(2 * time.Second) // the SDK's clients see that nothing is left
		}()
		test(&bubble{T: t, source: s, server: handler})
	})
}

func deletes(life time.Duration, receipts ...string) []relay.Settlement {
	ss := make([]relay.Settlement, len(receipts))
	for i, r := range receipts {
		ss[i] = relay.Settlement{Delivery: relay.Delivery{Receipt: r, Deadline: time.Now().Add(life)}, Delete: true}
	}
	return ss
}

func names(from, to int) []string {
	var s []string
	for i := from; i < to; i++ {
		s = append(s, fmt.Sprintf("r%d", i))
	}
	return s
}

func noErrors(tb testing.TB, n int, errs []error) {
	tb.Helper()
	require.Len(tb, errs, n)
	for _, err := range errs {
		require.NoError(tb, err)
	}
}

func TestFullBatchesGoAtOnceOthersLinger(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		noErrors(b, 40, b.source.Settle(b.Context(), deletes(time.Minute, names(0, 40)...)))
		seen := b.server.seen()
		require.Len(b, seen, 3)
		for i, n := range []int{16, 16, 8} {
			_ = i
			require.True(b, slices.ContainsFunc(seen, func(r request) bool {
				return len(r.receipts) == n && r.at == map[bool]time.Duration{true: 0, false: 20 * time.Millisecond}[n == 16]
			}), "%v", seen)
		}
		require.Empty(b, b.source.Settle(b.Context(), nil))
	})
}

func TestSettleCallsShareRequests(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		var calls sync.WaitGroup
		for i := range 14 {
			calls.Go(func() {
				<-time.After(time.Duration(i) * time.Millisecond)
				errs := b.source.Settle(b.Context(), deletes(time.Minute, names(i, i+1)...))
				if errs[0] != nil {
					b.Error(errs[0])
				}
			})
		}
		calls.Wait()
		seen := b.server.seen()
		require.Len(b, seen, 1)
		require.Len(b, seen[0].receipts, 14)
		require.Equal(b, 20*time.Millisecond, seen[0].at)
	})
}

func TestEachHandleHasItsOwnResult(t *testing.T) {
	answer := func(n int, w http.ResponseWriter, _ request) {
		if n > 0 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `<Errors xmlns="x">`+
			`<Error><ErrorCode>MessageNotExist</ErrorCode><ErrorMessage>m</ErrorMessage><ReceiptHandle>r1</ReceiptHandle></Error>`+
			`<Error><ErrorCode>InternalError</ErrorCode><ErrorMessage>m</ErrorMessage><ReceiptHandle>r3</ReceiptHandle></Error>`+
			`<Error><ErrorCode>ReceiptHandleError</ErrorCode><ErrorMessage>m</ErrorMessage><ReceiptHandle>r4</ReceiptHandle></Error>`+
			`<Error><ErrorCode>SomethingElse</ErrorCode><ErrorMessage>m</ErrorMessage><ReceiptHandle>r5</ReceiptHandle></Error></Errors>`)
	}
	inBubble(t, answer, nil, func(b *bubble) {
		errs := b.source.Settle(b.Context(), deletes(time.Minute, names(0, 6)...))
		require.NoError(b, errs[0])
		require.ErrorIs(b, errs[1], relay.ErrLeaseLost)
		require.NoError(b, errs[2])
		require.NoError(b, errs[3], "tried again")
		require.ErrorIs(b, errs[4], relay.ErrLeaseLost)
		require.ErrorContains(b, errs[5], "SomethingElse")
		seen := b.server.seen()
		require.Len(b, seen, 2)
		require.Equal(b, []string{"r3"}, seen[1].receipts)
	})
}

func TestFailedDeletesAreTriedAgainWhileTheLeaseLives(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter){
		"500":       func(w http.ResponseWriter) { mnsError(w, 500, "InternalError") },
		"503 page":  func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) },
		"throttled": func(w http.ResponseWriter) { mnsError(w, 403, "QpsLimitExceeded") },
		"reset":     func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"cut": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, "<Errors><Err")
		},
		"foreign handles": func(w http.ResponseWriter) { foreign(w, "other") },
		"names no handle": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, "<Errors></Errors>")
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(n int, w http.ResponseWriter, r request) {
				if n < 5 {
					answer(w)
					return
				}
				accept(w, r)
			}, nil, func(b *bubble) {
				noErrors(b, 3, b.source.Settle(b.Context(), deletes(time.Minute, names(0, 3)...)))
				seen := b.server.seen()
				require.Len(b, seen, 6)
				require.Equal(b, names(0, 3), seen[5].receipts)
				for i := 1; i < len(seen); i++ {
					gap := seen[i].at - seen[i-1].at
					longest := min(100*time.Millisecond<<(i-1), 2*time.Second)
					require.True(b, gap >= longest/2 && gap <= longest, "pause %d: %v", i, gap)
				}
			})

			inBubble(t, func(_ int, w http.ResponseWriter, _ request) { answer(w) }, nil,
				func(b *bubble) {
					start := time.Now()
					errs := b.source.Settle(b.Context(), deletes(10*time.Second, "r0"))
					require.Error(b, errs[0])
					require.NotErrorIs(b, errs[0], relay.ErrLeaseLost)
					require.WithinDuration(b, start.Add(9*time.Second), time.Now(), time.Second+time.Millisecond)
					require.Greater(b, len(b.server.seen()), 5)
				})
		})
	}
}

func foreign(w http.ResponseWriter, receipt string) {
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, "<Errors><Error><ErrorCode>MessageNotExist</ErrorCode><ReceiptHandle>"+receipt+"</ReceiptHandle></Error></Errors>")
}

func TestDeleteIsTriedOnceEvenAfterItsDeadline(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		noErrors(b, 1, b.source.Settle(b.Context(), deletes(-time.Second, "late")))
		require.Len(b, b.server.seen(), 1)
	})
	failing := func(_ int, w http.ResponseWriter, _ request) { w.WriteHeader(http.StatusInternalServerError) }
	inBubble(t, failing, nil, func(b *bubble) {
		require.Error(b, b.source.Settle(b.Context(), deletes(-time.Second, "late"))[0])
		require.Len(b, b.server.seen(), 1)
	})
}

func TestDeleteThatCannotSucceedIsNotTriedAgain(t *testing.T) {
	inBubble(t, func(_ int, w http.ResponseWriter, _ request) { mnsError(w, 404, "QueueNotExist") }, nil,
		func(b *bubble) {
			errs := b.source.Settle(b.Context(), deletes(time.Minute, names(0, 2)...))
			require.Equal(b, relay.ClassNotFound, relay.ClassOf(errs[0]))
			require.Len(b, b.server.seen(), 1)
		})
}

func TestHandleThatSpoilsABatchSpoilsOnlyItself(t *testing.T) {
	inBubble(t, func(_ int, w http.ResponseWriter, r request) {
		if slices.Contains(r.receipts, "r2") {
			mnsError(w, 400, "ReceiptHandleError")
			return
		}
		accept(w, r)
	}, nil, func(b *bubble) {
		errs := b.source.Settle(b.Context(), deletes(time.Minute, names(0, 4)...))
		require.ErrorIs(b, errs[2], relay.ErrLeaseLost)
		require.NoError(b, errors.Join(errs[0], errs[1], errs[3]))
		require.Len(b, b.server.seen(), 5)
	})
}

func TestRefusedDeleteIsTriedAgainWithNewKeys(t *testing.T) {
	keys := static("old", "secret")
	inBubble(t, func(n int, w http.ResponseWriter, r request) {
		if n < 2 {
			mnsError(w, 403, "InvalidAccessKeyId")
			return
		}
		accept(w, r)
	}, func(_ *mns.Config, d *mns.Deps) { d.Credentials = keys }, func(b *bubble) {
		go func() {
			<-time.After(25 * time.Millisecond)
			keys.set(credentials.Keys{AccessKeyID: "new", AccessKeySecret: setting.NewSecret("s")}, nil)
		}()
		noErrors(b, 1, b.source.Settle(b.Context(), deletes(time.Minute, "r")))
		require.Equal(b, "old", keys.refused[0].AccessKeyID)
		require.Equal(b, "new", keys.refused[1].AccessKeyID)
		require.Len(b, b.server.seen(), 3)
	})
}

func TestSettleEndsWithItsContext(t *testing.T) {
	inBubble(t, func(_ int, w http.ResponseWriter, r request) {
		if slices.Contains(r.receipts, "stuck") {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		accept(w, r)
	}, nil, func(b *bubble) {
		ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		ss := deletes(time.Hour, "stuck")
		ss = append(ss, relay.Settlement{Delivery: relay.Delivery{Receipt: "back", Deadline: time.Now().Add(time.Hour)}})
		errs := b.source.Settle(ctx, ss)
		require.Equal(b, 5*time.Second, time.Since(start))
		require.ErrorIs(b, errs[0], context.DeadlineExceeded)
		require.NoError(b, errs[1], "what had a result keeps it")

		<-time.After(10 * time.Second)
		before := len(b.server.seen())
		<-time.After(time.Minute)
		require.Len(b, b.server.seen(), before, "nobody waits for it: it is given up")

		ended, end := context.WithCancel(b.Context())
		end()
		require.ErrorIs(b, b.source.Settle(ended, deletes(time.Hour, "x"))[0], context.Canceled)
		require.Len(b, b.server.seen(), before)
	})
}

func TestCallersOfABatchDoNotWaitForEachOther(t *testing.T) {
	inBubble(t, func(n int, w http.ResponseWriter, r request) {
		if slices.Contains(r.receipts, "stuck") {
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, "<Errors><Error><ErrorCode>InternalError</ErrorCode><ReceiptHandle>stuck</ReceiptHandle></Error></Errors>")
			return
		}
		accept(w, r)
	}, nil, func(b *bubble) {
		start := time.Now()
		var calls sync.WaitGroup
		calls.Go(func() {
			if b.source.Settle(b.Context(), deletes(10*time.Second, "stuck"))[0] == nil {
				b.Error("stuck was deleted")
			}
		})
		noErrors(b, 1, b.source.Settle(b.Context(), deletes(10*time.Second, "free")))
		require.Equal(b, 20*time.Millisecond, time.Since(start))
		calls.Wait()
	})
}

func TestGivingBack(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		back := func(receipt string, delay, life time.Duration) relay.Settlement {
			return relay.Settlement{Delivery: relay.Delivery{Receipt: receipt, Deadline: time.Now().Add(life)}, Delay: delay}
		}
		errs := b.source.Settle(b.Context(), []relay.Settlement{
			back("zero", 0, time.Minute), back("part", 1500*time.Millisecond, time.Minute),
			back("much", 100*time.Hour, time.Minute), back("late", time.Second, 0),
		})
		require.NoError(b, errors.Join(errs[:3]...))
		require.ErrorIs(b, errs[3], relay.ErrLeaseLost)
		delays := map[string]string{}
		for _, r := range b.server.seen() {
			delays[r.receipts[0]] = r.delay
		}
		require.Equal(b, map[string]string{"zero": "1", "part": "2", "much": "43200"}, delays)
	})
}

func TestReturnsAreBounded(t *testing.T) {
	var (
		mu        sync.Mutex
		now, most int
	)
	inBubble(t, func(_ int, w http.ResponseWriter, r request) {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		<-time.After(50 * time.Millisecond)
		mu.Lock()
		now--
		mu.Unlock()
		accept(w, r)
	}, nil, func(b *bubble) {
		ss := deletes(time.Minute, names(0, 64)...)
		for i := range ss {
			ss[i].Delete = false
		}
		noErrors(b, 64, b.source.Settle(b.Context(), ss))
		require.Equal(b, 8, most)
		require.Len(b, b.server.seen(), 64)
		noErrors(b, 640, b.source.Settle(b.Context(), deletes(time.Minute, names(0, 640)...)))
		require.Equal(b, 16, most)
	})
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	inBubble(t, nil, nil, func(b *bubble) {
		noErrors(b, 64, b.source.Settle(b.Context(), deletes(time.Minute, names(0, 64)...)))
		opened := b.server.connections()
		require.Positive(b, opened)
		<-time.After(20 * time.Second)
		noErrors(b, 1, b.source.Settle(b.Context(), deletes(time.Minute, "r")))
		require.Equal(b, opened, b.server.connections(), "one is used again, none is opened")
		<-time.After(15 * time.Second)
		synctest.Wait()
		require.Equal(b, 1, b.server.connections(), "the one that was used stays")
		<-time.After(20 * time.Second)
		synctest.Wait()
		require.Zero(b, b.server.connections())
		noErrors(b, 1, b.source.Settle(b.Context(), deletes(time.Minute, "r")))
	})
}

func TestCloseEndsSettling(t *testing.T) {
	inBubble(t, func(_ int, w http.ResponseWriter, _ request) { w.WriteHeader(http.StatusServiceUnavailable) }, nil,
		func(b *bubble) {
			settled := make(chan []error, 1)
			go func() { settled <- b.source.Settle(b.Context(), deletes(time.Hour, "r")) }()
			<-time.After(10 * time.Second)
			require.NoError(b, b.source.Close())
			require.Error(b, (<-settled)[0])
			require.ErrorContains(b, b.source.Settle(b.Context(), deletes(time.Hour, "r"))[0], "closed")
		})
}

func TestHandlesAreSentAsTheyAre(t *testing.T) {
	inBubble(t, nil, func(c *mns.Config, _ *mns.Deps) { c.Linger = -1 }, func(b *bubble) {
		handle := "1-ODU4OTkz+NDU/5My0==&<x>" + strings.Repeat("a", 300)
		noErrors(b, 1, b.source.Settle(b.Context(), deletes(time.Minute, handle)))
		require.Equal(b, []string{handle}, b.server.seen()[0].receipts)
		require.Zero(b, b.server.seen()[0].at, "no linger")
	})
}
