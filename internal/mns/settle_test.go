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

// inBubble runs a test of a source against a server, on a clock of its own.
func inBubble(t *testing.T, answer func(n int, w http.ResponseWriter, r request), change func(*mns.Config, *mns.Deps),
	test func(t *testing.T, s *mns.Source, server *queueServer),
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
		test(t, s, handler)
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

func noErrors(t *testing.T, n int, errs []error) {
	t.Helper()
	require.Len(t, errs, n)
	for _, err := range errs {
		require.NoError(t, err)
	}
}

func TestFullBatchesGoAtOnceOthersLinger(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		noErrors(t, 40, s.Settle(t.Context(), deletes(time.Minute, names(0, 40)...)))
		seen := server.seen()
		require.Len(t, seen, 3)
		for i, n := range []int{16, 16, 8} {
			_ = i
			require.True(t, slices.ContainsFunc(seen, func(r request) bool {
				return len(r.receipts) == n && r.at == map[bool]time.Duration{true: 0, false: 20 * time.Millisecond}[n == 16]
			}), "%v", seen)
		}
		require.Empty(t, s.Settle(t.Context(), nil))
	})
}

func TestSettleCallsShareRequests(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		var calls sync.WaitGroup
		for i := range 14 {
			calls.Go(func() {
				<-time.After(time.Duration(i) * time.Millisecond)
				errs := s.Settle(t.Context(), deletes(time.Minute, names(i, i+1)...))
				if errs[0] != nil {
					t.Error(errs[0])
				}
			})
		}
		calls.Wait()
		seen := server.seen()
		require.Len(t, seen, 1)
		require.Len(t, seen[0].receipts, 14)
		require.Equal(t, 20*time.Millisecond, seen[0].at)
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
	inBubble(t, answer, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		errs := s.Settle(t.Context(), deletes(time.Minute, names(0, 6)...))
		require.NoError(t, errs[0])
		require.ErrorIs(t, errs[1], relay.ErrLeaseLost)
		require.NoError(t, errs[2])
		require.NoError(t, errs[3], "tried again")
		require.ErrorIs(t, errs[4], relay.ErrLeaseLost)
		require.ErrorContains(t, errs[5], "SomethingElse")
		seen := server.seen()
		require.Len(t, seen, 2)
		require.Equal(t, []string{"r3"}, seen[1].receipts)
	})
}

func TestFailedDeletesAreTriedAgainWhileTheLeaseLives(t *testing.T) {
	for name, answer := range map[string]func(w http.ResponseWriter){
		"500":             func(w http.ResponseWriter) { mnsError(w, 500, "InternalError") },
		"503 page":        func(w http.ResponseWriter) { w.WriteHeader(503) },
		"throttled":       func(w http.ResponseWriter) { mnsError(w, 403, "QpsLimitExceeded") },
		"reset":           func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
		"cut":             func(w http.ResponseWriter) { w.WriteHeader(404); _, _ = io.WriteString(w, "<Errors><Err") },
		"foreign handles": func(w http.ResponseWriter) { foreign(w, "other") },
		"names no handle": func(w http.ResponseWriter) { w.WriteHeader(404); _, _ = io.WriteString(w, "<Errors></Errors>") },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(n int, w http.ResponseWriter, r request) {
				if n < 5 {
					answer(w)
					return
				}
				accept(w, r)
			}, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
				noErrors(t, 3, s.Settle(t.Context(), deletes(time.Minute, names(0, 3)...)))
				seen := server.seen()
				require.Len(t, seen, 6)
				require.Equal(t, names(0, 3), seen[5].receipts)
				for i := 1; i < len(seen); i++ {
					gap := seen[i].at - seen[i-1].at
					longest := min(100*time.Millisecond<<(i-1), 2*time.Second)
					require.True(t, gap >= longest/2 && gap <= longest, "pause %d: %v", i, gap)
				}
			})

			inBubble(t, func(_ int, w http.ResponseWriter, _ request) { answer(w) }, nil,
				func(t *testing.T, s *mns.Source, server *queueServer) {
					start := time.Now()
					errs := s.Settle(t.Context(), deletes(10*time.Second, "r0"))
					require.Error(t, errs[0])
					require.NotErrorIs(t, errs[0], relay.ErrLeaseLost)
					require.WithinDuration(t, start.Add(9*time.Second), time.Now(), time.Second+time.Millisecond)
					require.Greater(t, len(server.seen()), 5)
				})
		})
	}
}

func foreign(w http.ResponseWriter, receipt string) {
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, "<Errors><Error><ErrorCode>MessageNotExist</ErrorCode><ReceiptHandle>"+receipt+"</ReceiptHandle></Error></Errors>")
}

func TestDeleteIsTriedOnceEvenAfterItsDeadline(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		noErrors(t, 1, s.Settle(t.Context(), deletes(-time.Second, "late")))
		require.Len(t, server.seen(), 1)
	})
	failing := func(_ int, w http.ResponseWriter, _ request) { w.WriteHeader(500) }
	inBubble(t, failing, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		require.Error(t, s.Settle(t.Context(), deletes(-time.Second, "late"))[0])
		require.Len(t, server.seen(), 1)
	})
}

func TestDeleteThatCannotSucceedIsNotTriedAgain(t *testing.T) {
	inBubble(t, func(_ int, w http.ResponseWriter, _ request) { mnsError(w, 404, "QueueNotExist") }, nil,
		func(t *testing.T, s *mns.Source, server *queueServer) {
			errs := s.Settle(t.Context(), deletes(time.Minute, names(0, 2)...))
			require.Equal(t, relay.ClassNotFound, relay.ClassOf(errs[0]))
			require.Len(t, server.seen(), 1)
		})
}

func TestHandleThatSpoilsABatchSpoilsOnlyItself(t *testing.T) {
	inBubble(t, func(_ int, w http.ResponseWriter, r request) {
		if slices.Contains(r.receipts, "r2") {
			mnsError(w, 400, "ReceiptHandleError")
			return
		}
		accept(w, r)
	}, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		errs := s.Settle(t.Context(), deletes(time.Minute, names(0, 4)...))
		require.ErrorIs(t, errs[2], relay.ErrLeaseLost)
		require.NoError(t, errors.Join(errs[0], errs[1], errs[3]))
		require.Len(t, server.seen(), 5)
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
	}, func(_ *mns.Config, d *mns.Deps) { d.Credentials = keys }, func(t *testing.T, s *mns.Source, server *queueServer) {
		go func() {
			<-time.After(25 * time.Millisecond)
			keys.set(credentials.Keys{AccessKeyID: "new", AccessKeySecret: setting.NewSecret("s")}, nil)
		}()
		noErrors(t, 1, s.Settle(t.Context(), deletes(time.Minute, "r")))
		require.Equal(t, "old", keys.refused[0].AccessKeyID)
		require.Equal(t, "new", keys.refused[1].AccessKeyID)
		require.Len(t, server.seen(), 3)
	})
}

func TestSettleEndsWithItsContext(t *testing.T) {
	inBubble(t, func(_ int, w http.ResponseWriter, r request) {
		if slices.Contains(r.receipts, "stuck") {
			w.WriteHeader(503)
			return
		}
		accept(w, r)
	}, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		ss := deletes(time.Hour, "stuck")
		ss = append(ss, relay.Settlement{Delivery: relay.Delivery{Receipt: "back", Deadline: time.Now().Add(time.Hour)}})
		errs := s.Settle(ctx, ss)
		require.Equal(t, 5*time.Second, time.Since(start))
		require.ErrorIs(t, errs[0], context.DeadlineExceeded)
		require.NoError(t, errs[1], "what had a result keeps it")

		<-time.After(10 * time.Second)
		before := len(server.seen())
		<-time.After(time.Minute)
		require.Len(t, server.seen(), before, "nobody waits for it: it is given up")

		ended, end := context.WithCancel(t.Context())
		end()
		require.ErrorIs(t, s.Settle(ended, deletes(time.Hour, "x"))[0], context.Canceled)
		require.Len(t, server.seen(), before)
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
	}, nil, func(t *testing.T, s *mns.Source, _ *queueServer) {
		start := time.Now()
		var calls sync.WaitGroup
		calls.Go(func() {
			if s.Settle(t.Context(), deletes(10*time.Second, "stuck"))[0] == nil {
				t.Error("stuck was deleted")
			}
		})
		noErrors(t, 1, s.Settle(t.Context(), deletes(10*time.Second, "free")))
		require.Equal(t, 20*time.Millisecond, time.Since(start))
		calls.Wait()
	})
}

func TestGivingBack(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		back := func(receipt string, delay, life time.Duration) relay.Settlement {
			return relay.Settlement{Delivery: relay.Delivery{Receipt: receipt, Deadline: time.Now().Add(life)}, Delay: delay}
		}
		errs := s.Settle(t.Context(), []relay.Settlement{
			back("zero", 0, time.Minute), back("part", 1500*time.Millisecond, time.Minute),
			back("much", 100*time.Hour, time.Minute), back("late", time.Second, 0),
		})
		require.NoError(t, errors.Join(errs[:3]...))
		require.ErrorIs(t, errs[3], relay.ErrLeaseLost)
		delays := map[string]string{}
		for _, r := range server.seen() {
			delays[r.receipts[0]] = r.delay
		}
		require.Equal(t, map[string]string{"zero": "1", "part": "2", "much": "43200"}, delays)
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
	}, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		ss := deletes(time.Minute, names(0, 64)...)
		for i := range ss {
			ss[i].Delete = false
		}
		noErrors(t, 64, s.Settle(t.Context(), ss))
		require.Equal(t, 8, most)
		require.Len(t, server.seen(), 64)
		noErrors(t, 640, s.Settle(t.Context(), deletes(time.Minute, names(0, 640)...)))
		require.Equal(t, 16, most)
	})
}

func TestIdleConnectionsAreClosed(t *testing.T) {
	inBubble(t, nil, nil, func(t *testing.T, s *mns.Source, server *queueServer) {
		noErrors(t, 64, s.Settle(t.Context(), deletes(time.Minute, names(0, 64)...)))
		opened := server.connections()
		require.Positive(t, opened)
		<-time.After(20 * time.Second)
		noErrors(t, 1, s.Settle(t.Context(), deletes(time.Minute, "r")))
		require.Equal(t, opened, server.connections(), "one is used again, none is opened")
		<-time.After(15 * time.Second)
		synctest.Wait()
		require.Equal(t, 1, server.connections(), "the one that was used stays")
		<-time.After(20 * time.Second)
		synctest.Wait()
		require.Zero(t, server.connections())
		noErrors(t, 1, s.Settle(t.Context(), deletes(time.Minute, "r")))
	})
}

func TestCloseEndsSettling(t *testing.T) {
	inBubble(t, func(_ int, w http.ResponseWriter, _ request) { w.WriteHeader(503) }, nil,
		func(t *testing.T, s *mns.Source, _ *queueServer) {
			settled := make(chan []error, 1)
			go func() { settled <- s.Settle(t.Context(), deletes(time.Hour, "r")) }()
			<-time.After(10 * time.Second)
			require.NoError(t, s.Close())
			require.Error(t, (<-settled)[0])
			require.ErrorContains(t, s.Settle(t.Context(), deletes(time.Hour, "r"))[0], "closed")
		})
}

func TestHandlesAreSentAsTheyAre(t *testing.T) {
	inBubble(t, nil, func(c *mns.Config, _ *mns.Deps) { c.Linger = -1 }, func(t *testing.T, s *mns.Source, server *queueServer) {
		handle := "1-ODU4OTkz+NDU/5My0==&<x>" + strings.Repeat("a", 300)
		noErrors(t, 1, s.Settle(t.Context(), deletes(time.Minute, handle)))
		require.Equal(t, []string{handle}, server.seen()[0].receipts)
		require.Zero(t, server.seen()[0].at, "no linger")
	})
}
