package rig

import (
	"bytes"
	"encoding/json"
	"sync"
)

// log keeps what a relay writes and finds the addresses of its API in it.
type log struct {
	api chan addresses // takes those of one start

	mu    sync.Mutex
	text  bytes.Buffer
	read  int // how much of text has been searched
	found bool
}

// addresses are where a relay listens, without a path; admin is empty where all is at api.
type addresses struct{ api, admin string }

func newLog() *log { return &log{api: make(chan addresses, 1)} }

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
		var entry struct {
			Message, API, Admin string
			TLS                 bool
		}
		if json.Unmarshal(line, &entry) == nil && entry.Message == "relay started" {
			l.found = true
			scheme := "http://"
			if entry.TLS {
				scheme = "https://"
			}
			at := addresses{api: scheme + entry.API}
			if entry.Admin != "" {
				at.admin = scheme + entry.Admin
			}
			l.api <- at
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
