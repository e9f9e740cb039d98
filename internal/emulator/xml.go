package emulator

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	xmlHeader    = `<?xml version="1.0" encoding="utf-8"?>` + "\n"
	xmlNamespace = ` xmlns="http://mns.aliyuncs.com/doc/v1/"`
)

// escape gives body as the content of an XML element. A carriage return goes as a
// reference: parsers turn a literal one into a line feed.
func escape(body []byte) []byte {
	for _, c := range []byte("<>&\r") {
		if bytes.IndexByte(body, c) >= 0 {
			return appendEscaped(make([]byte, 0, len(body)+len(body)/8), body)
		}
	}
	return bytes.Clone(body)
}

func appendEscaped[T ~string | ~[]byte](b []byte, text T) []byte {
	from := 0
	for i := range len(text) {
		var reference string
		switch text[i] {
		case '<':
			reference = "&lt;"
		case '>':
			reference = "&gt;"
		case '&':
			reference = "&amp;"
		case '\r':
			reference = "&#13;"
		default:
			continue
		}
		b = append(b, text[from:i]...)
		b = append(b, reference...)
		from = i + 1
	}
	return append(b, text[from:]...)
}

// appendElement writes an element with text content; what XML cannot carry of it
// is replaced.
func appendElement(b []byte, name, text string) []byte {
	if xmlText([]byte(text)) != nil {
		text = strings.Map(func(r rune) rune {
			if xmlChar(r) {
				return r
			}
			return utf8.RuneError
		}, text)
	}
	b = append(b, '<')
	b = append(b, name...)
	b = append(b, '>')
	b = appendEscaped(b, text)
	b = append(b, "</"...)
	b = append(b, name...)
	return append(b, '>')
}

func appendNumber(b []byte, name string, n int64) []byte {
	b = append(b, '<')
	b = append(b, name...)
	b = append(b, '>')
	b = strconv.AppendInt(b, n, 10)
	b = append(b, "</"...)
	b = append(b, name...)
	return append(b, '>')
}

// xmlChar says whether XML 1.0 can carry r at all (XML 1.0, production 2).
func xmlChar(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' ||
		r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= 0x10FFFF
}

// xmlText says whether body can be the content of an XML element.
func xmlText(body []byte) error {
	for i := 0; i < len(body); {
		if c := body[i]; c >= 0x20 && c < utf8.RuneSelf {
			i++
			continue
		}
		r, size := utf8.DecodeRune(body[i:])
		if r == utf8.RuneError && size == 1 {
			return fmt.Errorf("the byte 0x%02x at offset %d is not UTF-8", body[i], i)
		}
		if !xmlChar(r) {
			return fmt.Errorf("the character %U at offset %d is not allowed in XML", r, i)
		}
		i += size
	}
	return nil
}

// token is what an xmlReader comes upon.
type token uint8

const (
	endOfDocument token = iota
	startElement
	endElement
	characters
)

// xmlReader reads the XML of requests: well-formed XML 1.0 in UTF-8 without a
// document type, the names in ASCII as all of MNS's are. It gives names without
// their namespace prefix.
type xmlReader struct {
	data []byte
	pos  int
	// open are the names, prefix included, of the elements around pos.
	open     []string
	pending  bool // the element just started ends at once: <a/>
	rootSeen bool

	name string // of the token, after startElement and endElement
	text []byte // after characters; may point into data
}

func (x *xmlReader) errorf(format string, args ...any) *wireError {
	return malformedXML("%s at offset %d.", fmt.Sprintf(format, args...), x.pos)
}

func localName(name string) string {
	if _, local, found := strings.Cut(name, ":"); found {
		return local
	}
	return name
}

// next reads the next token.
func (x *xmlReader) next() (token, *wireError) {
	if x.pending {
		x.pending = false
		return x.pop()
	}
	for x.pos < len(x.data) {
		rest := x.data[x.pos:]
		switch {
		case rest[0] != '<':
			if done, err := x.readText(); done || err != nil {
				return characters, err
			}
		case bytes.HasPrefix(rest, []byte("<?")):
			if err := x.readInstruction(); err != nil {
				return 0, err
			}
		case bytes.HasPrefix(rest, []byte("<!--")):
			end := bytes.Index(rest[4:], []byte("--"))
			if end < 0 || !bytes.HasPrefix(rest[4+end:], []byte("-->")) {
				return 0, x.errorf("comment without its end")
			}
			x.pos += 4 + end + 3
		case bytes.HasPrefix(rest, []byte("<![CDATA[")):
			if len(x.open) == 0 {
				return 0, x.errorf("CDATA outside the root element")
			}
			end := bytes.Index(rest, []byte("]]>"))
			if end < 0 {
				return 0, x.errorf("CDATA without its end")
			}
			x.text = normalizeLines(rest[9:end])
			x.pos += end + 3
			return characters, nil
		case bytes.HasPrefix(rest, []byte("</")):
			return x.readEnd()
		case bytes.HasPrefix(rest, []byte("<!")):
			return 0, x.errorf("a document type is not allowed")
		default:
			return x.readStart()
		}
	}
	if len(x.open) > 0 {
		return 0, x.errorf("element %q without its end", x.open[len(x.open)-1])
	}
	if !x.rootSeen {
		return 0, x.errorf("no root element")
	}
	return endOfDocument, nil
}

// readText reads up to the next markup; done is false for the white space outside
// the root element.
func (x *xmlReader) readText() (done bool, _ *wireError) {
	end := bytes.IndexByte(x.data[x.pos:], '<')
	if end < 0 {
		end = len(x.data) - x.pos
	}
	raw := x.data[x.pos : x.pos+end]
	if len(x.open) == 0 {
		if x.pos == 0 {
			raw = bytes.TrimPrefix(raw, []byte("\ufeff"))
		}
		if len(bytes.Trim(raw, " \t\r\n")) > 0 {
			return false, x.errorf("text outside the root element")
		}
		x.pos += end
		return false, nil
	}
	if bytes.Contains(raw, []byte("]]>")) {
		return false, x.errorf("]]> in text")
	}
	text, err := x.unescape(raw)
	if err != nil {
		return false, err
	}
	x.text = text
	x.pos += end
	return true, nil
}

// normalizeLines is what XML 1.0, 2.11, does to line ends.
func normalizeLines(raw []byte) []byte {
	if bytes.IndexByte(raw, '\r') < 0 {
		return raw
	}
	return bytes.ReplaceAll(bytes.ReplaceAll(raw, []byte("\r\n"), []byte("\n")), []byte("\r"), []byte("\n"))
}

func (x *xmlReader) unescape(raw []byte) ([]byte, *wireError) {
	raw = normalizeLines(raw)
	at := bytes.IndexByte(raw, '&')
	if at < 0 {
		return raw, nil
	}
	text := make([]byte, 0, len(raw))
	for ; at >= 0; at = bytes.IndexByte(raw, '&') {
		text = append(text, raw[:at]...)
		end := bytes.IndexByte(raw[at:], ';')
		if end < 0 {
			return nil, x.errorf("& that begins no reference")
		}
		r, ok := reference(string(raw[at+1 : at+end]))
		if !ok {
			return nil, x.errorf("unknown reference")
		}
		text = utf8.AppendRune(text, r)
		raw = raw[at+end+1:]
	}
	return append(text, raw...), nil
}

// reference resolves what stands between & and ;.
func reference(name string) (rune, bool) {
	switch name {
	case "lt":
		return '<', true
	case "gt":
		return '>', true
	case "amp":
		return '&', true
	case "apos":
		return '\'', true
	case "quot":
		return '"', true
	}
	digits, numeric := strings.CutPrefix(name, "#")
	if !numeric {
		return 0, false
	}
	base := 10
	if hexadecimal, found := strings.CutPrefix(digits, "x"); found {
		digits, base = hexadecimal, 16
	}
	n, err := strconv.ParseUint(digits, base, 31)
	if err != nil || !xmlChar(rune(n)) {
		return 0, false
	}
	return rune(n), true
}

// readInstruction passes over <?...?>, and reads the XML declaration, which looks
// like one.
func (x *xmlReader) readInstruction() *wireError {
	x.pos += 2
	name, ok := x.readName()
	if !ok {
		return x.errorf("instruction without a name")
	}
	if name != "xml" {
		end := bytes.Index(x.data[x.pos:], []byte("?>"))
		if end < 0 {
			return x.errorf("instruction without its end")
		}
		x.pos += end + 2
		return nil
	}
	if x.rootSeen {
		return x.errorf("XML declaration after the root element")
	}
	for {
		x.skipSpace()
		if x.accept("?>") {
			return nil
		}
		name, value, err := x.readAttribute()
		if err != nil {
			return err
		}
		if name == "version" && string(value) != "1.0" {
			return x.errorf("XML of another version than 1.0")
		}
		if name == "encoding" && !strings.EqualFold(string(value), "utf-8") {
			return x.errorf("encoding other than UTF-8")
		}
	}
}

func nameByte(c byte, first bool) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || c == ':' ||
		!first && ('0' <= c && c <= '9' || c == '-' || c == '.')
}

func (x *xmlReader) readName() (string, bool) {
	from := x.pos
	for x.pos < len(x.data) && nameByte(x.data[x.pos], x.pos == from) {
		x.pos++
	}
	return string(x.data[from:x.pos]), x.pos > from
}

func (x *xmlReader) skipSpace() {
	for x.pos < len(x.data) && strings.IndexByte(" \t\r\n", x.data[x.pos]) >= 0 {
		x.pos++
	}
}

func (x *xmlReader) accept(text string) bool {
	if !bytes.HasPrefix(x.data[x.pos:], []byte(text)) {
		return false
	}
	x.pos += len(text)
	return true
}

func (x *xmlReader) readStart() (token, *wireError) {
	if x.rootSeen && len(x.open) == 0 {
		return 0, x.errorf("a second root element")
	}
	x.pos++
	name, ok := x.readName()
	if !ok {
		return 0, x.errorf("< that begins no element")
	}
	for {
		x.skipSpace()
		switch {
		case x.accept("/>"):
			x.pending = true
		case x.accept(">"):
		default:
			if _, _, err := x.readAttribute(); err != nil {
				return 0, err
			}
			continue
		}
		break
	}
	x.rootSeen = true
	x.open = append(x.open, name)
	x.name = localName(name)
	return startElement, nil
}

// readAttribute reads an attribute. MNS's requests say nothing in those of elements.
func (x *xmlReader) readAttribute() (name string, value []byte, _ *wireError) {
	name, ok := x.readName()
	if !ok {
		return "", nil, x.errorf("start of an element without its end")
	}
	x.skipSpace()
	if !x.accept("=") {
		return "", nil, x.errorf("attribute without a value")
	}
	x.skipSpace()
	if x.pos == len(x.data) || x.data[x.pos] != '"' && x.data[x.pos] != '\'' {
		return "", nil, x.errorf("attribute without quotes")
	}
	raw := x.data[x.pos+1:]
	end := bytes.IndexByte(raw, x.data[x.pos])
	if end < 0 {
		return "", nil, x.errorf("attribute without its closing quote")
	}
	if bytes.IndexByte(raw[:end], '<') >= 0 {
		return "", nil, x.errorf("< in an attribute")
	}
	value, err := x.unescape(raw[:end])
	x.pos += end + 2
	return name, value, err
}

func (x *xmlReader) readEnd() (token, *wireError) {
	x.pos += 2
	name, _ := x.readName()
	x.skipSpace()
	if !x.accept(">") || len(x.open) == 0 || x.open[len(x.open)-1] != name {
		return 0, x.errorf("end of an element that is not open")
	}
	return x.pop()
}

func (x *xmlReader) pop() (token, *wireError) {
	last := len(x.open) - 1
	x.name = localName(x.open[last])
	x.open = x.open[:last]
	return endElement, nil
}

// content reads the text of the element just started, up to its end.
func (x *xmlReader) content() ([]byte, *wireError) {
	var text []byte
	for first := true; ; first = false {
		kind, err := x.next()
		if err != nil {
			return nil, err
		}
		switch kind {
		case characters:
			if first {
				text = x.text
			} else {
				text = append(slices.Clip(text), x.text...)
			}
		case endElement:
			return text, nil
		case startElement, endOfDocument:
			return nil, invalidArgument("The XML you provided did not validate against our published schema, cause by %s.", x.name)
		}
	}
}

// skip passes over the rest of the element just started.
func (x *xmlReader) skip() *wireError {
	for depth := len(x.open); len(x.open) >= depth; {
		if _, err := x.next(); err != nil {
			return err
		}
	}
	return nil
}

// root checks the characters of the whole document, reads up to the root element
// and gives its name.
func (x *xmlReader) root() (string, *wireError) {
	if err := xmlText(x.data); err != nil {
		return "", malformedXML("%v.", err)
	}
	if _, err := x.next(); err != nil {
		return "", err
	}
	return x.name, nil
}

// children calls f with the name of each element in the one just started; f reads
// it with content, children or skip.
func (x *xmlReader) children(f func(name string) *wireError) *wireError {
	for {
		kind, err := x.next()
		switch {
		case err != nil:
			return err
		case kind == startElement:
			if err := f(x.name); err != nil {
				return err
			}
		case kind == characters:
			if len(bytes.Trim(x.text, " \t\r\n")) > 0 {
				return invalidArgument("The XML you provided did not validate against our published schema, cause by text between elements.")
			}
		default:
			return nil
		}
	}
}

// end checks that nothing but white space and comments follows the root element.
func (x *xmlReader) end() *wireError {
	_, err := x.next()
	return err
}
