package setting

import (
	"reflect"
	"slices"
	"strings"
)

// Field is one key of a struct of settings.
type Field struct {
	Key string
	// Index is for reflect.Value.FieldByIndex.
	Index []int
}

// Fields are the keys of a struct by its yaml tags, those of inlined structs included, in
// order.
func Fields(t reflect.Type) []Field {
	var all []Field
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case strings.Contains(options, "inline"):
			for _, inner := range Fields(f.Type) {
				all = append(all, Field{inner.Key, append(slices.Clone(f.Index), inner.Index...)})
			}
		case name != "" && name != "-":
			all = append(all, Field{name, f.Index})
		}
	}
	return all
}
