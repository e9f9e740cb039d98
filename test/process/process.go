// Package process runs the servers that tests start: children that can be stopped in
// every way that a fault would, and that do not outlive the test.
package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"syscall"
)

// Process is a child with all that it started itself.
type Process struct {
	pid  int
	done chan struct{} // closed when it and its own children have ended
	err  error         // how it ended; read after done
}

// Start starts cmd in a process group of its own, out of reach of the terminal's
// Ctrl-C, so that we decide in which order things end. It is killed when this
// process dies. What it writes goes to output, if that is not nil.
func Start(cmd *exec.Cmd, output io.Writer) (*Process, error) {
	if output == nil {
		output = io.Discard
	}
	// A writer of ours makes a pipe, and Wait then returns only when the last child
	// that inherited it has ended: Erlang's helpers outlive it for a moment.
	cmd.Stdout = output
	cmd.Stderr = output
	cmd.SysProcAttr = attributes()
	p := &Process{done: make(chan struct{})}
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

// Done is closed when the process and its own children have ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Outcome says how the process ended; call it after Done.
func (p *Process) Outcome() error {
	if p.err == nil {
		return errors.New("the process ended by itself")
	}
	return fmt.Errorf("the process ended: %w", p.err)
}

// PID is the number of the process.
func (p *Process) PID() int { return p.pid }

// ExitCode is what the process ended with, -1 where a signal ended it; call it after
// Done.
func (p *Process) ExitCode() int {
	if exit, ok := errors.AsType[*exec.ExitError](p.err); ok {
		return exit.ExitCode()
	}
	if p.err != nil {
		return -1
	}
	return 0
}

// Signal sends s to the process and those of its group. After SIGSTOP it returns when the
// process has stopped.
func (p *Process) Signal(s syscall.Signal) error {
	select {
	case <-p.done:
		return errors.New("the process has ended")
	default:
	}
	if err := syscall.Kill(-p.pid, s); err != nil {
		return fmt.Errorf("send %v to process %d: %w", s, p.pid, err)
	}
	if s == syscall.SIGSTOP {
		return p.awaitStopped()
	}
	return nil
}

// End sends s and waits until the process and its children are gone. One that has
// ended is fine.
func (p *Process) End(ctx context.Context, s syscall.Signal) error {
	if err := p.Signal(s); err != nil {
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
