package relay_test

import (
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/relay"
)

const (
	aTrace  = "4bf92f3577b34da6a3ce929d0e0e4736"
	aSpan   = "00f067aa0ba902b7"
	aParent = "00-" + aTrace + "-" + aSpan + "-01"
)

// What comes with a message was written by anybody: it is a trace context as W3C defines it, or
// nothing at all.
func TestParseTraceContext(t *testing.T) {
	t.Parallel()
	for parent, want := range map[string]string{
		aParent:                                         aParent,
		"00-" + aTrace + "-" + aSpan + "-00":            "00-" + aTrace + "-" + aSpan + "-00",
		"cc-" + aTrace + "-" + aSpan + "-01":            aParent, // a later version
		"cc-" + aTrace + "-" + aSpan + "-01-more-of-it": aParent,
		"cc-" + aTrace + "-" + aSpan + "-01.more":       "",
		"":                       "",
		"-":                      "",
		"00":                     "",
		aParent + "-":            "",
		aParent + " ":            "",
		" " + aParent:            "",
		aParent[:54]:             "",
		aParent + "\r\nx: y":     "",
		"ff" + aParent[2:]:       "",
		"0x" + aParent[2:]:       "",
		"0" + aParent:            "",
		strings.ToUpper(aParent): "",
		"00-" + strings.Repeat("0", 32) + "-" + aSpan + "-01":              "",
		"00-" + aTrace + "-" + strings.Repeat("0", 16) + "-01":             "",
		"00-" + strings.Repeat("g", 32) + "-" + aSpan + "-01":              "",
		"00_" + aTrace + "_" + aSpan + "_01":                               "",
		"00-" + aTrace + "-" + aSpan + "-0x":                               "",
		"cc-" + aTrace + "-" + aSpan + "-01-" + strings.Repeat("x", 1<<20): "",
		strings.Repeat("\x00", 55):                                         "",
		strings.Repeat("é", 55):                                            "",
	} {
		got := relay.ParseTraceContext(parent, "")
		if want == "" {
			require.Nil(t, got, "%.80q", parent)
			continue
		}
		require.NotNil(t, got, parent)
		require.Equal(t, want, got.Parent)
		require.Equal(t, aTrace, got.TraceID())
		require.Equal(t, aSpan, got.SpanID())
		require.Equal(t, strings.HasSuffix(got.Parent, "1"), got.Sampled())
	}
}

// A state that is none takes nothing from the context that it came with.
func TestParseTraceState(t *testing.T) {
	t.Parallel()
	many := func(n int) string {
		var members []string
		for i := range n {
			members = append(members, fmt.Sprintf("k%d=v", i))
		}
		return strings.Join(members, ",")
	}
	for state, taken := range map[string]bool{
		"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE": true,
		"a=1, b=2 ,c=3":                   true,
		"a=1,,b=2":                        true,
		"fw529a3039@dt=FfAAA":             true,
		"a=with space and % and !":        true,
		"a=" + strings.Repeat("x", 256):   true,
		"":                                false,
		",":                               false,
		"a":                               false,
		"=1":                              false,
		"a=":                              false,
		"a=1=2":                           false,
		"A=1":                             false,
		"a=1,a=2":                         false,
		"a=\u00e9":                        false,
		"a=1\r\nx: y":                     false,
		"a=\x00":                          false,
		"a@=1":                            false,
		"a@b@c=1":                         false,
		"a=" + strings.Repeat("x", 257):   false,
		strings.Repeat("k", 257) + "=1":   false,
		many(32):                          true,
		many(33):                          false,
		"k=1,k=1":                         false,
		strings.Repeat("x", 1<<20):        false,
		"a=1," + strings.Repeat(" ", 600): false,
	} {
		got := relay.ParseTraceContext(aParent, state)
		require.NotNil(t, got)
		if taken {
			require.Equal(t, state, got.State)
		} else {
			require.Empty(t, got.State, "%.80q", state)
		}
	}
}

func TestHeadersCarryTheTraceContext(t *testing.T) {
	t.Parallel()
	headers := func(m relay.Message) map[string]string {
		return maps.Collect(m.Headers)
	}
	traced := relay.Message{Trace: relay.ParseTraceContext(aParent, "a=1"), Dead: &relay.DeadLetter{Reason: "refused"}}
	require.Equal(t, aParent, headers(traced)[relay.HeaderTraceParent])
	require.Equal(t, "a=1", headers(traced)[relay.HeaderTraceState])
	require.Equal(t, "refused", headers(traced)[relay.HeaderDeadReason])
	traced.Trace = relay.ParseTraceContext(aParent, "")
	require.NotContains(t, headers(traced), relay.HeaderTraceState)
	require.NotContains(t, headers(relay.Message{}), relay.HeaderTraceParent)
}

// Tracing that is off allocates nothing on the way of a message.
func TestNoTracingIsFree(t *testing.T) {
	require.Zero(t, testing.AllocsPerRun(1000, relay.TracedOff()))
}

// spans is a Tracer that counts.
type spans struct{ begun, ended atomic.Int32 }

func (s *spans) Batch(time.Time, []relay.Message) relay.BatchSpan { return s }
func (s *spans) Delivery(relay.TargetName, *relay.Message) relay.DeliverySpan {
	s.begun.Add(1)
	return deliverySpan{s}
}
func (s *spans) Settled(int, int, int) {}
func (s *spans) End()                  {}

type deliverySpan struct{ of *spans }

func (d deliverySpan) Context() *relay.TraceContext { return relay.ParseTraceContext(aParent, "") }
func (d deliverySpan) Failed(relay.Result)          {}
func (d deliverySpan) End(relay.Result)             { d.of.ended.Add(1) }

// A delivery that is given up because the lease was lost has a span that ends.
func TestTheSpanOfALostLeaseEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		of := &spans{}
		r := newRig(t, 1, func(_ *relay.Config, d *relay.Deps) { d.Tracer = of })
		r.loseTheLease()
		r.queue.Send("x")
		r.start()
		pass(50 * time.Second)
		require.EqualValues(t, 1, r.stats.Counts().LostLeases)
		require.EqualValues(t, 1, of.begun.Load())
		require.Equal(t, of.begun.Load(), of.ended.Load())
		r.soft()
		pass(time.Minute)
		r.stop()
	})
}
