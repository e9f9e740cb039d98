package setting

import (
	"encoding/json"
	"fmt"
	"time"
)

// Value is a setting that keeps the type it was written with, for headers and arguments
// of protocols that have types: text, a whole number, a number, true or false, a
// timestamp, a list or a mapping of these. The zero value is unset.
type Value struct {
	value  any
	secret bool
}

// NewValue wraps a string, int, int64, float64, bool, time.Time, []any or map[string]any
// of these. It panics on any other type, which is a mistake of the caller's.
func NewValue(value any) Value { return Value{value: known(value)} }

func known(value any) any {
	switch v := value.(type) {
	case string, int64, float64, bool, time.Time:
		return v
	case int:
		return int64(v)
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = known(v[i])
		}
		return list
	case map[string]any:
		members := make(map[string]any, len(v))
		for name := range v {
			members[name] = known(v[name])
		}
		return members
	}
	panic(fmt.Sprintf("setting: a value of type %T", value))
}

// Any gives the value: string, int64, float64, bool, time.Time, []any or map[string]any;
// nil where it is unset. The caller changes nothing in it.
func (v Value) Any() any { return v.value }

// AsSecret notes that the value, or a part of it, was brought from the environment or a file and is
// not to be shown.
func (v Value) AsSecret() Value {
	v.secret = true
	return v
}

// Secret tells whether AsSecret was noted.
func (v Value) Secret() bool { return v.secret }

// MarshalJSON writes the value.
func (v Value) MarshalJSON() ([]byte, error) { return json.Marshal(v.value) }
