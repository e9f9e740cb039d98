package faults_test

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/broker"
)

// Connections that are reset at each byte of a publish, from before its first to after its
// last and into the next: many sinks at a time, each with a connection of its own.
func TestConnectionResetAtAnyByteOfAPublish(t *testing.T) {
	t.Parallel()
	const pairs, size = 24, 64
	in := newInbox(t, broker.URL(t), nil)
	var names []string
	for i := range pairs {
		names = append(names, fmt.Sprintf("queue%d", i))
	}
	w := newWorld(t, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second}, names...)
	var sources, sinks strings.Builder
	ways := make([]*wire, pairs)
	for i, name := range names {
		ways[i] = newWire(t, w.notary, in.url)
		sources.WriteString(w.source(name, "to-"+name, "pollers: {max: 1}"))
		sinks.WriteString(sink("to-"+name, in, "url: "+ways[i].url, "timeout: 5s"))
	}
	w.start(sources.String(), sinks.String())
	deleted := func() (n int) {
		for _, name := range names {
			n += int(w.stats(name).Deleted)
		}
		return n
	}
	for _, name := range names {
		w.send(name, 4, size, 0)
	}
	eventually(t, patience, "all work", func() (bool, string) { return deleted() == 4*pairs, w.states() })
	atRest := w.needs()
	longest := 0
	for _, way := range ways {
		_, size := way.resets()
		longest = max(longest, size)
	}
	require.Greater(t, longest, size)

	// Byte 0 is a reset before the first; the method frame of the next publish is in it too.
	var next atomic.Int64
	var cutting sync.WaitGroup
	for i, way := range ways {
		cutting.Go(func() {
			for {
				at := int(next.Add(1)) - 1
				if at > longest+64 {
					return
				}
				before, _ := way.resets()
				way.cutAfter(at)
				w.send(names[i], 3, size, 0)
				deadline := time.Now().Add(patience)
				for {
					if cuts, _ := way.resets(); cuts > before {
						break
					}
					if time.Now().After(deadline) {
						t.Errorf("%s was not cut at byte %d", names[i], at)
						return
					}
					pause(t, 5*time.Millisecond)
				}
			}
		})
	}
	cutting.Wait()
	cuts := 0
	for _, way := range ways {
		n, _ := way.resets()
		cuts += n
	}
	require.Equal(t, longest+65, cuts)
	for _, name := range names {
		eventually(t, patience, "the queue "+name+" is empty", func() (bool, string) {
			s := w.stats(name)
			return s.Active+s.Inactive == 0, fmt.Sprintf("%+v", s)
		})
	}
	w.requireRestOf(atRest, pairs)
	duplicates := w.finish(in)
	require.LessOrEqual(t, duplicates, 3*cuts, "at most what was in flight at each reset")
	t.Logf("%d resets, %d messages, %d duplicates", cuts, len(w.sent), duplicates)
}

// A connection that never lasts: tried again with growing, random pauses, and nothing grows.
func TestConnectionFlapping(t *testing.T) {
	t.Parallel()
	const lasts, every = 12 * time.Second, 100 * time.Millisecond
	in := newInbox(t, broker.URL(t), nil)
	w := newWorld(t, emulator.QueueConfig{VisibilityTimeout: 10 * time.Second})
	way := newWire(t, w.notary, in.url)
	flapping := newProxy(t, way.address)
	w.start(w.source("sms", "events"), sink("events", in, "url: amqp://guest:guest@"+flapping.Listen+"/"))
	w.await("up", "")
	w.send("sms", 16, 300, 0)
	w.awaitDeleted(16)
	atRest := w.needs()
	connected := len(way.connects())

	sent := w.sending(2000, 300, 200)
	begun := time.Now()
	var most need
	for time.Since(begun) < lasts {
		pause(t, every)
		flapping.Stop()
		require.NoError(t, flapping.Start())
		now := w.needs()
		most = need{max(most.goroutines, now.goroutines), max(most.files, now.files), max(most.memory, now.memory)}
	}
	tries := way.connects()[connected:]
	t.Logf("%d connections in %v, most: %+v, at rest: %+v", len(tries), lasts, most, atRest)
	require.Greater(t, len(tries), 5, "it goes on")
	require.Less(t, len(tries), int(lasts/every)*2/3, "not at once each time")
	var gaps []float64
	for i := range len(tries) - 1 {
		gaps = append(gaps, tries[i+1].Sub(tries[i]).Seconds())
	}
	require.Greater(t, deviation(gaps), 0.05, "seconds: the pauses are random, %v", gaps)
	require.Less(t, most.goroutines, atRest.goroutines+150)
	require.Less(t, most.files, atRest.files+40)
	require.Less(t, most.memory, atRest.memory+64, "MiB")
	require.Less(t, w.lines("no connection to the broker")+w.lines("connected to the broker"), 3*len(tries)+20, "lines of the log")

	sent()
	w.await("up", "")
	w.finishRested(atRest, in)
}

// newProxy leads to an address, and can be stopped, started and made slow.
func newProxy(t *testing.T, upstream string) *toxiproxy.Proxy {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // the proxy's links log past its logger
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "amqp", "127.0.0.1:0", upstream)
	require.NoError(t, p.Start())
	t.Cleanup(p.Stop)
	return p
}

// deviation is the standard deviation.
func deviation(values []float64) float64 {
	mean, sum := 0., 0.
	for _, v := range values {
		mean += v / float64(len(values))
	}
	for _, v := range values {
		sum += (v - mean) * (v - mean)
	}
	return math.Sqrt(sum / float64(len(values)))
}

// A confirm that comes when the lease has run out, since it could not be renewed: the
// receipt is dead, the message has come again, and that costs a duplicate and no more.
func TestConfirmAfterTheLeaseHasRunOut(t *testing.T) {
	t.Parallel()
	const messages, lease, late = 40, 2 * time.Second, 5 * time.Second
	in := newInbox(t, broker.URL(t), nil)
	w, way := single(t, in, emulator.QueueConfig{VisibilityTimeout: lease}, []string{"wait: 2s"}, []string{"timeout: 30s"})
	w.send("sms", 16, 300, 0)
	w.awaitDeleted(16)
	remove, err := w.emulator.AddFault(emulator.Fault{Operation: emulator.OpVisibility, Status: 500, Code: "InternalError"})
	require.NoError(t, err)
	way.hold()
	before := w.allRequests()
	begun := time.Now()
	w.send("sms", messages, 300, 0)
	pause(t, late)
	w.requireNoDeletes(100 * time.Millisecond)
	require.Greater(t, int(w.stats("sms").Redelivered), messages/2, "the leases have run out")
	way.release()
	eventually(t, patience, "every message is deleted", func() (bool, string) {
		s := w.stats("sms")
		return s.Active+s.Inactive == 0, fmt.Sprintf("%+v", s)
	})
	took := time.Since(begun)
	remove()
	requests := float64(w.allRequests()-before) / took.Seconds()
	t.Logf("%.0f requests a second over %v", requests, took.Round(time.Millisecond))
	require.Less(t, requests, 4.*messages, "a second: each message is renewed, received and deleted now and then, in no tight loop")

	balance := w.sourceStatus().Balance
	require.GreaterOrEqual(t, balance.LostLeases, uint64(messages/2), "what was confirmed too late is counted: %+v", balance)
	duplicates := w.finish(in)
	require.Positive(t, duplicates)
	require.LessOrEqual(t, duplicates, messages*int(took/lease+1), "a copy for each lease")
}
