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

// load reads the configuration of a command and prints its warnings.
func load(cmd *cobra.Command, path string) (*config.Config, error) {
	if path == "" {
		return nil, usagef(cmd, "which configuration? write --config FILE")
	}
	cfg, warnings, err := config.Load(path)
	for _, w := range warnings {
		_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s (warning)\n", w)
	}
	return cfg, err
}

func newValidate() *cobra.Command {
	var path string
	var show bool
	cmd := &cobra.Command{
		Use:   "validate --config FILE",
		Short: "Check a configuration without using it",
		Long: `Reads a configuration as run does, variables and secret files included, and reports
everything that is wrong with it, a line each: file, line, column, setting, what to write.
It opens no connection.

With --print it also prints the configuration as it would run: every default and every derived
value, with where each came from, secrets as ***.`,
		Example: `  mnsrelay validate --config mnsrelay.yaml
  mnsrelay validate --config mnsrelay.yaml --print`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd, path)
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
	return cmd
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
