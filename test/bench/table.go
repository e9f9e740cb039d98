package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// writeTables writes a table for each contest, and which targets hold.
func writeTables(to io.Writer, outcomes []*outcome) error {
	for _, out := range outcomes {
		var text strings.Builder
		fmt.Fprintf(&text, "%s: %s; %d rounds: median (least, most)\n", out.Scenario, out.What, len(out.Results[0].Runs))
		rows := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
		for _, row := range out.rows() {
			if _, err := io.WriteString(rows, strings.Join(row, "\t")+"\n"); err != nil {
				return err
			}
		}
		if err := rows.Flush(); err != nil {
			return err
		}
		for _, j := range out.Judged {
			fmt.Fprintln(&text, j)
		}
		if _, err := fmt.Fprintln(to, text.String()); err != nil {
			return err
		}
	}
	return nil
}

// rows are a head and a row for each quantity that was measured: a column for each
// contender, and for each ratio.
func (out *outcome) rows() [][]string {
	head := []string{""}
	for _, r := range out.Results {
		head = append(head, r.Name)
	}
	for _, r := range out.Results {
		for _, to := range out.against {
			if r.Ratios[to] != nil {
				head = append(head, r.Name+" / "+to)
			}
		}
	}
	rows := [][]string{head}
	for _, q := range quantities() {
		row := []string{strings.ReplaceAll(string(q), "_", " ")}
		measured := false
		for _, r := range out.Results {
			cell := "-"
			if all := values(r.Runs, q); len(all) > 0 {
				cell, measured = spreadOf(all).String(), true
			}
			row = append(row, cell)
		}
		for _, r := range out.Results {
			for _, to := range out.against {
				if r.Ratios[to] == nil {
					continue
				}
				cell := "-"
				if s, found := r.Ratios[to][q]; found {
					cell = fmt.Sprintf("%.2f (%.2f, %.2f)", s.Median, s.Min, s.Max)
				}
				row = append(row, cell)
			}
		}
		if measured {
			rows = append(rows, row)
		}
	}
	return rows
}

func (s spread) String() string {
	if s.Min == s.Max {
		return number(s.Median)
	}
	return fmt.Sprintf("%s (%s, %s)", number(s.Median), number(s.Min), number(s.Max))
}

// number writes three digits that tell something.
func number(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func (j judged) String() string {
	verdict := "does not hold"
	if j.Holds {
		verdict = "holds"
	}
	return fmt.Sprintf("%s: %s %s: %s", verdict, j.Text, number(j.Bound), j.Value)
}

// failedTargets is an error that names the targets that do not hold.
func failedTargets(outcomes []*outcome) error {
	var failed []error
	for _, out := range outcomes {
		for _, j := range out.Judged {
			if !j.Holds {
				failed = append(failed, fmt.Errorf("%s: %v", out.Scenario, j))
			}
		}
	}
	return errors.Join(failed...)
}
