package schema

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"mnsrelay/internal/config"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink"
)

// builder makes schemas of values that hold their defaults.
type builder struct {
	source *source
	defs   map[string]*node
	// partial says that nothing is required and nothing has a default: what a route does not
	// set otherwise is the sink's.
	partial bool
}

func (b *builder) root() *node {
	b.defs = values()
	whole := b.structure(reflect.ValueOf(config.Defaults()).Elem())
	whole.Schema = "https://json-schema.org/draft/2020-12/schema"
	whole.Title = "The configuration of mnsrelay"
	whole.Defs = b.defs
	return whole
}

// structure is the schema of a struct. A section of which every line is commented out is null,
// and is good where nothing in it is required.
func (b *builder) structure(v reflect.Value) *node {
	n := &node{Type: []string{"object", "null"}, AdditionalProperties: false}
	for _, f := range setting.Fields(v.Type()) {
		b.field(n, v, f)
	}
	if len(n.Required) > 0 {
		n.notNull()
	}
	return n
}

// field adds a field of v to the schema of its struct.
func (b *builder) field(n *node, v reflect.Value, f setting.Field) {
	options := optionsOf(v.Type().FieldByIndex(f.Index).Tag)
	value := b.value(v.FieldByIndex(f.Index))
	if v.Type() == reflect.TypeFor[config.Source]() && f.Key == "credentials" {
		value = b.credentials(ofSource) // whose queue may imply a type
	}
	value.restrict(options)
	_, required := options["required"]
	other, either := options["or"]
	switch {
	case b.partial:
		value.withoutDefaults()
	case required:
		n.Required = append(n.Required, f.Key)
		value.Default = nil
	case either:
		n.AnyOf = []*node{{Required: []string{f.Key}}, {Required: []string{other}}}
	}
	value.Description = b.source.describe(v.Type(), f.Index)
	n.Properties = append(n.Properties, property{f.Key, value})
}

// optionsOf reads the tag schema: OPTION or OPTION=VALUE, separated by commas.
func optionsOf(tag reflect.StructTag) map[string]string {
	options := map[string]string{}
	text, has := tag.Lookup("schema")
	if !has {
		return options
	}
	for option := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(option, "=")
		options[name] = value
	}
	return options
}

// restrict adds what the tag of a field says:
//
//	required     it must be there, and must not be empty
//	or=KEY       it must be there, or the other
//	nonempty     a text that is not empty
//	name         a text that can name a source, a sink or a route
//	min=N,max=N  the range of a number
//	positive     a duration longer than 0
//	enum=A|B     one of these texts
//
// The range of a duration or a size is not among them: they are texts.
func (n *node) restrict(options map[string]string) {
	for option, value := range options {
		switch option {
		case "required":
			n.notNull()
			switch {
			case n.PatternProperties != nil:
				n.MinProperties = 1
			case n.Ref != "" || n.has("string"):
				n.MinLength = 1
			}
			if n.has("array") {
				n.MinItems = 1
			}
		case "nonempty":
			n.MinLength = 1
		case "name":
			n.Ref = defs + defName
		case "min":
			n.Minimum = number(value)
		case "max":
			n.Maximum = number(value)
		case "positive":
			n.Ref = defs + defPositive
		case "enum":
			n.Ref = ""
			n.AnyOf = oneOf(strings.Split(value, "|")...)
		case "or":
		default:
			panic("schema: there is no option " + option)
		}
	}
}

func number(text string) *float64 {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		panic("schema: " + err.Error())
	}
	return &n
}

// oneOf is an alternative of texts; editors offer them.
func oneOf[S ~string](texts ...S) []*node {
	values := make([]any, len(texts))
	for i, text := range texts {
		values[i] = text
	}
	return []*node{{Enum: values}, ref(defReference)}
}

// oneOrMore is a list whose only item may stand without brackets.
func oneOrMore(item string, types ...string) *node {
	types = append([]string{"array", "null"}, types...)
	return &node{Type: types, Items: ref(item), If: &node{Type: []string{"array", "null"}}, Else: ref(item)}
}

// value is the schema of a value. It follows the decoder of config case by case.
func (b *builder) value(v reflect.Value) *node {
	switch value := v.Interface().(type) {
	case config.Sources:
		source := config.DefaultSource("")
		b.defs["source"] = b.structure(reflect.ValueOf(source))
		return named("source")
	case config.Sinks:
		b.defs["sink"] = b.sink()
		return named("sink")
	case config.Routes:
		b.defs["route"] = b.structure(reflect.ValueOf(config.Route{}))
		return &node{Type: []string{"array", "null"}, Items: ref("route")}
	case config.Names:
		return oneOrMore(defText, scalars()...)
	case config.Targets:
		if b.defs["target"] == nil {
			b.defs["target"] = b.target()
		}
		return oneOrMore("target", append(scalars(), "object")...)
	case relay.Overrides:
		b.defs["with"] = b.with()
		return ref("with")
	case credentials.Config:
		return b.credentials(ofSink)
	case *credentials.Config:
		return b.credentials(ofBase)
	case time.Duration:
		return &node{Ref: defs + defDuration, Default: config.DurationText(value)}
	case setting.Size:
		return &node{Ref: defs + defSize, Default: value.String()}
	case setting.URL:
		return &node{Ref: defs + defURL, Default: unlessEmpty(value.Reveal())}
	case setting.Secret:
		return ref(defSecret)
	case setting.Value:
		return ref(defTyped)
	}
	switch v.Kind() {
	case reflect.Struct:
		n := b.structure(v)
		if _, isText := reflect.TypeAssert[interface{ UnmarshalText(text []byte) error }](addressable(v)); isText {
			n.Type = append(scalars(), n.types()...)
		}
		return n
	case reflect.Slice:
		item := reflect.New(v.Type().Elem())
		if d, has := reflect.TypeAssert[interface{ SetDefaults() }](item); has {
			d.SetDefaults()
		}
		return &node{Type: []string{"array", "null"}, Items: b.value(item.Elem())}
	case reflect.Map:
		return &node{Type: []string{"object", "null"}, AdditionalProperties: b.value(reflect.New(v.Type().Elem()).Elem())}
	case reflect.String:
		if v.Type() == reflect.TypeFor[string]() {
			return &node{Ref: defs + defText, Default: unlessEmpty(v.String())}
		}
		values := b.source.valuesOf(v.Type())
		if v.String() == "" {
			values = append([]string{""}, values...)
		}
		return &node{AnyOf: oneOf(values...), Default: unlessEmpty(v.String())}
	case reflect.Bool:
		return &node{Ref: defs + defBool, Default: v.Bool()}
	case reflect.Int, reflect.Int64:
		return &node{Ref: defs + defWhole, Default: v.Int()}
	case reflect.Float64:
		return &node{Ref: defs + defNumber, Default: v.Float()}
	default:
		panic(fmt.Sprintf("schema: a setting of type %s is not known here", v.Type()))
	}
}

func addressable(v reflect.Value) reflect.Value {
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p
}

func unlessEmpty(text string) any {
	if text == "" {
		return nil
	}
	return text
}

// named is a mapping whose keys are names of ours. With propertyNames the validator that Helm
// has (santhosh-tekuri/jsonschema v6.0.3) gives a problem the path of another.
func named(def string) *node {
	return &node{Type: []string{"object", "null"}, PatternProperties: map[string]*node{namePattern: ref(def)}, AdditionalProperties: false}
}

// target is a sink of a route, or its name alone.
func (b *builder) target() *node {
	n := b.structure(reflect.ValueOf(config.Target{Required: true}))
	n.Type = append(scalars(), n.types()...)
	return n
}

const typeKey = "type"

// byType is a mapping whose key type says which others it has. Each schema of a type stands
// alone, so that a problem is one of that type and not of all of them.
func byType[S ~string](types []S, prefix, description string) *node {
	n := &node{
		Type:       "object",
		Properties: properties{{typeKey, &node{Description: description, AnyOf: oneOf(types...)}}},
		Required:   []string{typeKey},
	}
	for _, name := range types {
		n.AllOf = append(n.AllOf, &node{
			If:   &node{Type: "object", Properties: properties{{typeKey, &node{Const: name}}}, Required: []string{typeKey}},
			Then: ref(prefix + string(name)),
		})
	}
	return n
}

func (b *builder) sink() *node {
	types := config.SinkTypes()
	for _, name := range types {
		n := b.structure(reflect.ValueOf(sink.Types()[name]()).Elem()).notNull()
		n.Properties = append(properties{{typeKey, &node{Const: name}}}, n.Properties...)
		n.Required = append([]string{typeKey}, n.Required...)
		b.defs["sink."+name] = n
	}
	return byType(types, "sink.", "type is what kind of destination it is.")
}

// with is what a route may set otherwise. A schema cannot look up which type the sink has, so
// it takes the settings of all types; the relay itself takes only those of the sink's.
func (b *builder) with() *node {
	inner := &builder{source: b.source, defs: b.defs, partial: true}
	all := &node{Type: []string{"object", "null"}, AdditionalProperties: false}
	for _, name := range config.SinkTypes() {
		settings, has := settingsOf(sink.Types()[name]())
		if !has {
			continue
		}
		for _, p := range inner.structure(settings).Properties {
			at := slices.IndexFunc(all.Properties, func(other property) bool { return other.key == p.key })
			if at < 0 {
				all.Properties = append(all.Properties, property{p.key, &node{AnyOf: []*node{p.value}}})
				continue
			}
			known := all.Properties[at].value
			if !slices.ContainsFunc(known.AnyOf, func(n *node) bool { return sameBut(n, p.value) }) {
				known.AnyOf = append(known.AnyOf, p.value)
			}
		}
	}
	for i := range all.Properties {
		if alternatives := all.Properties[i].value.AnyOf; len(alternatives) == 1 {
			all.Properties[i].value = alternatives[0]
		}
	}
	return all
}

// settingsOf gives the part of a sink's settings that a route may set otherwise: its embedded
// Settings, to which its endpoint's Bind applies what the route says.
func settingsOf(c sink.Config) (reflect.Value, bool) {
	v := reflect.ValueOf(c).Elem()
	f, found := v.Type().FieldByName("Settings")
	if !found || !f.Anonymous {
		return reflect.Value{}, false
	}
	return v.FieldByIndex(f.Index), true
}

// sameBut tells whether two schemas are the same but for their descriptions.
func sameBut(a, b *node) bool {
	x, y := *a, *b
	x.Description, y.Description = "", ""
	left, err := json.Marshal(x)
	right, err2 := json.Marshal(y)
	return err == nil && err2 == nil && string(left) == string(right)
}

// The owners of credentials.
const (
	ofSource = "sourceCredentials"
	ofSink   = "credentials"
	ofBase   = "base"
)

func (b *builder) credentials(owner string) *node {
	if b.defs[owner] != nil {
		return ref(owner)
	}
	types, prefix := credentials.Types(), "credentials."
	if owner == ofBase {
		prefix = "base."
		// A token is good for its own queue only.
		types = slices.DeleteFunc(types, func(t credentials.Type) bool { return t == credentials.TypeMNSToken })
	}
	n := byType(types, prefix, b.source.describe(reflect.TypeFor[credentials.Config](), []int{0}))
	if owner == ofSource {
		// The preset that the name of the queue implies has tokens.
		n.Type, n.Required = []string{"object", "null"}, nil
		n.AllOf = append(n.AllOf, &node{
			If:   &node{Type: "object", Not: &node{Required: []string{typeKey}}},
			Then: ref(prefix + string(credentials.TypeMNSToken)),
		})
	}
	b.defs[owner] = n
	for _, t := range types {
		if name := prefix + string(t); b.defs[name] == nil {
			b.defs[name] = &node{} // under way: a base may have a base
			b.defs[name] = b.credentialsOf(t, owner == ofBase)
		}
	}
	return ref(owner)
}

// credentialsOf is the schema of one type. What has a meaning for others only may be there if
// it is empty.
func (b *builder) credentialsOf(t credentials.Type, isBase bool) *node {
	c := &credentials.Config{Type: t}
	c.Defaults(func(string) string { return "" })
	v := reflect.ValueOf(c).Elem()
	n := &node{Type: "object", AdditionalProperties: false}
	var foreign []string
	for _, f := range setting.Fields(v.Type()) {
		switch {
		case f.Key == typeKey:
			n.Properties = append(n.Properties, property{typeKey, &node{Const: t}})
		case !slices.Contains(credentials.TypesOf(v.Type().FieldByIndex(f.Index)), t), isBase && f.Key == "refresh_before":
			foreign = append(foreign, f.Key)
		default:
			b.field(n, v, f)
		}
	}
	n.PatternProperties = map[string]*node{"^(" + strings.Join(foreign, "|") + ")$": ref(defUnset)}
	return n
}
