// Command bench measures the relay against the least code that could do its work and
// against what its users would write instead, in one run and in turn, so that what the
// machine does meanwhile falls on all alike. Run it with "make bench".
//
// Every contender is a process of its own between the same emulated MNS ("mnsrelay
// emulator") and the same RabbitMQ node, processes of their own too, whose processor time
// is read separately from /proc:
//
//   - floor: net/http, a scanner made for these answers alone, a window of publisher
//     confirms as wide as the batch, a batch delete; then the next receive. It has no
//     leases, no retries, no metrics, and ends with the first error.
//   - usual: the official SDK's BatchReceiveMessage, one publish after the other with a
//     wait for each confirm, BatchDeleteMessage.
//   - overlap: the floor, whose pollers receive again while earlier batches, as many as the
//     relay's room holds, are published and deleted.
//   - post: the floor with a POST for each message in the place of the publish.
//   - relay: mnsrelay run, as its defaults are, with as many pollers.
//
// All receive batches of 16 with the same number of pollers, sign their requests, decode
// base64 (bodies of 64 KiB are raw: MNS takes no longer ones) and publish persistent, mandatory
// messages with the same headers. Go's collector runs as often in the floor as in the relay, and
// in the usual way by Go's default. The usual way has a part of the messages, or it would take
// minutes.
//
// A contender is measured from when a tenth of its messages has been deleted from MNS until
// all have: starting is not in it, unless there are too few for that. What the run before it
// has left to write to the disk is written by then. Afterwards every message must have arrived
// exactly once and none may be left, or the run fails. Contenders take turns, each round
// beginning with another; what is judged are ratios within a round, in the median over the
// rounds.
//
// Latency is from the moment at which the sender hands a message to MNS to that at which a
// consumer of RabbitMQ has it (or the receiver of webhooks), both read by this process from
// one clock. A confirm is known to its contender alone, and what leaves MNS later shows how
// long deletes are gathered; the arrival is what others see. A second queue keeps every
// message, so that the broker writes and confirms as it would without that consumer. Of a
// backlog there is no latency: it says how long the backlog is.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	scenarios []string
	rounds    int
	// scale is by what the number of messages of every scenario is multiplied.
	scale    float64
	pollers  int
	rest     time.Duration
	profiles string
	docs     string
	// log is told what goes on.
	log func(format string, args ...any)
}

func main() {
	if len(os.Args) == 2 && part(os.Args[1]) != nil {
		exit(part(os.Args[1])(os.Stdin, os.Stdout))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o := options{log: func(format string, args ...any) { _, _ = fmt.Fprintf(os.Stderr, format+"\n", args...) }}
	names := flag.String("scenario", strings.Join(standard(), ","), "what is measured: "+strings.Join(everything(), ","))
	flag.IntVar(&o.rounds, "rounds", 5, "how many runs of each contender there are, in turn")
	flag.Float64Var(&o.scale, "scale", 1, "by what the number of messages is multiplied")
	flag.IntVar(&o.pollers, "pollers", 8, "how many pollers each contender has")
	flag.DurationVar(&o.rest, "rest", 30*time.Second, "how long a relay is looked at that has nothing to do")
	flag.StringVar(&o.profiles, "profiles", "", "a `FOLDER` for processor profiles of the contenders, which cost some themselves")
	flag.StringVar(&o.docs, "docs", "", "the `FOLDER` of performance.md, whose tables and chart are written anew")
	asJSON := flag.Bool("json", false, "write JSON instead of tables")
	check := flag.Bool("check", false, "exit with 1 where a target does not hold")
	flag.Parse()
	o.scenarios = strings.Split(*names, ",")
	if o.profiles != "" {
		exit(os.MkdirAll(o.profiles, 0o700))
	}
	outcomes, err := measure(ctx, o)
	exit(err)
	if *asJSON {
		exit(json.NewEncoder(os.Stdout).Encode(outcomes))
	} else {
		exit(writeTables(os.Stdout, outcomes))
	}
	if o.docs != "" {
		exit(writeDocs(o.docs, outcomes))
	}
	if *check {
		exit(failedTargets(outcomes))
	}
}

// part is what this program does where it is started by itself; nil: nothing of its own.
func part(argument string) func(in io.Reader, out io.Writer) error {
	switch argument {
	case receiverArg:
		return receive
	case contenderArg:
		return contend
	}
	return nil
}

// exit ends the process where there is an error.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// measure plays one scenario after the other.
func measure(ctx context.Context, o options) (_ []*outcome, err error) {
	for _, name := range o.scenarios {
		if !slices.Contains(everything(), name) {
			return nil, fmt.Errorf("there is no %q to measure: choose from %s", name, strings.Join(everything(), ", "))
		}
	}
	w := &world{options: o}
	defer func() { err = errors.Join(err, w.close()) }() //nolint:contextcheck // What was started is ended though ctx may have.
	var outcomes []*outcome
	for _, name := range o.scenarios {
		contests, err := w.contests(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		for _, c := range contests {
			played, err := c.play(ctx, o)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.Scenario, err)
			}
			outcomes = append(outcomes, played)
		}
	}
	return outcomes, nil
}
