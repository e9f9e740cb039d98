package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// writeDocs writes what was measured into performance.md, each scenario between its
// markers, and the chart of what grows beside it. What was not measured stays.
func writeDocs(dir string, outcomes []*outcome) error {
	path := filepath.Join(dir, "performance.md")
	text, err := os.ReadFile(path) //nolint:gosec // The folder is the caller's.
	if err != nil {
		return err
	}
	sections := map[string]string{}
	for _, out := range outcomes {
		// What is of several scenarios in one is not written, or, if it grows, in its own way.
		if !strings.Contains(out.Scenario, ":") {
			sections[out.Scenario] += out.markdown()
		}
	}
	if panels := panelsOf(outcomes); len(panels) > 0 {
		sections["growth"] = "\n![Messages a second against pollers, body size, sinks, sources and replicas](images/growth.svg)\n"
		for _, p := range panels {
			sections["growth"] += p.markdown()
		}
		if err := os.WriteFile(filepath.Join(dir, "images", "growth.svg"), []byte(chart(panels)), 0o600); err != nil {
			return err
		}
	}
	for scenario, section := range sections {
		if text, err = between(text, scenario, section); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return os.WriteFile(path, text, 0o600) //nolint:gosec // The same file.
}

// between replaces what is between two markers.
func between(text []byte, scenario, section string) ([]byte, error) {
	begin, end := "<!-- bench "+scenario+" -->\n", "<!-- end of bench "+scenario+" -->"
	before, rest, found := bytes.Cut(text, []byte(begin))
	_, after, ends := bytes.Cut(rest, []byte(end))
	if !found || !ends {
		return nil, errors.New("there are no markers of " + scenario)
	}
	return bytes.Join([][]byte{before, []byte(begin), []byte(section), []byte(end), after}, nil), nil
}

// markdown is the contest as a table, and which targets hold.
func (out *outcome) markdown() string {
	var text strings.Builder
	fmt.Fprintf(&text, "\n%s; %d rounds: median (least, most).\n\n", out.What, len(out.Results[0].Runs))
	writeRows(&text, out.rows())
	for _, j := range out.Judged {
		fmt.Fprintf(&text, "- %v\n", j)
	}
	text.WriteString("\n")
	return text.String()
}

func writeRows(text *strings.Builder, rows [][]string) {
	for i, row := range rows {
		fmt.Fprintf(text, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			text.WriteString("|" + strings.Repeat("---|", len(row)) + "\n")
		}
	}
	text.WriteString("\n")
}
