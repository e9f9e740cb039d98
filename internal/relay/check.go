package relay

import "context"

// Checker is an Endpoint that finds out, before it runs, what would keep it from delivering.
type Checker interface {
	// Check looks at one thing after the other, until one makes the rest pointless or ctx
	// ends, and tells what it found of each; there is at least one. It connects as Run does,
	// to all that Bind was called for before, and leaves no connection. It sends no message
	// and makes nothing at the far side. Nothing in what it gives is secret.
	Check(ctx context.Context) []Finding
}

// Finding is what a Checker found of one thing.
type Finding struct {
	// What was looked at, in a few words, as in "exchange sms.events".
	What    string
	Verdict Verdict
	// Text says what was found; where that is a failure, why, and what to do.
	Text string
	// Details are the same for programs, where there is more to say than a sentence.
	Details []Field
}

// Verdict is whether a thing is as it has to be.
type Verdict string

// The verdicts. Unknown is what only a message can tell.
const (
	OK      Verdict = "ok"
	Failed  Verdict = "failed"
	Unknown Verdict = "unknown"
)

// Failing makes the Finding of an error that says what to do.
func Failing(what string, err error) Finding {
	return Finding{What: what, Verdict: Failed, Text: err.Error()}
}
