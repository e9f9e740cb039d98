// Package docs_test holds the documentation to what the program does: every snippet is run,
// or read by what would read it, and every link leads somewhere.
//
// Blocks of code are told apart by their language and by what they hold; one that is none of
// these fails. What a page cannot say by itself stands in a comment before the block, which
// readers do not see:
//
//	<!-- test: run -->                     run it, and compare what it prints
//	<!-- test: run and fail -->            the same, of a command that ends with another code than 0
//	<!-- test: run in the background -->   the same, and let it run until the page ends
//	<!-- test: file NAME -->               write it to the page's folder, for what is run there
//	<!-- test: part of TYPE -->            settings of a sink of this type
package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// root is the folder of the project.
const root = "../.."

// page is one file of Markdown.
type page struct {
	name     string // below root
	headings []heading
	blocks   []block
	// ids are what links can lead to: of headings, as GitHub makes them, and those written.
	ids   map[string]bool
	links []link
	// code are the texts between single backticks.
	code []code
	// rows are how many lines of tables there are.
	rows int
}

type heading struct {
	level int
	text  string
}

// block is fenced code.
type block struct {
	page           string
	line           int
	language, hint string
	text           string
}

func (b block) String() string { return b.page + ":" + strconv.Itoa(b.line) }

// asks gives what follows the word in the hint.
func (b block) asks(word string) (string, bool) {
	rest, found := strings.CutPrefix(b.hint, word)
	return strings.TrimSpace(rest), found
}

type link struct {
	line   int
	target string
}

type code struct {
	line int
	text string
}

// pages reads every page of the project.
func pages(t *testing.T) []*page {
	t.Helper()
	var found []*page
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == "testdata" || d.Name() == "node_modules"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		found = append(found, readPage(t, filepath.ToSlash(name), string(text)))
		return nil
	})
	require.NoError(t, err)
	require.Greater(t, len(found), 20)
	return found
}

func pageNamed(t *testing.T, name string) *page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	require.NoError(t, err)
	return readPage(t, name, string(text))
}

var (
	fence      = regexp.MustCompile("^( *)```([a-z]*)$")
	hint       = regexp.MustCompile(`^ *<!-- test: (.+) -->$`)
	title      = regexp.MustCompile(`^(#+) (.+)$`)
	target     = regexp.MustCompile(`\]\(([^()\s]+)\)|<img [^>]*src="([^"]+)"|<a href="([^"]+)"|srcset="([^"]+)"`)
	anchor     = regexp.MustCompile(`<a id="([^"]+)">`)
	inlineCode = regexp.MustCompile("`([^`]+)`")
)

func readPage(t *testing.T, name, text string) *page {
	t.Helper()
	p := &page{name: name, ids: map[string]bool{}}
	var inside *block
	indent, before := "", ""
	for i, line := range strings.Split(text, "\n") {
		if inside != nil {
			if strings.TrimSpace(line) == "```" {
				p.blocks = append(p.blocks, *inside)
				inside, before = nil, ""
				continue
			}
			inside.text += strings.TrimPrefix(line, indent) + "\n"
			continue
		}
		if match := fence.FindStringSubmatch(line); match != nil {
			inside = &block{page: name, line: i + 1, language: match[2]}
			indent = match[1]
			if match := hint.FindStringSubmatch(before); match != nil {
				inside.hint = match[1]
			}
			continue
		}
		require.NotContains(t, line, "```", "%s:%d: a fence that is not read", name, i+1)
		if strings.TrimSpace(line) != "" {
			before = line
		}
		p.readLine(i+1, line)
	}
	require.Nil(t, inside, "%s: a block has no end", name)
	return p
}

func (p *page) readLine(number int, line string) {
	if match := title.FindStringSubmatch(line); match != nil {
		p.headings = append(p.headings, heading{len(match[1]), match[2]})
		id := slug(match[2])
		for n := 1; p.ids[id]; n++ {
			id = slug(match[2]) + "-" + strconv.Itoa(n)
		}
		p.ids[id] = true
	}
	if strings.HasPrefix(line, "|") {
		p.rows++
	}
	for _, match := range anchor.FindAllStringSubmatch(line, -1) {
		p.ids[match[1]] = true
	}
	for _, match := range target.FindAllStringSubmatch(inlineCode.ReplaceAllString(line, "code"), -1) {
		p.links = append(p.links, link{number, strings.Join(match[1:], "")})
	}
	for _, match := range inlineCode.FindAllStringSubmatch(line, -1) {
		p.code = append(p.code, code{number, strings.ReplaceAll(match[1], `\|`, "|")})
	}
}

// slug is what GitHub makes of a heading.
func slug(text string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(text) {
		switch {
		case r == ' ' || r == '-':
			b.WriteByte('-')
		case r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}
