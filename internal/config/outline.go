package config

import (
	"bytes"

	"go.yaml.in/yaml/v4"

	"mnsrelay/internal/setting"
)

// Outline is the names that a file of configuration has, for shells that complete them.
type Outline struct {
	Sources, Sinks []Named
}

// Named is a name with what tells it from others: the queue of a source, the type of a sink,
// as they are written.
type Named struct {
	Name, About string
}

// ReadOutline reads the names in the file at path, as far as they can be found. The file may
// be wrong, as it is while it is written; what it cannot say is left out. Variables and other
// files are not looked at.
func ReadOutline(path string) Outline {
	var o Outline
	data, err := setting.ReadAgain(path)
	if err != nil {
		return o
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		return o
	}
	var document yaml.Node
	if loader.Load(&document) != nil || len(document.Content) == 0 {
		return o
	}
	root := aliased(document.Content[0])
	o.Sources = outlined(entry(root, "sources"), "queue")
	o.Sinks = outlined(entry(root, "sinks"), "type")
	return o
}

// outlined gives the keys of a mapping, each with one value of what it holds.
func outlined(n *yaml.Node, about string) (all []Named) {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if name := scalar(n.Content[i]); isName(name) {
			all = append(all, Named{name, scalar(entry(aliased(n.Content[i+1]), about))})
		}
	}
	return all
}

// entry gives the value of a key of a mapping, or nil.
func entry(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return aliased(n.Content[i+1])
		}
	}
	return nil
}

func aliased(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		return n.Alias
	}
	return n
}

func scalar(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode {
		return ""
	}
	return n.Value
}
