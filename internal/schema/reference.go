package schema

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"mnsrelay/internal/config"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink"
)

// Where the reference of the configuration is made of, and its name, below the folder of the
// module.
const (
	referenceText     = "docs/configuration.md.in"
	referenceExamples = "configs/everything.yaml"
)

// Reference makes docs/configuration.md: the text of docs/configuration.md.in, with tables of
// what the schema has and with examples from configs/everything.yaml. What it holds between
// << and >> is
//
//	rest             what each key at the top is, but for sources, sinks and routes, with an
//	                 example and a table
//	keys DEFINITION  the table of a source, a route or a target
//	endpoint TYPE    the table of a sink's settings that are the same for every route
//	settings TYPE    the table of those that a route may set otherwise
//	credentials      the table of all types of credentials
//
// It fails where a sink has no table.
func Reference(root string) ([]byte, error) {
	b := &builder{source: newSource(root), defs: map[string]*node{}}
	r := &tables{whole: b.root(), shown: map[string]bool{}}
	text, err := os.ReadFile(filepath.Join(root, referenceText)) //nolint:gosec // a file of the module
	if err != nil {
		return nil, fmt.Errorf("read the text of the reference: %w", err)
	}
	examples, err := os.ReadFile(filepath.Join(root, referenceExamples)) //nolint:gosec // a file of the module
	if err != nil {
		return nil, fmt.Errorf("read the examples of the reference: %w", err)
	}
	r.examples = string(examples)
	functions := template.FuncMap{
		"rest": r.rest, "keys": r.keys, "endpoint": r.endpoint, "settings": r.settings, "credentials": r.credentials,
	}
	page, err := template.New(referenceText).Delims("<<", ">>").Funcs(functions).Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("read the text of the reference: %w", err)
	}
	var out bytes.Buffer
	if err := page.Execute(&out, nil); err != nil {
		return nil, fmt.Errorf("make the reference: %w", err)
	}
	if err := errors.Join(b.source.err(), r.missing()); err != nil {
		return nil, err
	}
	// A table ends its last line itself.
	return append(bytes.TrimSpace(bytes.ReplaceAll(out.Bytes(), []byte("\n\n\n"), []byte("\n\n"))), '\n'), nil
}

// tables writes parts of a schema as tables of Markdown.
type tables struct {
	whole    *node
	examples string
	// shown are the tables of sinks that there are, as "endpoint TYPE" and "settings TYPE".
	shown map[string]bool
}

func (t *tables) missing() error {
	var problems []error
	for _, name := range config.SinkTypes() {
		for _, part := range []string{"endpoint", "settings"} {
			if _, overridable := settingsOf(sink.Types()[name]()); !t.shown[part+" "+name] && (part == "endpoint" || overridable) {
				problems = append(problems, fmt.Errorf("%s has no << %s %q >>: write a section about the sink %s", referenceText, part, name, name))
			}
		}
	}
	return errors.Join(problems...)
}

// row is a setting.
type row struct {
	key, values, standard, meaning string
	// comment is the description that meaning is made of. It may be about several settings.
	comment string
}

func (t *tables) rest() string {
	var parts []string
	for _, p := range t.whole.Properties {
		if slices.Contains([]string{"sources", "sinks", "routes"}, p.key) {
			continue
		}
		rows := t.rows("", p.value)
		if len(p.value.Properties) == 0 {
			rows = []row{t.row(p.key, t.whole, p)}
		}
		parts = append(parts, "## `"+p.key+"`\n\n"+sentence(p.key, p.value)+"\n\n```yaml\n"+t.example(p.key)+"```\n\n"+table(rows, p.key))
	}
	return strings.Join(parts, "\n")
}

// example gives the lines of a key in configs/everything.yaml.
func (t *tables) example(key string) string {
	var lines strings.Builder
	inside := false
	for line := range strings.Lines(t.examples) {
		if line[0] != ' ' && line[0] != '\n' {
			inside = strings.HasPrefix(line, key+":")
		}
		if inside && line != "\n" {
			lines.WriteString(line)
		}
	}
	return lines.String()
}

func (t *tables) keys(definition string) (string, error) {
	n, found := t.whole.Defs[definition]
	if !found {
		return "", fmt.Errorf("the schema defines no %q", definition)
	}
	return table(t.rows("", n), definition), nil
}

func (t *tables) endpoint(name string) (string, error) { return t.sink(name, "endpoint") }

func (t *tables) settings(name string) (string, error) { return t.sink(name, "settings") }

func (t *tables) sink(name, part string) (string, error) {
	newConfig, found := sink.Types()[name]
	if !found {
		return "", fmt.Errorf("there is no sink of type %q", name)
	}
	t.shown[part+" "+name] = true
	var overridable []string
	if settings, has := settingsOf(newConfig()); has {
		for _, f := range setting.Fields(settings.Type()) {
			overridable = append(overridable, f.Key)
		}
	}
	n := *t.whole.Defs["sink."+name]
	n.Properties = slices.DeleteFunc(slices.Clone(n.Properties), func(p property) bool {
		return slices.Contains(overridable, p.key) != (part == "settings") || p.key == typeKey
	})
	return table(t.rows("", &n), name), nil
}

// rows are the settings of a mapping, with those of mappings in it.
func (t *tables) rows(prefix string, n *node) []row {
	var rows []row
	for _, p := range n.Properties {
		rows = append(rows, t.row(prefix+p.key, n, p))
		inner, below := p.value, prefix+p.key+"."
		if p.value.has("array") && p.value.Items.Ref == "" {
			inner, below = p.value.Items, prefix+p.key+"[]."
		}
		rows = append(rows, t.rows(below, inner)...)
	}
	return rows
}

func (t *tables) row(path string, in *node, p property) row {
	r := row{key: path, values: t.values(p.value), meaning: sentence(p.key, p.value), comment: p.value.Description}
	if slices.Contains(in.Required, p.key) {
		r.standard = "**required**"
	}
	for i, either := range in.AnyOf {
		if len(in.AnyOf) == 2 && slices.Contains(either.Required, p.key) {
			r.standard = "this or `" + in.AnyOf[1-i].Required[0] + "`"
		}
	}
	if p.value.Default != nil {
		r.standard = standard(p.value.Default)
	}
	return r
}

func standard(value any) string { return "`" + fmt.Sprint(value) + "`" }

// values says what may be written.
func (t *tables) values(n *node) string {
	name := strings.TrimPrefix(n.Ref, defs)
	if len(n.AnyOf) > 0 && n.AnyOf[0].Enum != nil {
		var texts []string
		for _, value := range n.AnyOf[0].Enum {
			if value != "" {
				texts = append(texts, standard(value))
			}
		}
		return strings.Join(texts, " ")
	}
	switch name {
	case defWhole, defNumber:
		return map[string]string{defWhole: "whole number", defNumber: "number"}[name] + between(n.Minimum, n.Maximum)
	case defBool:
		return "`true` `false`"
	case defPositive:
		return "duration, not 0"
	case defURL:
		return "URL"
	case defSecret:
		return "text, secret"
	case defTyped:
		return "any value"
	case "with":
		return "settings of the sink"
	case ofSource, ofSink, ofBase:
		return "[credentials](#credentials)"
	case "":
	default:
		return name
	}
	switch inner, isMap := n.AdditionalProperties.(*node); {
	case isMap:
		return "mapping of " + t.values(inner)
	case n.Else != nil:
		return "one " + t.values(n.Items) + ", or a list"
	case n.has("array"):
		return "list of " + t.plural(n.Items)
	case n.has("object") && n.has("string"):
		return "text, or a mapping"
	default:
		return "mapping"
	}
}

func (t *tables) plural(n *node) string {
	if text := t.values(n); text == "URL" || text == "text" || text == "mapping" {
		return text + "s"
	} else if text == "text, secret" {
		return "texts, secret"
	}
	return t.values(n)
}

func between(low, high *float64) string {
	switch {
	case low != nil && high != nil:
		return ", " + decimal(*low) + " to " + decimal(*high)
	case low != nil:
		return ", at least " + decimal(*low)
	default:
		return ""
	}
}

func decimal(n float64) string { return strconv.FormatFloat(n, 'f', -1, 64) }

// credentials has the keys of all types, and says of each which types have it.
func (t *tables) credentials() string {
	rows := map[string]*row{}
	types, standards := map[string][]string{}, map[string]map[string][]string{}
	var keys []string
	for _, name := range credentials.Types() {
		n := t.whole.Defs["credentials."+string(name)]
		for _, p := range n.Properties {
			if p.key == typeKey {
				continue
			}
			if rows[p.key] == nil {
				r := t.row(p.key, n, p)
				rows[p.key], standards[p.key] = &r, map[string][]string{}
			}
			types[p.key] = append(types[p.key], standard(name))
			if p.value.Default != nil {
				text := standard(p.value.Default)
				standards[p.key][text] = append(standards[p.key][text], standard(name))
			}
		}
	}
	for _, f := range setting.Fields(reflect.TypeFor[credentials.Config]()) {
		if rows[f.Key] != nil {
			keys = append(keys, f.Key)
		}
	}
	var out strings.Builder
	out.WriteString("| Key | Types | Values | Default | Meaning |\n|---|---|---|---|---|\n")
	last := row{}
	for _, key := range keys {
		r := *rows[key]
		var texts []string
		for _, text := range slices.Sorted(maps.Keys(standards[key])) {
			if of := standards[key][text]; len(of) < len(types[key]) {
				text += " (" + strings.Join(of, ", ") + ")"
			}
			texts = append(texts, text)
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s |\n", anchored("credentials", key),
			strings.Join(types[key], ", "), r.values, strings.Join(texts, ", "), r.about(&last))
	}
	return out.String()
}

func table(rows []row, block string) string {
	var out strings.Builder
	out.WriteString("| Key | Values | Default | Meaning |\n|---|---|---|---|\n")
	last := row{}
	for _, r := range rows {
		fmt.Fprintf(&out, "| %s | %s | %s | %s |\n", anchored(block, r.key), r.values, r.standard, r.about(&last))
	}
	return out.String()
}

// anchored is a key that can be linked to, as in configuration.md#source.batch_size.
func anchored(block, key string) string {
	id := block + "." + strings.ReplaceAll(key, "[]", "")
	if block == key {
		id = key
	}
	return "<a id=\"" + id + "\"></a>`" + key + "`"
}

// about is what the setting means. A comment that is about several stands at the first of them,
// which last is then.
func (r row) about(last *row) string {
	if r.comment == last.comment {
		return "See `" + last.key + "`"
	}
	*last = r
	text := literal.ReplaceAllStringFunc(r.meaning, func(found string) string { return "`" + strings.Trim(found, "`") + "`" })
	return strings.ReplaceAll(strings.ReplaceAll(text, "|", `\|`), "\n- ", "<br>")
}

// literal matches what is no English in a comment: keys, values and templates.
var literal = regexp.MustCompile("`[^`]*`|\\{\\{.*?\\}\\}|\\b[a-z0-9]+(_[a-z0-9]+)+\\b")

// sentence is a description without its own name at the front, where what is left is a
// sentence: "batch_size is how many messages ..." becomes "How many messages ...".
func sentence(key string, n *node) string {
	text := n.Description
	for _, verb := range []string{" is ", " are "} {
		rest, found := strings.CutPrefix(text, key+verb)
		word, _, _ := strings.Cut(rest, " ")
		if !found || isValue(n, strings.TrimRight(word, ".,;:")) {
			continue
		}
		if first := rest[:1]; first == strings.ToLower(first) {
			rest = strings.ToUpper(first) + rest[1:]
		}
		return rest
	}
	if rest, found := strings.CutPrefix(text, key+" "); found && !strings.HasPrefix(rest, "is ") {
		return "`" + key + "` " + rest
	} else if found {
		return strings.TrimPrefix(rest, "is ")
	}
	return text
}

func isValue(n *node, word string) bool {
	return len(n.AnyOf) > 0 && slices.Contains(n.AnyOf[0].Enum, any(word))
}
