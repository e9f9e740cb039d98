package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"mnsrelay/internal/app"
	"mnsrelay/internal/config"
	"mnsrelay/internal/telemetry"
)

func newRun() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Relay messages until told to stop",
		Long: `Runs a configuration. Logs go to standard error; probes, metrics and status to server.listen.

SIGHUP reads the configuration again, and so do POST /api/v1/reload and, with reload.watch, a
change of the file. What has not changed runs on untouched; a file that is wrong changes nothing.

SIGTERM and SIGINT drain: receiving ends at once, what is in flight is delivered and deleted,
for at most drain_timeout. A second signal cuts the drain short; what was not confirmed stays in
its queue and comes again.

Exit codes: 0 drained, 1 the drain was cut short or the relay could not start, 2 wrong configuration.`,
		Example: `  mnsrelay run --config mnsrelay.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadToRun(cmd, path)
			if err != nil {
				return err
			}
			log, level, err := telemetry.NewLogger(cfg.Log.Level, cfg.Log.Format, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			defer func() { _ = log.Sync() }() // standard error may not be one that can be synced
			soft, hard, release := stopOnSignals(cmd.Context())
			defer release()
			fitContainer(soft, log)
			relay, err := app.New(cfg, app.Deps{
				Version: buildVersion(), Instance: instance(),
				Registry: telemetry.NewRegistry(buildVersion()), Log: log, Level: level,
				Load: func() (*config.Config, error) { return reloadConfig(path, log) },
			})
			if err != nil {
				return err
			}
			defer reloadOn(soft, relay, cfg.Reload.Watch, path, log)()
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

// reloadConfig reads the configuration again and logs its warnings.
func reloadConfig(path string, log *zap.Logger) (*config.Config, error) {
	if path == "-" {
		return nil, errors.New("the configuration was read from standard input, which is gone: restart the relay")
	}
	cfg, warnings, err := config.LoadToRun(path)
	for _, w := range warnings {
		log.Warn("configuration warning", zap.Stringer("warning", w))
	}
	return cfg, err
}

// reloadOn reloads on SIGHUP and, if asked to, when the file changes, until ctx ends or
// end is called, which must be.
func reloadOn(ctx context.Context, relay *app.App, watch bool, path string, log *zap.Logger) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	hangups := make(chan os.Signal, 1) // one that is waiting stands for all
	signal.Notify(hangups, syscall.SIGHUP)
	var reloading sync.WaitGroup
	reloading.Go(func() {
		defer signal.Stop(hangups)
		for {
			select {
			case <-ctx.Done():
				return
			case <-hangups:
				_, _ = relay.Reload(ctx) // it has logged and kept why it did not work
			}
		}
	})
	if watch {
		reloading.Go(func() {
			if err := relay.Watch(ctx, path); err != nil {
				log.Error("the configuration is not watched; send SIGHUP to reload it", zap.Error(err))
			}
		})
	}
	return func() {
		cancel()
		reloading.Wait()
	}
}

// instance names this process: the host's name, which is the pod's on Kubernetes.
func instance() string {
	name, err := os.Hostname()
	if err != nil {
		return fmt.Sprintf("pid-%d", os.Getpid())
	}
	return name
}

// agent is what "run" calls itself to the far sides, for commands that ask them, too.
func agent() string { return app.Agent(buildVersion(), instance()) }
