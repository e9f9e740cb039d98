package expr

import (
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/interpreter"

	"mnsrelay/internal/document"
	"mnsrelay/internal/relay"
)

// Reason is the name under which failed evaluations are counted.
const Reason = "expression"

// shownText is how many characters of an expression an error quotes.
const shownText = 120

// failure is the error of an evaluation.
func (p *program) failure(cause error) error {
	return relay.Fail(Reason, fmt.Errorf("evaluate %q: %w", shorten(p.text), cause))
}

func shorten(s string) string {
	if r := []rune(s); len(r) > shownText {
		return string(r[:shownText-1]) + "…"
	}
	return s
}

// cause says why an evaluation failed. The texts of cel-go quote values here and there,
// and a value may be a phone number: only what is known to hold none is passed on.
func (p *program) cause(err error) error {
	if bad := (*document.Error)(nil); errors.As(err, &bad) {
		return fmt.Errorf("body is %w", bad)
	}
	if cancelled := (interpreter.EvalCancelledError{}); errors.As(err, &cancelled) {
		return fmt.Errorf("it costs more than the limit of %d", CostLimit)
	}
	text := err.Error()
	if key, is := strings.CutPrefix(text, "no such key: "); is {
		const mend = "select it with .? or ask has() first where it may be missing"
		if p.names[key] {
			return fmt.Errorf("no such key: %s; %s", key, mend)
		}
		return errors.New("no such key; " + mend)
	}
	switch text {
	case "division by zero", "modulus by zero", "integer overflow", "unsigned integer overflow",
		"duration overflow", "timestamp overflow", "NaN values cannot be ordered", "optional.none() dereference":
		return errors.New(text)
	}
	if strings.HasPrefix(text, "index out of bounds") {
		return errors.New("index out of bounds")
	}
	where := "an operator or function"
	if failed := (*types.Err)(nil); errors.As(err, &failed) {
		if name := p.functions[failed.NodeID()]; name != "" {
			where = shownFunction(name)
		}
	}
	if strings.HasPrefix(text, "no such overload") {
		return fmt.Errorf("%s does not take values of these types; convert them first, as in int(...)", where)
	}
	return fmt.Errorf("%s does not take this value", where)
}
