package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The relay knows the memory limit that its container has, and keeps below it, with no
// variable that says so.
func TestMemoryLimitOfTheContainer(t *testing.T) {
	t.Parallel()
	require.Zero(t, os.Geteuid(), "the test makes a control group as a container runtime does: run it as root")
	c := newContainer(t, openMade(t).image(t, runtime.GOARCH), "", map[string]string{
		"etc/mnsrelay/mnsrelay.yaml": "server: {listen: 127.0.0.1:0}\n" + configuration,
	})
	const limit = 200 << 20
	for name, test := range map[string]struct {
		env  []string
		says string
	}{
		"the container's":   {env: []string{}, says: fmt.Sprintf(`"memory_limit":%d`, limit*9/10)},
		"the environment's": {env: []string{"GOMEMLIMIT=100MiB"}, says: fmt.Sprintf(`"memory_limit":%d`, 100<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group := newGroup(t, limit)
			ctx, cancel := context.WithCancel(context.Background())
			cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `echo $$ > "$0" && exec "$@"`, filepath.Join(group, "cgroup.procs"),
				filepath.Join(c.root, c.config.Entrypoint[0]), "run", "--config", filepath.Join(c.root, "etc/mnsrelay/mnsrelay.yaml"))
			cmd.Env = test.env
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			p := follow(t, cmd, cancel, cmd.Args)
			p.await("it has started", func() bool { return strings.Contains(p.text(), "relay started") })
			require.Contains(t, p.text(), test.says)
			require.Zero(t, p.stop(), p.text())
		})
	}
}

// newGroup makes a control group with a memory limit in bytes, of version 1 or 2, whichever
// the machine has.
func newGroup(t *testing.T, limit int) string {
	t.Helper()
	const root = "/sys/fs/cgroup"
	parent, file := filepath.Join(root, "memory"), "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		parent, file = root, "memory.max"
		require.NoError(t, os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+memory"), 0o600))
	}
	group := filepath.Join(parent, fmt.Sprintf("mnsrelay-%d-%s", os.Getpid(), url.PathEscape(t.Name())))
	require.NoError(t, os.Mkdir(group, 0o700))
	t.Cleanup(func() {
		// What was in it has ended, and the kernel may see that a moment later.
		require.Eventually(t, func() bool {
			err := os.Remove(group)
			return err == nil || errors.Is(err, os.ErrNotExist)
		}, 10*time.Second, 50*time.Millisecond)
	})
	require.NoError(t, os.WriteFile(filepath.Join(group, file), []byte(strconv.Itoa(limit)), 0o600))
	return group
}
