package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"mnsrelay/internal/config"
)

// configFlag adds --config, which the command cannot do without.
func configFlag(cmd *cobra.Command, path *string) {
	cmd.Flags().StringVarP(path, "config", "c", "", "the `FILE` of configuration; - reads standard input")
}

// load reads the configuration of a command that serves nothing, and prints its warnings.
func load(cmd *cobra.Command, path string) (*config.Config, error) {
	return loadBy(cmd, path, config.Load)
}

// loadToRun does that for a relay that is to start.
func loadToRun(cmd *cobra.Command, path string) (*config.Config, error) {
	return loadBy(cmd, path, config.LoadToRun)
}

func loadBy(cmd *cobra.Command, path string, read func(string) (*config.Config, []config.Warning, error)) (*config.Config, error) {
	if path == "" {
		return nil, usagef(cmd, "which configuration? write --config FILE")
	}
	cfg, warnings, err := read(path)
	printWarnings(cmd.ErrOrStderr(), warnings)
	return cfg, err
}

func newValidate() *cobra.Command {
	var path string
	var show, asJSON bool
	cmd := &cobra.Command{
		Use:   "validate --config FILE",
		Short: "Check a configuration without using it",
		Long: `Reads a configuration as run does, variables, secret files and those of server.tls included, and
reports everything that is wrong with it, a line each: file, line, column, setting, what to write.
It opens no connection.

With --print it also prints the configuration as it would run: every default and every derived
value, with where each came from, secrets as ***.

Exit codes: 0 valid, 2 not.`,
		Example: `  mnsrelay validate --config mnsrelay.yaml
  mnsrelay validate --config mnsrelay.yaml --print
  mnsrelay validate --config mnsrelay.yaml --json | jq -r '.problems[].message'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := exclusive(cmd, "print", "json"); err != nil {
				return err
			}
			if asJSON && path != "" {
				cfg, warnings, err := config.LoadToRun(path)
				if err := printJSON(cmd.OutOrStdout(), validation(cfg, warnings, err)); err != nil {
					return err
				}
				if err != nil {
					return errSilentUsage
				}
				return nil
			}
			cfg, err := loadToRun(cmd, path)
			if err != nil {
				return err
			}
			if show {
				_, err := cmd.OutOrStdout().Write(cfg.YAML())
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is valid: %s, %s, %s\n", path,
				count(len(cfg.Sources), "source"), count(len(cfg.Sinks), "sink"), count(len(cfg.Routes), "route"))
			return err
		},
	}
	configFlag(cmd, &path)
	cmd.Flags().BoolVar(&show, "print", false, "print the configuration as it would run")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
