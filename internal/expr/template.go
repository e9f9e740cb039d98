package expr

import (
	"errors"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"mnsrelay/internal/document"
)

const opening, closing = "{{", "}}"

// Template is text with expressions in it. It is safe for concurrent use.
type Template struct {
	// Each part is text, or the program if there is one.
	parts []part
	// only is the program where there is one and no text around it.
	only *program
}

type part struct {
	text    string
	program *program
}

// CompileTemplate compiles a string with any number of {{ expressions }}. The error joins
// all problems, each with its position and what to write instead.
func CompileTemplate(source string) (*Template, error) {
	t := &Template{}
	var problems []error
	for at := 0; ; {
		text, _, found := strings.Cut(source[at:], opening)
		t.add(text)
		if !found {
			break
		}
		start := at + len(text) + len(opening)
		end, ok := endOf(source, start)
		if !ok {
			offset := len([]rune(source[:start-len(opening)]))
			problems = append(problems, position{source: source}.problem(offset, `"{{" without its "}}"; a literal one is written {{ "{{" }}`))
			break
		}
		if err := t.expression(source, start, end); err != nil {
			problems = append(problems, err)
		}
		at = end + len(closing)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return t, nil
}

// expression compiles what stands between start and end.
func (t *Template) expression(source string, start, end int) error {
	text := strings.TrimSpace(source[start:end])
	from := start + strings.Index(source[start:end], text)
	from = len([]rune(source[:from]))
	p, err := compile(source, text, from)
	if err != nil {
		return err
	}
	if !hasText(p.result) {
		return position{source: source, from: from}.problem(0, "a value of type %s has no text%s", shownType(p.result), wrapMend(shownType(p.result)))
	}
	if start == len(opening) && end+len(closing) == len(source) {
		t.only = p
	}
	if p.constant != nil {
		constant, err := appendText(nil, p.constant)
		if err != nil {
			return position{source: source, from: from}.problem(0, "%v", err)
		}
		t.add(string(constant))
		return nil
	}
	t.parts = append(t.parts, part{program: p})
	return nil
}

// add appends text, to text that is there.
func (t *Template) add(text string) {
	if n := len(t.parts); n > 0 && t.parts[n-1].program == nil {
		t.parts[n-1].text += text
	} else if text != "" {
		t.parts = append(t.parts, part{text: text})
	}
}

// hasText tells whether values of a type may be written.
func hasText(t *cel.Type) bool {
	if t.TypeName() == cel.OptionalType(cel.DynType).TypeName() {
		return hasText(t.Parameters()[0])
	}
	return slices.ContainsFunc([]*cel.Type{
		cel.DynType, cel.AnyType, cel.NullType, cel.BoolType, cel.IntType, cel.UintType, cel.DoubleType,
		cel.StringType, cel.BytesType, cel.TimestampType, cel.DurationType,
	}, t.IsExactType)
}

// endOf finds the closing braces of the expression that begins at start: those that are
// not in a string or comment and not the ends of maps.
func endOf(s string, start int) (int, bool) {
	depth := 0
	for i := start; i < len(s); {
		switch rest := s[i:]; {
		case depth == 0 && strings.HasPrefix(rest, closing):
			return i, true
		case strings.HasPrefix(rest, "//"):
			line, _, _ := strings.Cut(rest, "\n")
			if depth == 0 {
				line, _, _ = strings.Cut(line, closing)
			}
			i += len(line)
		case rest[0] == '"' || rest[0] == '\'':
			i += stringLength(rest, isRaw(s[start:i]))
		default:
			switch rest[0] {
			case '{':
				depth++
			case '}':
				depth--
			}
			i++
		}
	}
	return 0, false
}

// isRaw tells whether what stands before a quote makes the string raw: r, R, br...
func isRaw(before string) bool {
	word := before[len(strings.TrimRight(before, "rRbB")):]
	if len(word) > 2 || !strings.ContainsAny(word, "rR") {
		return false
	}
	rest := strings.TrimSuffix(before, word)
	return rest == "" || !isWord(rest[len(rest)-1])
}

func isWord(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z'
}

// stringLength counts the bytes of the string literal at the start of s, or those of s
// if it does not end.
func stringLength(s string, raw bool) int {
	quote := s[:1]
	if triple := strings.Repeat(quote, 3); strings.HasPrefix(s, triple) {
		quote = triple
	}
	for i := len(quote); i < len(s); i++ {
		switch {
		case strings.HasPrefix(s[i:], quote):
			return i + len(quote)
		case s[i] == '\\' && !raw:
			i++
		}
	}
	return len(s)
}

// Literal tells whether the template is the same for all messages.
func (t *Template) Literal() bool {
	return len(t.parts) == 0 || len(t.parts) == 1 && t.parts[0].program == nil
}

// Sample gives the text with value in place of every expression: what can be checked of
// a template before there is a message.
func (t *Template) Sample(value string) string {
	var b strings.Builder
	for _, part := range t.parts {
		if part.program == nil {
			b.WriteString(part.text)
		} else {
			b.WriteString(value)
		}
	}
	return b.String()
}

// Render gives the text for a message. The error is a *relay.Failure with the reason
// Reason, and holds nothing of the message. A Literal template takes a nil Input.
func (t *Template) Render(in *Input) (string, error) { return t.RenderEscaped(in, nil) }

// RenderEscaped is Render with escape, if not nil, applied to what each expression gives.
// It is handed the text before it too, of which it must keep nothing.
func (t *Template) RenderEscaped(in *Input, escape func(before []byte, value string) string) (string, error) {
	if t.Literal() {
		if len(t.parts) == 0 {
			return "", nil
		}
		return t.parts[0].text, nil
	}
	alone := len(t.parts) == 1 && escape == nil
	var to []byte
	if !alone {
		to = make([]byte, 0, 64)
	}
	for _, part := range t.parts {
		if part.program == nil {
			to = append(to, part.text...)
			continue
		}
		before := len(to)
		if selected, found := part.program.scalar(in); found {
			if alone {
				return selected, nil
			}
			to = append(to, selected...)
		} else {
			v, err := part.program.eval(in)
			if err != nil {
				return "", err
			}
			if s, is := v.(types.String); is && alone {
				return string(s), nil
			}
			if to, err = appendText(to, v); err != nil {
				return "", part.program.failure(err)
			}
		}
		if escape != nil {
			to = append(to[:before], escape(to[:before], string(to[before:]))...)
		}
	}
	return string(to), nil
}

// scalar gives a string or number that the program selects from the body and does nothing
// else with: the number as it stands there, and both without an evaluation.
func (p *program) scalar(in *Input) (string, bool) {
	doc, at, found := p.selected(in)
	if !found {
		return "", false
	}
	switch doc.Kind(at) {
	case document.String:
		return doc.String(at), true
	case document.Integer, document.Number:
		return doc.Raw(at), true
	default:
		return "", false
	}
}

// selected is where the body has what the program selects and does nothing else with. Where
// it is not found the evaluation says why.
func (p *program) selected(in *Input) (doc *document.Document, at int, found bool) {
	if p.path == nil {
		return nil, 0, false
	}
	doc, err := in.document()
	if err != nil {
		return nil, 0, false
	}
	at, found = doc.Follow(p.path)
	return doc, at, found
}

// Value gives the value of a template that is one expression and no text, for what has
// types of its own: nil, bool, int64, uint64, float64, string, []byte, time.Time,
// time.Duration. Of any other it gives the text.
func (t *Template) Value(in *Input) (any, error) {
	if t.only != nil {
		v := t.only.constant
		if doc, at, found := t.only.selected(in); found {
			v = valueOf(doc, at)
		}
		if v == nil {
			var err error
			if v, err = t.only.eval(in); err != nil {
				return nil, err
			}
		}
		if o, is := v.(*types.Optional); is {
			if v = types.NullValue; o.HasValue() {
				v = o.GetValue()
			}
		}
		if scalar, is := native(v); is {
			return scalar, nil
		}
	}
	text, err := t.Render(in)
	if err != nil {
		return nil, err
	}
	return text, nil
}
