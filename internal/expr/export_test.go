package expr

import (
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"mnsrelay/internal/relay"
)

// ParseJSON gives what encoding/json gives of a text, by way of the values that
// expressions see.
func ParseJSON(body []byte) (any, error) {
	in := NewInput(&relay.Message{Body: body}, "")
	doc, err := in.document()
	if err != nil {
		return nil, err
	}
	return plain(valueOf(doc, 0)), nil
}

func plain(v ref.Val) any {
	switch v := v.(type) {
	case traits.Mapper:
		members := map[string]any{}
		for it := v.Iterator(); it.HasNext() == types.True; {
			name := it.Next()
			members[string(name.(types.String))] = plain(v.Get(name))
		}
		return members
	case traits.Lister:
		elements := []any{}
		for i := range int64(v.Size().(types.Int)) {
			elements = append(elements, plain(v.Get(types.Int(i))))
		}
		return elements
	case types.Int:
		return float64(v)
	}
	scalar, _ := native(v)
	return scalar
}
