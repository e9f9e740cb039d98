package emulator_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// poll receives in a goroutine of its own and gives the channel of the answer.
func poll(ctx context.Context, s *emulator.Server, query string) <-chan *httptest.ResponseRecorder {
	answer := make(chan *httptest.ResponseRecorder, 1)
	go func() {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, demoKey().request(ctx, http.MethodGet, "", messagesPath(query), ""))
		answer <- w
	}()
	return answer
}

func TestLongPollTimesOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{Queues: map[string]emulator.QueueConfig{queueName: {PollingWait: 7 * time.Second}}})
		for query, wait := range map[string]time.Duration{
			"?waitseconds=30": 30 * time.Second,
			"?waitseconds=0":  0,
			"":                7 * time.Second, // the queue's own
		} {
			start := time.Now()
			require.Empty(t, receive(t, s, query))
			require.Equal(t, wait, time.Since(start), query)
		}
	})
}

func TestLongPollWakes(t *testing.T) {
	t.Parallel()
	for name, wake := range map[string]struct {
		before func(*testing.T, *emulator.Server)
		after  func(*testing.T, *emulator.Server)
		in     time.Duration
	}{
		"on a send": {after: func(t *testing.T, s *emulator.Server) { t.Helper(); sendBody(t, s, "x") }},
		"when a delay ends": {after: func(t *testing.T, s *emulator.Server) {
			t.Helper()
			_, err := s.SendAll(queueName, []emulator.Message{{Body: []byte("x"), Delay: 3 * time.Second}})
			require.NoError(t, err)
		}, in: 3 * time.Second},
		"when a lease ends": {before: func(t *testing.T, s *emulator.Server) {
			t.Helper()
			sendBody(t, s, "x")
			receiveOne(t, s)
		}, in: 9 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newServer(t, emulator.Config{Queues: map[string]emulator.QueueConfig{queueName: {VisibilityTimeout: 10 * time.Second}}})
				if wake.before != nil {
					wake.before(t, s)
				}
				<-time.After(time.Second)
				answer := poll(t.Context(), s, "?waitseconds=30&numOfMessages=16")
				synctest.Wait()
				start := time.Now()
				if wake.after != nil {
					wake.after(t, s)
				}
				require.Equal(t, http.StatusOK, (<-answer).Code)
				require.Equal(t, wake.in, time.Since(start))
				require.Zero(t, stats(t, s).Waiting)
			})
		})
	}
}

func TestVisibilityChangeMovesTheWakeUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		sendBody(t, s, "x")
		handle := receiveOne(t, s).ReceiptHandle
		answer := poll(t.Context(), s, "?waitseconds=30")
		synctest.Wait()
		start := time.Now()
		handle = mns(t, s, http.MethodPut, visibilityPath(handle, 5), "").ReceiptHandle
		<-time.After(4 * time.Second)
		mns(t, s, http.MethodPut, visibilityPath(handle, 8), "")
		require.Equal(t, http.StatusOK, (<-answer).Code)
		require.Equal(t, 12*time.Second, time.Since(start))
	})
}

// Polls are answered in the order they came, each with what one send brought.
func TestLongPollsAreFair(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		var answers []<-chan *httptest.ResponseRecorder
		for range 5 {
			answers = append(answers, poll(t.Context(), s, "?waitseconds=30"))
			synctest.Wait()
		}
		require.Equal(t, 5, stats(t, s).Waiting)
		for i, answer := range answers {
			sendBody(t, s, strconv.Itoa(i))
			synctest.Wait()
			require.Equal(t, 4-i, stats(t, s).Waiting, "one send wakes one")
			require.Contains(t, (<-answer).Body.String(), "<MessageBody>"+strconv.Itoa(i)+"</MessageBody>")
		}
	})
}

func TestLongPollCap(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{MaxLongPolls: 2})
		first, second := poll(t.Context(), s, "?waitseconds=30"), poll(t.Context(), s, "?waitseconds=30")
		synctest.Wait()
		start := time.Now()
		require.Empty(t, receive(t, s, "?waitseconds=30"))
		require.Zero(t, time.Since(start), "over the cap the empty answer comes at once")
		require.Equal(t, http.StatusNotFound, (<-first).Code)
		require.Equal(t, http.StatusNotFound, (<-second).Code)
		require.Empty(t, receive(t, s, "?waitseconds=30"))
		require.Equal(t, 60*time.Second, time.Since(start), "and a place is free again")
	})
}

// A poll whose client has gone before the message came does not keep it, even if
// the message is handed to it before it notices.
func TestAbandonedPollSwallowsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		for range 200 {
			ctx, cancel := context.WithCancel(t.Context())
			answer := poll(ctx, s, "?waitseconds=30&numOfMessages=2")
			synctest.Wait()
			cancel()
			_, err := s.SendAll(queueName, []emulator.Message{{Body: []byte("1")}, {Body: []byte("2")}, {Body: []byte("3")}})
			require.NoError(t, err)
			<-answer
			for _, body := range []string{"1", "2", "3"} {
				got := receiveOne(t, s)
				require.Equal(t, body, got.MessageBody, "in the order they had")
				require.Equal(t, 1, got.DequeueCount, "as if the poll had never been")
				require.Equal(t, http.StatusNoContent, mns(t, s, http.MethodDelete, deletePath(got.ReceiptHandle), "").status)
			}
		}
		require.Equal(t, emulator.QueueStats{Sent: 600, Received: 600, Deleted: 600}, stats(t, s))
	})
}

// The same over the wire: a client that closes its connection frees its place, and
// the next message is for others.
func TestClosedConnectionEndsThePoll(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	gone := make(chan error, 1)
	go func() {
		response, err := transport.RoundTrip(demoKey().request(ctx, http.MethodGet, url, messagesPath("?waitseconds=30"), ""))
		if err == nil {
			_ = response.Body.Close()
		}
		gone <- err
	}()
	require.Eventually(t, func() bool { return stats(t, s).Waiting == 1 }, 5*time.Second, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-gone, context.Canceled)
	require.Eventually(t, func() bool { return stats(t, s).Waiting == 0 }, 5*time.Second, time.Millisecond)
	sendBody(t, s, "x")
	require.Equal(t, 1, receiveOne(t, s).DequeueCount)
}

func TestLongPollOverTheWireWakesAtOnce(t *testing.T) {
	t.Parallel()
	s, url := startServer(t, emulator.Config{})
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	for range 5 {
		woken := make(chan time.Time, 1)
		go func() {
			response, err := transport.RoundTrip(demoKey().request(t.Context(), http.MethodGet, url, messagesPath("?waitseconds=30"), ""))
			if err != nil {
				t.Error(err)
			} else {
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
			}
			woken <- time.Now()
		}()
		require.Eventually(t, func() bool { return stats(t, s).Waiting == 1 }, 5*time.Second, time.Millisecond)
		sent := time.Now()
		sendBody(t, s, "x")
		require.Less(t, (<-woken).Sub(sent), 500*time.Millisecond, "not by a timer")
	}
}

func TestQueueDeletedUnderAPoll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, emulator.Config{})
		answer := poll(t.Context(), s, "?waitseconds=30")
		synctest.Wait()
		start := time.Now()
		require.Equal(t, http.StatusNoContent, mns(t, s, http.MethodDelete, "/queues/"+queueName, "").status)
		require.Contains(t, (<-answer).Body.String(), "<Code>QueueNotExist</Code>")
		require.Zero(t, time.Since(start))
	})
}

// Many polls, many senders, some polls abandoned: nothing is lost, nothing given
// twice.
func TestPollsUnderLoad(t *testing.T) {
	t.Parallel()
	const total = 1000
	s := newServer(t, emulator.Config{})
	var polls, senders sync.WaitGroup
	deleteAll := func(messages []replyMessage) {
		for _, m := range messages {
			if got := mns(t, s, http.MethodDelete, deletePath(m.ReceiptHandle), ""); got.status != http.StatusNoContent {
				t.Error(got.raw)
			}
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	for i := range 8 {
		polls.Go(func() {
			for ctx.Err() == nil {
				// Every other poller gives up after a moment, again and again.
				patience, cancel := context.WithTimeout(ctx, time.Duration(1+i%2*1000)*time.Millisecond)
				w := <-poll(patience, s, "?numOfMessages=4&waitseconds=1")
				cancel()
				deleteAll(parseReply(t, w.Code, w.Header(), w.Body.Bytes()).Messages)
			}
		})
	}
	for range 2 {
		senders.Go(func() {
			for i := range total / 2 {
				if _, err := s.Send(queueName, []byte(strconv.Itoa(i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	senders.Wait()
	require.Eventually(t, func() bool { return stats(t, s).Deleted == total }, 20*time.Second, time.Millisecond)
	stop()
	polls.Wait()
	got := stats(t, s)
	require.Equal(t, emulator.QueueStats{Sent: total, Received: total, Deleted: total}, got)
}
