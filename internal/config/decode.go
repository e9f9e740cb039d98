package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// place is where a setting was written and where its value came from.
type place struct {
	line, column int
	origin       string
	// scalar says that one value was written here, maybe the short form of several.
	scalar bool
	// value is what was written, and text what that stands for if it is a scalar.
	value *yaml.Node
	text  string
}

// decoder fills structs from nodes. It never stops at a problem: what is wrong keeps
// its default, and later checks leave a setting alone that a problem was already
// reported for.
type decoder struct {
	file string
	data []byte
	env  Environment
	// piped says that the file can be read only once.
	piped bool
	// serves says that the relay is to run from here, so that what it serves with has to
	// be here.
	serves bool
	// places holds what was written, by path; a derived value has a place of line 0.
	places   map[string]place
	problems []Problem
	warnings []Warning
	// bad holds the paths that have a problem.
	bad map[string]bool
	// expanded holds what was put in by ${...}, by path: no problem may show it.
	expanded map[string]expansion
	flat     map[*yaml.Node][]pair
	active   map[*yaml.Node]bool
	// with holds what stands under each `with`, by path: it can be decoded only when
	// the settings of its sink are known.
	with map[string]*yaml.Node
}

// begin makes the decoder ready to decode.
func (d *decoder) begin() {
	d.places = map[string]place{}
	d.bad = map[string]bool{}
	d.expanded = map[string]expansion{}
	d.flat = map[*yaml.Node][]pair{}
	d.active = map[*yaml.Node]bool{}
	d.with = map[string]*yaml.Node{}
}

// nodeDecoder is what reads its own node.
type nodeDecoder interface {
	decodeNode(d *decoder, n *yaml.Node, path string)
}

// pair is a key with its value.
type pair struct{ key, value *yaml.Node }

func join(path, key string) string {
	if path == "" {
		return key
	}
	if key == "" {
		return path
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// problem reports at the place of path, or of the nearest setting around it.
func (d *decoder) problem(path, format string, args ...any) {
	path = d.asWritten(path)
	at := d.at(path)
	d.problemAt(at.line, at.column, path, format, args...)
}

func (d *decoder) problemAt(line, column int, path, format string, args ...any) {
	d.bad[path] = true
	p := Problem{File: d.file, Line: line, Column: column, Path: printable(path), Message: printable(fmt.Sprintf(format, args...))}
	if !slices.Contains(d.problems, p) {
		d.problems = append(d.problems, p)
	}
}

func (d *decoder) warn(path, format string, args ...any) {
	path = d.asWritten(path)
	at := d.at(path)
	d.warnings = append(d.warnings, Warning{
		File: d.file, Line: at.line, Column: at.column, Path: printable(path), Message: printable(fmt.Sprintf(format, args...)),
	})
}

// asWritten gives the path that the user knows: what is part of a short form has the
// path of that.
func (d *decoder) asWritten(path string) string {
	for i, c := range path {
		if (c == '.' || c == '[') && d.places[path[:i]].scalar {
			return path[:i]
		}
	}
	return path
}

// at is the place of path, or else of the nearest setting around it that was written.
func (d *decoder) at(path string) place {
	for {
		if p, found := d.places[path]; found && p.line > 0 {
			return p
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return place{line: 1, column: 1}
		}
		path = path[:i]
	}
}

// written tells whether the file sets path.
func (d *decoder) written(path string) bool {
	_, found := d.places[path]
	return found
}

// mark records where path was written. What has several lines is at its key, a value
// at itself, an alias at where it is used.
func (d *decoder) mark(path string, key, value *yaml.Node) {
	at := value
	if key != nil && (value.Kind != yaml.ScalarNode || value.Tag == "!!null") {
		at = key
	}
	d.places[path] = place{
		line: at.Line, column: at.Column,
		origin: d.file + ":" + strconv.Itoa(at.Line),
		scalar: value.Kind == yaml.ScalarNode && !isNull(value),
		value:  value,
	}
}

// value decodes n, already marked at path, into v, which holds the default.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	n, done, ok := d.enter(n, path)
	if !ok {
		return
	}
	defer done()

	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	target := v.Addr().Interface()
	switch custom := target.(type) {
	case nodeDecoder:
		custom.decodeNode(d, n, path)
		return
	case *relay.Overrides:
		d.with[path] = n
		return
	case *setting.Value:
		done() // typed enters it
		if value := d.typed(n, path); value != nil {
			*custom = setting.NewValue(value)
			if d.isBrought(path) {
				*custom = custom.AsSecret()
			}
		}
		return
	}
	_, isText := target.(encoding.TextUnmarshaler)
	switch {
	case v.Kind() == reflect.Struct && len(setting.Fields(v.Type())) > 0 && (n.Kind != yaml.ScalarNode || isNull(n) || !isText):
		d.structure(n, v, path)
	case n.Kind == yaml.ScalarNode && isText, v.Kind() != reflect.Slice && v.Kind() != reflect.Map:
		d.scalar(n, v, path)
	case v.Kind() == reflect.Slice:
		d.list(n, v, path)
	default:
		d.mapping(n, v, path)
	}
}

// enter follows an alias and keeps an anchor from being decoded inside itself.
func (d *decoder) enter(n *yaml.Node, path string) (resolved *yaml.Node, leave func(), ok bool) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if d.active[n] {
		d.problem(path, "is inside the anchor that it refers to: write the value out")
		return nil, nil, false
	}
	if n.Style&yaml.TaggedStyle != 0 && !strings.HasPrefix(n.Tag, "!!") {
		// The tag is not shown: it may be a password that begins with an exclamation mark.
		d.problem(path, "begins with !, which makes a YAML tag of it: put the value in quotes")
		return nil, nil, false
	}
	d.active[n] = true
	return n, func() { delete(d.active, n) }, true
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// isTemplate recognises what an unquoted {{ }} becomes: a mapping in a mapping.
func isTemplate(n *yaml.Node) bool {
	return n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle != 0 && len(n.Content) > 0 &&
		n.Content[0].Kind == yaml.MappingNode && n.Content[0].Style&yaml.FlowStyle != 0
}

const templateHint = "YAML takes an unquoted {{ for a mapping: put the whole value in single quotes, as in '{{ ... }}'"

// kind names what n is.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	default:
		return "a single value"
	}
}

func keys(all []setting.Field) []string {
	keys := make([]string, len(all))
	for i, f := range all {
		keys[i] = f.Key
	}
	return keys
}

// structure decodes a mapping into a struct. The keys in besides are known, and read
// by the caller.
func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string, besides ...string) {
	known := slices.Concat(besides, keys(setting.Fields(v.Type())))
	d.members(n, v, path, func(key *yaml.Node) {
		if !slices.Contains(known, key.Value) {
			d.unknownKey(key, path, known)
		}
	})
}

// members decodes a mapping into a struct and calls other for each key that the struct
// does not have.
func (d *decoder) members(n *yaml.Node, v reflect.Value, path string, other func(key *yaml.Node)) {
	if isNull(n) {
		return // a section of which every line is commented out
	}
	all := setting.Fields(v.Type())
	if isTemplate(n) {
		d.problem(path, "%s", templateHint)
		return
	}
	if n.Kind != yaml.MappingNode {
		d.problem(path, "must be a mapping%s, not %s", sample(v, all), kind(n))
		return
	}
	for _, p := range d.pairs(n, path) {
		key := p.key.Value
		child := join(path, key)
		i := slices.IndexFunc(all, func(f setting.Field) bool { return f.Key == key })
		if i < 0 {
			other(p.key)
			continue
		}
		d.mark(child, p.key, p.value)
		d.value(p.value, v.FieldByIndex(all[i].Index), child)
	}
}

func (d *decoder) unknownKey(key *yaml.Node, path string, known []string) {
	if name, _, found := strings.Cut(key.Value, ":"); found && slices.Contains(known, name) {
		// What follows the colon may be a password: it is not shown.
		d.problemAt(key.Line, key.Column, join(path, name), "YAML needs a space after the colon")
		return
	}
	mend := "the keys here are " + list(known, "and")
	if near, found := setting.Nearest(key.Value, known); found {
		mend = "did you mean " + strconv.Quote(near) + "?"
		// What is missing under its right name is this problem, not another one.
		d.bad[join(path, near)] = true
	}
	d.problemAt(key.Line, key.Column, join(path, key.Value), "unknown key: %s", mend)
}

// list joins words as a sentence does.
func list(words []string, last string) string {
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + last + " " + words[len(words)-1]
}

// sample shows how a small struct is written, with the values it has.
func sample(v reflect.Value, all []setting.Field) string {
	var parts []string
	for _, f := range all {
		inner := v.FieldByIndex(f.Index)
		text, isScalar := scalarText(inner)
		if !isScalar || inner.IsZero() {
			continue
		}
		parts = append(parts, f.Key+": "+text)
	}
	if len(parts) == 0 || len(parts) > 4 {
		return " with the keys " + list(keys(all), "and")
	}
	return ", as in {" + strings.Join(parts, ", ") + "}"
}

// pairs are the keys and values of a mapping, those that it merges (<<) included, each
// key once; what is written in the mapping itself wins.
func (d *decoder) pairs(n *yaml.Node, path string) []pair {
	if done, found := d.flat[n]; found {
		return done
	}
	d.flat[n] = nil // what merges itself finds this
	var own, merged []pair
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		switch {
		case key.Tag == "!!merge":
			merged = append(merged, d.merged(key, value, path)...)
		case key.Kind != yaml.ScalarNode:
			d.problemAt(key.Line, key.Column, path, "a key must be a word, not %s", kind(key))
		case seen[key.Value] != nil:
			d.problemAt(key.Line, key.Column, join(path, key.Value), "is written twice, first in line %d: keep one", seen[key.Value].Line)
		default:
			seen[key.Value] = key
			own = append(own, pair{key, value})
		}
	}
	for _, p := range merged {
		if seen[p.key.Value] == nil {
			seen[p.key.Value] = p.key
			own = append(own, p)
		}
	}
	d.flat[n] = own
	return own
}

// merged are the pairs of what stands behind <<: a mapping or a list of mappings.
func (d *decoder) merged(key, value *yaml.Node, path string) []pair {
	if value.Kind == yaml.AliasNode {
		value = value.Alias
	}
	var all []pair
	switch value.Kind {
	case yaml.MappingNode:
		all = d.pairs(value, path)
	case yaml.SequenceNode:
		for _, item := range value.Content {
			if item.Kind == yaml.AliasNode {
				item = item.Alias
			}
			if item.Kind != yaml.MappingNode {
				d.problemAt(key.Line, key.Column, path, "<< takes mappings only, as in <<: [*a, *b]")
				continue
			}
			all = append(all, d.pairs(item, path)...)
		}
	default:
		d.problemAt(key.Line, key.Column, path, "<< takes a mapping, as in <<: *anchor")
	}
	return all
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.problem(path, "must be a list, as in [%s], not %s", example(v.Type().Elem()), kind(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		child := index(path, i)
		d.mark(child, nil, item)
		setDefaults(v.Index(i))
		d.value(item, v.Index(i), child)
	}
}

// setDefaults gives an item that is not there yet the values that its type has by default.
func setDefaults(item reflect.Value) {
	if d, has := reflect.TypeAssert[interface{ SetDefaults() }](item.Addr()); has {
		d.SetDefaults()
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) {
	if isNull(n) {
		return
	}
	if isTemplate(n) {
		d.problem(path, "%s", templateHint)
		return
	}
	if n.Kind != yaml.MappingNode {
		d.problem(path, "must be a mapping, as in {name: %s}, not %s", example(v.Type().Elem()), kind(n))
		return
	}
	// What is there already stays: a route adds to what its sink has.
	grown := reflect.MakeMap(v.Type())
	for key, item := range v.Seq2() {
		grown.SetMapIndex(key, item)
	}
	v.Set(grown)
	for _, p := range d.pairs(n, path) {
		child := join(path, p.key.Value)
		d.mark(child, p.key, p.value)
		item := reflect.New(v.Type().Elem()).Elem()
		setDefaults(item)
		d.value(p.value, item, child)
		v.SetMapIndex(reflect.ValueOf(p.key.Value), item)
	}
}

// example is a value of a type, for a problem to show.
func example(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "30s"
	case t == reflect.TypeFor[setting.Size]():
		return "64MiB"
	case t == reflect.TypeFor[setting.URL]():
		return "https://host"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "true"
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		return "1"
	case reflect.Float64:
		return "0.5"
	default:
		return "name"
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	unmarshaler, isText := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr())
	isURL := v.Type() == reflect.TypeFor[setting.URL]()
	switch {
	case isTemplate(n):
		d.problem(path, "%s", templateHint)
		return
	case n.Kind != yaml.ScalarNode:
		d.problem(path, "must be %s, not %s", wanted(v, ""), kind(n))
		return
	case isNull(n):
		d.problem(path, "has no value: write %s, or remove the line", wanted(v, ""))
		return
	}
	x, ok := d.expand(n, path, isURL)
	if !ok {
		return
	}
	var err error
	if isText {
		before := reflect.New(v.Type()).Elem()
		before.Set(v)
		err = unmarshaler.UnmarshalText([]byte(x.text))
		noteOrigin(v, n.Value, x)
		d.shortForm(before, v, path)
	} else {
		err = set(v, x.text)
	}
	switch {
	case err == nil:
	case len(x.from) > 0:
		d.problem(path, "must be %s, not %s", wanted(v, ""), origins(x))
	case errors.As(err, new(*wrongType)):
		d.problem(path, "must be %s, not %s", wanted(v, x.text), err)
	default:
		d.problem(path, "%s", err)
	}
}

// isBrought tells whether something from outside was put into a setting or something below it.
func (d *decoder) isBrought(path string) bool {
	for at, x := range d.expanded {
		if len(x.from) > 0 && within(at, path) {
			return true
		}
	}
	return false
}

// noteOrigin notes in a secret or a URL where its value came from.
func noteOrigin(v reflect.Value, text string, x expansion) {
	switch value := v.Addr().Interface().(type) {
	case *setting.Secret:
		if file, whole := fileOnly(text); whole {
			*value = setting.FileSecret(x.text, file)
		} else if len(x.from) == 0 {
			*value = value.AsWritten()
		}
	case *setting.URL:
		if len(x.from) == 0 {
			*value = value.AsWritten()
		}
	}
}

// expand replaces each ${...} in a scalar and notes what it came to.
func (d *decoder) expand(n *yaml.Node, path string, isURL bool) (expansion, bool) {
	x, errs := d.env.expand(n.Value, isURL)
	for _, err := range errs {
		d.problem(path, "%s", err)
	}
	if len(errs) > 0 {
		return x, false
	}
	p := d.places[path]
	p.text = x.text
	if len(x.from) > 0 {
		p.origin += ", " + strings.Join(x.from, ", ")
		d.expanded[path] = x
	}
	d.places[path] = p
	return x, true
}

// origins names where the text of x came from.
func origins(x expansion) string {
	return "what came from " + list(x.from, "and")
}

// oneOrMore decodes a list that may be written as its only item.
func (d *decoder) oneOrMore(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode && !isNull(n) {
		only := *n // a node of its own: n itself is being decoded
		n = &yaml.Node{Kind: yaml.SequenceNode, Line: n.Line, Column: n.Column, Content: []*yaml.Node{&only}}
	}
	d.list(n, v, path)
}

// shortForm gives the fields of a struct that was written as one value the place of
// that value.
func (d *decoder) shortForm(before, after reflect.Value, path string) {
	if after.Kind() != reflect.Struct {
		return
	}
	for _, f := range setting.Fields(after.Type()) {
		if !reflect.DeepEqual(before.FieldByIndex(f.Index).Interface(), after.FieldByIndex(f.Index).Interface()) {
			d.alike(path, join(path, f.Key))
		}
	}
}

// alike says that the value at part came from where the one at path did.
func (d *decoder) alike(path, part string) {
	d.places[part] = d.places[path]
	if x, found := d.expanded[path]; found {
		d.expanded[part] = x
	}
}

// wrongType is a value that its setting cannot hold; it shows the value.
type wrongType struct{ shown string }

func (w *wrongType) Error() string { return w.shown }

// set parses text as the type that v has: the setting decides what a value is, not its
// quotes, so that a number may come from a variable.
func set(v reflect.Value, text string) error {
	wrong := &wrongType{quote(text)}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		duration, err := time.ParseDuration(text)
		if err != nil {
			return wrong
		}
		v.SetInt(int64(duration))
		return nil
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		switch text {
		case "true", "True", "TRUE":
			v.SetBool(true)
		case "false", "False", "FALSE":
			v.SetBool(false)
		default:
			return wrong
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			return wrong
		}
		v.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(text, 10, v.Type().Bits())
		if err != nil {
			return wrong
		}
		v.SetUint(n)
	case reflect.Float32, reflect.Float64:
		n, err := strconv.ParseFloat(text, v.Type().Bits())
		if err != nil || n != n || n-n != 0 { // not a number, infinite
			return wrong
		}
		v.SetFloat(n)
	default:
		return fmt.Errorf("a %s cannot be configured", v.Type())
	}
	return nil
}

// quote shows a value, or as much of it as fits a line.
func quote(s string) string {
	const most = 60
	if runes := []rune(s); len(runes) > most {
		return strconv.Quote(string(runes[:most])) + "..."
	}
	return strconv.Quote(s)
}

// printable keeps a problem on its line and off the terminal's controls.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// wanted names the type of v. Its example is text with what it lacks, or the present
// value of v, the default.
func wanted(v reflect.Value, text string) string {
	shown := example(v.Type())
	if _, err := strconv.ParseUint(text, 10, 32); err == nil && v.Type() == reflect.TypeFor[time.Duration]() {
		shown = text + "s"
	} else if text, isScalar := scalarText(v); isScalar && !v.IsZero() {
		shown = text
	}
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		return "a duration with its unit, as in " + shown
	case v.Type() == reflect.TypeFor[setting.Size]():
		return "a size, as in " + shown
	case v.Type() == reflect.TypeFor[setting.URL]():
		return "a URL"
	}
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number, as in " + shown
	case reflect.Float32, reflect.Float64:
		return "a number, as in " + shown
	default:
		return "text"
	}
}
