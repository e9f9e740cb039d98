package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"mnsrelay/internal/config"
	"mnsrelay/internal/dryrun"
)

func newTest() *cobra.Command {
	var configFile string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test FILE...",
		Short: "Test a configuration with messages",
		Long: `Reads files of tests, each a message with the deliveries that are expected of it, and says of
each whether the configuration does that. It opens no connection, so it runs with every change
of a configuration. "-" is what is expected, "+" what would be.

  config: mnsrelay.yaml            # beside this file
  env: {HOOK_TOKEN: t}             # stand-ins for variables and files
  files: {/run/secrets/key: k}
  tests:
    - name: a failed report goes to the failures
      message: {source: sms, body: {success: false, phone: "138"}}
      deliveries:
        - sink: events
          routing_key: sms.failed  # what is not written is not compared
          headers: {x-phone: "138", x-none: null}   # null: it is not sent
          body: {success: false, phone: "138"}      # a mapping is compared as JSON
    - name: what is no JSON stays in the queue
      message: {source: sms, body: hello}
      rejected: expression         # the reason
      deliveries: []
      end: retained                # or deleted, from its queue; may be left out

"mnsrelay explain" shows the names and values that there are.`,
		Example: `  mnsrelay test routes_test.yaml
  mnsrelay test --config mnsrelay.yaml tests/*.yaml
  mnsrelay test --json routes_test.yaml | jq '.tests[] | select(.ok == false)'`,
		ValidArgsFunction: yamlFiles,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef(cmd, "name one file of tests or more")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			report := testsJSON{Tests: []testJSON{}}
			wrong := false
			for _, path := range args {
				tests, err := runFixtures(cmd, path, configFile)
				if err != nil {
					wrong = true
					sayWrong(cmd.ErrOrStderr(), err)
				}
				report.add(tests)
				if !asJSON {
					if err := printTests(cmd.OutOrStdout(), tests); err != nil {
						return err
					}
				}
			}
			var err error
			switch {
			case asJSON:
				err = printJSON(cmd.OutOrStdout(), report)
			case len(report.Tests) > 0 || !wrong:
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s, %d failed\n", count(len(report.Tests), "test"), report.Failed)
			}
			switch {
			case err != nil:
				return err
			case wrong:
				return errSilentUsage
			case report.Failed > 0:
				return errSilent
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&configFile, "config", "c", "", "the `FILE` of configuration, in the place of the one that the tests name")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// The shapes of the JSON.
type (
	testsJSON struct {
		Tests  []testJSON `json:"tests"`
		Failed int        `json:"failed"`
	}
	testJSON struct {
		Name string `json:"name"`
		File string `json:"file"`
		Line int    `json:"line"`
		OK   bool   `json:"ok"`
		// Differences begin with "-" for what is expected and "+" for what would be.
		Differences []string `json:"differences,omitempty"`
	}
)

func (r *testsJSON) add(tests []testJSON) {
	r.Tests = append(r.Tests, tests...)
	for i := range tests {
		if !tests[i].OK {
			r.Failed++
		}
	}
}

// printTests prints tests for people.
func printTests(w io.Writer, tests []testJSON) error {
	paint := painterFor(w)
	var b strings.Builder
	for _, t := range tests {
		if t.OK {
			_, _ = fmt.Fprintf(&b, "%s    %s\n", paint.paint(green, "ok"), t.Name)
			continue
		}
		_, _ = fmt.Fprintf(&b, "%s  %s (%s:%d)\n", paint.paint(red, "FAIL"), t.Name, t.File, t.Line)
		for _, line := range t.Differences {
			c := plain
			switch {
			case strings.HasPrefix(line, "-"):
				c = red
			case strings.HasPrefix(line, "+"):
				c = green
			}
			b.WriteString("      " + paint.paint(c, line) + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// sayWrong says why the tests of a file cannot run.
func sayWrong(w io.Writer, err error) {
	if invalid, is := errors.AsType[*config.Error](err); is {
		printProblems(w, invalid)
		return
	}
	_, _ = fmt.Fprintf(w, "mnsrelay: %v\n", err)
}

// runFixtures runs the tests of a file.
func runFixtures(cmd *cobra.Command, path, configFile string) ([]testJSON, error) {
	fixtures, err := dryrun.ReadFixtures(path)
	if err != nil {
		return nil, fmt.Errorf("read the tests: %w", err)
	}
	cfg, warnings, err := fixtures.Load(configFile)
	printWarnings(cmd.ErrOrStderr(), warnings)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	dry, err := dryrun.New(cfg, agent())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	tests := make([]testJSON, len(fixtures.Tests))
	for i := range fixtures.Tests {
		test := &fixtures.Tests[i]
		diff, err := dry.Run(test)
		if err != nil {
			diff = []string{err.Error()}
		}
		tests[i] = testJSON{Name: test.Name, File: path, Line: test.Line(), OK: len(diff) == 0}
		if len(diff) > 0 {
			// As a whole: what is concealed may go over more than one line.
			tests[i].Differences = strings.Split(cfg.Conceal(strings.Join(diff, "\n")), "\n")
		}
	}
	return tests, nil
}
