package config

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// typed decodes what keeps the type it was written with. It gives nil where there is a
// problem. A plain scalar is what YAML takes it for; what is quoted, or holds a ${...},
// is text.
func (d *decoder) typed(n *yaml.Node, path string) any {
	n, leave, ok := d.enter(n, path)
	if !ok {
		return nil
	}
	defer leave()
	switch {
	case isTemplate(n):
		d.problem(path, "%s", templateHint)
		return nil
	case isNull(n):
		d.problem(path, "has no value: write one, or remove the line")
		return nil
	case n.Kind == yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, item := range n.Content {
			child := index(path, i)
			d.mark(child, nil, item)
			if list[i] = d.typed(item, child); list[i] == nil {
				return nil
			}
		}
		return list
	case n.Kind == yaml.MappingNode:
		members := map[string]any{}
		for _, p := range d.pairs(n, path) {
			child := join(path, p.key.Value)
			d.mark(child, p.key, p.value)
			member := d.typed(p.value, child)
			if member == nil {
				return nil
			}
			members[p.key.Value] = member
		}
		return members
	}
	return d.typedScalar(n, path)
}

func (d *decoder) typedScalar(n *yaml.Node, path string) any {
	var (
		value any
		err   error
	)
	switch n.Tag {
	case "!!bool":
		value, err = scalarAs[bool](n)
	case "!!int":
		value, err = scalarAs[int64](n)
	case "!!float":
		if value, err = scalarAs[float64](n); strings.Trim(n.Value, "+-_0123456789") == "" {
			err = errors.New("a whole number that an int64 does not hold")
		}
	case "!!timestamp":
		value, err = scalarAs[time.Time](n)
	default:
		x, ok := d.expand(n, path, false)
		if !ok {
			return nil
		}
		return x.text
	}
	if err != nil {
		d.problem(path, "%s is out of range: write it in quotes to send it as text", quote(n.Value))
		return nil
	}
	p := d.places[path]
	p.text = n.Value
	d.places[path] = p
	return value
}

func scalarAs[T any](n *yaml.Node) (any, error) {
	var v T
	err := n.Decode(&v)
	return v, err
}

// typedTree prints what typed decodes.
func (c *Config) typedTree(value any, path string) *tree {
	t := &tree{origin: c.origin(path)}
	switch v := value.(type) {
	case map[string]any:
		t.isMap = true
		for _, key := range slices.Sorted(maps.Keys(v)) {
			t.add(key, c.typedTree(v[key], join(path, key)))
		}
	case []any:
		t.isList = true
		for i := range v {
			t.items = append(t.items, c.typedTree(v[i], index(path, i)))
		}
	case string:
		t.text, t.isText = v, true
		if _, found := c.hidden[path]; found && v != "" {
			t.text = redacted
		}
	case bool:
		t.text = strconv.FormatBool(v)
	case int64:
		t.text = strconv.FormatInt(v, 10)
	case float64:
		t.text = floatText(v)
	case time.Time:
		t.text = v.Format(time.RFC3339Nano)
	}
	return t
}

// floatText writes a number that YAML reads as a float again.
func floatText(f float64) string {
	text := strconv.FormatFloat(f, 'g', -1, 64)
	if _, err := strconv.ParseInt(text, 10, 64); err == nil {
		text += ".0"
	}
	return text
}
