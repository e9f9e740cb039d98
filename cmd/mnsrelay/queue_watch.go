package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"mnsrelay/internal/mns"
)

// watchQueues reads the queues every interval and reports, until ctx ends.
func watchQueues(ctx context.Context, queues []*countedQueue, interval time.Duration, r *reporter) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		now := readAll(ctx, queues)
		if ctx.Err() != nil {
			return nil // what was cut is no reading
		}
		if err := r.report(now, interval); err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// reporter prints readings one after another.
type reporter struct {
	out, errs io.Writer
	asJSON    bool
	layout    layout
	painter   painter
	screen    *screen // nil: lines are added
	begun     bool
	noted     bool
	troubles  map[*countedQueue]string // what was last said of each
}

func newReporter(out, errs io.Writer, queues []*countedQueue, asJSON bool) *reporter {
	r := &reporter{out: out, errs: errs, asJSON: asJSON, layout: layoutOf(queues, true), painter: painterFor(out), troubles: make(map[*countedQueue]string)}
	if isTerminal(out) && !asJSON {
		r.screen = &screen{w: out, size: func() (int, int) { return terminalSize(out) }}
	}
	return r
}

func (r *reporter) report(now []reading, interval time.Duration) error {
	switch {
	case r.asJSON:
		for i := range now {
			if err := printJSONLine(r.out, now[i].json()); err != nil {
				return err
			}
		}
		return nil
	case r.screen != nil:
		head := fmt.Sprintf("every %v until Ctrl-C, at %s", interval, now[0].at.Format(time.TimeOnly))
		lines := []paintedLine{{head, faint}, {}, {r.layout.head(), bold}}
		for i := range now {
			lines = append(lines, r.layout.line(&now[i]))
		}
		for i := range now {
			if now[i].err != nil {
				lines = append(lines, paintedLine{now[i].trouble(), red})
			}
		}
		if uncounted(now) {
			lines = append(lines, paintedLine{noteUncounted, faint})
		}
		return r.screen.draw(lines, r.painter)
	}
	var b strings.Builder
	if !r.begun {
		r.begun = true
		b.WriteString("TIME      " + r.layout.head() + "\n")
	}
	for i := range now {
		b.WriteString(now[i].at.Format(time.TimeOnly) + "  " + r.layout.line(&now[i]).text + "\n")
	}
	if _, err := io.WriteString(r.out, b.String()); err != nil {
		return err
	}
	r.sayTroubles(now)
	return nil
}

// sayTroubles says what is wrong with a queue, once until it is something else.
func (r *reporter) sayTroubles(now []reading) {
	for i := range now {
		said := ""
		if err := now[i].err; err != nil {
			said = err.Error()
			if answer, is := errors.AsType[*mns.Error](err); is && answer.Code != "" {
				said = answer.Code // the text has the request's id
			}
		}
		if said != "" && said != r.troubles[now[i].of] {
			_, _ = fmt.Fprintln(r.errs, "mnsrelay: "+now[i].trouble())
		}
		r.troubles[now[i].of] = said
	}
	if !r.noted && uncounted(now) {
		r.noted = true
		_, _ = fmt.Fprintln(r.errs, noteUncounted)
	}
}

// trouble is what is wrong, in a line.
func (c *reading) trouble() string {
	return c.name() + ": " + oneLine(shown(advise(c.err).Error()))
}

// layout is the widths of a table whose lines do not come at once.
type layout struct {
	source, queue int
	change        bool // there is such a column
}

func layoutOf(queues []*countedQueue, change bool) layout {
	l := layout{source: len("SOURCE"), queue: len("QUEUE"), change: change}
	for _, q := range queues {
		l.source, l.queue = max(l.source, len(q.source)), max(l.queue, len(q.queue))
	}
	return l
}

func (l layout) row(source, queue, active, inactive, delayed, change string) string {
	text := fmt.Sprintf("%-*s  %-*s  %10s  %10s  %10s", l.source, source, l.queue, queue, active, inactive, delayed)
	if l.change {
		text += fmt.Sprintf("  %10s", change)
	}
	return text
}

func (l layout) head() string {
	return l.row("SOURCE", "QUEUE", "ACTIVE", "INACTIVE", "DELAYED", "CHANGE")
}

func (l layout) line(c *reading) paintedLine {
	a, change, colour := &c.attributes, "-", plain
	switch {
	case c.change == nil:
	case *c.change == 0:
		change = "0/s"
	default:
		change = fmt.Sprintf("%+.1f/s", *c.change)
	}
	if c.err != nil {
		colour = red
	}
	text := l.row(dash(c.of.source), c.of.queue, c.number(a.Active), c.number(a.Inactive), c.number(a.Delayed), change)
	return paintedLine{text, colour}
}

// table is the readings of one time.
func (l layout) table(now []reading, p painter) string {
	var b strings.Builder
	b.WriteString(p.paint(bold, l.head()) + "\n")
	for i := range now {
		line := l.line(&now[i])
		b.WriteString(p.paint(line.colour, line.text) + "\n")
	}
	return b.String()
}

type paintedLine struct {
	text   string
	colour colour
}

// screen draws lines where those before them were.
type screen struct {
	w     io.Writer
	size  func() (width, height int) // 0: not known
	drawn int                        // lines
}

func (s *screen) draw(lines []paintedLine, p painter) error {
	width, height := s.size()
	if height > 1 && len(lines) > height-1 {
		// The cursor cannot go back to what has left the top.
		lines = append(lines[:height-2:height-2], paintedLine{fmt.Sprintf("and %d lines more", len(lines)-height+2), faint})
	}
	var b strings.Builder
	if s.drawn > 0 {
		_, _ = fmt.Fprintf(&b, "\x1b[%dA", s.drawn) // up, as many lines
	}
	b.WriteString("\r\x1b[J") // clear from here on
	for _, l := range lines {
		b.WriteString(p.paint(l.colour, cut(shown(l.text), width)) + "\n")
	}
	s.drawn = len(lines)
	_, err := io.WriteString(s.w, b.String())
	return err
}

// cut shortens a line that would go on in the next one.
func cut(text string, width int) string {
	if width <= 0 || utf8.RuneCountInString(text) <= width {
		return text
	}
	return string([]rune(text)[:width-1]) + "…"
}
