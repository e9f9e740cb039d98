package expr

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"

	"mnsrelay/internal/setting"
)

// Problem is what is wrong at one place of an expression or template. Its text says where.
type Problem struct {
	// Offset is the place in what was compiled, in characters from 0.
	Offset int
	// Message says what is wrong and what to write instead.
	Message string
	where   string
}

func (p *Problem) Error() string { return p.where + ": " + p.Message }

// position is where an expression begins in the string of the configuration that holds
// it, in characters.
type position struct {
	source string
	from   int
}

// problem is the error at an offset into the expression, in characters.
func (p position) problem(offset int, format string, args ...any) error {
	runes := []rune(p.source)
	offset = min(p.from+offset, len(runes))
	before := string(runes[:offset])
	line := strings.Count(before, "\n") + 1
	character := utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:]) + 1
	where := fmt.Sprintf("at character %d", character)
	if strings.Contains(p.source, "\n") {
		where = fmt.Sprintf("at line %d, character %d", line, character)
	}
	return &Problem{Offset: offset, Message: fmt.Sprintf(format, args...), where: where}
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
	message, is := strings.CutPrefix(first.Message, "Syntax error: ")
	runes := []rune(text)
	at := min(offset(text, first.Location.Line(), first.Location.Column()), len(runes))
	before, rest := string(runes[:at]), string(runes[at:])
	word := rest[:len(rest)-len(strings.TrimLeftFunc(rest, isLetter))]
	before = strings.TrimRight(before, " ")
	last := before[len(strings.TrimRightFunc(before, isLetter)):]
	switch {
	case !is && strings.HasPrefix(message, "invalid argument to has()"):
		return p.problem(at, "has() asks for a member, as in has(body.x)")
	case !is:
		return p.problem(at, "%s", message)
	case foreign(word) != "":
		return p.problem(at, "%q is no operator: write %q", word, foreign(word))
	case foreign(last) != "":
		return p.problem(len([]rune(before))-len(last), "%q is no operator: write %q", last, foreign(last))
	case rest == "":
		return p.problem(at, "the expression ends too early")
	case word != "":
		return p.problem(at, "%q is not expected here", word)
	case foreign(rest[:1]) != "":
		return p.problem(at, "%q is no operator: write %q", rest[:1], foreign(rest[:1]))
	case rest[0] == '"' || rest[0] == '\'':
		return p.problem(at, "a string does not end, or is not expected here")
	default:
		return p.problem(at, "%q is not expected here", runes[at])
	}
}

// foreign gives what CEL writes for an operator of other languages.
func foreign(word string) string {
	switch strings.ToLower(word) {
	case "and", "&":
		return "&&"
	case "or", "|":
		return "||"
	case "not":
		return "!"
	case "is", "eq", "=":
		return "=="
	}
	return ""
}

func isLetter(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' }

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
		if slices.ContainsFunc(env.Macros(), func(m cel.Macro) bool { return m.Function() == name }) {
			return name + "() takes other arguments"
		}
		if _, found := env.Functions()[name]; !found {
			return unknown("function", name, functions(env))
		}
		return strings.Replace(message, "'"+name+"'", shownFunction(name), 1)
	default:
		return message
	}
}

func unknown(what, name string, known []string) string {
	candidates := known
	if what == "variable" {
		candidates = append(slices.Clone(known), "true", "false", "null") // True, False, nil
	}
	if near, found := setting.Nearest(name, candidates); found {
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
