package main

import (
	"github.com/spf13/cobra"

	"mnsrelay/configs"
)

func newSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration",
		Long: `Prints the JSON Schema (draft 2020-12) of the configuration, with which editors complete,
explain and check a file while it is written: keys, types, values and, as far as a schema can
say them, ranges. What needs more than the file, such as a variable, a condition or the name of
a sink, only validate knows.

Editors with the YAML language server read it where the first line of a file says

  # yaml-language-server: $schema=mnsrelay.schema.json`,
		Example: `  mnsrelay schema > mnsrelay.schema.json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(configs.Schema)
			return err
		},
	}
}
