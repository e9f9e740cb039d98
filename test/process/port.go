package process

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"time"
)

// FreePorts finds ports below those that the kernel hands out to clients, so that
// none is taken by a client while the node is stopped.
func FreePorts(ctx context.Context, count int) ([]int, error) {
	var ports []int
	for range 1000 {
		port := 15000 + rand.IntN(17000) //nolint:gosec // Any number will do.
		var lc net.ListenConfig
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		// Held until all are found: no port is found twice.
		defer l.Close() //nolint:errcheck // Nothing was accepted.
		if ports = append(ports, port); len(ports) == count {
			return ports, nil
		}
	}
	return nil, errors.New("find free ports on loopback: none between 15000 and 32000")
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
