package expr

import (
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"
)

// Step is a part of a condition and what it came to.
type Step struct {
	// Text is the part as CEL writes it.
	Text string
	// Value is what it came to in CEL's notation, shortened; empty where it was not
	// looked at, since the parts before it had decided.
	Value string
	// Depth is 0 for what && and || join, 1 for what those are made of.
	Depth int
}

// maxValue bounds a Value, in characters.
const maxValue = 200

// Explain evaluates a condition and gives its parts: the comparisons that && and || join,
// and under each what was compared. It is for people, and slower than Condition.Match,
// whose result is the condition's. Values are the message's: show them to nobody else.
func Explain(source string, in *Input) ([]Step, error) {
	env, err := language()
	if err != nil {
		return nil, err
	}
	if env, err = env.Extend(cel.EnableMacroCallTracking()); err != nil { // to write exists() as it was
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	checked, issues := env.Compile(source)
	if issues.Err() != nil {
		return nil, fmt.Errorf("compile the condition: %w", issues.Err())
	}
	options := append(programOptions(checked.NativeRep().Expr()), cel.EvalOptions(cel.OptTrackState))
	program, err := env.Program(checked, options...)
	if err != nil {
		return nil, fmt.Errorf("compile the condition: %w", err)
	}
	// An error is the value of a part, too.
	_, details, _ := program.Eval((*activation)(in))
	if details == nil {
		return nil, nil
	}
	e := explanation{info: checked.NativeRep().SourceInfo(), state: details.State()}
	e.logic(checked.NativeRep().Expr())
	return e.steps, nil
}

type explanation struct {
	info  *ast.SourceInfo
	state interpreter.EvalState
	steps []Step
}

// logic takes apart what && and || join.
func (e *explanation) logic(x ast.Expr) {
	if x.Kind() == ast.CallKind {
		if call := x.AsCall(); call.FunctionName() == operators.LogicalAnd || call.FunctionName() == operators.LogicalOr {
			for _, argument := range call.Args() {
				e.logic(argument)
			}
			return
		}
	}
	e.add(x, 0)
	if !isOperand(x) { // which says all of itself already
		e.operands(x)
	}
}

// isOperand tells whether an expression is a variable, or selects of another.
func isOperand(x ast.Expr) bool {
	switch x.Kind() {
	case ast.IdentKind, ast.SelectKind:
		return true
	case ast.CallKind:
		switch x.AsCall().FunctionName() {
		case operators.Index, operators.OptSelect, operators.OptIndex:
			return true
		}
	default:
	}
	return false
}

// operands adds what an expression looks at of the message.
func (e *explanation) operands(x ast.Expr) {
	if isOperand(x) {
		e.add(x, 1)
		return
	}
	switch x.Kind() {
	case ast.CallKind:
		call := x.AsCall()
		if call.IsMemberFunction() {
			e.operands(call.Target())
		}
		for _, argument := range call.Args() {
			e.operands(argument)
		}
	case ast.ListKind:
		for _, element := range x.AsList().Elements() {
			e.operands(element)
		}
	case ast.ComprehensionKind: // what all() and exists() go through
		e.operands(x.AsComprehension().IterRange())
	default:
	}
}

func (e *explanation) add(x ast.Expr, depth int) {
	step := Step{Text: e.text(x), Depth: depth}
	if v, found := e.state.Value(x.ID()); found {
		step.Value = shown(v)
	}
	e.steps = append(e.steps, step)
}

func (e *explanation) text(x ast.Expr) string {
	text, err := cel.ExprToString(x, e.info)
	if err != nil {
		return "(a part that cannot be written)"
	}
	return text
}

// shown writes a value as CEL does.
func shown(v ref.Val) string {
	var text string
	switch v := v.(type) {
	case *types.Err:
		text = "an error: " + v.Error()
	case *types.Unknown:
		return ""
	default:
		text = types.Format(v)
	}
	if short := []rune(text); len(short) > maxValue {
		text = string(short[:maxValue]) + "..."
	}
	return strings.ToValidUTF8(text, "?")
}
