package mns

import "time"

// What tests and fuzzing reach into.

type (
	// Received is a message as an answer has it.
	Received struct {
		ID, Receipt, Body string
		Enqueued, Next    int64
		Attempt           int64
	}
	// Clock is the clock.
	Clock = clock
)

// SetDeniedFor sets how long an operation that was refused is not asked for again.
func (s *Source) SetDeniedFor(d time.Duration) { s.queue.deniedFor = d }

// ReadMessages reads an answer to receive.
func ReadMessages(data []byte) ([]Received, error) {
	var (
		s  scanner
		ms []Received
	)
	err := readMessages(&s, data, func(m received) error {
		ms = append(ms, Received{
			ID: string(m.id.value), Receipt: string(m.receipt.value), Body: string(m.body.value),
			Enqueued: m.enqueued, Next: m.next, Attempt: m.attempt,
		})
		return nil
	})
	return ms, err
}

// ReadRecord reads a document into the texts of the named children.
func ReadRecord(data []byte, root string, names ...string) ([]string, error) {
	var s scanner
	fields := make([]field, len(names))
	if err := s.one(data, root, names, fields); err != nil {
		return nil, err
	}
	texts := make([]string, len(names))
	for i := range fields {
		texts[i] = string(fields[i].value)
	}
	return texts, nil
}

// EncodeMessage writes a message to send.
func EncodeMessage(m Outgoing) ([]byte, error) { return appendMessage(nil, m) }

// EncodeHandles writes the body of a batch delete.
func EncodeHandles(receipts []string) []byte { return appendHandles(nil, receipts) }

// IsNotification tells whether a body is a topic's Notification.
func IsNotification(body []byte) bool {
	_, ok := readNotification(body)
	return ok
}

// NewClock makes a clock that starts at t.
func NewClock(t time.Time) *Clock { return &clock{start: t} }

// Observe tells the clock of an answer.
func (c *clock) Observe(date, sent, got time.Time) { c.observe(date, sent, got) }

// Deadline is the local time of a time of the server's.
func (c *clock) Deadline(t, now time.Time) time.Time { return c.deadline(t, now) }

// Skew is how far the clocks differ.
func (c *clock) Skew(now time.Time) time.Duration { return c.skew(now) }

// MaxAnswer is the longest answer that is read.
const MaxAnswer = maxAnswer

// ScanMessages reads an answer and makes its messages.
func ScanMessages(data []byte) error {
	var s scanner
	return readMessages(&s, data, func(m received) error {
		m.message(&Config{Name: "source"})
		return nil
	})
}
