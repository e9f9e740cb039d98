package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// contenderArg makes this program a contender: see contend.
const contenderArg = "contender"

// task is what a contender of this program is told.
type task struct {
	// Contender is floor, usual, overlap or post.
	Contender string `json:"contender"`
	Endpoint  string `json:"endpoint"`
	Queue     string `json:"queue"`
	Pollers   int    `json:"pollers"`
	// Raw: bodies are not base64.
	Raw bool `json:"raw"`
	// Broker is the URL of RabbitMQ, Key the routing key; Hook is where to POST instead.
	Broker string `json:"broker"`
	Key    string `json:"key"`
	Hook   string `json:"hook"`
	// Profile is the file for a processor profile; empty: none.
	Profile string `json:"profile"`
}

// memoryUse is what a process has allocated so far.
type memoryUse struct {
	Allocations uint64 `json:"allocations"`
	Bytes       uint64 `json:"bytes"`
}

// contend reads a task, then answers every line with what was allocated so far. It ends when
// in does, and with the first error.
func contend(in io.Reader, out io.Writer) (err error) {
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return errors.New("there is no task")
	}
	var t task
	if err := json.Unmarshal(lines.Bytes(), &t); err != nil {
		return fmt.Errorf("read the task: %w", err)
	}
	if t.Profile != "" {
		file, err := os.Create(t.Profile)
		if err != nil {
			return err
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			return errors.Join(err, file.Close())
		}
		defer func() {
			pprof.StopCPUProfile()
			err = errors.Join(err, file.Close())
		}()
	}
	if t.Contender != usual {
		debug.SetGCPercent(collectorPercent)
	}
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	var asked sync.WaitGroup
	asked.Go(func() {
		for lines.Scan() {
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			if err := json.NewEncoder(out).Encode(memoryUse{stats.Mallocs, stats.TotalAlloc}); err != nil {
				break
			}
		}
		stop(errToldToEnd)
	})
	run := map[string]func(context.Context, *amqp.Connection, *task, func(error)) error{
		"floor": runFloor, "usual": runUsual, "overlap": runOverlap, "post": runFloor,
	}[t.Contender]
	if run == nil {
		return fmt.Errorf("there is no contender %q", t.Contender)
	}
	var conn *amqp.Connection
	if t.Broker != "" {
		if conn, err = amqp.Dial(t.Broker); err != nil {
			return err
		}
		defer func() { _ = conn.CloseDeadline(time.Now().Add(time.Second)) }()
	}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, conn, &t, stop) }()
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	// The SDK's polls know no context: the process ends over them.
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, errToldToEnd) {
		return nil
	}
	return err
}

// collectorPercent is the relay's GOGC, which what it is measured against has too.
const collectorPercent = 300

var errToldToEnd = errors.New("told to end")

// child is this program started as a part of it. It ends when its input does, and so with
// this process.
type child struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Reader
	output  io.Closer     // what out reads from
	done    chan struct{} // closed when it has ended
	err     error         // how; read after done
}

// startChild starts this program with one argument. It is killed when ctx ends.
func startChild(ctx context.Context, argument string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{command: exec.CommandContext(ctx, self, argument), done: make(chan struct{})} //nolint:gosec // This very program.
	c.command.Stderr = os.Stderr
	if c.in, err = c.command.StdinPipe(); err != nil {
		return nil, err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.command.Stdout, c.out = writer, bufio.NewReader(reader)
	c.output = reader
	err = c.command.Start()
	_ = writer.Close() // the child has its own: reading ends with it
	if err != nil {
		return nil, errors.Join(err, reader.Close())
	}
	go func() {
		c.err = c.command.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.command.Process.Pid }

func (c *child) ended() <-chan struct{} { return c.done }

// tell writes a line of JSON.
func (c *child) tell(value any) error { return json.NewEncoder(c.in).Encode(value) }

// memory asks what was allocated.
func (c *child) memory(context.Context) (use memoryUse, err error) {
	if err := c.tell(struct{}{}); err != nil {
		return use, err
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return use, err
	}
	return use, json.Unmarshal(line, &use)
}

// end lets it end and waits for that.
func (c *child) end() error {
	_ = c.in.Close()
	<-c.done
	_ = c.output.Close()
	return c.err
}
