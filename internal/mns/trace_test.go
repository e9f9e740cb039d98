package mns_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/relay"
)

const (
	parentA = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	parentB = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

// A message has its trace context in the system's properties, in the sender's own, or as an
// event in its body, and the first of these counts.
func TestTraceContextOfAMessage(t *testing.T) {
	t.Parallel()
	type properties = map[string]string
	event := func(parent string) string {
		return fmt.Sprintf(`{"specversion":"1.0","id":"1","source":"s","type":"t","traceparent":%q,"tracestate":"c=3"}`, parent)
	}
	for name, c := range map[string]struct {
		message       emulator.Message
		parent, state string
	}{
		"none":                 {message: emulator.Message{Body: []byte("{}")}},
		"system":               {emulator.Message{SystemProperties: properties{"traceparent": parentA, "tracestate": "a=1"}}, parentA, "a=1"},
		"user":                 {emulator.Message{UserProperties: properties{"other": "<&>", "traceparent": parentA, "tracestate": "b=2"}}, parentA, "b=2"},
		"both":                 {emulator.Message{SystemProperties: properties{"traceparent": parentA}, UserProperties: properties{"traceparent": parentB, "tracestate": "b=2"}}, parentA, ""},
		"the second is valid":  {emulator.Message{SystemProperties: properties{"traceparent": "x"}, UserProperties: properties{"traceparent": parentB}}, parentB, ""},
		"an event":             {emulator.Message{Body: []byte(event(parentB))}, parentB, "c=3"},
		"properties of events": {emulator.Message{Body: []byte(event(parentB)), UserProperties: properties{"traceparent": parentA}}, parentA, ""},
		"a wrong event":        {message: emulator.Message{Body: []byte(event("00-1-2-3"))}},
		"not an event":         {message: emulator.Message{Body: []byte(`{"traceparent":"` + parentA + `"}`)}},
		"within an event":      {message: emulator.Message{Body: []byte(`{"specversion":"1.0","data":{"traceparent":"` + parentA + `"}}`)}},
		"text about it":        {message: emulator.Message{Body: []byte(`the "traceparent" is ` + parentA)}},
		"no value":             {message: emulator.Message{SystemProperties: properties{"traceparent": ""}}},
		"huge":                 {emulator.Message{UserProperties: properties{"traceparent": parentA, "tracestate": strings.Repeat("a=1,", 10000)}}, parentA, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.message.Body == nil {
				c.message.Body = []byte("body")
			}
			server, q := startEmulator(t, emulator.Config{}, emulator.QueueConfig{}, nil)
			_, err := server.SendAll("q", []emulator.Message{{Body: []byte("before")}, c.message, {Body: []byte("after")}})
			require.NoError(t, err)
			got, err := q.Receive(t.Context(), 16, false)
			require.NoError(t, err)
			require.Len(t, got, 3)
			decoder := &mns.Decoder{Unwrap: true}
			for i, d := range got {
				m, err := decoder.Decode(d.Message)
				require.NoError(t, err)
				if i != 1 || c.parent == "" {
					require.Nil(t, m.Trace)
					continue
				}
				require.Equal(t, &relay.TraceContext{Parent: c.parent, State: c.state}, m.Trace)
				require.Equal(t, string(c.message.Body), string(m.Body))
			}
		})
	}
}

// Looking for a trace context costs no memory where there is none.
func TestNoTraceContextIsFree(t *testing.T) {
	decoder := &mns.Decoder{Unwrap: true}
	m := relay.Message{Body: []byte(`{"phone_number":"13900001234","success":true,"biz_id":"1^0"}`)}
	require.Zero(t, testing.AllocsPerRun(1000, func() { _, _ = decoder.Decode(m) }))
}
