package faults_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tests that docs/faults.md names are there.
func TestTheTableOfFaultsNamesTestsThatExist(t *testing.T) {
	t.Parallel()
	const root = "../.."
	text, err := os.ReadFile(filepath.Join(root, "docs", "faults.md"))
	require.NoError(t, err)
	sources := make(map[string]string) // of a folder's tests
	of := func(folder string) string {
		if _, read := sources[folder]; !read {
			files, err := filepath.Glob(filepath.Join(root, folder, "*_test.go"))
			require.NoError(t, err)
			var b strings.Builder
			for _, file := range files {
				source, err := os.ReadFile(file)
				require.NoError(t, err)
				b.Write(source)
			}
			sources[folder] = b.String()
		}
		return sources[folder]
	}
	word := regexp.MustCompile("`((?:test|internal)/[a-z0-9/]+)`|\\bTest[A-Za-z0-9]+(?:/([A-Za-z]+))?")
	found := 0
	for line := range strings.Lines(string(text)) {
		folder := ""
		for _, match := range word.FindAllStringSubmatch(line, -1) {
			if match[1] != "" {
				folder = match[1]
				continue
			}
			name, part, _ := strings.Cut(match[0], "/")
			require.Contains(t, of(folder), "func "+name+"(t *testing.T) {", "%s in %s", name, folder)
			if part != "" {
				require.Contains(t, of(folder), `"`+part+`":`, "%s of %s in %s", part, name, folder)
			}
			found++
		}
	}
	require.Greater(t, found, 50)

	// And the other way round: no test of this folder is left out.
	for _, match := range regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(t \*testing\.T\)`).FindAllStringSubmatch(of("test/faults"), -1) {
		if match[1] != "TestTheTableOfFaultsNamesTestsThatExist" {
			require.Contains(t, string(text), match[1])
		}
	}
}
