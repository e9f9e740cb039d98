package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/spf13/cobra"

	"mnsrelay/internal/mns"
)

func newQueueSend() *cobra.Command {
	var f queueFlags
	var encode bool
	var delay time.Duration
	cmd := &cobra.Command{
		Use:   "send [flags] [BODY...]",
		Short: "Send messages",
		Long: `Sends each argument as a message or, without arguments, each line of standard input that is not
empty. Prints the id of each message, a line each, in order.`,
		Example: `  mnsrelay queue send --endpoint http://127.0.0.1:8090 --queue orders '{"id":1}' '{"id":2}'
  mnsrelay queue send --config mnsrelay.yaml --source orders --base64 < bodies.txt`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if delay < 0 || delay > 7*24*time.Hour {
				return usagef(cmd, "--delay must be from 0s to 168h")
			}
			queue, _, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer queue.Close()
			s := sender{queue: queue, out: cmd.OutOrStdout(), delay: delay, base64: encode}
			return s.run(cmd.Context(), bodies(args, cmd.InOrStdin()))
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&encode, "base64", false, "encode bodies as base64, as binary ones must be")
	cmd.Flags().DurationVar(&delay, "delay", 0, "how long messages stay invisible (default: what the queue has)")
	return cmd
}

// bodies gives what to send, up to the first error.
func bodies(args []string, stdin io.Reader) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, arg := range args {
			if !yield([]byte(arg), nil) {
				return
			}
		}
		if len(args) > 0 {
			return
		}
		lines := bufio.NewScanner(stdin)
		lines.Buffer(nil, mns.MaxBody+2) // and the line's end
		for lines.Scan() {
			if len(lines.Bytes()) > 0 && !yield(bytes.Clone(lines.Bytes()), nil) {
				return
			}
		}
		if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
			yield(nil, fmt.Errorf("read standard input: a line is longer than %d bytes, which MNS does not take", mns.MaxBody))
		} else if err != nil {
			yield(nil, fmt.Errorf("read standard input: %w", err))
		}
	}
}

// sender gathers bodies into requests.
type sender struct {
	queue  *mns.Queue
	out    io.Writer
	delay  time.Duration
	base64 bool

	batch []mns.Outgoing
	size  int
	sent  int
}

// run sends everything, or what comes before the first error.
func (s *sender) run(ctx context.Context, bodies iter.Seq2[[]byte, error]) error {
	for body, err := range bodies {
		if err != nil {
			return errors.Join(s.flush(ctx), err)
		}
		if s.base64 {
			body = base64.StdEncoding.AppendEncode(nil, body)
		}
		if len(body) > mns.MaxBody {
			return errors.Join(s.flush(ctx), fmt.Errorf("message %d: the body has %d bytes, and MNS takes %d", s.sent+1, len(body), mns.MaxBody))
		}
		if len(s.batch) == mns.MaxBatch || s.size+len(body) > mns.MaxBody {
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
		s.batch = append(s.batch, mns.Outgoing{Body: body, Delay: s.delay})
		s.size += len(body)
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	if s.sent == 0 {
		return errors.New("nothing was sent: there was no argument, and no line on standard input")
	}
	return nil
}

// flush sends what was gathered. Messages of a request are taken or refused one by
// one: it prints the ids of those that were taken and gives the errors of the others.
func (s *sender) flush(ctx context.Context) error {
	if len(s.batch) == 0 {
		return nil
	}
	results, err := s.queue.BatchSend(ctx, s.batch)
	if err != nil {
		return advise(err)
	}
	var errs []error
	for i, r := range results {
		if r.Err != nil {
			errs = append(errs, fmt.Errorf("message %d: %w", s.sent+i+1, advise(r.Err)))
			continue
		}
		if _, err := fmt.Fprintln(s.out, r.ID); err != nil {
			return err
		}
	}
	s.sent += len(results)
	s.batch, s.size = s.batch[:0], 0
	return errors.Join(errs...)
}
