package main_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/test/broker"
)

// patience is how long a broker may take to start and the command to end.
const patience = 60 * time.Second

// binary is the command, built once.
var binary string

func TestMain(m *testing.M) { os.Exit(buildAndRun(m)) }

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "withbroker-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binary = filepath.Join(dir, "withbroker")
	build := exec.Command("go", "build", "-o", binary, ".") //nolint:noctx // A build has no time limit of its own.
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// command is withbroker with a temporary folder of its own and a broker or none.
func command(t *testing.T, url string, args ...string) (cmd *exec.Cmd, tmp string) {
	t.Helper()
	tmp = t.TempDir()
	cmd = exec.CommandContext(t.Context(), binary, args...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, broker.Variable+"=") && !strings.HasPrefix(v, "TMPDIR=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "TMPDIR="+tmp)
	if url != "" {
		cmd.Env = append(cmd.Env, broker.Variable+"="+url)
	}
	return cmd, tmp
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	return exit.ExitCode()
}

// requireNothingLeft looks for files and processes below the temporary folder.
func requireNothingLeft(t *testing.T, tmp string) {
	t.Helper()
	left, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Eventually(t, func() bool { return len(processesIn(t, tmp)) == 0 }, patience, 20*time.Millisecond, "processes: %v", processesIn(t, tmp))
}

func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(t, err)
	var found []string
	for _, path := range environments {
		// A process may end meanwhile, or belong to somebody else.
		if environment, err := os.ReadFile(path); err == nil && strings.Contains(string(environment), dir) {
			found = append(found, path)
		}
	}
	return found
}

func TestUsersBroker(t *testing.T) {
	const url = "amqp://user:password@rabbit.example/vhost"
	cmd, tmp := command(t, url, "--", "sh", "-c", `echo "$MNSRELAY_TEST_AMQP_URL"; touch "$TMPDIR/left"; mkdir "$TMPDIR/d"; touch "$TMPDIR/d/f"; chmod 500 "$TMPDIR/d"; exit 7`)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	require.Equal(t, 7, exitCode(t, cmd.Run()))
	require.Equal(t, url+"\n", out.String())
	requireNothingLeft(t, tmp)
}

func TestUsage(t *testing.T) {
	for name, args := range map[string][]string{"nothing": nil, "dashes": {"--"}} {
		t.Run(name, func(t *testing.T) {
			cmd, tmp := command(t, "", args...)
			out, err := cmd.CombinedOutput()
			require.Equal(t, 2, exitCode(t, err))
			require.Contains(t, string(out), "usage: withbroker")
			requireNothingLeft(t, tmp)
		})
	}
	cmd, tmp := command(t, "amqp://a", "/no/such/command")
	out, err := cmd.CombinedOutput()
	require.Equal(t, 1, exitCode(t, err))
	require.Contains(t, string(out), "/no/such/command")
	requireNothingLeft(t, tmp)
}

// However it ends, its broker ends with it, and the command and what that started
// in the background.
func TestOwnBroker(t *testing.T) {
	if !broker.Installed() {
		cmd, tmp := command(t, "", "true")
		out, err := cmd.CombinedOutput()
		require.Equal(t, 1, exitCode(t, err))
		require.Contains(t, string(out), "test/setup")
		requireNothingLeft(t, tmp)
		return
	}
	const (
		ends   = `sleep 300 & echo "$MNSRELAY_TEST_AMQP_URL"; exit 3`
		stays  = `sleep 300 & echo "$MNSRELAY_TEST_AMQP_URL"; wait`
		alone  = `echo "$MNSRELAY_TEST_AMQP_URL"; exec sleep 300`
		clings = `trap "" INT TERM; sleep 300 & echo "$MNSRELAY_TEST_AMQP_URL"; wait`
	)
	for name, c := range map[string]struct {
		script  string
		signals []os.Signal
		code    int
	}{
		"failure":                 {ends, nil, 3},
		"interrupt":               {stays, []os.Signal{os.Interrupt}, 130},
		"termination":             {stays, []os.Signal{syscall.SIGTERM}, 143},
		"interrupt, twice needed": {clings, []os.Signal{os.Interrupt, os.Interrupt}, 130},
		"killed":                  {alone, []os.Signal{syscall.SIGKILL}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, tmp := command(t, "", "sh", "-c", c.script)
			cmd.Stderr = os.Stderr
			stdout, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			line := make([]byte, 256)
			n, err := stdout.Read(line)
			require.NoError(t, err)
			require.Contains(t, string(line[:n]), "amqp://guest:guest@127.0.0.1:")
			for _, s := range c.signals {
				require.NoError(t, cmd.Process.Signal(s))
				again := time.NewTimer(200 * time.Millisecond) // two at once would count as one
				<-again.C
			}
			require.Equal(t, c.code, exitCode(t, cmd.Wait()))
			if c.code < 0 {
				// Nobody is left to remove the folder; but all processes die.
				require.Eventually(t, func() bool { return len(processesIn(t, tmp)) == 0 }, patience, 20*time.Millisecond)
				return
			}
			requireNothingLeft(t, tmp)
		})
	}
}
