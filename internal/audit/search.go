package audit

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"mnsrelay/internal/relay"
)

const (
	// maxLine is how long a line may be that is looked at, in bytes; one of an audit is
	// shorter, whatever its message.
	maxLine = 64 << 10
	// maxFound is how many lines of one message are kept, the last ones.
	maxFound = 10_000
)

// Search looks for the lines of a message, in one file after the other. Make it with
// Keys.Search.
type Search struct {
	// Lines are those that were found, at most the last ten thousand.
	Lines []Line
	// Left counts those before them.
	Left int
	// First and Last are the times of the first and last line of an audit in what was read,
	// whatever their messages; empty: there was none.
	First, Last string
	// Torn counts lines that name the message and are not whole.
	Torn int
	// Hashed says that there are hashed keys and no secret to hash with.
	Hashed bool

	text, hash string
	hashes     bool
	// needles are what a line of the message must hold; none: any may.
	needles [][]byte
}

// Search makes a search for an id or a key. Keys that are hashed are found where k is that
// of the same configuration.
func (k *Keys) Search(text string) *Search {
	s := &Search{text: text, hash: k.hash(text), hashes: k.secret != nil}
	plain := func(c rune) bool { return c > ' ' && c < 0x7f && !strings.ContainsRune(`"\<>&`, c) }
	if text = cut(text); text != "" && strings.IndexFunc(text, func(c rune) bool { return !plain(c) }) < 0 {
		s.needles = [][]byte{[]byte(text)}
		if s.hash != "" {
			s.needles = append(s.needles, []byte(s.hash))
		}
	}
	return s
}

// Read looks through one file, or one log, line by line. Lines that are of no audit are
// passed over.
func (s *Search) Read(r io.Reader) error {
	buffered := bufio.NewReaderSize(r, maxLine)
	var last []byte
	for {
		line, err := buffered.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) { // too long: passed over
			line = nil
			_, err = buffered.ReadSlice('\n')
		}
		if bytes.Contains(line, []byte(`"audit"`)) {
			s.look(line)
			last = append(last[:0], line...)
		}
		switch {
		case errors.Is(err, io.EOF):
			if found, whole := parse(last); whole {
				s.Last = max(s.Last, found.Time)
			}
			return nil
		case err != nil:
			return fmt.Errorf("read the audit: %w", err)
		}
	}
}

// look looks at a line that may be of an audit.
func (s *Search) look(line []byte) {
	if s.First == "" {
		if first, whole := parse(line); whole {
			s.First = first.Time
		}
	}
	s.Hashed = s.Hashed || !s.hashes && bytes.Contains(line, []byte(`"key_hash"`))
	if len(s.needles) > 0 && !slices.ContainsFunc(s.needles, func(n []byte) bool { return bytes.Contains(line, n) }) {
		return
	}
	found, whole := parse(line)
	switch {
	case !whole:
		if len(s.needles) > 0 {
			s.Torn++
		}
	case found.MessageID == cut(s.text), found.Key != "" && found.Key == cut(s.text), found.KeyHash != "" && found.KeyHash == s.hash:
		s.add(found)
	}
}

func (s *Search) add(line Line) {
	if len(s.Lines) == 2*maxFound {
		s.Left += maxFound
		s.Lines = append(s.Lines[:0], s.Lines[maxFound:]...)
	}
	s.Lines = append(s.Lines, line)
}

// Finish puts what was found in the order of time.
func (s *Search) Finish() {
	slices.SortStableFunc(s.Lines, func(a, b Line) int { return cmp.Compare(a.Time, b.Time) })
	if more := len(s.Lines) - maxFound; more > 0 {
		s.Left += more
		s.Lines = s.Lines[more:]
	}
}

// IDs are the ids of the messages that were found, in order.
func (s *Search) IDs() (ids []string) {
	seen := make(map[string]bool)
	for _, line := range s.Lines {
		if !seen[line.MessageID] {
			seen[line.MessageID] = true
			ids = append(ids, line.MessageID)
		}
	}
	return ids
}

// parse reads a line of an audit: JSON, behind what a console or a collector of logs has
// put before it. It is whole only if nothing follows.
func parse(line []byte) (found Line, whole bool) {
	at := bytes.IndexByte(line, '{')
	if at < 0 || json.Unmarshal(line[at:], &found) != nil || found.Audit == "" {
		return Line{}, false
	}
	if found.Time == "" { // a log for the console has it before the rest
		for word := range strings.FieldsSeq(string(line[:at])) {
			if t, err := time.Parse(time.RFC3339, word); err == nil {
				found.Time = t.UTC().Format(relay.EnqueuedAtFormat)
			}
		}
	}
	return found, true
}
