package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
)

// process is a child with all that it started itself.
type process struct {
	pid  int
	done chan struct{} // closed when it and its own children have ended
	err  error         // how it ended; read after done
}

// launch starts cmd in a process group of its own, out of reach of the terminal's
// Ctrl-C, so that we decide in which order things end. It is killed when this
// process dies.
func launch(cmd *exec.Cmd, output io.Writer) (*process, error) {
	if output == nil {
		output = newOutput("")
	}
	// A writer of ours makes a pipe, and Wait then returns only when the last child
	// that inherited it has ended: Erlang's helpers outlive it for a moment.
	cmd.Stdout = output
	cmd.Stderr = output
	cmd.SysProcAttr = attributes()
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Linux ties the death signal to the thread that forked, not to the process
		// (prctl(2)), so the thread is kept as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid = cmd.Process.Pid
		close(started)
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// outcome says how the process ended; call it after done.
func (p *process) outcome() error {
	if p.err == nil {
		return errors.New("the process ended by itself")
	}
	return fmt.Errorf("the process ended: %w", p.err)
}

// signal sends s to the process and those of its group.
func (p *process) signal(s syscall.Signal) error {
	select {
	case <-p.done:
		return errors.New("the process has ended")
	default:
	}
	if err := syscall.Kill(-p.pid, s); err != nil {
		return fmt.Errorf("send %v to process %d: %w", s, p.pid, err)
	}
	return nil
}

// end sends s and waits until the process and its children are gone. One that has
// ended is fine.
func (p *process) end(ctx context.Context, s syscall.Signal) error {
	if err := p.signal(s); err != nil {
		select {
		case <-p.done:
			return nil
		default:
			if !errors.Is(err, syscall.ESRCH) {
				return err
			}
		}
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for process %d to end: %w", p.pid, ctx.Err())
	}
}

// output keeps the last lines that a process wrote, and tells when it wrote a line
// that holds want.
type output struct {
	want string
	seen chan struct{}

	mu    sync.Mutex
	lines []string
	rest  string
	found bool
}

const keptLines = 60

func newOutput(want string) *output { return &output{want: want, seen: make(chan struct{})} }

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	lines := strings.Split(o.rest+string(p), "\n")
	o.rest = lines[len(lines)-1]
	for _, line := range lines[:len(lines)-1] {
		if o.lines = append(o.lines, line); len(o.lines) > keptLines {
			o.lines = o.lines[1:]
		}
		if !o.found && o.want != "" && strings.Contains(line, o.want) {
			o.found = true
			close(o.seen)
		}
	}
	return len(p), nil
}

func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Join(append(o.lines, o.rest), "\n")
}
