package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/internal/config"
	"mnsrelay/internal/credentials"
	"mnsrelay/internal/mns"
	"mnsrelay/internal/redrive"
	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	sinkmns "mnsrelay/internal/sink/mns"
)

func newQueueRedrive() *cobra.Command {
	var f redriveFlags
	cmd := &cobra.Command{
		Use:   "redrive --from QUEUE --to QUEUE",
		Short: "Move dead letters back to the queue they came from",
		Long: `Moves messages from one queue into another. What a dead-letter sink has wrapped is unwrapped and
goes back as it was; any other message is moved as it is. Mend what the messages were dead-lettered
for first: they begin anew, with a new id and no receive counted.

A message is deleted only after the other queue has taken its copy. SIGINT and SIGTERM end the
move after the messages in hand, a second one at once; run the command again to go on. Nothing is
lost in any case; a message that was sent and not deleted when the process was killed is there twice.
A message that cannot be moved is named, and stays.

With --config, the source's dead letters go back to its queue: from the queue of its dead_letter,
a sink of type mns, with that sink's credentials.

Exit codes: 0 all moved, 1 something stayed or the move was cut short, 2 wrong usage.`,
		Example: `  mnsrelay queue redrive --config mnsrelay.yaml --source orders --dry-run
  mnsrelay queue redrive --config mnsrelay.yaml --source orders --rate 50
  mnsrelay queue redrive --endpoint https://1234.mns.cn-hangzhou.aliyuncs.com --from orders-dead --to orders`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.addCommon(cmd)
	cmd.Flags().StringVar(&f.queue, "from", "", "the `NAME` of the queue to take messages from")
	cmd.Flags().StringVar(&f.to, "to", "", "the `NAME` of the queue to move them to")
	cmd.Flags().StringVar(&f.toEndpoint, "to-endpoint", "", "the `URL` of its MNS server, if it is another one")
	cmd.Flags().IntVar(&f.most, "max", 0, "move up to `N` messages (default: all)")
	cmd.Flags().Float64Var(&f.rate, "rate", 0, "move up to `N` messages a second (default: as many as can be)")
	cmd.Flags().DurationVar(&f.wait, "wait", 3*time.Second, "end when no message has come for so long, 1s to 30s")
	cmd.Flags().BoolVar(&f.dry, "dry-run", false, "show the first messages, and move nothing")
	jsonFlag(cmd, &f.json)
	return cmd
}

// redriveFlags say what is moved where; queueFlags.queue is where from.
type redriveFlags struct {
	queueFlags
	to, toEndpoint string
	most           int
	rate           float64
	wait           time.Duration
	dry, json      bool
}

// end is one of the two queues.
type end struct {
	endpoint    string
	queue       string
	credentials credentials.Config
}

func (f *redriveFlags) run(cmd *cobra.Command) error {
	if f.most < 0 {
		return usagef(cmd, "--max must not be negative")
	}
	if f.rate < 0 {
		return usagef(cmd, "--rate must not be negative")
	}
	if f.wait < time.Second || f.wait > mns.MaxWait {
		return usagef(cmd, "--wait must be from 1s to 30s")
	}
	from, to, err := f.ends(cmd)
	if err != nil {
		return err
	}

	stop, work, release := stopOnSignals(cmd.Context())
	defer release()
	var refreshing sync.WaitGroup
	defer refreshing.Wait()
	refresh, cancel := context.WithCancel(cmd.Context())
	defer cancel()
	origin, err := f.connect(refresh, &refreshing, from)
	if err != nil {
		return err
	}
	defer origin.Close()
	destination, err := f.connect(refresh, &refreshing, to)
	if err != nil {
		return err
	}
	defer destination.Close()

	// Before anything is taken: keys that may not ask this may still be good to send.
	if _, err := destination.Attributes(stop); err != nil && !mns.NotAllowed(err) {
		return fmt.Errorf("look at %s: %w", to.queue, advise(err))
	}
	total := 0
	if a, err := origin.Attributes(stop); err == nil && a.Counted {
		total = int(a.Active)
	}
	if f.dry {
		return f.preview(stop, cmd.OutOrStdout(), origin, from, to, total)
	}
	if f.most > 0 && total > 0 {
		total = min(total, f.most)
	}
	bar := newProgress(cmd.ErrOrStderr(), total)
	began := time.Now()
	done, err := redrive.New(redrive.Config{Max: f.most, Rate: f.rate, Wait: f.wait}, redrive.Deps{
		From: origin, To: destination, Report: bar.show,
		Stays: func(id string, why error) { bar.say("message %s stays: %v", id, why) },
	}).Run(stop, work)
	bar.clear()
	if told := f.summarize(cmd.OutOrStdout(), done, from, to, time.Since(began)); told != nil {
		return errors.Join(err, told)
	}
	switch {
	case err != nil && stop.Err() != nil:
		return fmt.Errorf("stopped: %w; run the command again to go on", context.Cause(stop))
	case err != nil:
		return fmt.Errorf("%w; run the command again to go on", advise(err))
	case done.Stayed > 0 || done.Twofold > 0:
		return errSilent
	}
	f.tellLeased(work, cmd.ErrOrStderr(), origin, from)
	return nil
}

// ends finds the two queues.
func (f *redriveFlags) ends(cmd *cobra.Command) (from, to end, err error) {
	if from, to, err = f.named(cmd); err != nil {
		return from, to, err
	}
	if f.to != "" {
		to.queue = f.to
	}
	if f.toEndpoint != "" {
		to.endpoint = f.toEndpoint
	}
	if from.queue == to.queue && from.endpoint == to.endpoint {
		return from, to, usagef(cmd, "the messages of %s cannot be moved into itself: write --to with another queue", from.queue)
	}
	for _, e := range []struct {
		end
		queue, endpoint string // the flags
	}{{from, "from", "endpoint"}, {to, "to", "to-endpoint"}} {
		err := (&mns.Config{Endpoint: e.end.endpoint, Queue: e.end.queue}).Validate()
		problem, found := errors.AsType[*setting.Problem](err)
		switch {
		case !found:
		case problem.Path == "queue":
			return from, to, usagef(cmd, "--%s %s", e.queue, problem.Message)
		case f.toEndpoint == "":
			return from, to, usagef(cmd, "--endpoint %s", problem.Message)
		default:
			return from, to, usagef(cmd, "--%s %s", e.endpoint, problem.Message)
		}
	}
	return from, to, nil
}

// named gives the two queues before --to and --to-endpoint.
func (f *redriveFlags) named(cmd *cobra.Command) (from, to end, err error) {
	if f.config == "" {
		switch {
		case f.source == "" && f.queue == "":
			return from, to, usagef(cmd, "which queues? write --endpoint URL --from NAME --to NAME, or --config FILE --source NAME")
		case f.source == "" && f.to == "":
			return from, to, usagef(cmd, "where to? write --to NAME")
		}
		source, err := f.find(cmd)
		from = endOf(source)
		return from, from, err
	}
	if err := exclusive(cmd, "config", "endpoint"); err != nil {
		return from, to, err
	}
	cfg, err := load(cmd, f.config)
	if err != nil {
		return from, to, err
	}
	source, err := f.choose(cmd, cfg.Sources)
	if err != nil {
		return from, to, err
	}
	to = endOf(source)
	if f.queue == "" {
		from, err = deadLetterQueue(cmd, cfg, source)
		return from, to, err
	}
	from = to
	from.queue = f.queue
	return from, to, nil
}

func endOf(s config.Source) end {
	return end{endpoint: s.Endpoint.Reveal(), queue: s.Queue, credentials: s.Credentials}
}

// deadLetterQueue is where a source's dead letters are, if they are in a queue.
func deadLetterQueue(cmd *cobra.Command, cfg *config.Config, source config.Source) (end, error) {
	if source.DeadLetter == "" {
		return end{}, usagef(cmd, "the source %s has no dead_letter: write --from with the queue to take messages from", source.Name)
	}
	for _, s := range cfg.Sinks {
		if c, is := s.Settings.(*sinkmns.Config); is && s.Name == source.DeadLetter {
			return end{endpoint: c.Endpoint.Reveal(), queue: c.Queue, credentials: c.Credentials}, nil
		}
	}
	return end{}, usagef(cmd, "the dead letters of the source %s are in the sink %s, which is no queue of MNS: write --from with the queue to take messages from",
		source.Name, source.DeadLetter)
}

// connect makes the client of a queue and waits for its first keys.
func (f *redriveFlags) connect(ctx context.Context, refreshing *sync.WaitGroup, e end) (*mns.Queue, error) {
	cfg := mns.Config{Name: e.queue, Endpoint: e.endpoint, Queue: e.queue, RequestTimeout: f.timeout}
	queue, err := f.fresh(ctx, refreshing, cfg, e.credentials)
	if err != nil {
		return nil, err
	}
	if err := queue.ready(ctx); err != nil {
		queue.Close()
		return nil, fmt.Errorf("%s: %w", e.queue, err)
	}
	return queue.Queue, nil
}

// summarize says what became of the messages.
func (f *redriveFlags) summarize(w io.Writer, done redrive.Progress, from, to end, took time.Duration) error {
	if f.json {
		return printJSON(w, movedJSON{from.queue, to.queue, done.Moved, done.Unwrapped, done.Stayed, done.Twofold, took.Seconds()})
	}
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "moved %s from %s to %s in %v, %d unwrapped\n", count(done.Moved, "message"), from.queue, to.queue,
		took.Round(time.Millisecond), done.Unwrapped)
	if done.Stayed > 0 {
		_, _ = fmt.Fprintf(&b, "%s stayed in %s: standard error says why\n", count(done.Stayed, "message"), from.queue)
	}
	if done.Twofold > 0 {
		_, _ = fmt.Fprintf(&b, "%s may be in both queues: the copy was sent, and the delete is not confirmed\n", count(done.Twofold, "message"))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// tellLeased says that messages are left which somebody holds, as a move does that was
// killed.
func (f *redriveFlags) tellLeased(ctx context.Context, w io.Writer, origin *mns.Queue, from end) {
	a, err := origin.Attributes(ctx)
	if err != nil || !a.Counted || a.Inactive+a.Delayed == 0 || f.most > 0 {
		return
	}
	_, _ = fmt.Fprintf(w, "note: about %s in %s were under lease or not visible yet, and are still there; leases last %v\n",
		count(int(a.Inactive+a.Delayed), "message"), from.queue, a.VisibilityTimeout)
}

// preview shows the first messages.
func (f *redriveFlags) preview(ctx context.Context, w io.Writer, origin *mns.Queue, from, to end, total int) error {
	messages, err := origin.Peek(ctx, mns.MaxBatch)
	if err != nil {
		return fmt.Errorf("look into %s: %w", from.queue, advise(err))
	}
	letters := make([]letterJSON, len(messages))
	for i, m := range messages {
		letters[i] = letterOf(m)
	}
	if f.json {
		return printJSON(w, previewJSON{from.queue, to.queue, total, letters})
	}
	if len(messages) == 0 {
		_, err := fmt.Fprintf(w, "there is no visible message in %s\n", from.queue)
		return err
	}
	about := "an unknown number of messages"
	if total > 0 {
		about = "about " + count(total, "message")
	}
	if _, err := fmt.Fprintf(w, "would move %s from %s to %s; the first %d:\n\n", about, from.queue, to.queue, len(messages)); err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "ID\tORIGINAL ID\tSOURCE\tREASON\tATTEMPTS\tSINK\tDEAD-LETTERED")
	for _, l := range letters {
		switch {
		case l.Error != "":
			_, _ = fmt.Fprintf(table, "%s\tstays: %s\n", l.ID, l.Error)
		case !l.Wrapped:
			_, _ = fmt.Fprintf(table, "%s\tmoved as it is\n", l.ID)
		default:
			_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", l.ID, l.OriginalID, l.Source, dash(l.Reason), l.Attempts,
				dash(l.Sink), dash(l.DeadLettered))
		}
	}
	return table.Flush()
}

// The shapes of the JSON.
type (
	movedJSON struct {
		From      string `json:"from"`
		To        string `json:"to"`
		Moved     int    `json:"moved"`
		Unwrapped int    `json:"unwrapped"`
		Stayed    int    `json:"stayed"`
		// Twofold may be in both queues.
		Twofold int     `json:"twofold"`
		Seconds float64 `json:"seconds"`
	}
	previewJSON struct {
		From string `json:"from"`
		To   string `json:"to"`
		// About is how many messages there are; absent: not known.
		About    int          `json:"about,omitempty"`
		Messages []letterJSON `json:"messages"`
	}
	letterJSON struct {
		ID string `json:"id"`
		// Wrapped is what a dead-letter sink has wrapped; the rest is then of the envelope.
		Wrapped    bool   `json:"wrapped"`
		OriginalID string `json:"original_id,omitempty"`
		Source     string `json:"source,omitempty"`
		Reason     string `json:"reason,omitempty"`
		Attempts   int    `json:"attempts,omitempty"`
		Sink       string `json:"sink,omitempty"`
		// DeadLettered is when it became a dead letter.
		DeadLettered string `json:"given_up_at,omitempty"`
		// Error is why it would stay.
		Error string `json:"error,omitempty"`
	}
)

func letterOf(m relay.Message) letterJSON {
	l := letterJSON{ID: m.ID}
	envelope, is, err := mns.ReadEnvelope(m.Body)
	switch {
	case err != nil:
		l.Error = err.Error()
	case is:
		l.Wrapped, l.OriginalID, l.Source, l.Reason = true, envelope.ID, envelope.Source, envelope.Reason
		l.Attempts, l.Sink, l.DeadLettered = envelope.Attempts, envelope.Sink, envelope.Last
	}
	return l
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
