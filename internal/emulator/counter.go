package emulator

import (
	"sync"
	"sync/atomic"
)

// counter counts the answers of one operation by code.
type counter struct {
	ok    atomic.Int64
	other sync.Map // code to *atomic.Int64
}

func (c *counter) add(code string) {
	if code == okCode {
		c.ok.Add(1)
		return
	}
	n, found := c.other.Load(code)
	if !found {
		n, _ = c.other.LoadOrStore(code, new(atomic.Int64))
	}
	n.(*atomic.Int64).Add(1)
}

func (c *counter) read() map[string]int64 {
	counts := map[string]int64{}
	if n := c.ok.Load(); n > 0 {
		counts[okCode] = n
	}
	for code, n := range c.other.Range {
		counts[code.(string)] = n.(*atomic.Int64).Load()
	}
	return counts
}

func (c *counter) reset() {
	c.ok.Store(0)
	c.other.Clear()
}

// Requests counts the requests answered so far by operation and code: "OK", the
// code of the error, "dropped" for a connection closed without an answer, "cut"
// for half an answer. An empty receive counts as MessageNotExist. Controls and the
// methods of Server count nothing.
func (s *Server) Requests() map[Op]map[string]int64 {
	counts := map[Op]map[string]int64{}
	for op, counter := range s.counters {
		if codes := counter.read(); len(codes) > 0 {
			counts[op] = codes
		}
	}
	return counts
}

// ResetRequests makes Requests begin again.
func (s *Server) ResetRequests() {
	for _, counter := range s.counters {
		counter.reset()
	}
}
