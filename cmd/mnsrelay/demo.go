package main

import (
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/internal/demo"
	"mnsrelay/internal/setting"
)

func newDemo() *cobra.Command {
	cfg := demo.Config{Version: buildVersion()}
	var url string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See it work, with nothing installed",
		Long: `Runs the main job in one process: an emulated MNS queue that issues tokens, messages shaped
like SMS reports, the relay, and a webhook that receives them. With --amqp-url they go to a real
RabbitMQ as well, to an exchange and a queue that are gone when the demo ends.

A summary shows how it goes; Ctrl-C drains and prints the balance.

Exit codes: 0 every message arrived or is still in its queue, 1 a message was lost.`,
		Example: `  mnsrelay demo
  mnsrelay demo --messages 1000
  mnsrelay demo --amqp-url amqp://localhost:5672/`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case cfg.Messages < 0:
				return usagef(cmd, "--messages is negative: write how many to send, or 0 to go on until Ctrl-C")
			case cfg.Rate < 1:
				return usagef(cmd, "--rate is too small: write 1 or more messages a second")
			case cfg.TokenLife < 2*time.Second || cfg.TokenLife%time.Second != 0:
				return usagef(cmd, "--token-life is wrong: write whole seconds, 2s or more")
			}
			cfg.AMQPURL = setting.NewURL(url)
			if u, err := cfg.AMQPURL.Parse(); url != "" && (err != nil || u.Scheme != "amqp" && u.Scheme != "amqps") {
				return usagef(cmd, "--amqp-url is not the address of a broker: write amqp://user:password@host:5672/")
			}
			cfg.Live = isTerminal(cmd.OutOrStdout())
			soft, hard, release := stopOnSignals(cmd.Context())
			defer release()
			return demo.Run(soft, hard, cfg, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&cfg.Messages, "messages", 0, "stop after `N` messages; 0: go on until Ctrl-C")
	flags.IntVar(&cfg.Rate, "rate", 100, "send `N` messages a second")
	flags.StringVar(&url, "amqp-url", "", "deliver to the RabbitMQ at this `URL` too")
	flags.StringVar(&cfg.Listen, "listen", "127.0.0.1:0", "the `ADDRESS` of the relay's API")
	flags.DurationVar(&cfg.TokenLife, "token-life", 30*time.Second, "how long a token lives")
	return cmd
}
