package config

import (
	"errors"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/expr"
	"mnsrelay/internal/relay"
)

// compile makes the Match of a route from its condition.
func (d *decoder) compile(r *Route) {
	path := join(r.path, "when")
	if r.When == "" || d.suspect(path) {
		return
	}
	if inner, braced := strings.CutPrefix(r.When, "{{"); braced {
		inner, _ = strings.CutSuffix(inner, "}}")
		d.checked(path, "is an expression as a whole, without {{ and }}: write %s", d.plain(path, strings.TrimSpace(inner)))
		return
	}
	condition, err := expr.CompileCondition(r.When)
	if err != nil {
		for _, err := range apart(err) {
			d.misexpressed(path, err)
		}
		return
	}
	r.Match = func(m *relay.Message) (bool, error) { return condition.Match(expr.Of(m)) }
}

// misexpressed reports what is wrong with the expression or template at path, at its
// own place in the file.
func (d *decoder) misexpressed(path string, err error) {
	if x, found := d.expanded[path]; found {
		// The problem would quote a part of what may be a secret.
		d.problem(path, "is no valid expression with %s in it: write all of it here to be told why", origins(x))
		return
	}
	at, message := d.at(path), err.Error()
	if problem, is := errors.AsType[*expr.Problem](err); is {
		if line, column, found := locate(d.data, d.places[path].value, d.places[path].text, problem.Offset); found {
			at.line, at.column, message = line, column, problem.Message
		}
	}
	d.problemAt(at.line, at.column, d.asWritten(path), "%s", message)
}

// locate finds the place of the character at offset into text, the value of the scalar
// n. It reads the text of the file and the value side by side; white space, which YAML
// folds, is passed over run by run. It finds nothing where the two differ: in a value
// that was put together by ${...}, or in what it does not know of YAML.
func locate(data []byte, n *yaml.Node, text string, offset int) (line, column int, found bool) {
	if n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	value := []rune(text)
	if n == nil || n.Value != text || offset > len(value) {
		return 0, 0, false
	}
	c := cursor{data: data, line: 1, column: 1}
	for c.line < n.Line || c.line == n.Line && c.column < n.Column {
		if !c.next() {
			return 0, 0, false
		}
	}
	for r := c.rune(); r == '&' || r == '!'; r = c.rune() { // an anchor, a tag
		for more := true; more && !unicode.IsSpace(c.rune()); {
			more = c.next()
		}
		c.space(0)
	}
	var quote rune
	switch {
	case n.Style&(yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		for c.line == n.Line { // its header
			if !c.next() {
				return 0, 0, false
			}
		}
	case n.Style&yaml.SingleQuotedStyle != 0:
		quote = '\''
	case n.Style&yaml.DoubleQuotedStyle != 0:
		quote = '"'
	}
	if quote != 0 && (c.rune() != quote || !c.next()) {
		return 0, 0, false
	}
	for i := 0; ; i++ {
		line, column = c.line, c.column // what is white space, or the end, is where it begins
		c.space(quote)
		for i < len(value) && unicode.IsSpace(value[i]) {
			if i == offset {
				return line, column, true
			}
			i++
		}
		switch {
		case i == len(value):
			return line, column, true
		case i == offset:
			return c.line, c.column, true
		case !c.character(quote, value[i]):
			return 0, 0, false
		}
	}
}

// cursor is a place in a text.
type cursor struct {
	data         []byte
	line, column int
}

// rune is the character at the cursor; utf8.RuneError at the end.
func (c *cursor) rune() rune {
	r, _ := utf8.DecodeRune(c.data)
	return r
}

// next goes to the next character, if there is one.
func (c *cursor) next() bool {
	r, size := utf8.DecodeRune(c.data)
	if size == 0 {
		return false
	}
	c.data = c.data[size:]
	c.column++
	if r == '\n' || r == '\r' && c.rune() != '\n' {
		c.line, c.column = c.line+1, 1
	}
	return true
}

// space passes over white space, in double quotes that which is escaped too.
func (c *cursor) space(quote rune) {
	for {
		r := c.rune()
		if r == '\\' && quote == '"' && len(c.data) > 1 && slices.Contains([]byte("ntvfr_NLP \t\n"), c.data[1]) {
			c.next()
		} else if !unicode.IsSpace(r) {
			return
		}
		c.next()
	}
}

// character passes over one character of a value, which may be written as an escape.
func (c *cursor) character(quote, want rune) bool {
	r := c.rune()
	if !c.next() {
		return false
	}
	switch {
	case r == '\'' && quote == '\'':
		return c.next() // it is doubled
	case r == '\\' && quote == '"':
		escape := c.rune()
		c.next()
		for range map[rune]int{'x': 2, 'u': 4, 'U': 8}[escape] {
			c.next()
		}
		return true
	}
	return r == want
}
