package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"mnsrelay/internal/app"
	"mnsrelay/internal/telemetry"
)

func newRun() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Relay messages until told to stop",
		Long: `Runs a configuration. Logs go to standard error; probes, metrics and status to server.listen.

SIGTERM and SIGINT drain: receiving ends at once, what is in flight is delivered and deleted,
for at most drain_timeout. A second signal cuts the drain short; what was not confirmed stays in
its queue and comes again.

Exit codes: 0 drained, 1 the drain was cut short or the relay could not start, 2 wrong configuration.`,
		Example: `  mnsrelay run --config mnsrelay.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := load(cmd, path)
			if err != nil {
				return err
			}
			log, _, err := telemetry.NewLogger(cfg.Log.Level, cfg.Log.Format, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			soft, hard, release := stopOnSignals(cmd.Context())
			defer release()
			relay, err := app.New(cfg, app.Deps{
				Version: buildVersion(), Instance: instance(),
				Registry: telemetry.NewRegistry(buildVersion()), Log: log,
			})
			if err != nil {
				return err
			}
			err = relay.Run(soft, hard)
			if errors.Is(err, app.ErrDrainCut) {
				return errSilent // the log has said so
			}
			if err != nil {
				log.Error("relay ended", zap.Error(err))
				return errSilent
			}
			return nil
		},
	}
	configFlag(cmd, &path)
	return cmd
}

// instance names this process: the host's name, which is the pod's on Kubernetes.
func instance() string {
	name, err := os.Hostname()
	if err != nil {
		return fmt.Sprintf("pid-%d", os.Getpid())
	}
	return name
}
