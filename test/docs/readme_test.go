package docs_test

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The README of each language has what the other has, so that neither falls behind unseen:
// the same sections, tables, links and code. Prose and comments in code are translated.
func TestBothREADMEsSayTheSame(t *testing.T) {
	t.Parallel()
	english, chinese := pageNamed(t, "README.md"), pageNamed(t, "README.zh-CN.md")
	require.Equal(t, levels(english), levels(chinese), "levels of headings")
	require.Equal(t, english.rows, chinese.rows, "lines of tables")

	require.Len(t, chinese.blocks, len(english.blocks), "blocks of code")
	for i, b := range english.blocks {
		other := chinese.blocks[i]
		require.Equal(t, b.language, other.language, "%s and %s", b, other)
		require.Equal(t, b.hint, other.hint, "%s and %s", b, other)
		require.Equal(t, withoutComments(b.text), withoutComments(other.text), "%s and %s", b, other)
	}

	require.Equal(t, targets(english), targets(chinese), "where links lead to, in their order")
	require.Contains(t, targets(english), "README.md")
}

func levels(p *page) (levels []int) {
	for _, h := range p.headings {
		levels = append(levels, h.level)
	}
	return levels
}

var commentInCode = regexp.MustCompile(`(?m)(^|\s+)# .*$`)

func withoutComments(text string) string { return commentInCode.ReplaceAllString(text, "") }

// targets are those of all links. The two READMEs count as one, and so do the languages of
// Alibaba Cloud's documentation.
func targets(p *page) (targets []string) {
	for _, l := range p.links {
		name := strings.ReplaceAll(l.target, "README.zh-CN.md", "README.md")
		if strings.HasPrefix(name, "#") {
			name = "#" // headings are translated, and TestLinks finds them
		}
		if at := strings.Index(name, "/help/en/"); at >= 0 {
			name = name[at+len("/help/en"):]
		}
		name = strings.TrimPrefix(name, "https://help.aliyun.com/zh")
		targets = append(targets, name)
	}
	return targets
}
