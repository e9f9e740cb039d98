package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// redacted is what is printed for a plain setting that was read from a file.
const redacted = "***"

// YAML prints the effective configuration: every value, with where it came from in a
// comment, and secrets as ***. What it prints is itself a configuration, but for the
// secrets.
func (c *Config) YAML() []byte {
	var lines []line
	c.tree().lines(&lines, 0, "")
	width := 0
	for _, l := range lines {
		if n := utf8.RuneCountInString(l.text); l.comment != "" && n <= maxAligned {
			width = max(width, n)
		}
	}
	var b bytes.Buffer
	for _, l := range lines {
		b.WriteString(l.text)
		if l.comment != "" {
			b.WriteString(strings.Repeat(" ", max(0, width-utf8.RuneCountInString(l.text))) + "  # " + l.comment)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// maxAligned is how wide a line may be that still moves the comments of all others.
const maxAligned = 64

// tree is a configuration ready to be printed: a value, a mapping or a list.
type tree struct {
	keys   []string // of a mapping
	items  []*tree  // of a mapping or a list
	isList bool
	isMap  bool

	text   string
	isText bool // rather than a number or a bool
	origin string
}

// tree gives the sections in the order of the type, named ones in that of the file.
func (c *Config) tree() *tree {
	root := c.structure(reflect.ValueOf(c).Elem(), "", false)
	replace := func(key string, t *tree) { root.items[slices.Index(root.keys, key)] = t }

	sources := &tree{isMap: true}
	for _, s := range c.Sources {
		sources.add(s.Name, c.structure(reflect.ValueOf(s), join("sources", s.Name), false))
	}
	replace("sources", sources)

	sinks := &tree{isMap: true}
	for _, s := range c.Sinks {
		path := join("sinks", s.Name)
		settings := c.structure(reflect.ValueOf(s.Settings).Elem(), path, false)
		t := &tree{isMap: true}
		t.add(sinkTypeKey, c.value(reflect.ValueOf(s.Type), join(path, sinkTypeKey)))
		t.keys, t.items = append(t.keys, settings.keys...), append(t.items, settings.items...)
		sinks.add(s.Name, t)
	}
	replace("sinks", sinks)

	// The others are made by `to`, which is printed with its source.
	written := slices.DeleteFunc(slices.Clone(c.Routes), func(r Route) bool { return !strings.HasPrefix(r.path, "routes") })
	replace("routes", c.value(reflect.ValueOf(written), "routes"))
	return root
}

func (t *tree) add(key string, item *tree) {
	t.keys = append(t.keys, key)
	t.items = append(t.items, item)
}

// structure prints a struct. One that is optional as a whole has no defaults: of it
// only what is set is printed.
func (c *Config) structure(v reflect.Value, path string, optional bool) *tree {
	t := &tree{isMap: true, origin: c.origin(path)}
	for _, f := range setting.Fields(v.Type()) {
		inner := v.FieldByIndex(f.Index)
		child := join(path, f.Key)
		_, known := c.origins[child]
		switch {
		case inner.Type() == reflect.TypeFor[relay.Overrides]():
			if settings, found := c.settings[child]; found {
				t.add(f.Key, c.value(reflect.ValueOf(settings).Elem(), child).written())
			}
		case inner.Kind() == reflect.Pointer && inner.IsNil():
		case optional && !known && inner.IsZero():
		default:
			t.add(f.Key, c.value(inner, child))
		}
	}
	return t
}

// written leaves of a mapping only what the file sets.
func (t *tree) written() *tree {
	if !t.isMap {
		return t
	}
	kept := &tree{isMap: true, origin: t.origin}
	for i, item := range t.items {
		if item.origin != byDefault {
			kept.add(t.keys[i], item.written())
		}
	}
	return kept
}

func (c *Config) value(v reflect.Value, path string) *tree {
	if v.Kind() == reflect.Pointer {
		return c.structure(v.Elem(), path, true)
	}
	if typed, is := reflect.TypeAssert[setting.Value](v); is {
		return c.typedTree(typed.Any(), path)
	}
	if text, isScalar := scalarText(v); isScalar {
		if c.isHidden(v, text, path) {
			text = redacted
		}
		number := v.Kind() != reflect.String && v.Type() != reflect.TypeFor[time.Duration]() && v.Type() != reflect.TypeFor[setting.Size]() && v.Kind() != reflect.Struct
		return &tree{text: text, isText: !number, origin: c.origin(path)}
	}
	switch v.Kind() {
	case reflect.Struct:
		return c.structure(v, path, false)
	case reflect.Map:
		t := &tree{isMap: true, origin: c.origin(path)}
		for _, key := range slices.Sorted(maps.Keys(stringKeys(v))) {
			t.add(key, c.value(v.MapIndex(reflect.ValueOf(key)), join(path, key)))
		}
		return t
	default:
		t := &tree{isList: true, origin: c.origin(path)}
		for i := range v.Len() {
			t.items = append(t.items, c.value(v.Index(i), index(path, i)))
		}
		return t
	}
}

// isHidden tells whether the text of a setting shows what came from a file. A URL
// shows it only outside its user info and query.
func (c *Config) isHidden(v reflect.Value, text, path string) bool {
	values, found := c.hidden[path]
	if found && v.Type() == reflect.TypeFor[setting.URL]() {
		return slices.ContainsFunc(values, func(value string) bool { return value != "" && strings.Contains(text, value) })
	}
	return found && text != ""
}

func stringKeys(v reflect.Value) map[string]bool {
	keys := make(map[string]bool, v.Len())
	for _, k := range v.MapKeys() {
		keys[k.String()] = true
	}
	return keys
}

func (c *Config) origin(path string) string {
	if origin, found := c.origins[path]; found {
		return origin
	}
	return byDefault
}

// byDefault is the origin of what nobody wrote.
const byDefault = "default"

// scalarText writes a value that has no parts as the decoder reads it.
func scalarText(v reflect.Value) (text string, isScalar bool) {
	if v.CanInterface() {
		switch value := v.Interface().(type) {
		case time.Duration:
			return DurationText(value), true
		case encoding.TextMarshaler:
			text, err := value.MarshalText()
			return string(text), err == nil
		}
	}
	switch v.Kind() {
	case reflect.String:
		return v.String(), true
	case reflect.Bool:
		return strconv.FormatBool(v.Bool()), true
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(v.Int(), 10), true
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.FormatUint(v.Uint(), 10), true
	case reflect.Float32, reflect.Float64:
		return strconv.FormatFloat(v.Float(), 'g', -1, v.Type().Bits()), true
	default:
		return "", false
	}
}

// DurationText writes a duration without what is zero: 24h, not 24h0m0s.
func DurationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// line is one line of YAML.
type line struct{ text, comment string }

// lines writes what is below t, each line indented by depth steps.
func (t *tree) lines(out *[]line, depth int, bullet string) {
	for i, item := range t.items {
		prefix := strings.Repeat("  ", depth)
		if i == 0 && bullet != "" {
			prefix = strings.Repeat("  ", depth-1) + bullet
		}
		if t.isMap {
			prefix += quoted(t.keys[i]) + ":"
		} else {
			prefix += "-"
		}
		switch {
		case len(item.items) > 0 && t.isMap:
			*out = append(*out, line{text: prefix})
			item.lines(out, depth+1, "")
		case len(item.items) > 0:
			item.lines(out, depth+1, "- ")
		default:
			*out = append(*out, line{text: prefix + " " + item.scalar(), comment: item.comment()})
		}
	}
}

// scalar is a value, or the mapping or list that is empty.
func (t *tree) scalar() string {
	switch {
	case t.isMap:
		return "{}"
	case t.isList:
		return "[]"
	case !t.isText:
		return t.text
	}
	return quoted(strings.ReplaceAll(t.text, "${", "$${"))
}

// comment is the origin, which may hold the name of any file.
func (t *tree) comment() string {
	if strings.ContainsFunc(t.origin, func(r rune) bool { return !unicode.IsPrint(r) }) || !utf8.ValidString(t.origin) {
		return strconv.Quote(t.origin)
	}
	return t.origin
}

// quoted writes a text so that every reader of YAML takes it for a text.
func quoted(s string) string {
	if regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_./+-]*(://[A-Za-z0-9_./+:@%-]*[A-Za-z0-9_/])?$`).MatchString(s) && !isReserved(s) ||
		regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h|KiB|MiB|GiB))+$`).MatchString(s) {
		return s
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s); err != nil {
		return strconv.Quote(s) // a string always encodes
	}
	// JSON leaves these as they are; YAML does not allow them or breaks lines there.
	replaced := strings.TrimSuffix(b.String(), "\n")
	var out strings.Builder
	for _, r := range replaced {
		switch {
		case r == 0x7f, r >= 0x80 && r <= 0x9f, r == 0xfeff, r == 0xfffe, r == 0xffff:
			out.WriteString(`\u` + hex4(r))
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

func hex4(r rune) string {
	s := strconv.FormatInt(int64(r), 16)
	return strings.Repeat("0", 4-len(s)) + s
}

// isReserved knows the words that some reader of YAML takes for something else.
func isReserved(s string) bool {
	switch strings.ToLower(s) {
	case "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		return true
	}
	return false
}
