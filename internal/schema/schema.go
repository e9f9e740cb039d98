// Package schema makes the JSON Schema of the configuration, for editors, for the Helm chart
// and for the reference, of the structs that the configuration is decoded into.
//
// Keys, order, types and defaults come from the structs by the rules of the decoder. What the
// types do not say stands in the tag schema, beside the key (its options are listed at
// restrict), and for credentials in the tag of. Values of enumerations are the constants of
// their type, and descriptions are the comments of fields and constants in the source: so the
// schema is made when they change (go generate ./configs) and not while the relay runs.
// A sink is found by its line in the table.
//
// It is our own and not a library's (invopop/jsonschema): decoding has rules that those do not
// know, such as numbers in quotes, ${...} in the place of any value, one item for a list, and
// keys that depend on a type; what they know remains, a walk over fields.
//
// The schema is of draft 2020-12, and but for the place of its definitions ($defs) uses only
// what draft 7 has, which is what editors know. Its references are all of the form
// #/$defs/NAME, so that it can be put inside another schema.
package schema

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// Generate makes the schema. It reads the comments of the source in the folder root of the
// module, and fails where a key has none.
func Generate(root string) ([]byte, error) {
	b := &builder{source: newSource(root), defs: map[string]*node{}}
	whole := b.root()
	if err := b.source.err(); err != nil {
		return nil, err
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(whole); err != nil {
		return nil, fmt.Errorf("write the schema: %w", err)
	}
	return text.Bytes(), nil
}

// node is a schema or a part of one.
type node struct {
	Schema      string   `json:"$schema,omitempty"`
	Title       string   `json:"title,omitempty"`
	Description string   `json:"description,omitempty"`
	Ref         string   `json:"$ref,omitempty"`
	Type        any      `json:"type,omitempty"`
	Const       any      `json:"const,omitempty"`
	Enum        []any    `json:"enum,omitempty"`
	Default     any      `json:"default,omitempty"`
	Pattern     string   `json:"pattern,omitempty"`
	MinLength   int      `json:"minLength,omitempty"`
	Minimum     *float64 `json:"minimum,omitempty"`
	Maximum     *float64 `json:"maximum,omitempty"`
	// WriteOnly marks secrets.
	WriteOnly            bool             `json:"writeOnly,omitempty"`
	Required             []string         `json:"required,omitempty"`
	Properties           properties       `json:"properties,omitempty"`
	PatternProperties    map[string]*node `json:"patternProperties,omitempty"`
	AdditionalProperties any              `json:"additionalProperties,omitempty"`
	MinProperties        int              `json:"minProperties,omitempty"`
	Items                *node            `json:"items,omitempty"`
	MinItems             int              `json:"minItems,omitempty"`
	If                   *node            `json:"if,omitempty"`
	Then                 *node            `json:"then,omitempty"`
	Else                 *node            `json:"else,omitempty"`
	Not                  *node            `json:"not,omitempty"`
	AllOf                []*node          `json:"allOf,omitempty"`
	AnyOf                []*node          `json:"anyOf,omitempty"`
	Defs                 map[string]*node `json:"$defs,omitempty"`
}

// properties keep their order.
type properties []property

type property struct {
	key   string
	value *node
}

func (ps properties) MarshalJSON() ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	for i, p := range ps {
		text.WriteString([]string{"{", ","}[min(i, 1)] + strconv.Quote(p.key) + ":")
		if err := encoder.Encode(p.value); err != nil {
			return nil, err
		}
	}
	text.WriteString("}")
	return text.Bytes(), nil
}

// The kinds of value, as names of definitions.
const (
	defText      = "text"
	defWhole     = "whole"
	defNumber    = "number"
	defBool      = "bool"
	defDuration  = "duration"
	defPositive  = "positiveDuration"
	defSize      = "size"
	defURL       = "url"
	defSecret    = "secret"
	defTyped     = "typed"
	defName      = "name"
	defReference = "reference"
	defUnset     = "unset"
)

// reference is what a ${...} looks like; whether it can be looked up only the relay knows.
const reference = `\$\{.+\}`

const namePattern = `^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`

// duration is what time.ParseDuration reads, but for what is negative, which no setting takes.
const duration = `\+?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)`

func orReference(pattern string) string { return "^" + pattern + "$|" + reference }

// values are the definitions of all kinds of value. What the decoder reads as text may be
// written as a number or true or false as well, and anything may be a text with a ${...}.
func values() map[string]*node {
	zero := float64(0)
	return map[string]*node{
		defText:   {Type: scalars()},
		defSecret: {Type: scalars(), WriteOnly: true},
		defURL:    {Type: "string"},
		defWhole:  {Type: []string{"integer", "string"}, Pattern: orReference(`[-+]?[0-9]+`)},
		defNumber: {Type: []string{"number", "string"}, Pattern: orReference(`[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?`)},
		defBool:   {Type: []string{"boolean", "string"}, Pattern: orReference(`(true|True|TRUE|false|False|FALSE)`)},
		// 0 needs no unit.
		defDuration:  {If: &node{Enum: []any{0}}, Else: &node{Type: "string", Pattern: orReference(duration)}},
		defPositive:  {Type: "string", Pattern: orReference(duration), AllOf: []*node{{Pattern: `[1-9]|` + reference}}},
		defSize:      {Type: []string{"integer", "string"}, Pattern: orReference(`\s*\+?[0-9]+\s*(KiB|MiB|GiB)?`), Minimum: &zero},
		defTyped:     {Type: []string{"string", "number", "boolean", "array", "object"}, Items: ref(defTyped), AdditionalProperties: ref(defTyped)},
		defName:      {Type: []string{"string", "integer", "boolean"}, Pattern: namePattern + "|" + reference, Minimum: &zero},
		defReference: {Type: "string", Pattern: reference},
		defUnset:     {AnyOf: []*node{{Enum: []any{"", 0, "0", "0s"}}, ref(defReference)}},
	}
}

// defs is where definitions are.
const defs = "#/$defs/"

func ref(name string) *node { return &node{Ref: defs + name} }

// scalars are the types of what the decoder reads as text.
func scalars() []string { return []string{"string", "number", "boolean"} }

func (n *node) types() []string {
	switch t := n.Type.(type) {
	case []string:
		return t
	case string:
		return []string{t}
	}
	return nil
}

func (n *node) has(name string) bool { return slices.Contains(n.types(), name) }

// notNull takes null out of the types.
func (n *node) notNull() *node {
	types := slices.DeleteFunc(slices.Clone(n.types()), func(name string) bool { return name == "null" })
	switch len(types) {
	case 0:
	case 1:
		n.Type = types[0]
	default:
		n.Type = types
	}
	return n
}

// withoutDefaults is for what is not set unless it is written.
func (n *node) withoutDefaults() {
	n.Default = nil
	for _, p := range n.Properties {
		p.value.withoutDefaults()
	}
}
