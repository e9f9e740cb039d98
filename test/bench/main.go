// Command bench measures the relay's parts against the least code that could do their work,
// in one run and in turn, so that what the machine does meanwhile falls on all alike. Run it
// with "make bench".
//
// Each sink is fed from memory with batches of 16, 256 messages outstanding, as pipelines
// do, and sends what the bare client beside it sends.
//
// amqp091: over one connection, against a bare publisher of the same library that keeps 256
// confirms outstanding on one channel. Both publish to the same private RabbitMQ node.
//
// webhook: against a bare client of net/http with as many requests at once. Both post to the
// same receiver, a process of its own on loopback that reads the body and answers 204. Of
// signed requests the bare client's have no signature.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == receiverArg {
		exit(receive(os.Stdin, os.Stdout))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.IntVar(&o.messages, "messages", 20_000, "how many messages a run sends")
	flag.IntVar(&o.size, "size", 1024, "bytes of a body")
	flag.IntVar(&o.rounds, "rounds", 9, "how many runs of each there are, in turn")
	of := flag.String("of", "amqp091,webhook", "what is measured")
	asJSON := flag.Bool("json", false, "write JSON instead of a table")
	flag.Parse()
	o.of = strings.Split(*of, ",")
	r, err := measure(ctx, o)
	exit(err)
	if *asJSON {
		exit(json.NewEncoder(os.Stdout).Encode(r))
	} else {
		exit(r.table(os.Stdout))
	}
}

// exit ends the process where there is an error.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options say what is measured, and how much of it.
type options struct {
	of                     []string
	messages, size, rounds int
}

// field is where some compete: they send the same messages to one far side.
type field struct {
	far farSide
	// contenders take turns; the first is the bare one.
	contenders []contender
}

// farSide counts what has arrived since it was empty.
type farSide interface {
	empty() error
	count() (int, error)
	close()
}

type contender struct {
	name string
	send func(context.Context, []message) error
}

// run is one measurement.
type run struct {
	// PerSecond is messages a second.
	PerSecond float64 `json:"per_second"`
	// CPU is that of this process in microseconds a message: the client and, in one process
	// with it, whatever feeds it.
	CPU float64 `json:"cpu_us"`
}

// report is what was measured.
type report struct {
	Messages int       `json:"messages"`
	Size     int       `json:"size"`
	Results  []results `json:"results"`
}

// results are those of one contender.
type results struct {
	Of   string `json:"of"`
	Name string `json:"name"`
	Runs []run  `json:"runs"`
	// Ratio is that of messages a second to those of the bare one in the same round, in the
	// median over the rounds, and CPURatio that of the processor time.
	Ratio    float64 `json:"ratio"`
	CPURatio float64 `json:"cpu_ratio"`
}

// measure lets all contenders take turns, one field after the other.
func measure(ctx context.Context, o options) (*report, error) {
	open := map[string]func(context.Context) (*field, error){"amqp091": openAMQP091, "webhook": openWebhook}
	r := &report{Messages: o.messages, Size: o.size}
	for _, of := range o.of {
		if open[of] == nil {
			return nil, fmt.Errorf("there is no %q to measure: choose from amqp091 and webhook", of)
		}
	}
	ms := messages(o.messages, o.size)
	for _, of := range o.of {
		f, err := open[of](ctx)
		if err != nil {
			return nil, err
		}
		all, err := f.compete(ctx, of, ms, o.rounds)
		f.far.close()
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", of, err)
		}
		r.Results = append(r.Results, all...)
	}
	return r, nil
}

func (f *field) compete(ctx context.Context, of string, ms []message, rounds int) ([]results, error) {
	all := make([]results, len(f.contenders))
	for round := range rounds + 1 {
		for i, c := range f.contenders {
			all[i].Of, all[i].Name = of, c.name
			if err := f.far.empty(); err != nil {
				return nil, err
			}
			runtime.GC() // what another has left
			began, used := time.Now(), processorTime()
			if err := c.send(ctx, ms); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			took, spent := time.Since(began), processorTime()-used
			if n, err := f.far.count(); err != nil || n != len(ms) {
				return nil, fmt.Errorf("%s: %d of %d messages have arrived: %w", c.name, n, len(ms), err)
			}
			if round == 0 {
				continue // to warm up
			}
			all[i].Runs = append(all[i].Runs, run{
				PerSecond: float64(len(ms)) / took.Seconds(),
				CPU:       float64(spent.Microseconds()) / float64(len(ms)),
			})
		}
	}
	for i := range all {
		all[i].Ratio = ratio(all[i].Runs, all[0].Runs, perSecond)
		all[i].CPURatio = ratio(all[i].Runs, all[0].Runs, cpu)
	}
	return all, nil
}

// ratio compares those that were neighbours in time, so that what else the machine did for
// minutes does not matter.
func ratio(runs, bare []run, of func(run) float64) float64 {
	ratios := make([]float64, len(runs))
	for i := range runs {
		ratios[i] = of(runs[i]) / of(bare[i])
	}
	return median(ratios)
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

// spread gives the median, the least and the most.
func spread(runs []run, of func(run) float64) (middle, least, most float64) {
	values := make([]float64, len(runs))
	for i := range runs {
		values[i] = of(runs[i])
	}
	return median(values), slices.Min(values), slices.Max(values)
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

func (r *report) table(to io.Writer) error {
	var rows strings.Builder
	fmt.Fprintf(&rows, "messages of %d B, %d a run\tmessages/s: median\tmin\tmax\tto bare\tCPU us/message: median\tmin\tmax\tto bare\t\n", r.Size, r.Messages)
	for _, row := range r.Results {
		rate, slowest, fastest := spread(row.Runs, perSecond)
		used, least, most := spread(row.Runs, cpu)
		fmt.Fprintf(&rows, "%s\t%.0f\t%.0f\t%.0f\t%.2f\t%.1f\t%.1f\t%.1f\t%.2f\t\n", row.Name,
			rate, slowest, fastest, row.Ratio, used, least, most, row.CPURatio)
	}
	table := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	if _, err := io.WriteString(table, rows.String()); err != nil {
		return err
	}
	return table.Flush()
}
