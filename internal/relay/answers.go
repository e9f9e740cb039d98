package relay

import "sync"

// Answers sees to it that each message of a Sink's Deliver gets one result, and none after
// Deliver has returned. It is for sinks whose results come from several goroutines, some of
// which may be left behind. It is safe for concurrent use.
type Answers struct {
	mu       sync.Mutex
	done     func(i int, r Result)
	answered []bool
	over     bool
}

// NewAnswers makes the answers of n messages, which go to done.
func NewAnswers(n int, done func(i int, r Result)) *Answers {
	return &Answers{done: done, answered: make([]bool, n)}
}

// Give gives message i its result, unless it has one.
func (a *Answers) Give(i int, r Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.over && !a.answered[i] {
		a.answered[i] = true
		a.done(i, r)
	}
}

// Given tells whether message i has its result.
func (a *Answers) Given(i int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.answered[i]
}

// Finish gives r to every message that has no result. Nothing is given afterwards.
func (a *Answers) Finish(r Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = true
	for i, answered := range a.answered {
		if !answered {
			a.answered[i] = true
			a.done(i, r)
		}
	}
}
