package dryrun

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"go.yaml.in/yaml/v4"
)

// maxDepth bounds how deep YAML may nest, and with it what aliases can make of it.
const maxDepth = 100

// maxJSON bounds the JSON that YAML becomes, in bytes: more than a message can hold.
const maxJSON = 1 << 20

// toJSON writes YAML as JSON, its keys in order and its numbers as they are written. What
// YAML takes for a time is a text.
func toJSON(n *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	if err := writeJSON(&b, n, 0); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func writeJSON(b *bytes.Buffer, n *yaml.Node, depth int) error {
	n = resolved(n)
	if depth > maxDepth || b.Len() > maxJSON {
		return fmt.Errorf("line %d: nests too deep, or is too long", n.Line)
	}
	switch n.Kind {
	case yaml.MappingNode:
		b.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := noMerge(n.Content[i]); err != nil {
				return err
			}
			writeText(b, n.Content[i].Value)
			b.WriteByte(':')
			if err := writeJSON(b, n.Content[i+1], depth+1); err != nil {
				return err
			}
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, element := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeJSON(b, element, depth+1); err != nil {
				return err
			}
		}
		b.WriteByte(']')
	case yaml.ScalarNode:
		return writeScalar(b, n)
	default:
		return fmt.Errorf("line %d: is nothing that JSON has", n.Line)
	}
	return nil
}

// noMerge refuses a key << of YAML, which JSON would have as a key of that name.
func noMerge(key *yaml.Node) error {
	if key.ShortTag() == "!!merge" {
		return fmt.Errorf("line %d: << does not work here: write the members out, or << in quotes", key.Line)
	}
	return nil
}

func writeScalar(b *bytes.Buffer, n *yaml.Node) error {
	switch n.ShortTag() {
	case "!!null":
		b.WriteString("null")
	case "!!bool", "!!int", "!!float":
		if json.Valid([]byte(n.Value)) {
			b.WriteString(n.Value)
			return nil
		}
		var v any // 0x10, yes, .5
		if err := n.Decode(&v); err != nil {
			return fmt.Errorf("line %d: %s", n.Line, problem(err))
		}
		text, err := json.Marshal(v)
		if err != nil { // .inf
			return fmt.Errorf("line %d: JSON has no %s", n.Line, n.Value)
		}
		b.Write(text)
	default:
		writeText(b, n.Value)
	}
	return nil
}

func writeText(b *bytes.Buffer, text string) {
	encoder := json.NewEncoder(b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(text) // a text into memory
	b.Truncate(b.Len() - len("\n"))
}

// fromJSON reads JSON and keeps its numbers as they are written.
func fromJSON(data []byte) (v any, err error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(&v); err != nil {
		return nil, err
	}
	if decoder.More() {
		return nil, errors.New("there is more after the value")
	}
	return v, nil
}
