package relay

import (
	"slices"
	"strings"
	"time"
)

// FailedTry is one message that was not delivered at one try. It holds no body.
type FailedTry struct {
	Time time.Time
	// Target is empty where no target was asked.
	Target  TargetName
	Message string // its id
	// Attempt counts the receives of the message, from 1.
	Attempt int
	Outcome Outcome
	// Reason is that under which it is counted, Text the error in words.
	Reason, Text string
}

// failuresKept is how many of the last failures are kept of each source, and
// failureText how many bytes of each text.
const (
	failuresKept = 100
	failureText  = 1 << 10
)

// tries is a ring of the last ones.
type tries struct {
	all  []FailedTry
	next int
}

func (f *tries) add(one FailedTry) {
	// An id or a text may be a piece of a whole answer's, which must not live as long.
	one.Message = strings.Clone(one.Message)
	one.Text = strings.ToValidUTF8(strings.Clone(one.Text[:min(len(one.Text), failureText)]), "")
	if len(f.all) < failuresKept {
		f.all = append(f.all, one)
		return
	}
	f.all[f.next] = one
	f.next = (f.next + 1) % failuresKept
}

// newestFirst gives them in that order.
func (f *tries) newestFirst() []FailedTry {
	ordered := slices.Concat(f.all[f.next:], f.all[:f.next])
	slices.Reverse(ordered)
	return ordered
}

// Failures gives the last hundred failures, the newest first.
func (s *Stats) Failures() []FailedTry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures.newestFirst()
}

// fail counts a failed try and keeps it.
func (s *Stats) fail(to TargetName, m *Message, outcome Outcome, err error) {
	if err == nil {
		err = errUnanswered
	}
	one := FailedTry{
		Time: time.Now(), Target: to, Message: m.ID, Attempt: m.Attempt, Outcome: outcome, Reason: ReasonOf(err), Text: err.Error(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.Retried[one.Reason]++
	s.failures.add(one)
}
