package expr

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"mnsrelay/internal/setting"
)

// position is where an expression begins in the string of the configuration that holds
// it, in characters.
type position struct {
	source string
	from   int
}

// problem is the error at an offset into the expression, in characters.
func (p position) problem(offset int, format string, args ...any) error {
	before := []rune(p.source)
	before = before[:min(p.from+offset, len(before))]
	where := fmt.Sprintf("at character %d", len(before)+1)
	if strings.Contains(p.source, "\n") {
		line := 1 + strings.Count(string(before), "\n")
		for i := len(before) - 1; i >= 0; i-- {
			if before[i] == '\n' {
				before = before[i+1:]
				break
			}
		}
		where = fmt.Sprintf("at line %d, character %d", line, len(before)+1)
	}
	return fmt.Errorf("%s: %s", where, fmt.Sprintf(format, args...))
}

// offset turns a line, from 1, and column, from 0, of the expression into characters.
func offset(text string, line, column int) int {
	at := 0
	for _, l := range strings.SplitAfter(text, "\n")[:max(line-1, 0)] {
		at += len([]rune(l))
	}
	return at + max(column, 0)
}

// syntax reports what cannot be parsed: the first thing, for the rest follows from it.
func (p position) syntax(text string, issues *cel.Issues) error {
	first := issues.Errors()[0]
	at := offset(text, first.Location.Line(), first.Location.Column())
	rest := string([]rune(text)[min(at, len([]rune(text))):])
	switch {
	case rest == "":
		return p.problem(at, "the expression ends too early")
	case strings.HasPrefix(rest, "="):
		return p.problem(at, `"=" compares nothing: write "=="`)
	case strings.HasPrefix(rest, "&"):
		return p.problem(at, `"&" is no operator: write "&&"`)
	case strings.HasPrefix(rest, "|"):
		return p.problem(at, `"|" is no operator: write "||"`)
	}
	word := rest
	if end := strings.IndexFunc(rest, func(r rune) bool { return r > 127 || !isWord(byte(r)) }); end >= 0 {
		word = rest[:end]
	}
	for wrong, right := range map[string]string{"and": "&&", "or": "||", "not": "!", "is": "=="} {
		if strings.EqualFold(word, wrong) {
			return p.problem(at, `%q is no operator: write %q`, word, right)
		}
	}
	message, _, _ := strings.Cut(strings.TrimPrefix(first.Message, "Syntax error: "), " expecting")
	return p.problem(at, "%s", message)
}

// misuse reports what can be parsed and makes no sense.
func (p position) misuse(env *cel.Env, parsed *cel.Ast, issues *cel.Issues) error {
	nodes := make(map[int64]ast.Expr)
	ast.PreOrderVisit(parsed.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) { nodes[e.ID()] = e }))
	var problems []error
	for _, issue := range issues.Errors() {
		at := offset(parsed.Source().Content(), issue.Location.Line(), issue.Location.Column())
		problems = append(problems, p.problem(at, "%s", misuse(env, nodes[issue.ExprID], issue.Message)))
	}
	return errors.Join(problems...)
}

func misuse(env *cel.Env, e ast.Expr, message string) string {
	if e == nil {
		return message
	}
	switch e.Kind() {
	case ast.IdentKind:
		return unknown("variable", e.AsIdent(), variables(env))
	case ast.CallKind:
		name := e.AsCall().FunctionName()
		if _, found := env.Functions()[name]; !found {
			return unknown("function", name, functions(env))
		}
		return strings.Replace(message, "'"+name+"'", shownFunction(name), 1)
	default:
		return message
	}
}

func unknown(what, name string, known []string) string {
	if near, found := setting.Nearest(name, known); found {
		return fmt.Sprintf("there is no %s %q: did you mean %q?", what, name, near)
	}
	if what == "variable" {
		return fmt.Sprintf("there is no variable %q: there are %s", name, strings.Join(known, ", "))
	}
	return fmt.Sprintf("there is no %s %q", what, name)
}

func variables(env *cel.Env) []string {
	var names []string
	for _, v := range env.Variables() {
		names = append(names, v.Name())
	}
	slices.Sort(names)
	return names
}

// functions gives those that have a name to be written.
func functions(env *cel.Env) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(env.Functions())), func(name string) bool {
		return strings.ContainsAny(name, "@_!-")
	})
}

// shownFunction gives what a function or operator looks like in an expression.
func shownFunction(name string) string {
	switch name {
	case operators.Index, operators.OptIndex:
		return "[]"
	case operators.Conditional:
		return "? :"
	}
	if symbol, found := operators.FindReverse(name); found && symbol != "" {
		return symbol
	}
	return name + "()"
}

func shownType(t *cel.Type) string { return cel.FormatCELType(t) }

// literalMend says of a function in literals what it needs.
func literalMend(function string) string {
	switch function {
	case "matches":
		return `the pattern of matches() must be a literal, as in matches("^1[0-9]+$")`
	case "replace":
		return `the replacement of replace() must be a literal, as in replace(".", "-")`
	default:
		return `the separator of join() must be a literal, as in join(",")`
	}
}
