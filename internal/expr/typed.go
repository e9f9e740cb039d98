package expr

import (
	"errors"
	"math"
	"strconv"
	"time"

	"mnsrelay/internal/setting"
)

// Typed is a setting of any type whose texts may be templates: for headers and properties
// of protocols that have types. It is safe for concurrent use.
//
// A text that is one {{ expression }} and nothing else has the type of its value; any
// other is text.
type Typed struct {
	literal  any // nil: one of the others
	template *Template
	list     []*Typed
	members  map[string]*Typed
}

// CompileTyped compiles every text in v. Its error joins a *setting.Problem at or below path
// for each problem.
func CompileTyped(path string, v setting.Value) (*Typed, error) { return compileTyped(path, v.Any()) }

func compileTyped(path string, v any) (*Typed, error) {
	var problems []error
	t := &Typed{}
	literal := true
	part := func(path string, v any) *Typed {
		inner, err := compileTyped(path, v)
		if err != nil {
			problems = append(problems, err)
			return nil
		}
		literal = literal && inner.Literal()
		return inner
	}
	switch v := v.(type) {
	case string:
		template, err := CompileSetting(path, v)
		if err != nil {
			return nil, err
		}
		if !template.Literal() {
			return &Typed{template: template}, nil
		}
		value, err := template.typed(nil)
		if value == nil {
			value = "" // a constant null
		}
		return &Typed{literal: value}, err
	case []any:
		t.list = make([]*Typed, len(v))
		for i := range v {
			t.list[i] = part(path+"["+strconv.Itoa(i)+"]", v[i])
		}
	case map[string]any:
		t.members = make(map[string]*Typed, len(v))
		for name := range v {
			t.members[name] = part(path+"."+name, v[name])
		}
	default:
		return &Typed{literal: v}, nil
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	if literal {
		value, err := t.Render(nil)
		return &Typed{literal: value}, err
	}
	return t, nil
}

// Literal tells whether the value is the same for all messages.
func (t *Typed) Literal() bool { return t.literal != nil }

// Render gives the value for a message: bool, int64, float64, string, []byte, time.Time,
// []any or map[string]any of these, or nil for a null and for an optional without a value.
// A whole number of the body that int64 does not hold is text, with all its digits. The
// error is a *relay.Failure with the reason Reason, and holds nothing of the message. A
// Literal value takes a nil Input; the caller changes nothing in it.
func (t *Typed) Render(in *Input) (any, error) {
	switch {
	case t.literal != nil:
		return t.literal, nil
	case t.template != nil:
		return t.template.typed(in)
	case t.members != nil:
		members := make(map[string]any, len(t.members))
		for name, inner := range t.members {
			value, err := inner.Render(in)
			if err != nil {
				return nil, err
			}
			if value != nil {
				members[name] = value
			}
		}
		return members, nil
	}
	list := make([]any, len(t.list))
	for i, inner := range t.list {
		var err error
		if list[i], err = inner.Render(in); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// typed gives the value of a template as Typed.Render does.
func (t *Template) typed(in *Input) (any, error) {
	value, err := t.Value(in)
	if err != nil {
		return nil, err
	}
	switch v := value.(type) {
	case time.Duration:
		return t.Render(in)
	case uint64:
		if v > math.MaxInt64 {
			return t.Render(in)
		}
		return int64(v), nil
	case float64:
		// A whole number that is too large for an int64 has become a double.
		if text, err := t.Render(in); err == nil && isWhole(text) {
			return text, nil
		}
	}
	return value, nil
}

// isWhole tells whether text is a whole number, written without point and exponent.
func isWhole(text string) bool {
	if text != "" && text[0] == '-' {
		text = text[1:]
	}
	for _, c := range []byte(text) {
		if c < '0' || c > '9' {
			return false
		}
	}
	return text != ""
}
