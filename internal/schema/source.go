package schema

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

const module = "mnsrelay"

// source reads what the program says about itself in comments and constants.
type source struct {
	root     string
	packages map[string]*goPackage
	problems []error
}

// goPackage holds the comments of one package.
type goPackage struct {
	types  map[string]string            // by name
	fields map[string]map[string]string // by type and name
	order  map[string][]string          // the fields of a type
	values []constant
}

// constant is one whose value is a text.
type constant struct{ kind, name, value, comment string }

func newSource(root string) *source { return &source{root: root, packages: map[string]*goPackage{}} }

func (s *source) err() error { return errors.Join(s.problems...) }

// of gives a package of this module.
func (s *source) of(path string) *goPackage {
	if p, done := s.packages[path]; done {
		return p
	}
	p := &goPackage{types: map[string]string{}, fields: map[string]map[string]string{}, order: map[string][]string{}}
	s.packages[path] = p
	folder := filepath.Join(s.root, strings.TrimPrefix(path, module))
	entries, err := os.ReadDir(folder)
	if err != nil {
		s.problems = append(s.problems, fmt.Errorf("read the comments of %s: %w", path, err))
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(folder, entry.Name()), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			s.problems = append(s.problems, fmt.Errorf("read the comments of %s: %w", path, err))
			continue
		}
		for _, declaration := range file.Decls {
			if general, is := declaration.(*ast.GenDecl); is {
				p.read(general)
			}
		}
	}
	return p
}

func (p *goPackage) read(declaration *ast.GenDecl) {
	for _, spec := range declaration.Specs {
		switch spec := spec.(type) {
		case *ast.TypeSpec:
			name := spec.Name.Name
			p.types[name] = comment(declaration.Doc)
			structure, is := spec.Type.(*ast.StructType)
			if !is {
				continue
			}
			p.fields[name] = map[string]string{}
			for _, f := range structure.Fields.List {
				for _, fieldName := range f.Names {
					p.fields[name][fieldName.Name] = comment(f.Doc)
					p.order[name] = append(p.order[name], fieldName.Name)
				}
			}
		case *ast.ValueSpec:
			if declaration.Tok != token.CONST || len(spec.Values) != 1 {
				continue
			}
			literal, is := spec.Values[0].(*ast.BasicLit)
			if !is || literal.Kind != token.STRING {
				continue
			}
			value, err := strconv.Unquote(literal.Value)
			if err != nil {
				continue // the parser has accepted it
			}
			c := constant{name: spec.Names[0].Name, value: value, comment: comment(spec.Doc)}
			if kind, is := spec.Type.(*ast.Ident); is {
				c.kind = kind.Name
			}
			if c.comment == "" {
				c.comment = comment(spec.Comment)
			}
			p.values = append(p.values, c)
		}
	}
}

func comment(group *ast.CommentGroup) string {
	return strings.Join(strings.Fields(group.Text()), " ")
}

// valuesOf gives the constants of a type.
func (s *source) valuesOf(t reflect.Type) []string {
	var values []string
	for _, c := range s.of(t.PkgPath()).values {
		if c.kind == t.Name() {
			values = append(values, c.value)
		}
	}
	if len(values) == 0 {
		s.problems = append(s.problems, fmt.Errorf("%s has no constants: write its values as constants", t))
	}
	return values
}

// describe says what a field of a struct, or of a struct in it, is: its comment, or that of a
// field before it which is about both, or that of its type; and what its values are.
func (s *source) describe(t reflect.Type, index []int) string {
	for _, i := range index[:len(index)-1] {
		t = t.Field(i).Type
	}
	f := t.Field(index[len(index)-1])
	p := s.of(t.PkgPath())
	text := p.fieldComment(t.Name(), f.Name)
	kind := f.Type
	for kind.Kind() == reflect.Slice || kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	isOurs := strings.HasPrefix(kind.PkgPath(), module+"/") && kind.PkgPath() != module+"/internal/setting"
	if text == "" && isOurs {
		text = s.of(kind.PkgPath()).types[kind.Name()]
		if rest, found := strings.CutPrefix(text, kind.Name()+" "); found {
			text = f.Name + " " + rest
		}
		if kind.Kind() == reflect.Struct {
			text = s.of(kind.PkgPath()).asWritten(text, kind)
		}
	}
	if text == "" {
		s.problems = append(s.problems, fmt.Errorf("%s.%s has no comment: write one, which is the description of the setting", t, f.Name))
	}
	lines := []string{p.asWritten(text, t)}
	if isOurs && kind.Kind() == reflect.String {
		for _, c := range s.of(kind.PkgPath()).values {
			if c.kind == kind.Name() && c.comment != "" {
				lines = append(lines, "- "+c.value+": "+s.of(kind.PkgPath()).asWritten(strings.TrimPrefix(c.comment, c.name+" "), t))
			}
		}
	}
	return strings.Join(lines, "\n")
}

func (p *goPackage) fieldComment(structure, name string) string {
	text := ""
	mentions := regexp.MustCompile(`\b` + name + `\b`)
	for _, field := range p.order[structure] {
		own := p.fields[structure][field]
		if own != "" {
			text = own
		}
		if field == name {
			if own == "" && !mentions.MatchString(text) {
				return ""
			}
			return text
		}
	}
	return ""
}

// asWritten puts keys in the place of fields, and values in the place of constants.
func (p *goPackage) asWritten(text string, t reflect.Type) string {
	names := map[string]string{}
	for _, c := range p.values {
		names[c.name] = c.value
	}
	for f := range t.Fields() {
		if key, _, _ := strings.Cut(f.Tag.Get("yaml"), ","); key != "" && key != "-" {
			names[f.Name] = key
		}
	}
	var b strings.Builder
	at := 0
	for _, found := range regexp.MustCompile(`\b[A-Z]\w*`).FindAllStringIndex(text, -1) {
		word := text[found[0]:found[1]]
		name, known := names[word]
		// Within a sentence URL and TLS are words, and only at its beginning keys.
		if known && (found[0] == 0 || strings.ToUpper(word) != word && word != "URLs") {
			b.WriteString(text[at:found[0]] + name)
			at = found[1]
		}
	}
	return b.String() + text[at:]
}
