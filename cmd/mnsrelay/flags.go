package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mnsrelay/internal/setting"
)

// flagError says of a flag that could not be read what to write instead.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	var wrong *pflag.InvalidValueError
	var bare *pflag.ValueRequiredError
	switch {
	case errors.As(err, &unknown) && unknown.GetSpecifiedShortnames() == "":
		var names []string
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			if !flag.Hidden {
				names = append(names, flag.Name)
			}
		})
		if near, found := setting.Nearest(unknown.GetSpecifiedName(), names); found {
			return usagef(cmd, "%w; did you mean --%s?", err, near)
		}
	case errors.As(err, &wrong):
		return usagef(cmd, "--%s %q is wrong: write %s", wrong.GetFlag().Name, wrong.GetValue(), wanted(wrong.GetFlag()))
	case errors.As(err, &bare):
		return usagef(cmd, "--%s is without its value: write %s", bare.GetFlag().Name, wanted(bare.GetFlag()))
	}
	return usagef(cmd, "%w", err)
}

// wanted shows how a flag is written.
func wanted(flag *pflag.Flag) string {
	switch flag.Value.Type() {
	case "duration":
		return fmt.Sprintf("a time with its unit, as in --%s 500ms, 10s or 2m", flag.Name)
	case "int":
		return fmt.Sprintf("a whole number, as in --%s 10", flag.Name)
	case "float64":
		return fmt.Sprintf("a number, as in --%s 2.5", flag.Name)
	case "bool":
		return fmt.Sprintf("--%[1]s, or --%[1]s=false", flag.Name)
	}
	what, _ := pflag.UnquoteUsage(flag)
	return fmt.Sprintf("--%s %s", flag.Name, what)
}
