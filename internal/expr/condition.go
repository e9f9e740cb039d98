package expr

import (
	"fmt"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
)

// Condition says of messages yes or no. It is safe for concurrent use.
type Condition struct{ program *program }

// CompileCondition compiles an expression that is true or false. One whose type the
// message decides, as body.success, is accepted. The error joins all problems, each a
// *Problem.
func CompileCondition(source string) (*Condition, error) {
	p, err := compile(source, source, 0)
	if err != nil {
		return nil, err
	}
	switch {
	case p.result.IsExactType(cel.BoolType), p.result.IsExactType(cel.DynType):
		return &Condition{program: p}, nil
	case p.result.IsExactType(cel.OptionalType(cel.DynType)), p.result.IsExactType(cel.OptionalType(cel.BoolType)):
		return nil, position{source: source}.problem(0, "a condition must be true or false, and this may be neither: write (%s).orValue(false)", shorten(source))
	default:
		return nil, position{source: source}.problem(0, "a condition must be true or false, and this is of type %s: compare it with something", shownType(p.result))
	}
}

// Match tells whether the condition holds for a message. The error is a *relay.Failure
// with the reason Reason, and holds nothing of the message.
func (c *Condition) Match(in *Input) (bool, error) {
	v, err := c.program.eval(in)
	if err != nil {
		return false, err
	}
	b, is := v.(types.Bool)
	if !is {
		return false, c.program.failure(fmt.Errorf("it gives a value of type %s, not true or false", v.Type().TypeName()))
	}
	return bool(b), nil
}
