package main

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"mnsrelay/internal/mns"
)

func newQueueStats() *cobra.Command {
	var f queueFlags
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Count the messages of a queue, as far as it tells",
		Long: `Prints how many messages are visible (active), under lease (inactive) and not visible yet
(delayed), about, and the queue's settings. A count that the server does not give is "unknown",
and newer servers may say 0 for all three, whatever the queue holds.`,
		Example: `  mnsrelay queue stats --endpoint https://1234.mns.cn-hangzhou.aliyuncs.com --queue orders
  mnsrelay queue stats --config mnsrelay.yaml --source orders`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			queue, source, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer queue.Close()
			attributes, err := queue.Attributes(cmd.Context())
			if err != nil {
				return explain(err)
			}
			if attributes.Counted && attributes.Active == 0 && attributes.Inactive == 0 && attributes.Delayed == 0 {
				_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "note: some servers count nothing and say 0; 'mnsrelay queue peek' tells whether there is a message")
			}
			return printStats(cmd.OutOrStdout(), source.Queue, attributes)
		},
	}
	f.add(cmd)
	return cmd
}

func printStats(w io.Writer, queue string, a mns.Attributes) error {
	messages := func(n int64) string {
		if !a.Counted {
			return "unknown"
		}
		return strconv.FormatInt(n, 10)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"queue", queue},
		{"active", messages(a.Active)},
		{"inactive", messages(a.Inactive)},
		{"delayed", messages(a.Delayed)},
		{"visibility timeout", a.VisibilityTimeout.String()},
		{"polling wait", a.PollingWait.String()},
		{"delay", a.Delay.String()},
		{"retention", a.Retention.String()},
		{"maximum message size", strconv.FormatInt(a.MaxMessageSize, 10) + " bytes"},
	} {
		if _, err := fmt.Fprintf(table, "%s\t%s\n", row[0], row[1]); err != nil {
			return err
		}
	}
	return table.Flush()
}
