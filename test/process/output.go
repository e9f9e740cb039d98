package process

import (
	"strings"
	"sync"
)

// Output keeps the last lines that a process wrote, and tells when it wrote a line
// that it was asked to wait for. Make it with NewOutput.
type Output struct {
	want string
	seen chan struct{}

	mu    sync.Mutex
	lines []string
	rest  string
	found bool
}

const keptLines = 60

// NewOutput waits for a line that holds want.
func NewOutput(want string) *Output { return &Output{want: want, seen: make(chan struct{})} }

// Seen is closed when the line has been written.
func (o *Output) Seen() <-chan struct{} { return o.seen }

// Write is part of io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := strings.Split(o.rest+string(p), "\n")
	o.rest = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		if o.lines = append(o.lines, line); len(o.lines) > keptLines {
			o.lines = o.lines[1:]
		}
		if !o.found && strings.Contains(line, o.want) {
			o.found = true
			close(o.seen)
		}
	}
	return len(p), nil
}

// Tail gives the last lines.
func (o *Output) Tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(append(o.lines, o.rest), "\n")
}
