package process

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// FreePorts finds ports below those that the kernel hands out to clients, so that
// none is taken by a client while the node is stopped. They belong to this process until
// it ends: another that asks for ports meanwhile, as packages' tests do side by side,
// gets none of them, whether something listens there at the moment or not.
func FreePorts(ctx context.Context, count int) ([]int, error) {
	var ports []int
	for range 1000 {
		port := 15000 + rand.IntN(17000) //nolint:gosec // Any number will do.
		ours, err := reserve(port)
		if err != nil {
			return nil, fmt.Errorf("reserve port %d: %w", port, err)
		}
		if !ours {
			continue
		}
		// What does not ask here may listen there all the same.
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return nil, err
		}
		if ports = append(ports, port); len(ports) == count {
			return ports, nil
		}
	}
	return nil, errors.New("find free ports on loopback: none between 15000 and 32000")
}

// reserve locks a file of the port's name, which the kernel unlocks when the process ends,
// however it ends: its descriptor stays open until then. The files stay, empty; removing
// one would let two processes lock what only seems to be the same file. The folder is that
// of the machine, as the ports are: TMPDIR may be another for each process.
func reserve(port int) (bool, error) {
	dir := fmt.Sprintf("/tmp/mnsrelay-ports-%d", os.Getuid())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	fd, err := syscall.Open(filepath.Join(dir, strconv.Itoa(port)), syscall.O_CREAT|syscall.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return false, err
	}
	err = syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return true, nil
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = nil
	}
	return false, errors.Join(err, syscall.Close(fd))
}

// AwaitPort waits until p listens.
func AwaitPort(ctx context.Context, port int, p *Process) error {
	var dialer net.Dialer
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-p.done:
			return p.Outcome()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
