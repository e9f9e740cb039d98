package rig

import (
	"bytes"
	"encoding/json"
	"sync"
)

// log keeps what a relay writes and finds the address of its API in it.
type log struct {
	api chan string // takes one address

	mu    sync.Mutex
	text  bytes.Buffer
	read  int // how much of text has been searched
	found bool
}

func newLog() *log { return &log{api: make(chan string, 1)} }

// Write is part of io.Writer.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	for !l.found {
		line, _, whole := bytes.Cut(l.text.Bytes()[l.read:], []byte("\n"))
		if !whole {
			break
		}
		l.read += len(line) + 1
		var entry struct{ Message, API string }
		if json.Unmarshal(line, &entry) == nil && entry.Message == "relay started" {
			l.found = true
			l.api <- "http://" + entry.API
		}
	}
	return len(p), nil
}

// String gives everything written so far.
func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
