package config

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/setting"
)

// stdin is the path of standard input, and stdinName what problems call it.
const (
	stdin     = "-"
	stdinName = "stdin"
)

// Load reads the file at path, or standard input where path is "-", with the
// environment and the files of the process. The error is always an *Error. It is for
// those that serve nothing: the files of server.tls may be missing here.
func Load(path string) (*Config, []Warning, error) { return load(path, false) }

// LoadToRun is Load for a relay that is to run with the file: without the files of
// server.tls, of which Load only warns, it would not start.
func LoadToRun(path string) (*Config, []Warning, error) { return load(path, true) }

func load(path string, serves bool) (*Config, []Warning, error) {
	name, read := path, func() ([]byte, error) { return setting.ReadFile(path) }
	if path == stdin {
		name, read = stdinName, func() ([]byte, error) { return setting.ReadBounded(os.Stdin) }
	}
	data, err := read()
	if err != nil {
		return nil, nil, &Error{Problems: []Problem{{File: name, Message: "cannot be read: " + cause(err)}}}
	}
	return parse(&decoder{file: name, data: data, piped: path == stdin, serves: serves})
}

// Parse reads data, which problems call name. It gives a Config that is valid as a
// whole, or an *Error with everything that is wrong, and warnings either way. Files of
// server.tls that are missing are only warned of, as by Load.
func Parse(name string, data []byte, env Environment) (*Config, []Warning, error) {
	return parse(&decoder{file: name, data: data, env: env})
}

func parse(d *decoder) (*Config, []Warning, error) {
	d.env = d.env.once()
	d.begin()
	c := Defaults()
	c.settings = map[string]any{}
	if root := d.parse(); root != nil && d.root(root, c) {
		d.derive(c)
		d.check(c)
	}
	slices.SortStableFunc(d.warnings, func(a, b Warning) int { return byLine(Problem(a), Problem(b)) })
	if len(d.problems) > 0 {
		slices.SortStableFunc(d.problems, byLine)
		return nil, d.warnings, &Error{Problems: d.problems}
	}
	sum := sha256.Sum256(d.data)
	c.Digest = hex.EncodeToString(sum[:])
	c.origins = make(map[string]string, len(d.places))
	for path, p := range d.places {
		c.origins[path] = p.origin
	}
	c.hidden = map[string][]string{}
	for path, x := range d.expanded {
		for i, value := range x.values {
			if fromFile := strings.HasPrefix(x.from[i], "file "); len(value) >= minConcealed && (fromFile || !isCommon(value)) {
				c.concealed = append(c.concealed, value)
			}
		}
		if x.secret {
			c.hidden[path] = x.values
		}
	}
	return c, d.warnings, nil
}

func byLine(a, b Problem) int {
	return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
}

// root decodes the document, which has no path. It tells whether there is something
// to check.
func (d *decoder) root(n *yaml.Node, c *Config) bool {
	n, leave, ok := d.enter(n, "")
	if !ok {
		return false
	}
	defer leave()
	if n.Kind != yaml.MappingNode {
		d.problemAt(n.Line, n.Column, "", "must be a mapping that holds sources: and sinks:, not %s", kind(n))
		return false
	}
	d.structure(n, reflect.ValueOf(c).Elem(), "")
	return true
}

// parse reads the one document of data. It gives nil where there is none to decode.
func (d *decoder) parse() *yaml.Node {
	data := d.data
	if len(data) > setting.MaxFile {
		d.problemAt(1, 1, "", "%s: the configuration must not be", setting.ErrTooLarge)
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		d.problemAt(1, 1, "", "is not YAML: %s", err)
		return nil
	}
	var document, second yaml.Node
	switch err := loader.Load(&document); {
	case errors.Is(err, io.EOF):
		d.problemAt(1, 1, "", "is empty: write sources and sinks")
		return nil
	case err != nil:
		d.syntaxError(err, data)
		return nil
	}
	switch err := loader.Load(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.syntaxError(err, data)
		return nil
	default:
		d.problemAt(max(1, second.Line), max(1, second.Column), "", "a second document begins here: keep one, and remove the line ---")
		return nil
	}
	root := &document
	if root.Kind == yaml.DocumentNode && len(root.Content) > 0 {
		root = root.Content[0]
	}
	if isNull(root) {
		d.problemAt(1, 1, "", "is empty: write sources and sinks")
		return nil
	}
	return root
}

// syntaxError reports what the YAML parser found, and what it often comes from.
func (d *decoder) syntaxError(err error, data []byte) {
	line, column, message := 0, 1, err.Error()
	if found := new(yaml.LoadError); errors.As(err, &found) {
		line, column, message = found.Mark.Line, found.Mark.Column, found.Message
		if line == 0 { // a byte that is no UTF-8: only its index is known
			at := min(max(found.Mark.Index, 0), len(data))
			line = 1 + bytes.Count(data[:at], []byte("\n"))
			column = at - bytes.LastIndexByte(data[:at], '\n')
		}
	}
	line, column = max(1, line), max(1, column)
	var hint string
	// The parser often sees the mistake in the line after it.
	lines := strings.Split(string(data), "\n")
	near := strings.Join(lines[min(max(0, line-2), len(lines)):min(line, len(lines))], "\n")
	own := lines[min(line-1, len(lines)-1)]
	switch {
	case strings.Contains(message, "unknown anchor"):
		// The anchor is not shown: it may be a password that begins with an asterisk.
		message, hint = "a value that begins with * stands for an anchor, and there is no such one", ": put a text in quotes"
	case strings.Contains(near, "{{"):
		hint = "; " + templateHint
	case strings.Contains(near, "${") && strings.ContainsAny(near, "[{"):
		hint = "; inside { } and [ ] a ${...} must be in double quotes"
	case strings.HasPrefix(strings.TrimLeft(own, " "), "\t"):
		hint = "; YAML is indented with spaces, not with tabs"
	}
	d.problemAt(line, column, "", "is not YAML: %s%s", message, hint)
}

// decodeNode reads the sources in the order of the file.
func (s *Sources) decodeNode(d *decoder, n *yaml.Node, path string) {
	d.named(n, path, func(name string, p pair, child string) {
		source := DefaultSource(name)
		d.value(p.value, reflect.ValueOf(&source).Elem(), child)
		*s = append(*s, source)
	})
}

// decodeNode reads the sinks in the order of the file. The type of a sink says which
// settings it has, so it is read first.
func (s *Sinks) decodeNode(d *decoder, n *yaml.Node, path string) {
	d.named(n, path, func(name string, p pair, child string) {
		node, leave, ok := d.enter(p.value, child)
		if !ok {
			return
		}
		defer leave()
		sink := Sink{Name: name}
		if settings, found := d.sinkType(node, child, &sink.Type); found {
			d.structure(node, reflect.ValueOf(settings).Elem(), child, sinkTypeKey)
			sink.Settings = settings
		}
		*s = append(*s, sink)
	})
}

// named calls each with the entries of a mapping whose keys are names of ours.
func (d *decoder) named(n *yaml.Node, path string, each func(name string, p pair, child string)) {
	switch {
	case isNull(n):
		return
	case n.Kind != yaml.MappingNode:
		d.problem(path, "must be a mapping of names, as in %s: {events: ...}, not %s", path, kind(n))
		return
	}
	for _, p := range d.pairs(n, path) {
		name := p.key.Value
		child := join(path, name)
		d.mark(child, p.key, p.value)
		if !isName(name) {
			d.problemAt(p.key.Line, p.key.Column, child, "%s", d.badName(child, name))
		}
		each(name, p, child)
	}
}

// decodeNode reads the routes and remembers where each was written.
func (r *Routes) decodeNode(d *decoder, n *yaml.Node, path string) {
	type plain Routes
	d.list(n, reflect.ValueOf((*plain)(r)).Elem(), path)
	for i := range *r {
		(*r)[i].path = index(path, i)
	}
}

func (n *Names) decodeNode(d *decoder, node *yaml.Node, path string) {
	type plain Names
	d.oneOrMore(node, reflect.ValueOf((*plain)(n)).Elem(), path)
}

func (t *Targets) decodeNode(d *decoder, n *yaml.Node, path string) {
	type plain Targets
	d.oneOrMore(n, reflect.ValueOf((*plain)(t)).Elem(), path)
}

// decodeNode reads a target: the name of its sink, or all of it.
func (t *Target) decodeNode(d *decoder, n *yaml.Node, path string) {
	t.Required = true
	if n.Kind == yaml.ScalarNode {
		d.scalar(n, reflect.ValueOf(&t.Sink).Elem(), path)
		d.alike(path, join(path, "sink"))
		return
	}
	d.structure(n, reflect.ValueOf(t).Elem(), path)
}

// isName tells whether s can name a source, a sink or a route: it becomes the label of
// a metric and a part of a path.
func isName(s string) bool {
	if s == "" || len(s) > maxName || !isLetterOrDigit(s[0]) {
		return false
	}
	for i := range len(s) {
		if !isLetterOrDigit(s[i]) && s[i] != '-' && s[i] != '_' {
			return false
		}
	}
	return true
}

const maxName = 63

func isLetterOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func (d *decoder) badName(path, name string) string {
	return fmt.Sprintf("a name is up to %d letters, digits, - and _, a letter or digit first, not %s", maxName, d.shown(path, name))
}
