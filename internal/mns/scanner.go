package mns

import (
	"bytes"
	"strconv"
	"unicode/utf8"
)

// scanner reads XML out of a byte slice, in which what it gives points wherever
// nothing had to be replaced.
//
// It accepts every document that encoding/xml accepts and gives the same names and
// texts, but for document type declarations, which MNS never sends, a nesting deeper
// than maxDepth, and the carriage return: XML wants it read as a line feed, while
// nobody who writes one means that; it is kept. Characters that XML does not allow are
// kept too: one message with such a character must not make a batch unreadable for
// ever. What is ambiguous (an unknown entity, tags that do not match, an end that is
// missing) is errMalformed.
type scanner struct {
	data []byte
	pos  int
	open [][]byte // names of the open elements, prefixes included
	// name is that of the element that has begun or ended, without its prefix.
	name []byte
	// text is the character data, as written unless literal.
	text    []byte
	literal bool
	// empty: the element that has begun ends at once.
	empty bool
}

const maxDepth = 64

type token uint8

const (
	tokenEnd token = iota
	tokenStart
	tokenText
	tokenEOF
)

// reset begins a new document.
func (s *scanner) reset(data []byte) {
	*s = scanner{data: bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")), open: s.open[:0]}
}

// next gives the next token. Comments, processing instructions and attributes are
// left out.
func (s *scanner) next() (token, error) {
	if s.empty {
		s.empty = false
		s.pop()
		return tokenEnd, nil
	}
	for s.pos < len(s.data) {
		rest := s.data[s.pos:]
		if rest[0] != '<' {
			end := bytes.IndexByte(rest, '<')
			if end < 0 {
				end = len(rest)
			}
			s.text, s.literal = rest[:end], false
			s.pos += end
			return tokenText, nil
		}
		if len(rest) < 2 {
			return 0, errMalformed
		}
		switch rest[1] {
		case '!':
			switch {
			case bytes.HasPrefix(rest, []byte("<!--")):
				if !s.skip(len("<!--"), "-->") {
					return 0, errMalformed
				}
			case bytes.HasPrefix(rest, []byte("<![CDATA[")):
				from := s.pos + len("<![CDATA[")
				if !s.skip(len("<![CDATA["), "]]>") {
					return 0, errMalformed
				}
				s.text, s.literal = s.data[from:s.pos-len("]]>")], true
				return tokenText, nil
			default:
				return 0, errMalformed
			}
		case '?':
			if !s.skip(len("<?"), "?>") {
				return 0, errMalformed
			}
		case '/':
			return s.endTag(rest)
		default:
			return s.startTag(rest)
		}
	}
	if len(s.open) > 0 {
		return 0, errMalformed
	}
	return tokenEOF, nil
}

// skip moves past the next end after n bytes.
func (s *scanner) skip(n int, end string) bool {
	i := bytes.Index(s.data[s.pos+n:], []byte(end))
	if i < 0 {
		return false
	}
	s.pos += n + i + len(end)
	return true
}

func (s *scanner) startTag(rest []byte) (token, error) {
	n := nameLength(rest[1:])
	if n == 0 || len(s.open) == maxDepth {
		return 0, errMalformed
	}
	i, quote := 1+n, byte(0)
	for ; i < len(rest); i++ {
		c := rest[i]
		if quote != 0 {
			if c == quote {
				quote = 0
			}
			continue
		}
		if c == '"' || c == '\'' {
			quote = c
			continue
		}
		if c == '<' {
			return 0, errMalformed
		}
		if c == '>' {
			break
		}
	}
	if i == len(rest) {
		return 0, errMalformed
	}
	s.empty = rest[i-1] == '/'
	s.pos += i + 1
	s.open = append(s.open, rest[1:1+n])
	s.name = local(rest[1 : 1+n])
	return tokenStart, nil
}

func (s *scanner) endTag(rest []byte) (token, error) {
	n := nameLength(rest[2:])
	if n == 0 || len(s.open) == 0 || !bytes.Equal(rest[2:2+n], s.open[len(s.open)-1]) {
		return 0, errMalformed
	}
	i := 2 + n
	for i < len(rest) && isSpace(rest[i]) {
		i++
	}
	if i == len(rest) || rest[i] != '>' {
		return 0, errMalformed
	}
	s.pos += i + 1
	s.pop()
	return tokenEnd, nil
}

func (s *scanner) pop() {
	last := len(s.open) - 1
	s.name = local(s.open[last])
	s.open = s.open[:last]
}

// nameLength is how many bytes of b are an element's name; 0: none.
func nameLength(b []byte) int {
	for i, c := range b {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c == ':', c >= utf8.RuneSelf:
		case c >= '0' && c <= '9', c == '-', c == '.':
			if i == 0 {
				return 0
			}
		default:
			return i
		}
	}
	return len(b)
}

// local is a name without its namespace prefix.
func local(name []byte) []byte {
	if i := bytes.IndexByte(name, ':'); i > 0 && i < len(name)-1 {
		return name[i+1:]
	}
	return name
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// root begins the document and gives the name of its outermost element.
func (s *scanner) root() ([]byte, error) {
	for {
		t, err := s.next()
		switch {
		case err != nil:
			return nil, err
		case t == tokenStart:
			return s.name, nil
		case t != tokenText || len(bytes.TrimSpace(s.text)) > 0:
			return nil, errMalformed
		}
	}
}

// finish checks that nothing follows the outermost element.
func (s *scanner) finish() error {
	for {
		t, err := s.next()
		switch {
		case err != nil:
			return err
		case t == tokenEOF:
			return nil
		case t != tokenText || len(bytes.TrimSpace(s.text)) > 0:
			return errMalformed
		}
	}
}

// field is the text of one element.
type field struct {
	value []byte
	// owned: value is memory of its own, not part of the document.
	owned bool
	// element is the whole element as it stands in the document, tags included.
	element []byte
}

// add appends a piece of character data.
func (f *field) add(text []byte, literal bool) error {
	if literal || bytes.IndexByte(text, '&') < 0 {
		switch {
		case f.value == nil:
			f.value = text
		case f.owned:
			f.value = append(f.value, text...)
		default:
			f.own(len(text))
			f.value = append(f.value, text...)
		}
		return nil
	}
	// What is replaced is never longer than what stood for it.
	f.own(len(text))
	var err error
	f.value, err = appendText(f.value, text)
	return err
}

// own copies the value, with room for n bytes more.
func (f *field) own(n int) {
	if f.owned {
		return
	}
	value := make([]byte, 0, len(f.value)+n)
	f.value, f.owned = append(value, f.value...), true
}

// record reads the children of the element that has begun, up to its end: the text of
// each child that names[i] names goes into fields[i]. Other children, and what is
// inside a child, are passed over.
func (s *scanner) record(names []string, fields []field) error {
	clear(fields)
	current, inside := -1, len(s.open)
	begin := 0
	for {
		before := s.pos
		t, err := s.next()
		if err != nil {
			return err
		}
		switch t {
		case tokenStart:
			if len(s.open) != inside+1 {
				break
			}
			current = -1
			for i, name := range names {
				if string(s.name) == name {
					fields[i], current, begin = field{}, i, before
					break
				}
			}
		case tokenText:
			if current < 0 || len(s.open) != inside+1 {
				break
			}
			if err := fields[current].add(s.text, s.literal); err != nil {
				return err
			}
		case tokenEnd:
			if len(s.open) < inside {
				return nil
			}
			if len(s.open) == inside {
				if current >= 0 {
					fields[current].element = s.data[begin:s.pos]
				}
				current = -1
			}
		case tokenEOF:
			return errMalformed
		}
	}
}

// pass reads the element that has begun, up to its end.
func (s *scanner) pass() error {
	for inside := len(s.open); len(s.open) >= inside; {
		if _, err := s.next(); err != nil {
			return err
		}
	}
	return nil
}

// appendText appends character data with its entities and character references
// replaced.
func appendText(dst, text []byte) ([]byte, error) {
	for {
		i := bytes.IndexByte(text, '&')
		if i < 0 {
			return append(dst, text...), nil
		}
		dst = append(dst, text[:i]...)
		text = text[i+1:]
		end := bytes.IndexByte(text, ';')
		if end < 0 {
			return nil, errMalformed
		}
		switch name := text[:end]; string(name) {
		case "lt":
			dst = append(dst, '<')
		case "gt":
			dst = append(dst, '>')
		case "amp":
			dst = append(dst, '&')
		case "quot":
			dst = append(dst, '"')
		case "apos":
			dst = append(dst, '\'')
		default:
			r, ok := reference(name)
			if !ok {
				return nil, errMalformed
			}
			dst = utf8.AppendRune(dst, r)
		}
		text = text[end+1:]
	}
}

// reference reads the inside of a character reference: #38 or #x26.
func reference(name []byte) (rune, bool) {
	if len(name) < 2 || name[0] != '#' {
		return 0, false
	}
	digits, base := name[1:], 10
	if digits[0] == 'x' {
		digits, base = digits[1:], 16
	}
	n, err := strconv.ParseUint(string(digits), base, 32)
	if err != nil || n > utf8.MaxRune {
		return 0, false
	}
	return rune(n), true
}

// number reads a whole number; one that is missing is 0.
func (f *field) number() (int64, error) {
	text := bytes.TrimSpace(f.value)
	if len(text) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return 0, errMalformed
	}
	return n, nil
}
