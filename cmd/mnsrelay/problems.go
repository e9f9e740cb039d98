package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"mnsrelay/internal/config"
)

// printProblems prints a line for each problem, beginning with the file, as editors read it.
func printProblems(w io.Writer, invalid *config.Error) {
	paint := painterFor(w)
	for _, p := range invalid.Problems {
		_, _ = fmt.Fprintln(w, problemText(paint, red, p))
	}
}

func printWarnings(w io.Writer, warnings []config.Warning) {
	paint := painterFor(w)
	for _, p := range warnings {
		_, _ = fmt.Fprintf(w, "%s %s\n", problemText(paint, yellow, config.Problem(p)), paint.paint(yellow, "(warning)"))
	}
}

func problemText(paint painter, c colour, p config.Problem) string {
	text := p.String()
	where := strings.TrimSuffix(text, ": "+p.Message)
	return paint.paint(c, where) + strings.TrimPrefix(text, where)
}

// problemJSON is a problem, or a warning, for programs.
type problemJSON struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Path    string `json:"path,omitempty"`
	Message string `json:"message"`
}

// validationJSON is what validate finds.
type validationJSON struct {
	Valid    bool          `json:"valid"`
	Problems []problemJSON `json:"problems"`
	Warnings []problemJSON `json:"warnings"`
	// Sources, Sinks and Routes count those of a valid configuration.
	Sources int `json:"sources,omitempty"`
	Sinks   int `json:"sinks,omitempty"`
	Routes  int `json:"routes,omitempty"`
}

func validation(cfg *config.Config, warnings []config.Warning, err error) validationJSON {
	out := validationJSON{Valid: err == nil, Problems: []problemJSON{}, Warnings: []problemJSON{}}
	if invalid, is := errors.AsType[*config.Error](err); is {
		for _, p := range invalid.Problems {
			out.Problems = append(out.Problems, problemJSON(p))
		}
	}
	for _, w := range warnings {
		out.Warnings = append(out.Warnings, problemJSON(w))
	}
	if cfg != nil {
		out.Sources, out.Sinks, out.Routes = len(cfg.Sources), len(cfg.Sinks), len(cfg.Routes)
	}
	return out
}
