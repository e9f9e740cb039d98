package chart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Value is one of values.yaml.
type Value struct {
	Path        []string
	Default     string // as JSON
	Description string // empty: the name says it
	// Section is the comment of a group of values that is no description of one; it
	// stands before the first of them.
	Section string
}

// Name is the path as --set takes it.
func (v Value) Name() string { return strings.Join(v.Path, ".") }

// readValues reads values.yaml: each value that is no group of others.
func readValues(path string) ([]Value, error) {
	text, err := os.ReadFile(path) //nolint:gosec // A file of the project.
	if err != nil {
		return nil, fmt.Errorf("read the values: %w", err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	var values []Value
	if err := collect(document.Content[0], nil, &values); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return values, nil
}

// described is how a comment that describes a value begins.
const described = "# -- "

// collect walks a mapping. A value that is described is one of the table, whatever it
// holds; a mapping that is not is a group.
func collect(mapping *yaml.Node, path []string, into *[]Value) error {
	for i := 0; i < len(mapping.Content); i += 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		v := Value{Path: append(append([]string(nil), path...), key.Value)}
		comment := key.HeadComment
		// A comment before the description is about the group.
		if at := strings.Index(comment, described); at >= 0 {
			v.Description = plain(comment[at+len(described):])
			comment = comment[:at]
		}
		if i > 0 || path != nil {
			v.Section = plain(comment)
		}
		if value.Kind == yaml.MappingNode && len(value.Content) > 0 && v.Description == "" {
			before := len(*into)
			if err := collect(value, v.Path, into); err != nil {
				return err
			}
			if len(*into) > before && v.Section != "" {
				(*into)[before].Section = v.Section
			}
			continue
		}
		var decoded any
		if err := value.Decode(&decoded); err != nil {
			return fmt.Errorf("read %s: %w", v.Name(), err)
		}
		var out bytes.Buffer
		enc := json.NewEncoder(&out)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(decoded); err != nil {
			return fmt.Errorf("read %s: %w", v.Name(), err)
		}
		v.Default = strings.TrimSpace(out.String())
		*into = append(*into, v)
	}
	return nil
}

// plain is a comment without its marks, on one line.
func plain(comment string) string {
	var words []string
	for line := range strings.Lines(comment) {
		words = append(words, strings.Fields(strings.TrimLeft(strings.TrimSpace(line), "#"))...)
	}
	return strings.Join(words, " ")
}

// Readme makes README.md: README.md.in, in which the line @values@ stands for the table.
func Readme() ([]byte, error) {
	folder, err := Folder()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(folder, "README.md.in")) //nolint:gosec // A file of the project.
	if err != nil {
		return nil, fmt.Errorf("read the README's source: %w", err)
	}
	before, after, ok := strings.Cut(string(text), "@values@\n")
	if !ok {
		return nil, fmt.Errorf("read %s: no line is @values@", filepath.Join(folder, "README.md.in"))
	}
	values, err := readValues(filepath.Join(folder, "values.yaml"))
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	out.WriteString("<!-- Made from README.md.in and the comments of values.yaml by: make chart -->\n" + before)
	table := false
	for _, v := range values {
		if v.Section != "" {
			fmt.Fprintf(&out, "%s%s\n\n", map[bool]string{true: "\n"}[table], v.Section)
			table = false
		}
		if !table {
			out.WriteString("| Value | Default | |\n|---|---|---|\n")
			table = true
		}
		fmt.Fprintf(&out, "| `%s` | `%s` | %s |\n", v.Name(), cell(v.Default), cell(v.Description))
	}
	out.WriteString(after)
	return []byte(out.String()), nil
}

// cell keeps a text inside its cell.
func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }
