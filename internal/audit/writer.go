package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/relay"
)

const (
	// patience is how long a Flush waits for a write. One that takes longer is waited for by
	// nobody until writes are quick again.
	patience = 250 * time.Millisecond
	// quick is how long a write may take that ends a slow time. A Flush may wait for two: the
	// one under way, and its own.
	quick = patience / 2
	// againAfter is how long Run waits after a write that failed.
	againAfter = time.Second
	// stopWithin is how long the last write may take.
	stopWithin = time.Second
	// maxPending bounds what waits to be written, in bytes: some ten thousand lines.
	maxPending = 4 << 20
)

// trouble is what is wrong with writing, the worst last.
type trouble int

const (
	none   trouble = iota
	slow           // a write has taken longer than a Flush waits
	failed         // the last write has failed
)

// Appender is what lines are written to. The file sink's endpoint is one.
type Appender interface {
	// Append writes whole lines and returns when the disk has them. After an error none of
	// them is there.
	Append(ctx context.Context, lines []byte) error
}

// Writer is an audit that goes to a file. What was recorded while a write is under way
// shares the next one. Make it with NewWriter; Run writes.
type Writer struct {
	keys    *Keys
	out     Appender
	log     *zap.Logger
	counter *Counter
	// wake says that there is something to write; size 1.
	wake chan struct{}

	mu sync.Mutex
	// pending are whole lines, the oldest first; lines counts them.
	pending []byte
	lines   uint64
	// recorded counts the lines that came into pending, done those that left it.
	recorded, done uint64
	// trouble is what was said last, and nobody waits for a write while there is any.
	trouble trouble
	// lostBefore is the count of lost lines when trouble began.
	lostBefore uint64
	// changed is closed when done or trouble has changed.
	changed chan struct{}
}

var _ relay.Auditor = (*Writer)(nil)

// NewWriter makes a Writer. It starts nothing. What it says in the log is no audit, and may be
// bounded as everything else.
func NewWriter(keys *Keys, out Appender, log *zap.Logger, counter *Counter) *Writer {
	return &Writer{keys: keys, out: out, log: log.Named("audit_file"), counter: counter, wake: make(chan struct{}, 1), changed: make(chan struct{})}
}

// Record is part of relay.Auditor. A line for which there is no more room is lost.
func (w *Writer) Record(e relay.AuditEntry) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b) // ends the line, and escapes every other line end
	encoder.SetEscapeHTML(false)
	if encoder.Encode(w.keys.line(&e)) != nil {
		w.counter.lost.Add(1)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.pending)+b.Len() > maxPending {
		w.counter.lost.Add(1)
		return
	}
	w.pending = append(w.pending, b.Bytes()...)
	w.lines++
	w.recorded++
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Flush is part of relay.Auditor. It waits for a quarter of a second at most, and not at all
// while there is trouble.
func (w *Writer) Flush(ctx context.Context) {
	w.mu.Lock()
	until := w.recorded
	var late <-chan time.Time
	for w.done < until && w.trouble == none {
		changed := w.changed
		w.mu.Unlock()
		if late == nil {
			timer := time.NewTimer(patience)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-changed:
			w.mu.Lock()
		case <-ctx.Done():
			return
		case <-late:
			w.mu.Lock()
			w.begin(slow, nil)
		}
	}
	w.mu.Unlock()
}

// Run writes what is recorded until ctx ends, and then what is left.
func (w *Writer) Run(ctx context.Context) {
	write, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(stopWithin, cancel) })()
	again := time.NewTimer(againAfter)
	again.Stop()
	defer again.Stop()
	wake := w.wake
	for {
		select {
		case <-ctx.Done():
			if w.write(write) != nil {
				w.lose()
			}
			return
		case <-again.C:
			wake = w.wake
		case <-wake:
		}
		if w.write(write) != nil {
			wake = nil // until again
			again.Reset(againAfter)
		}
	}
}

// write writes what is pending.
func (w *Writer) write(ctx context.Context) error {
	w.mu.Lock()
	// What is appended meanwhile stands behind it or in other memory.
	lines, n := w.pending, w.lines
	w.mu.Unlock()
	if len(lines) == 0 {
		return nil
	}
	begun := time.Now()
	err := w.out.Append(ctx, lines)
	took := time.Since(begun)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.begin(failed, err)
		return err
	}
	w.pending = append([]byte(nil), w.pending[len(lines):]...)
	w.lines -= n
	w.done += n
	w.counter.written.Add(n)
	w.end(took)
	w.tell()
	return nil
}

// begin notes trouble and says so, where it is worse than what was said; the caller holds the
// lock.
func (w *Writer) begin(what trouble, err error) {
	if w.trouble >= what {
		return
	}
	if w.trouble == none {
		w.lostBefore = w.counter.lost.Load()
	}
	w.say(what, err)
	w.tell()
}

// end says that trouble is over, or less, after a write that took so long; the caller holds
// the lock.
func (w *Writer) end(took time.Duration) {
	switch {
	case w.trouble != none && took <= quick:
		w.trouble = none
		w.log.Info("the audit is written again", zap.Uint64("lost_lines", w.counter.lost.Load()-w.lostBefore))
	case w.trouble == failed:
		w.say(slow, nil)
	}
}

// say notes trouble and says what it is; the caller holds the lock.
func (w *Writer) say(what trouble, err error) {
	w.trouble = what
	if what == slow {
		w.log.Warn("the audit is slow: messages do not wait for it")
		return
	}
	w.log.Warn("the audit cannot be written: messages go on without it", zap.Error(err))
}

// tell wakes those who wait in Flush; the caller holds the lock.
func (w *Writer) tell() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// lose gives up what is pending.
func (w *Writer) lose() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counter.lost.Add(w.lines)
	w.log.Warn("the audit ends with lines that could not be written", zap.Uint64("lost_lines", w.lines))
	w.done, w.pending, w.lines = w.recorded, nil, 0
	w.tell()
}
