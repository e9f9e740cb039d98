package main

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write docs/cli.md")

const referenceHead = `# Command line

<!-- Made by make generate, of the help of the commands in cmd/mnsrelay. -->

This is what ` + "`--help`" + ` says of each command. Results go to standard output, everything else to standard error. ` + "`--json`" + `
prints what programs read. Colours are for terminals, and not where ` + "`NO_COLOR`" + ` is set. Exit codes: 0 done, 1 failed, 2 wrong
usage or configuration.
`

// The page says what the program does: it is made of the commands themselves.
func TestTheReferenceOfTheCommands(t *testing.T) {
	const path = "../../docs/cli.md"
	var b strings.Builder
	b.WriteString(referenceHead)
	describe(&b, newRoot())
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o644))
	}
	page, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(page), b.String(), "docs/cli.md is stale: run make generate")
}

func describe(b *strings.Builder, cmd *cobra.Command) {
	cmd.InitDefaultHelpFlag()
	_, _ = fmt.Fprintf(b, "\n## %s\n\n%s.\n", prose(strings.TrimSuffix(cmd.UseLine(), " [flags]")), cmd.Short)
	if cmd.Long != "" {
		for block := range strings.SplitSeq(cmd.Long, "\n\n") {
			b.WriteString("\n" + paragraph(block) + "\n")
		}
	}
	_, _ = fmt.Fprintf(b, "\n```sh\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(cmd.Example, "  "), "\n  ", "\n"))
	var rows strings.Builder
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Name == "version" {
			return
		}
		what, usage := pflag.UnquoteUsage(f)
		name := "`" + strings.TrimSpace("--"+f.Name+" "+what) + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		// No value of its own is none that is worth a word.
		if f.DefValue != "" && f.DefValue != "0" && f.DefValue != "0s" && f.DefValue != "false" && f.DefValue != "[]" {
			usage += " (default " + f.DefValue + ")"
		}
		_, _ = fmt.Fprintf(&rows, "| %s | %s |\n", name, strings.ReplaceAll(prose(usage), "|", `\|`))
	})
	if rows.Len() > 0 {
		b.WriteString("\n| Flag | |\n|---|---|\n" + rows.String())
	}
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			describe(b, sub)
		}
	}
}

// paragraph makes Markdown of a block of help. What is indented there is YAML, or words and
// what they mean.
func paragraph(block string) string {
	if !strings.HasPrefix(block, "  ") {
		return prose(block)
	}
	lines := strings.Split(strings.ReplaceAll(block[2:], "\n  ", "\n"), "\n")
	if strings.Contains(lines[0], ": ") {
		return "```yaml\n" + strings.Join(lines, "\n") + "\n```"
	}
	meaning := regexp.MustCompile(`^(\S+(?: \S+)*) {2,}(.*)$`)
	for i, line := range lines {
		lines[i] = meaning.ReplaceAllString(prose(line), "- **$1**: $2")
	}
	return strings.Join(lines, "\n")
}

// prose keeps Markdown from reading a mark of its own.
func prose(text string) string {
	return strings.NewReplacer("*", `\*`, "_", `\_`, "<", `\<`, "[", `\[`).Replace(text)
}
