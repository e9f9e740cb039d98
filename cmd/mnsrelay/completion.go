package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mnsrelay/internal/config"
)

func newCompletion() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the script that completes command lines in a shell",
		Long: `Prints a script for a shell. With it the Tab key completes commands, flags and values, and after
--config FILE the names of the sources and sinks in that file. It reads nothing else, and asks
nobody.

Write it where new shells look for it, and make the folder if it is not there:

  bash        ~/.local/share/bash-completion/completions/mnsrelay, with the package bash-completion
  zsh         a file _mnsrelay in a folder that is in fpath before compinit runs
  fish        ~/.config/fish/completions/mnsrelay.fish
  powershell  a file that the profile runs`,
		Example: `  mnsrelay completion bash > ~/.local/share/bash-completion/completions/mnsrelay
  mnsrelay completion zsh > ~/.zsh/completions/_mnsrelay
  mnsrelay completion fish > ~/.config/fish/completions/mnsrelay.fish
  mnsrelay completion powershell > mnsrelay.ps1`,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef(cmd, "for which shell? write one of: %s", strings.Join(cmd.ValidArgs, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			root, out := cmd.Root(), cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(out, true)
			case "zsh":
				return root.GenZshCompletion(out)
			case "fish":
				return root.GenFishCompletion(out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(out)
			}
			return usagef(cmd, "there is no script for %q: write one of: %s", args[0], strings.Join(cmd.ValidArgs, ", "))
		},
	}
}

// completeValues gives every flag below cmd what completes its value: names in the
// configuration, files where the help says FILE, and nothing for the rest.
func completeValues(cmd *cobra.Command) {
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		if _, own := cmd.GetFlagCompletionFunc(flag.Name); own {
			return
		}
		values := cobra.NoFileCompletions
		what, _ := pflag.UnquoteUsage(flag)
		switch {
		case flag.Name == "config":
			values = yamlFiles
		case flag.Name == "source":
			values = namesOf(func(o config.Outline) []config.Named { return o.Sources })
		case flag.Name == "sink":
			values = namesOf(func(o config.Outline) []config.Named { return o.Sinks })
		case what == "FILE":
			values = anyFile
		}
		// It fails for a flag that is none, and for one that has a function.
		_ = cmd.RegisterFlagCompletionFunc(flag.Name, values)
	})
	for _, sub := range cmd.Commands() {
		completeValues(sub)
	}
}

// namesOf completes names of the configuration that the command line has so far.
func namesOf(list func(config.Outline) []config.Named) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		path, _ := cmd.Flags().GetString("config")
		var all []cobra.Completion
		for _, n := range list(config.ReadOutline(path)) {
			if strings.HasPrefix(n.Name, typed) {
				all = append(all, cobra.CompletionWithDesc(n.Name, strings.Join(strings.Fields(n.About), " ")))
			}
		}
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

func yamlFiles(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return []cobra.Completion{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}

func anyFile(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// oneOf completes one of a few values.
func oneOf(cmd *cobra.Command, flag string, values ...string) {
	// It fails for a flag that is none.
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}
