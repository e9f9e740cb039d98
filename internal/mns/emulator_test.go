package mns_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"mnsrelay/internal/credentials"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// startEmulator gives a server that checks signatures, with one queue, and a source of
// it. What config leaves out is the emulator's default.
func startEmulator(t *testing.T, config emulator.Config, queue emulator.QueueConfig, change func(*mns.Config, *mns.Deps)) (*emulator.Server, *mns.Source) {
	t.Helper()
	config.Queues = map[string]emulator.QueueConfig{"q": queue}
	server, err := emulator.New(config)
	require.NoError(t, err)
	url, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	return server, newSource(t, url, func(c *mns.Config, d *mns.Deps) {
		d.Credentials = static(emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
		if change != nil {
			change(c, d)
		}
	})
}

func receiveAll(t *testing.T, s *mns.Source, n int) []relay.Delivery {
	t.Helper()
	var all []relay.Delivery
	for len(all) < n {
		ds, err := s.Receive(t.Context(), 16, false)
		require.NoError(t, err)
		require.NotEmpty(t, ds, "%d of %d", len(all), n)
		all = append(all, ds...)
	}
	return all
}

func settleAll(ds []relay.Delivery, remove bool, delay time.Duration) []relay.Settlement {
	ss := make([]relay.Settlement, len(ds))
	for i, d := range ds {
		ss[i] = relay.Settlement{Delivery: d, Delete: remove, Delay: delay}
	}
	return ss
}

func stats(t *testing.T, server *emulator.Server) emulator.QueueStats {
	t.Helper()
	s, found := server.QueueStats("q")
	require.True(t, found)
	return s
}

func TestBodiesArriveByteForByte(t *testing.T) {
	server, s := startEmulator(t, emulator.Config{}, emulator.QueueConfig{}, nil)
	want := make(map[string]string)
	for _, body := range []string{
		"plain", `<a b="c">&amp;&#65;]]></a>`, "<![CDATA[x]]>", "a\r\nb\rc\td\n", " spaces ", "短信\U0001F600", strings.Repeat("&\"<", 64<<10/3),
	} {
		sent, err := s.Queue().BatchSend(t.Context(), []mns.Outgoing{{Body: []byte(body)}})
		require.NoError(t, err)
		require.NoError(t, sent[0].Err)
		want[sent[0].ID] = body
		id, err := server.Send("q", []byte(body))
		require.NoError(t, err)
		want[id] = body
	}
	peeked, err := s.Queue().Peek(t.Context(), 16)
	require.NoError(t, err)
	require.Len(t, peeked, len(want))
	ds := receiveAll(t, s, len(want))
	for _, d := range ds {
		require.Equal(t, want[d.ID], string(d.Body))
		require.Equal(t, 1, d.Attempt)
		require.WithinDuration(t, time.Now(), d.EnqueuedAt, time.Minute)
	}
	noErrors(t, len(ds), s.Settle(t.Context(), settleAll(ds, true, 0)))
	require.EqualValues(t, len(want), stats(t, server).Deleted)
	require.Zero(t, stats(t, server).Inactive)
}

func TestLeaseIsRenewedReturnedAndLost(t *testing.T) {
	server, s := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 30 * time.Second}, nil)
	_, err := server.SendAll("q", []emulator.Message{{Body: []byte("a")}, {Body: []byte("b")}})
	require.NoError(t, err)
	ds := receiveAll(t, s, 2)

	renewed, err := s.Extend(t.Context(), ds[0])
	require.NoError(t, err)
	require.NotEqual(t, ds[0].Receipt, renewed.Receipt)
	require.WithinDuration(t, time.Now().Add(29*time.Second), renewed.Deadline, 1200*time.Millisecond)

	_, err = s.Extend(t.Context(), ds[0])
	require.ErrorIs(t, err, relay.ErrLeaseLost, "the old handle is dead")
	errs := s.Settle(t.Context(), settleAll([]relay.Delivery{ds[0], renewed}, true, 0))
	require.ErrorIs(t, errs[0], relay.ErrLeaseLost)
	require.NoError(t, errs[1])

	noErrors(t, 1, s.Settle(t.Context(), settleAll(ds[1:], false, time.Second)))
	again, err := s.Receive(t.Context(), 16, true)
	require.NoError(t, err)
	require.Equal(t, ds[1].ID, again[0].ID)
	require.Equal(t, 2, again[0].Attempt)
	errs = s.Settle(t.Context(), settleAll(ds[1:], true, 0))
	require.ErrorIs(t, errs[0], relay.ErrLeaseLost, "another receive has it")
	noErrors(t, 1, s.Settle(t.Context(), settleAll(again, true, 0)))
	require.EqualValues(t, 2, stats(t, server).Deleted)
}

func TestClocksThatDiffer(t *testing.T) {
	for _, offset := range []time.Duration{-3 * time.Hour, 3 * time.Hour} {
		t.Run(offset.String(), func(t *testing.T) {
			server, s := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 20 * time.Second}, nil)
			server.SetClockOffset(offset)
			_, err := server.Send("q", []byte("a"))
			require.NoError(t, err)

			_, err = s.Receive(t.Context(), 1, false)
			require.Error(t, err, "the date is refused, and the server's own is learnt")
			before := time.Now()
			ds, err := s.Receive(t.Context(), 1, false)
			require.NoError(t, err, "signed with the server's date")
			require.WithinRange(t, ds[0].Deadline, before.Add(17900*time.Millisecond), time.Now().Add(19*time.Second))
			renewed, err := s.Extend(t.Context(), ds[0])
			require.NoError(t, err)
			noErrors(t, 1, s.Settle(t.Context(), settleAll([]relay.Delivery{renewed}, true, 0)))
		})
	}
}

func TestPolicyOfReceiveAndDelete(t *testing.T) {
	keys := static(emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret)
	server, s := startEmulator(t, emulator.Config{Policy: emulator.PolicyReceiveDelete}, emulator.QueueConfig{},
		func(_ *mns.Config, d *mns.Deps) { d.Credentials = keys })
	_, err := server.SendAll("q", []emulator.Message{{Body: []byte("a")}, {Body: []byte("b")}})
	require.NoError(t, err)
	ds := receiveAll(t, s, 2)
	for range 3 {
		_, err = s.Attributes(t.Context())
		require.ErrorIs(t, err, relay.ErrNotPermitted)
		_, err = s.Extend(t.Context(), ds[0])
		require.ErrorIs(t, err, relay.ErrNotPermitted)
	}
	errs := s.Settle(t.Context(), append(settleAll(ds[:1], true, 0), settleAll(ds[1:], false, time.Second)...))
	require.NoError(t, errs[0])
	require.ErrorIs(t, errs[1], relay.ErrNotPermitted)
	requests := server.Requests()
	require.EqualValues(t, 1, requests[emulator.OpAttributes]["AccessDenied"])
	require.EqualValues(t, 1, requests[emulator.OpVisibility]["AccessDenied"])
	require.Zero(t, keys.refusals())
}

func TestAttributesOfTheEmulator(t *testing.T) {
	server, s := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 45 * time.Second}, nil)
	_, err := server.SendAll("q", []emulator.Message{{Body: []byte("a")}, {Body: []byte("b")}, {Body: []byte("c"), Delay: time.Minute}})
	require.NoError(t, err)
	_, err = s.Receive(t.Context(), 1, false)
	require.NoError(t, err)
	a, err := s.Attributes(t.Context())
	require.NoError(t, err)
	require.True(t, a.Counted)
	require.Equal(t, []int64{1, 1, 1}, []int64{a.Active, a.Inactive, a.Delayed})
	require.Equal(t, 45*time.Second, a.VisibilityTimeout)
	require.Zero(t, a.DeadLetterPolicy, "a queue without a policy of its own")
}

func TestTheQueuesOwnDeadLetterPolicyIsRead(t *testing.T) {
	_, s := startEmulator(t, emulator.Config{}, emulator.QueueConfig{DeadLetterQueue: "dead", MaxReceives: 5}, nil)
	a, err := s.Attributes(t.Context())
	require.NoError(t, err)
	require.Equal(t, mns.DeadLetterPolicy{MaxReceives: 5, Queue: "dead"}, a.DeadLetterPolicy)
	require.Equal(t, 30*time.Second, a.VisibilityTimeout)
}

func TestFaultsLoseNothing(t *testing.T) {
	faults := []emulator.Fault{
		{Operation: emulator.OpReceive, Status: 503, Body: "<html>busy</html>", Rate: 0.1},
		{Operation: emulator.OpReceive, Status: 200, Body: "<Messages><Mess", Rate: 0.1},
		{Operation: emulator.OpReceive, Status: 403, Code: "QpsLimitExceeded", Rate: 0.1},
		{Operation: emulator.OpReceive, Connection: emulator.DropAfter, Rate: 0.1},
		{Operation: emulator.OpReceive, Connection: emulator.CutBody, Rate: 0.1},
		{Operation: emulator.OpDelete, Status: 500, Code: "InternalError", Rate: 0.2},
		{Operation: emulator.OpDelete, Connection: emulator.DropBefore, Rate: 0.2},
		// No cut body: that of a 204 is empty, so the answer is whole, and whether the
		// next request still reaches the connection that then closes is a race.
		{Operation: emulator.OpDelete, Connection: emulator.DropAfter, Rate: 0.1},
	}
	server, s := startEmulator(t, emulator.Config{}, emulator.QueueConfig{VisibilityTimeout: 3 * time.Second}, nil)
	const n = 300
	all := make([]emulator.Message, n)
	for i := range all {
		all[i].Body = fmt.Appendf(nil, "message %d", i)
	}
	ids, err := server.SendAll("q", all)
	require.NoError(t, err)
	for _, f := range faults {
		_, err := server.AddFault(f)
		require.NoError(t, err)
	}
	deleted, asked := make(map[string]bool), 0
	deadline := time.Now().Add(time.Minute)
	for stats(t, server).Deleted < n {
		require.True(t, time.Now().Before(deadline), "%+v", stats(t, server))
		asked++
		ds, err := s.Receive(t.Context(), 16, false)
		if err != nil {
			require.NotEqual(t, relay.ClassUnknown, relay.ClassOf(err), err)
			continue
		}
		if len(ds) == 0 {
			<-time.After(50 * time.Millisecond)
			continue
		}
		for i, err := range s.Settle(t.Context(), settleAll(ds, true, 0)) {
			if err == nil {
				require.False(t, deleted[ds[i].ID], "deleted twice")
				deleted[ds[i].ID] = true
			}
		}
	}
	require.Len(t, ids, n)
	var receives int64
	for _, count := range server.Requests()[emulator.OpReceive] {
		receives += count
	}
	require.EqualValues(t, asked, receives, "no receive was sent twice")
}

func TestTokensChangeUnderTheLiveClient(t *testing.T) {
	server, err := emulator.New(emulator.Config{TokenLife: 3 * time.Second})
	require.NoError(t, err)
	url, err := server.Start(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, server.Close()) })
	queue := server.AlicomQueue("SmsReport")
	if _, found := server.QueueStats(queue); !found {
		require.NoError(t, server.CreateQueue(queue, emulator.QueueConfig{}))
	}

	config := credentials.Config{
		Type: credentials.TypeMNSToken, MessageType: "SmsReport", Endpoint: setting.NewURL(url),
		AccessKeyID: setting.NewSecret(emulator.DemoAccessKeyID), AccessKeySecret: setting.NewSecret(emulator.DemoAccessKeySecret),
	}
	config.Defaults(os.Getenv)
	provider, err := config.Provider(queue)
	require.NoError(t, err)
	refresher := credentials.NewRefresher(provider, &config, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := refresher.Run(ctx, "sms"); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	<-refresher.Ready()

	s := newSource(t, url, func(c *mns.Config, d *mns.Deps) { c.Queue, d.Credentials = queue, refresher })
	start, n := time.Now(), 0
	for time.Since(start) < 7*time.Second {
		_, err := server.Send(queue, []byte("a"))
		require.NoError(t, err)
		ds, err := s.Receive(t.Context(), 16, true)
		require.NoError(t, err, "after %v", time.Since(start))
		noErrors(t, len(ds), s.Settle(t.Context(), settleAll(ds, true, 0)))
		n += len(ds)
	}
	require.Greater(t, n, 50)
	require.Greater(t, server.Requests()[emulator.OpToken]["OK"], int64(2))
	for op, codes := range server.Requests() {
		for code := range codes {
			require.Contains(t, []string{"OK", "MessageNotExist"}, code, op)
		}
	}

	// All tokens die: the refused receive is what fetches a new one.
	server.RevokeTokens()
	require.Eventually(t, func() bool {
		_, err := s.Receive(t.Context(), 1, false)
		return err == nil
	}, 5*time.Second, 20*time.Millisecond)
}

func TestManySettleAtOnce(t *testing.T) {
	server, s := startEmulator(t, emulator.Config{}, emulator.QueueConfig{}, nil)
	const n = 2000
	all := make([]emulator.Message, n)
	for i := range all {
		all[i].Body = []byte("a")
	}
	_, err := server.SendAll("q", all)
	require.NoError(t, err)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for {
				ds, err := s.Receive(t.Context(), 16, false)
				if err != nil || len(ds) == 0 {
					if err != nil {
						t.Error(err)
					}
					return
				}
				for _, d := range ds {
					work.Go(func() {
						if err := errors.Join(s.Settle(t.Context(), settleAll([]relay.Delivery{d}, true, 0))...); err != nil {
							t.Error(err)
						}
					})
				}
			}
		})
	}
	work.Wait()
	require.EqualValues(t, n, stats(t, server).Deleted)
	require.LessOrEqual(t, server.Requests()[emulator.OpDelete]["OK"], int64(n/16*3/2), "single deletes share requests")
}
