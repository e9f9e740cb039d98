package expr

import (
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/overloads"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// CostLimit is what one evaluation may cost, in CEL's units: about one for an operator,
// a selection, or ten characters that are gone through. It is what Kubernetes allows one
// of its expressions. Where a message is made to reach it, that takes a fifth of a
// second.
const CostLimit = 1_000_000

// characters are how many of them cost one unit.
const characters = 10

// programOptions are those of a program.
func programOptions(root ast.Expr) []cel.ProgramOption {
	optimize := cel.EvalOptions(cel.OptOptimize) // compiles the patterns of matches once
	if cheap(root) {
		return []cel.ProgramOption{optimize}
	}
	return []cel.ProgramOption{
		optimize,
		cel.CostLimit(CostLimit),
		cel.CostTracking(meter{}),
		// The extension takes JSON for infinitely expensive.
		cel.CostTrackerOptions(cost.OverloadTracker("json_encode_dyn", func(_ []ref.Val, result ref.Val) *uint64 {
			return charge(5 * length(result))
		})),
	}
}

// cheap tells an expression that has no loop and calls nothing but what goes through each of
// its arguments once and makes nothing longer of them. It cannot cost much, and to keep count
// takes as long as the evaluation itself: most conditions and keys are of this kind.
func cheap(root ast.Expr) bool {
	is := true
	ast.PreOrderVisit(root, ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind, ast.LiteralKind, ast.SelectKind, ast.ListKind:
		case ast.CallKind:
			is = is && slices.Contains(cheapFunctions(), e.AsCall().FunctionName())
		default:
			is = false
		}
	}))
	return is
}

func cheapFunctions() []string {
	return []string{
		operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.Conditional,
		operators.Equals, operators.NotEquals, operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals,
		operators.In, operators.Index, operators.OptIndex, operators.OptSelect, "orValue",
		overloads.StartsWith, overloads.EndsWith, overloads.Contains, overloads.Size,
	}
}

// meter charges calls for what they go through, where cel-go charges one unit whatever
// the size: a loop of such calls over 64 KB would take half a minute within the limit.
type meter struct{}

// CallCost gives the cost of a call, or nil for cel-go's own.
func (meter) CallCost(function, _ string, args []ref.Val, result ref.Val) *uint64 {
	switch function {
	case operators.Equals, operators.NotEquals:
		if isAggregate(args[0]) && isAggregate(args[1]) {
			return charge(min(weight(args[0], CostLimit), weight(args[1], CostLimit)) * characters)
		}
	case operators.In:
		if _, is := args[1].(traits.Lister); is {
			return charge(weight(args[1], CostLimit) * characters)
		}
	case overloads.Size, overloads.TypeConvertInt, overloads.TypeConvertUint, overloads.TypeConvertDouble,
		overloads.TypeConvertBool, overloads.TypeConvertTimestamp, overloads.TypeConvertDuration:
		return charge(length(args[0]))
	case "format":
		return charge(length(args[0]) + length(result))
	}
	return nil
}

// charge turns characters into units, and adds one for the call.
func charge(n uint64) *uint64 {
	n = 1 + n/characters
	return &n
}

// length is that of a string in bytes.
func length(v ref.Val) uint64 {
	s, _ := v.(types.String)
	return uint64(len(s))
}

func isAggregate(v ref.Val) bool {
	switch v.(type) {
	case traits.Lister, traits.Mapper:
		return true
	}
	return false
}

// weight counts the values within a value, as far as enough.
func weight(v ref.Val, enough uint64) uint64 {
	var elements traits.Iterator
	n := uint64(1)
	switch v := v.(type) {
	case *mapping:
		return n + uint64(v.doc.Size(v.node)) //nolint:gosec // it is never negative
	case *list:
		return n + uint64(v.doc.Size(v.node)) //nolint:gosec // it is never negative
	case traits.Lister:
		elements = v.Iterator()
		for n < enough && elements.HasNext() == types.True {
			n += weight(elements.Next(), enough-n)
		}
	case traits.Mapper:
		elements = v.Iterator()
		for n < enough && elements.HasNext() == types.True {
			key := elements.Next()
			n += weight(key, enough-n)
			if value, found := v.Find(key); found && n < enough {
				n += weight(value, enough-n)
			}
		}
	}
	return n + length(v)/characters
}
