package process_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"mnsrelay/test/process"
)

// Nothing listens on the ports that were found, and yet nobody else finds them.
func TestFreePortsBelongToTheirFinder(t *testing.T) {
	t.Parallel()
	ports, err := process.FreePorts(t.Context(), 8)
	require.NoError(t, err)
	require.Len(t, ports, 8)
	for _, port := range ports {
		f, err := os.OpenFile(fmt.Sprintf("/tmp/mnsrelay-ports-%d/%d", os.Getuid(), port), os.O_RDWR, 0)
		require.NoError(t, err)
		require.ErrorIs(t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), syscall.EWOULDBLOCK)
		require.NoError(t, f.Close())
	}
}
