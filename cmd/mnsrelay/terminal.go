package main

import (
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/term"
)

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalSize gives the columns and lines of a terminal; 0: not known.
func terminalSize(w io.Writer) (width, height int) {
	if f, ok := w.(*os.File); ok {
		width, height, _ = term.GetSize(int(f.Fd()))
	}
	return width, height
}

// colour is what a terminal is told before a text (ECMA-48: SGR).
type colour string

const (
	plain  colour = ""
	bold   colour = "\x1b[1m"
	faint  colour = "\x1b[2m"
	red    colour = "\x1b[31m"
	green  colour = "\x1b[32m"
	yellow colour = "\x1b[33m"

	colourEnd = "\x1b[0m"
)

// painter colours what is printed, if at all.
type painter struct{ on bool }

// painterFor colours on a terminal, unless it is a dumb one or NO_COLOR is set (no-color.org).
func painterFor(w io.Writer) painter {
	return painter{on: isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"}
}

func (p painter) paint(c colour, text string) string {
	if !p.on || c == plain {
		return text
	}
	return string(c) + text + colourEnd
}

// shown makes of a text that others wrote one that can do nothing to a terminal: what is not
// printed is replaced, line ends and tabs aside.
func shown(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || !unicode.IsControl(r) && !unicode.Is(unicode.Bidi_Control, r) {
			return r
		}
		return unicode.ReplacementChar
	}, text)
}
