package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"mnsrelay/internal/redrive"
)

// How often progress is shown: on a terminal, where it stays on one line, and elsewhere.
const (
	barEvery  = 100 * time.Millisecond
	lineEvery = 5 * time.Second
)

// progress shows how far a move is: a bar on a terminal, a line now and then elsewhere.
type progress struct {
	w        io.Writer
	terminal bool
	// total is how many messages there are to move; 0: not known.
	total int

	began, shown time.Time
	drawn        bool
	trouble      string // what was last told
}

func newProgress(w io.Writer, total int) *progress {
	now := time.Now()
	return &progress{w: w, terminal: isTerminal(w), total: total, began: now, shown: now}
}

// show tells of a step, unless it was told of another just before, and of trouble when
// it is another one than before.
func (p *progress) show(now redrive.Progress) {
	if now.Trouble != p.trouble && now.Trouble != "" {
		p.say("trying again: %s", now.Trouble)
	}
	p.trouble = now.Trouble
	every := lineEvery
	if p.terminal {
		every = barEvery
	}
	if time.Since(p.shown) < every {
		return
	}
	p.shown = time.Now()
	if !p.terminal {
		_, _ = fmt.Fprintln(p.w, p.text(now))
		return
	}
	_, _ = fmt.Fprint(p.w, "\r\x1b[K"+p.bar(now)+p.text(now))
	p.drawn = true
}

// say writes a line.
func (p *progress) say(format string, args ...any) {
	p.clear()
	_, _ = fmt.Fprintf(p.w, format+"\n", args...)
}

// clear takes the bar away, for a line to stand there.
func (p *progress) clear() {
	if p.drawn {
		_, _ = fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

// bar is how much of the whole is done.
func (p *progress) bar(now redrive.Progress) string {
	if p.total == 0 {
		return ""
	}
	const width = 20
	part := min(float64(now.Moved+now.Stayed)/float64(p.total), 1)
	full := int(part * width)
	return fmt.Sprintf("[%s%s] %3.0f%%  ", strings.Repeat("=", full), strings.Repeat(" ", width-full), part*100)
}

func (p *progress) text(now redrive.Progress) string {
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "%d moved", now.Moved)
	if p.total > 0 {
		_, _ = fmt.Fprintf(&b, " of about %d", p.total)
	}
	if seconds := time.Since(p.began).Seconds(); seconds >= 1 {
		_, _ = fmt.Fprintf(&b, ", %.0f/s", float64(now.Moved)/seconds)
	}
	if now.Stayed > 0 {
		_, _ = fmt.Fprintf(&b, ", %d stay", now.Stayed)
	}
	return b.String()
}
