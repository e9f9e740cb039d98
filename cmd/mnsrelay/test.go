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
    - name: what is no JSON is given up
      message: {source: sms, body: hello}
      rejected: expression         # the reason
      deliveries: []
      end: retained                # or deleted, from its queue; may be left out

"mnsrelay explain" shows the names and values that there are.`,
		Example: `  mnsrelay test routes_test.yaml
  mnsrelay test --config mnsrelay.yaml tests/*.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef(cmd, "name one file of tests or more")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			total, failed, wrong := 0, 0, false
			for _, path := range args {
				n, bad, err := runFixtures(cmd, path, configFile)
				if err != nil {
					wrong = true
					sayWrong(cmd.ErrOrStderr(), err)
				}
				total, failed = total+n, failed+bad
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s, %d failed\n", count(total, "test"), failed)
			switch {
			case err != nil:
				return err
			case wrong:
				return errSilentUsage
			case failed > 0:
				return errSilent
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&configFile, "config", "c", "", "the `FILE` of configuration, in the place of the one that the tests name")
	return cmd
}

// sayWrong says why the tests of a file cannot run.
func sayWrong(w io.Writer, err error) {
	if invalid, is := errors.AsType[*config.Error](err); is {
		_, _ = fmt.Fprintln(w, invalid) // its lines begin with the file
		return
	}
	_, _ = fmt.Fprintf(w, "mnsrelay: %v\n", err)
}

// runFixtures runs the tests of a file and counts them and those that failed.
func runFixtures(cmd *cobra.Command, path, configFile string) (total, failed int, err error) {
	fixtures, err := dryrun.ReadFixtures(path)
	if err != nil {
		return 0, 0, fmt.Errorf("read the tests: %w", err)
	}
	cfg, warnings, err := fixtures.Load(configFile)
	for _, w := range warnings {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s (warning)\n", w)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	dry, err := dryrun.New(cfg, agent())
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", path, err)
	}
	for i := range fixtures.Tests {
		test := &fixtures.Tests[i]
		diff, err := dry.Run(test)
		if err != nil {
			diff = []string{err.Error()}
		}
		if len(diff) == 0 {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "ok    %s\n", test.Name)
		} else {
			failed++
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "FAIL  %s (%s:%d)\n      %s\n", test.Name, path, test.Line(),
				cfg.Conceal(strings.Join(diff, "\n      ")))
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return len(fixtures.Tests), failed, nil
}
