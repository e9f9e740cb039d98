package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/internal/config"
	"mnsrelay/internal/mns"
)

// leastInterval bounds how often a queue is asked: MNS bills each request.
const leastInterval = time.Second

func newQueueStats() *cobra.Command {
	var f queueFlags
	var watch, asJSON bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "stats",
		Short: "Count the messages of queues, as far as they tell",
		Long: `Prints how many messages are visible (active), under lease (inactive) and not visible yet
(delayed), about, and the queue's settings. With --config and without --source: of all sources,
in one table.

What a server does not tell is "-". Newer ones may say 0 for all three, whatever the queue holds,
so that is "-" as well until one of them was something else.

--watch asks again every --interval until Ctrl-C. CHANGE is how many messages a second came, or
went, since the line before, of all three together. On a terminal the table stays in its place;
elsewhere lines are added. Each time is one request for each queue, which MNS bills.

--json prints a line for each queue, each time. What is not known is not in it.

Exit codes: 0 done, 1 a queue could not be asked (with --watch its line says so), 2 wrong usage.`,
		Example: `  mnsrelay queue stats --endpoint https://1234.mns.cn-hangzhou.aliyuncs.com --queue orders
  mnsrelay queue stats --config mnsrelay.yaml
  mnsrelay queue stats --config mnsrelay.yaml --watch --interval 5s
  mnsrelay queue stats --config mnsrelay.yaml --source orders --json | jq .active`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case interval < leastInterval:
				return usagef(cmd, "--interval %v is too short: write %v or more, as MNS bills each request", interval, leastInterval)
			case cmd.Flags().Changed("interval") && !watch:
				return usagef(cmd, "--interval needs --watch")
			}
			sources, err := f.candidates(cmd)
			if err != nil {
				return err
			}
			if f.source != "" {
				source, err := f.choose(cmd, sources)
				if err != nil {
					return err
				}
				sources = config.Sources{source}
			}
			return f.stats(cmd, sources, watch, asJSON, interval)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "ask again and again, until Ctrl-C")
	cmd.Flags().DurationVar(&interval, "interval", 2*time.Second, "how often --watch asks, 1s or more")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, a line for each queue")
	return cmd
}

// stats counts once, or again and again.
func (f *queueFlags) stats(cmd *cobra.Command, sources config.Sources, watch, asJSON bool, interval time.Duration) error {
	ctx, _, release := stopOnSignals(cmd.Context())
	defer release()
	var refreshing sync.WaitGroup
	defer refreshing.Wait()
	refresh, cancel := context.WithCancel(ctx)
	defer cancel()
	queues := make([]*countedQueue, 0, len(sources))
	defer func() {
		for _, q := range queues {
			q.client.Close()
		}
	}()
	for i := range sources {
		cfg, err := f.settings(cmd, &sources[i])
		if err != nil {
			return err
		}
		client, err := f.fresh(refresh, &refreshing, cfg, sources[i].Credentials)
		if err != nil {
			return err
		}
		queues = append(queues, &countedQueue{client: client, queue: sources[i].Queue})
		if f.config != "" {
			queues[i].source = sources[i].Name
		}
	}
	out := cmd.OutOrStdout()
	if watch {
		return watchQueues(ctx, queues, interval, newReporter(out, cmd.ErrOrStderr(), queues, asJSON))
	}
	now := readAll(ctx, queues)
	switch {
	case asJSON:
		for _, c := range now {
			if err := printJSONLine(out, c.json()); err != nil {
				return err
			}
		}
	case len(now) == 1 && now[0].err == nil:
		if err := printStats(out, now[0]); err != nil {
			return err
		}
	case len(now) > 1:
		layout := layoutOf(queues, false)
		if _, err := io.WriteString(out, layout.table(now, painterFor(out))); err != nil {
			return err
		}
	}
	if uncounted(now) {
		_, _ = fmt.Fprintln(cmd.ErrOrStderr(), noteUncounted)
	}
	if len(now) == 1 {
		return advise(now[0].err)
	}
	return failures(now)
}

// failures joins what is wrong with some of several queues.
func failures(now []reading) error {
	var errs []error
	for _, c := range now {
		if c.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name(), advise(c.err)))
		}
	}
	return errors.Join(errs...)
}

// noteUncounted says why a queue that tells its counts has none.
const noteUncounted = "note: - is where the server says 0 for all three, as newer ones do whatever the queue holds; 'mnsrelay queue peek' tells whether there is a message"

// uncounted tells whether noteUncounted is true of one.
func uncounted(now []reading) bool {
	return slices.ContainsFunc(now, func(c reading) bool { return c.err == nil && !c.known && c.attributes.Counted })
}

// printStats prints what is known of one queue.
func printStats(w io.Writer, c reading) error {
	a := &c.attributes
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range [][2]string{
		{"queue", c.of.queue},
		{"active", c.number(a.Active)},
		{"inactive", c.number(a.Inactive)},
		{"delayed", c.number(a.Delayed)},
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

// countedQueue is a queue that is counted, once or more.
type countedQueue struct {
	client        *freshQueue
	source, queue string
	tells         bool     // it has counted something
	before        *reading // the last count that is known
}

// reading is what a queue told at one time.
type reading struct {
	of         *countedQueue
	at         time.Time
	attributes mns.Attributes
	// known tells that the numbers are.
	known bool
	// change is how many messages came a second; nil: not known.
	change *float64
	err    error
}

func (q *countedQueue) read(ctx context.Context) reading {
	c := reading{of: q}
	if c.err = q.client.ready(ctx); c.err == nil {
		c.attributes, c.err = q.client.Attributes(ctx)
	}
	c.at = time.Now()
	if c.err != nil {
		return c
	}
	a := &c.attributes
	q.tells = q.tells || a.Counted && a.Active+a.Inactive+a.Delayed > 0
	if c.known = q.tells && a.Counted; !c.known {
		return c
	}
	if b := q.before; b != nil {
		was := b.attributes.Active + b.attributes.Inactive + b.attributes.Delayed
		change := float64(a.Active+a.Inactive+a.Delayed-was) / c.at.Sub(b.at).Seconds()
		c.change = &change
	}
	q.before = &c
	return c
}

// readAll asks all queues at once.
func readAll(ctx context.Context, queues []*countedQueue) []reading {
	readings := make([]reading, len(queues))
	var asking sync.WaitGroup
	for i, q := range queues {
		asking.Go(func() { readings[i] = q.read(ctx) })
	}
	asking.Wait()
	return readings
}

// name is that of the source, or of the queue where there is none.
func (c *reading) name() string {
	if c.of.source == "" {
		return c.of.queue
	}
	return c.of.source
}

func (c *reading) number(n int64) string {
	if !c.known {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}

// json is a reading for programs.
func (c *reading) json() any {
	type counted struct {
		Time              string   `json:"time"`
		Source            string   `json:"source,omitempty"`
		Queue             string   `json:"queue"`
		Active            *int64   `json:"active,omitempty"`
		Inactive          *int64   `json:"inactive,omitempty"`
		Delayed           *int64   `json:"delayed,omitempty"`
		Change            *float64 `json:"change_per_second,omitempty"`
		VisibilityTimeout float64  `json:"visibility_timeout_seconds,omitempty"`
		PollingWait       *float64 `json:"polling_wait_seconds,omitempty"`
		Delay             *float64 `json:"delay_seconds,omitempty"`
		Retention         float64  `json:"retention_seconds,omitempty"`
		MaxMessageSize    int64    `json:"maximum_message_size_bytes,omitempty"`
		Error             string   `json:"error,omitempty"`
	}
	a := &c.attributes
	out := counted{Time: c.at.UTC().Format("2006-01-02T15:04:05.000Z"), Source: c.of.source, Queue: c.of.queue, Change: c.change}
	if c.err != nil {
		out.Error = advise(c.err).Error()
		return out
	}
	if c.known {
		out.Active, out.Inactive, out.Delayed = &a.Active, &a.Inactive, &a.Delayed
	}
	wait, delay := a.PollingWait.Seconds(), a.Delay.Seconds()
	out.PollingWait, out.Delay = &wait, &delay
	out.VisibilityTimeout, out.Retention, out.MaxMessageSize = a.VisibilityTimeout.Seconds(), a.Retention.Seconds(), a.MaxMessageSize
	return out
}
