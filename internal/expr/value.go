package expr

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"mnsrelay/internal/document"
)

// valueOf gives a value as CEL knows it: integers within int64 are ints, other numbers
// doubles, objects and arrays look into the document when they are asked.
func valueOf(d *document.Document, i int) ref.Val {
	switch d.Kind(i) {
	case document.True:
		return types.True
	case document.False:
		return types.False
	case document.Integer, document.Number:
		return numberOf(d, i)
	case document.String:
		return types.String(d.String(i))
	case document.Array:
		return &list{d, i}
	case document.Object:
		return &mapping{d, i}
	default:
		return types.NullValue
	}
}

func numberOf(d *document.Document, i int) ref.Val {
	const longest = 20 // digits of an int, with its sign
	raw := d.Raw(i)
	if d.Kind(i) == document.Integer && len(raw) <= longest {
		if n, err := strconv.ParseInt(raw, 10, 64); err == nil {
			return types.Int(n)
		}
	}
	// What is beyond a double is infinite; the grammar leaves no other error.
	f, _ := strconv.ParseFloat(raw, 64)
	return types.Double(f)
}

// mapping is an object of a document, as a CEL map.
type mapping struct {
	doc  *document.Document
	node int
}

var _ traits.Mapper = (*mapping)(nil)

// whole is the object as a map of its members, for what is not done often enough to
// be done here.
func (m *mapping) whole() traits.Mapper {
	members := make(map[ref.Val]ref.Val)
	for _, name := range m.doc.Names(m.node) {
		at, _ := m.doc.Member(m.node, name)
		members[types.String(name)] = valueOf(m.doc, at)
	}
	return types.NewRefValMap(types.DefaultTypeAdapter, members)
}

// Find gives a member.
func (m *mapping) Find(key ref.Val) (ref.Val, bool) {
	name, is := key.(types.String)
	if !is {
		return nil, false
	}
	at, found := m.doc.Member(m.node, string(name))
	if !found {
		return nil, false
	}
	return valueOf(m.doc, at), true
}

// Get gives a member or an error.
func (m *mapping) Get(key ref.Val) ref.Val {
	if v, found := m.Find(key); found {
		return v
	}
	return types.NewErr("no such key: %v", key)
}

// Contains tells whether there is such a member.
func (m *mapping) Contains(key ref.Val) ref.Val {
	_, found := m.Find(key)
	return types.Bool(found)
}

// Iterator goes over the names, in the order of the text.
func (m *mapping) Iterator() traits.Iterator {
	return types.NewStringList(types.DefaultTypeAdapter, m.doc.Names(m.node)).Iterator()
}

// Size counts the members.
func (m *mapping) Size() ref.Val {
	return types.Int(m.doc.Members(m.node))
}

// Equal compares with another map. One of another size is not gone through.
func (m *mapping) Equal(other ref.Val) ref.Val {
	if o, is := other.(traits.Mapper); !is || o.Size() != m.Size() {
		return types.False
	}
	return m.whole().Equal(other)
}

// ConvertToNative makes a Go value.
func (m *mapping) ConvertToNative(t reflect.Type) (any, error) { return m.whole().ConvertToNative(t) }

// ConvertToType knows the map itself and its type.
func (m *mapping) ConvertToType(t ref.Type) ref.Val { return m.whole().ConvertToType(t) }

// Type is map.
func (m *mapping) Type() ref.Type { return types.MapType }

// Value is the JSON.
func (m *mapping) Value() any { return json.RawMessage(m.doc.Raw(m.node)) }

// list is an array of a document, as a CEL list.
type list struct {
	doc  *document.Document
	node int
}

var _ traits.Lister = (*list)(nil)

func (l *list) whole() traits.Lister {
	nodes := l.doc.Elements(l.node)
	elements := make([]ref.Val, len(nodes))
	for i, at := range nodes {
		elements[i] = valueOf(l.doc, at)
	}
	return types.NewRefValList(types.DefaultTypeAdapter, elements)
}

// Get gives an element or an error.
func (l *list) Get(index ref.Val) ref.Val {
	i, err := types.GetOrError(index)
	if err != nil {
		return types.WrapErr(err)
	}
	nodes := l.doc.Elements(l.node)
	if i < 0 || i >= len(nodes) {
		return types.NewErr("index out of bounds: %d", i)
	}
	return valueOf(l.doc, nodes[i])
}

// Size counts the elements.
func (l *list) Size() ref.Val { return types.Int(len(l.doc.Elements(l.node))) }

// Iterator goes over the elements.
func (l *list) Iterator() traits.Iterator { return l.whole().Iterator() }

// Contains looks for an equal element. What is looked for may be as large as the list: it is
// gone through for elements of its size only.
func (l *list) Contains(v ref.Val) ref.Val {
	for _, at := range l.doc.Elements(l.node) {
		if types.Equal(valueOf(l.doc, at), v) == types.True {
			return types.True
		}
	}
	return types.False
}

// Add appends another list.
func (l *list) Add(other ref.Val) ref.Val { return l.whole().Add(other) }

// Equal compares with another list. One of another size is not gone through.
func (l *list) Equal(other ref.Val) ref.Val {
	if o, is := other.(traits.Lister); !is || o.Size() != l.Size() {
		return types.False
	}
	return l.whole().Equal(other)
}

// ConvertToNative makes a Go value.
func (l *list) ConvertToNative(t reflect.Type) (any, error) { return l.whole().ConvertToNative(t) }

// ConvertToType knows the list itself and its type.
func (l *list) ConvertToType(t ref.Type) ref.Val { return l.whole().ConvertToType(t) }

// Type is list.
func (l *list) Type() ref.Type { return types.ListType }

// Value is the JSON.
func (l *list) Value() any { return json.RawMessage(l.doc.Raw(l.node)) }

// appendText writes a value as the package comment says.
func appendText(to []byte, v ref.Val) ([]byte, error) {
	switch v := v.(type) {
	case types.String:
		return append(to, v...), nil
	case types.Int:
		return strconv.AppendInt(to, int64(v), 10), nil
	case types.Bool:
		return strconv.AppendBool(to, bool(v)), nil
	case types.Null:
		return to, nil
	case *types.Optional:
		if !v.HasValue() {
			return to, nil
		}
		return appendText(to, v.GetValue())
	case *mapping:
		return appendCompact(to, v.doc.Raw(v.node))
	case *list:
		return appendCompact(to, v.doc.Raw(v.node))
	}
	switch s := v.ConvertToType(types.StringType).(type) {
	case types.String:
		return append(to, s...), nil
	default:
		if v.Type() == types.BytesType {
			return nil, errors.New("these bytes are not text: write base64.encode(...) around them")
		}
		return nil, fmt.Errorf("a value of type %s has no text%s", v.Type().TypeName(), wrapMend(v.Type().TypeName()))
	}
}

func appendCompact(to []byte, raw string) ([]byte, error) {
	b := bytes.NewBuffer(to)
	err := json.Compact(b, []byte(raw))
	return b.Bytes(), err
}

// wrapMend says what to write around a value that has no text.
func wrapMend(typeName string) string {
	if strings.HasPrefix(typeName, "list") || strings.HasPrefix(typeName, "map") {
		return ": pick a part of it, or write json.encode(...) around it"
	}
	return ""
}

// native gives a scalar as Go knows it.
func native(v ref.Val) (any, bool) {
	switch v := v.(type) {
	case types.Bool:
		return bool(v), true
	case types.Int:
		return int64(v), true
	case types.Uint:
		return uint64(v), true
	case types.Double:
		return float64(v), true
	case types.String:
		return string(v), true
	case types.Bytes:
		return []byte(v), true
	case types.Timestamp:
		return v.Time, true
	case types.Duration:
		return v.Duration, true
	case types.Null:
		return nil, true
	default:
		return nil, false
	}
}
