package expr

import (
	"fmt"
	"math"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/cost"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/ext"
)

// CostLimit is what one evaluation may cost, in CEL's units: about one for an operator,
// a selection or ten characters that are gone through. It is 100,000 comparisons or
// half a second at the very worst; what Kubernetes allows one expression.
const CostLimit = 1_000_000

// language gives the one environment that everything is compiled in: it depends on
// nothing, is safe for concurrent use, and costs more to make than most expressions.
var language = sync.OnceValues(newLanguage) //nolint:gochecknoglobals // a constant that takes code to make

func newLanguage() (*cel.Env, error) {
	env, err := cel.NewEnv(
		cel.Variable("id", cel.StringType),
		cel.Variable("source", cel.StringType),
		cel.Variable("queue", cel.StringType),
		cel.Variable("text", cel.StringType),
		cel.Variable("body", cel.DynType),
		cel.Variable("attempt", cel.IntType),
		cel.Variable("enqueued_at", cel.TimestampType),
		cel.Variable("attributes", cel.MapType(cel.StringType, cel.StringType)),
		cel.OptionalTypes(),
		ext.Strings(),
		ext.Math(),
		ext.Encoders(ext.EncodersVersion(1)), // the next version brings YAML
		cel.ASTValidators(
			cel.ValidateDurationLiterals(),
			cel.ValidateTimestampLiterals(),
			cel.ValidateRegexLiterals(),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("set up CEL: %w", err)
	}
	return env, labelSharedErrors(env)
}

// labelSharedErrors keeps cel-go from a data race: a few of its errors are shared by all
// evaluations, and into an error that has none it writes the id of a syntax node.
func labelSharedErrors(env *cel.Env) error {
	const noNode = -1
	types.LabelErrNode(noNode, types.NoSuchOverloadErr())
	types.LabelErrNode(noNode, types.Int(math.MaxInt64).ConvertToType(types.TimestampType))
	// The integer overflow of the math extension is out of reach but by an evaluation.
	checked, issues := env.Compile("math.abs(-9223372036854775808)")
	if err := issues.Err(); err != nil {
		return fmt.Errorf("set up CEL: %w", err)
	}
	p, err := env.Program(checked)
	if err != nil {
		return fmt.Errorf("set up CEL: %w", err)
	}
	_, _, _ = p.Eval(cel.NoVars()) // the error is the purpose
	return nil
}

// programOptions are those of every program.
func programOptions() []cel.ProgramOption {
	return []cel.ProgramOption{
		cel.EvalOptions(cel.OptOptimize), // compiles the patterns of matches once
		cel.CostLimit(CostLimit),
		// The extension takes JSON for infinitely expensive.
		cel.CostTrackerOptions(cost.OverloadTracker("json_encode_dyn", func(_ []ref.Val, result ref.Val) *uint64 {
			n := uint64(1)
			if s, is := result.(types.String); is {
				n += uint64(len(s)) / 10
			}
			return &n
		})),
	}
}

// literals are the functions of which one argument has to be a literal, and its place.
func literals() map[string]int {
	return map[string]int{"matches": 1, "replace": 2, "join": 1}
}
