package expr

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// program is one compiled expression, safe for concurrent use.
type program struct {
	program cel.Program
	// text is the expression as it is written.
	text string
	// result is its type, dyn where the message decides.
	result *cel.Type
	// names are those that the expression itself selects: errors may show them.
	names map[string]bool
	// functions are those that it calls, by their syntax nodes.
	functions map[int64]string
	// path is not nil if all that the expression does is select from the body: names and
	// indexes, as string and int64.
	path []any
	// constant is the value of an expression that is a literal.
	constant ref.Val
}

// compile type-checks the expression that begins at from in source and gives all that is
// wrong with it, joined.
func compile(source, text string, from int) (*program, error) {
	env, err := language()
	if err != nil {
		return nil, err
	}
	at := position{source: source, from: from}
	if strings.TrimSpace(text) == "" {
		return nil, at.problem(0, "the expression is empty")
	}
	parsed, issues := env.Parse(text)
	if issues.Err() != nil {
		return nil, at.syntax(text, issues)
	}
	checked, issues := env.Check(parsed)
	if issues.Err() != nil {
		return nil, at.misuse(env, parsed, issues)
	}

	p := &program{
		text:      text,
		result:    checked.OutputType(),
		names:     make(map[string]bool),
		functions: make(map[int64]string),
	}
	root := checked.NativeRep().Expr()
	if path, ok := selection(root); ok {
		p.path = path
	}
	if root.Kind() == ast.LiteralKind {
		p.constant = root.AsLiteral()
	}
	var problems []error
	ast.PreOrderVisit(root, ast.NewExprVisitor(func(e ast.Expr) {
		if err := p.visit(e); err != nil {
			place, _ := checked.NativeRep().SourceInfo().GetOffsetRange(e.ID())
			problems = append(problems, at.problem(int(place.Start), "%v", err))
		}
	}))
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	if estimate, err := env.EstimateCost(checked, unsized{}); err == nil && estimate.Min > CostLimit {
		return nil, at.problem(0, "the expression costs %d at least, and %d is the limit", estimate.Min, CostLimit)
	}
	if p.program, err = env.Program(checked, programOptions(root)...); err != nil {
		return nil, at.problem(0, "%v", err)
	}
	return p, nil
}

// visit takes note of a syntax node, and checks that what has to be literal is.
func (p *program) visit(e ast.Expr) error {
	switch e.Kind() {
	case ast.SelectKind:
		p.names[e.AsSelect().FieldName()] = true
	case ast.LiteralKind:
		if s, is := e.AsLiteral().(types.String); is {
			p.names[string(s)] = true
		}
	case ast.CallKind:
		call := e.AsCall()
		name := call.FunctionName()
		p.functions[e.ID()] = name
		arguments := call.Args()
		if call.IsMemberFunction() {
			arguments = append([]ast.Expr{call.Target()}, arguments...)
		}
		i, found := literals()[name]
		if !found || i >= len(arguments) {
			return nil
		}
		if arguments[i].Kind() != ast.LiteralKind {
			return errors.New(literalMend(name))
		}
		if pattern, is := arguments[i].AsLiteral().(types.String); is && name == overloads.Matches {
			if _, err := regexp.Compile(string(pattern)); err != nil {
				return fmt.Errorf("the pattern of matches(): %w", err)
			}
		}
	default:
	}
	return nil
}

// selection gives the names and indexes of an expression that does nothing but select
// from the body.
func selection(e ast.Expr) ([]any, bool) {
	var from ast.Expr
	var step any
	switch e.Kind() {
	case ast.IdentKind:
		return []any{}, e.AsIdent() == "body"
	case ast.SelectKind:
		if e.AsSelect().IsTestOnly() {
			return nil, false
		}
		from, step = e.AsSelect().Operand(), e.AsSelect().FieldName()
	case ast.CallKind:
		call := e.AsCall()
		switch call.FunctionName() {
		case operators.Index, operators.OptIndex, operators.OptSelect:
		default:
			return nil, false
		}
		if call.Args()[1].Kind() != ast.LiteralKind {
			return nil, false
		}
		from = call.Args()[0]
		step = call.Args()[1].AsLiteral().Value()
	default:
		return nil, false
	}
	steps, ok := selection(from)
	return append(steps, step), ok
}

// eval gives the value. The error is a failure.
func (p *program) eval(in *Input) (ref.Val, error) {
	v, _, err := p.program.Eval((*activation)(in))
	if err != nil {
		return nil, p.failure(p.cause(err))
	}
	return v, nil
}

// unsized leaves the size of variables open.
type unsized struct{}

func (unsized) EstimateCallCost(string, string, *cost.AstNode, []cost.AstNode) *cost.CallEstimate {
	return nil
}

func (unsized) EstimateSize(cost.AstNode) *cost.SizeEstimate { return nil }
