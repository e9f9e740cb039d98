package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"mnsrelay/internal/config"
)

// The exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // wrong usage, or a configuration that cannot start
)

// usageError is a command line that is wrong.
type usageError struct {
	command string
	err     error
}

func (e *usageError) Error() string {
	return fmt.Sprintf("%v\nSee '%s --help'.", e.err, e.command)
}

func (e *usageError) Unwrap() error { return e.err }

func usagef(cmd *cobra.Command, format string, args ...any) error {
	return &usageError{command: cmd.CommandPath(), err: fmt.Errorf(format, args...)}
}

// errSilent fails a command that has said everything already, and errSilentUsage one that has
// said what is wrong with what it was given.
var (
	errSilent      = errors.New("the command has said why")
	errSilentUsage = errors.New("the command has said what is wrong")
)

// execute runs one command line and gives the exit code. What a command produces goes
// to stdout, everything else to stderr.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot() //nolint:contextcheck // cobra hands the context to the command that runs
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)

	var usage *usageError
	var invalid *config.Error
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errSilent):
		return exitFailed
	case errors.Is(err, errSilentUsage):
		return exitUsage
	case errors.As(err, &invalid):
		printProblems(stderr, invalid)
		return exitUsage
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(stderr, "mnsrelay: %v\n", err)
		return exitUsage
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		_, _ = fmt.Fprintln(stderr, "mnsrelay: interrupted")
		return exitFailed
	default:
		_, _ = fmt.Fprintf(stderr, "mnsrelay: %v\n", err)
		return exitFailed
	}
}

//go:generate go test . -run ^TestTheReferenceOfTheCommands$ -update

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "mnsrelay",
		Short: "Move messages from Alibaba Cloud MNS queues to RabbitMQ and to webhooks",
		Long: `mnsrelay receives from Alibaba Cloud MNS queues (Simple Message Queue), keeps their
short-lived tokens fresh, and delivers every message to RabbitMQ, an AMQP 1.0 broker, a webhook, a file or another queue.
A message is deleted from its queue only after the far side has confirmed it.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.`,
		Example: `  # see it work, with nothing installed
  mnsrelay demo

  # check a configuration, then run it
  mnsrelay validate --config mnsrelay.yaml
  mnsrelay run --config mnsrelay.yaml`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionLine(),
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	group(root)
	root.SetHelpCommand(newHelp())
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(
		newCheck(),
		newCompletion(),
		newDemo(),
		newEmulator(),
		newExplain(),
		newHealthcheck(),
		newQueue(),
		newWebhook(),
		newRun(),
		newSchema(),
		newTest(),
		newValidate(),
		newVersion(),
		newWhere(),
	)
	completeValues(root)
	return root
}

// group makes cmd one that only holds others: on its own it is wrong usage.
func group(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		text := fmt.Sprintf("there is no command %q", strings.TrimPrefix(cmd.CommandPath()+" "+args[0], "mnsrelay "))
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			text += "; did you mean " + strings.Join(near, " or ") + "?"
		}
		return usagef(cmd, "%s", text)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.SetOut(cmd.ErrOrStderr())
		if err := cmd.Help(); err != nil {
			return err
		}
		return usagef(cmd, "a command is missing")
	}
}

func newHelp() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND...]",
		Short:   "Explain a command",
		Example: "  mnsrelay help queue send",
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var all []cobra.Completion
			if about, rest, err := cmd.Root().Find(args); err == nil && len(rest) == 0 {
				for _, sub := range about.Commands() {
					if sub.IsAvailableCommand() && strings.HasPrefix(sub.Name(), typed) {
						all = append(all, cobra.CompletionWithDesc(sub.Name(), sub.Short))
					}
				}
			}
			return all, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return about.ValidateArgs(rest)
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// noArgs refuses arguments of a command that takes flags only.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef(cmd, "%s takes no argument, and there is %q", cmd.Name(), args[0])
	}
	return nil
}

// exclusive refuses flags that contradict each other.
func exclusive(cmd *cobra.Command, one, other string) error {
	if cmd.Flags().Changed(one) && cmd.Flags().Changed(other) {
		return usagef(cmd, "write --%s or --%s, not both", one, other)
	}
	return nil
}
