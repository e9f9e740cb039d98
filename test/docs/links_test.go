package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v4"
)

// Links within the project lead to files and headings that are there. Others are not asked.
func TestLinks(t *testing.T) {
	t.Parallel()
	all := pages(t)
	ids := map[string]map[string]bool{}
	for _, p := range all {
		ids[p.name] = p.ids
	}
	checked := 0
	for _, p := range all {
		for _, l := range p.links {
			if strings.Contains(l.target, "://") || strings.HasPrefix(l.target, "mailto:") {
				continue
			}
			checked++
			file, id, _ := strings.Cut(l.target, "#")
			path := filepath.ToSlash(filepath.Join(filepath.Dir(p.name), file))
			if file == "" {
				path = p.name
			}
			_, err := os.Stat(filepath.Join(root, path))
			if !assertf(t, err == nil, "%s:%d: there is no %s", p.name, l.line, path) || id == "" {
				continue
			}
			assertf(t, ids[path][id], "%s:%d: %s has no heading #%s", p.name, l.line, path, id)
		}
	}
	require.Greater(t, checked, 100)
}

// assertf fails the test and lets it go on, so that it names everything at once.
func assertf(t *testing.T, ok bool, format string, args ...any) bool {
	t.Helper()
	if !ok {
		t.Errorf(format, args...)
	}
	return ok
}

// Every page of docs/ is in its index, but for decisions, which are listed by their folder.
func TestTheIndexHasEveryPage(t *testing.T) {
	t.Parallel()
	index := pageNamed(t, "docs/README.md")
	linked := map[string]bool{"README.md": true}
	for _, l := range index.links {
		linked[l.target] = true
	}
	files, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	require.NoError(t, err)
	for _, file := range files {
		assertf(t, linked[filepath.Base(file)], "docs/README.md does not name %s", filepath.Base(file))
	}
}

// Every alert says where its runbook is, which is there and says what to do.
func TestEveryAlertHasARunbook(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(root, "helm/mnsrelay/files/alerts.yaml"))
	require.NoError(t, err)
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &rules))
	operations, err := os.ReadFile(filepath.Join(root, "docs/operations.md"))
	require.NoError(t, err)
	sections := map[string]string{}
	for _, section := range regexp.MustCompile(`(?m)^### `).Split(string(operations), -1)[1:] {
		name, rest, _ := strings.Cut(section, "\n")
		sections[name] = rest
	}
	ids := pageNamed(t, "docs/operations.md").ids
	alerts := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			alerts++
			section, found := sections[rule.Alert]
			if !assertf(t, found, "docs/operations.md has no section ### %s", rule.Alert) {
				continue
			}
			for _, part := range []string{"**Means**", "**Look at**", "**Mend**"} {
				assertf(t, strings.Contains(section, part), "docs/operations.md: %s does not say %s", rule.Alert, part)
			}
			url := rule.Annotations["runbook_url"]
			assertf(t, url == "docs/operations.md#"+slug(rule.Alert) && ids[slug(rule.Alert)],
				"helm/mnsrelay/files/alerts.yaml: runbook_url of %s is %q", rule.Alert, url)
			delete(sections, rule.Alert)
		}
	}
	require.GreaterOrEqual(t, alerts, 15)
	for name := range sections {
		assertf(t, !strings.HasPrefix(name, "Mnsrelay"), "docs/operations.md explains %s, which is no alert", name)
	}
}
