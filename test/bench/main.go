// Command bench measures the relay's parts against the least code that could do their work,
// in one run and in turn, so that what the machine does meanwhile falls on both alike. Run it
// with "make bench".
//
// sink: the amqp091 sink, fed from memory with batches of 16, 256 messages outstanding, over
// one connection, against a bare publisher of the same library that keeps 256 confirms
// outstanding on one channel and sends the same properties. Both publish to the same private
// RabbitMQ node.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"mnsrelay/test/broker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.IntVar(&o.messages, "messages", 50_000, "how many messages a run sends")
	flag.IntVar(&o.size, "size", 1024, "bytes of a body")
	flag.IntVar(&o.rounds, "rounds", 5, "how many runs of each there are, in turn")
	asJSON := flag.Bool("json", false, "write JSON instead of a table")
	flag.Parse()
	r, err := measure(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:gocritic // Nothing is left to be stopped.
	}
	if *asJSON {
		err = json.NewEncoder(os.Stdout).Encode(r)
	} else {
		err = r.table(os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options say how much is measured.
type options struct{ messages, size, rounds int }

// run is one measurement.
type run struct {
	// PerSecond is messages a second.
	PerSecond float64 `json:"per_second"`
	// CPU is that of this process in microseconds a message: publisher and, in one process
	// with it, whatever feeds it.
	CPU float64 `json:"cpu_us"`
}

// report is what was measured.
type report struct {
	Messages int   `json:"messages"`
	Size     int   `json:"size"`
	Bare     []run `json:"bare"`
	Sink     []run `json:"sink"`
	// Ratio is that of the medians of messages a second, the sink's to the bare one's, and
	// CPURatio that of the processor time.
	Ratio    float64 `json:"ratio"`
	CPURatio float64 `json:"cpu_ratio"`
}

// measure starts a broker and lets both take turns.
func measure(ctx context.Context, o options) (*report, error) {
	node, err := broker.Start(ctx, broker.Config{})
	if err != nil {
		return nil, err
	}
	defer func() { _ = node.Close() }() //nolint:contextcheck // It ends though ctx may have.
	queue, err := newTarget(node.URL())
	if err != nil {
		return nil, err
	}
	r := &report{Messages: o.messages, Size: o.size}
	ms := messages(o.messages, o.size)
	for round := range o.rounds + 1 {
		for _, publish := range []struct {
			to *[]run
			by func(context.Context, *target, []message) error
		}{{&r.Bare, publishBare}, {&r.Sink, publishSink}} {
			if err := queue.empty(); err != nil {
				return nil, err
			}
			began, used := time.Now(), processorTime()
			if err := publish.by(ctx, queue, ms); err != nil {
				return nil, err
			}
			took, spent := time.Since(began), processorTime()-used
			if n, err := queue.count(); err != nil || n != o.messages {
				return nil, fmt.Errorf("the queue holds %d of %d messages: %w", n, o.messages, err)
			}
			if round == 0 {
				continue // to warm up
			}
			*publish.to = append(*publish.to, run{
				PerSecond: float64(o.messages) / took.Seconds(),
				CPU:       float64(spent.Microseconds()) / float64(o.messages),
			})
		}
	}
	r.Ratio = median(r.Sink, perSecond) / median(r.Bare, perSecond)
	r.CPURatio = median(r.Sink, cpu) / median(r.Bare, cpu)
	return r, nil
}

func perSecond(r run) float64 { return r.PerSecond }
func cpu(r run) float64       { return r.CPU }

// processorTime is what this process has used so far (getrusage(2)).
func processorTime() time.Duration {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func sorted(runs []run, of func(run) float64) []float64 {
	values := make([]float64, len(runs))
	for i := range runs {
		values[i] = of(runs[i])
	}
	slices.Sort(values)
	return values
}

func median(runs []run, of func(run) float64) float64 {
	values := sorted(runs, of)
	return values[len(values)/2]
}

func (r *report) table(to io.Writer) error {
	var rows strings.Builder
	fmt.Fprintf(&rows, "messages of %d B, %d a run\tmessages/s: median\tmin\tmax\tCPU us/message: median\tmin\tmax\t\n", r.Size, r.Messages)
	for _, row := range []struct {
		name string
		runs []run
	}{{"bare amqp091-go, 256 outstanding", r.Bare}, {"amqp091 sink, confirms", r.Sink}} {
		rate, used := sorted(row.runs, perSecond), sorted(row.runs, cpu)
		fmt.Fprintf(&rows, "%s\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t\n", row.name,
			median(row.runs, perSecond), rate[0], rate[len(rate)-1], median(row.runs, cpu), used[0], used[len(used)-1])
	}
	fmt.Fprintf(&rows, "sink to bare\t%.2f\t\t\t%.2f\t\t\t\n", r.Ratio, r.CPURatio)
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	if _, err := io.WriteString(table, rows.String()); err != nil {
		return err
	}
	return table.Flush()
}
