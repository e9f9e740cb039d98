package expr

import (
	"fmt"
	"math"
	"sync"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"
)

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

// literals are the functions of which one argument has to be a literal, and its place.
func literals() map[string]int {
	return map[string]int{"matches": 1, "replace": 2, "join": 1}
}
