package mns

import (
	"bytes"
	"encoding/json"

	"mnsrelay/internal/relay"
)

// trace is the trace context that the sender gave to a message: MNS has system properties of
// these names, which its newer clients set (MNS: end-to-end tracing), and older ones can set
// user properties.
func (m *received) trace() *relay.TraceContext {
	if t := readTrace(m.system.element, "SystemPropertyValue"); t != nil {
		return t
	}
	return readTrace(m.user.element, "PropertyValue")
}

// readTrace reads a trace context out of properties. A list that cannot be read has none: it
// says nothing against the message.
func readTrace(properties []byte, each string) *relay.TraceContext {
	if !bytes.Contains(properties, []byte(relay.HeaderTraceParent)) {
		return nil
	}
	var (
		s             scanner
		fields        [2]field
		parent, state string
	)
	s.reset(properties)
	if _, err := s.root(); err != nil {
		return nil
	}
	err := s.children(each, func() error {
		if err := s.record([]string{"Name", "Value"}, fields[:]); err != nil {
			return err
		}
		switch value := string(bytes.TrimSpace(fields[1].value)); string(bytes.TrimSpace(fields[0].value)) {
		case relay.HeaderTraceParent:
			parent = value
		case relay.HeaderTraceState:
			state = value
		}
		return nil
	})
	if err != nil {
		return nil
	}
	return relay.ParseTraceContext(parent, state)
}

// eventTrace is the trace context of a body that is an event of CloudEvents as JSON
// (CloudEvents: Distributed Tracing extension). Any other body has none.
func eventTrace(body []byte) *relay.TraceContext {
	// Most that has none shows it at once and costs no memory. The search is for what begins
	// with a letter that is not frequent: from quote to quote it takes eight times as long.
	if !bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("{")) || !bytes.Contains(body, []byte(`ceparent"`)) {
		return nil
	}
	var event struct {
		SpecVersion string `json:"specversion"`
		TraceParent string `json:"traceparent"`
		TraceState  string `json:"tracestate"`
	}
	if json.Unmarshal(body, &event) != nil || event.SpecVersion == "" {
		return nil
	}
	return relay.ParseTraceContext(event.TraceParent, event.TraceState)
}
