package process

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitStopped returns when no thread of p runs, after SIGSTOP: on a busy machine they go on
// for a while, and a server answers what comes in meanwhile.
func (p *Process) awaitStopped() error {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.NewTimer(20 * time.Second)
	defer timeout.Stop()
	for {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.pid))
		if err != nil {
			return fmt.Errorf("list the threads of process %d: %w", p.pid, err)
		}
		running := false
		for _, path := range threads {
			// One that is gone does not run. The name, in parentheses, may hold anything.
			if stat, err := os.ReadFile(path); err == nil { //nolint:gosec // The kernel made the path.
				_, rest, _ := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
				running = running || !bytes.HasPrefix(rest, []byte("T")) && !bytes.HasPrefix(rest, []byte("Z"))
			}
		}
		if !running {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return nil
		case <-timeout.C:
			return fmt.Errorf("process %d goes on after SIGSTOP", p.pid)
		}
	}
}
