package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// insideVariable holds, as JSON, the inside that a process of this test program becomes.
const insideVariable = "MNSRELAY_IMAGE_TEST_INSIDE"

func TestMain(m *testing.M) {
	spec := os.Getenv(insideVariable)
	if spec == "" {
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, "enter the namespaces:", enter(spec))
	os.Exit(125)
}

// inside is a program in mount and process namespaces of its own, as a container runtime
// starts it.
type inside struct {
	Network string   // a file of the network namespace to join; empty: the machine's, or a new one without Args
	Root    string   // all the program sees, read-only; empty: the machine's files
	Dir     string   // where it starts
	User    int      // and group
	Args    []string // empty: hold a new network namespace until standard input ends
	Env     []string
}

// enter becomes the program. It returns if that does not work, and why.
func enter(spec string) error {
	runtime.LockOSThread() // namespaces belong to threads
	var in inside
	if err := json.Unmarshal([]byte(spec), &in); err != nil {
		return err
	}
	if len(in.Args) == 0 {
		return hold()
	}
	if in.Network != "" {
		namespace, err := os.Open(in.Network)
		if err != nil {
			return err
		}
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("join the network: %w", err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if in.Root == "" {
		if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
			return fmt.Errorf("mount /proc: %w", err)
		}
	} else if err := errors.Join(
		unix.Mount(in.Root, in.Root, "", unix.MS_BIND, ""),
		unix.Mount("", in.Root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""),
		unix.Chroot(in.Root),
	); err != nil {
		return fmt.Errorf("make %s the root: %w", in.Root, err)
	}
	if err := errors.Join(
		unix.Chdir(in.Dir),
		unix.Setgroups(nil), unix.Setresgid(in.User, in.User, in.User), unix.Setresuid(in.User, in.User, in.User),
		unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
		// Another user forgets it, so it is said again.
		unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0),
	); err != nil {
		return fmt.Errorf("become user %d: %w", in.User, err)
	}
	program := in.Args[0]
	if !strings.Contains(program, "/") {
		for _, variable := range in.Env {
			if path, found := strings.CutPrefix(variable, "PATH="); found {
				program = filepath.Join(path, program) // an image's PATH has one folder
			}
		}
	}
	return fmt.Errorf("execute %s: %w", program, unix.Exec(program, in.Args, in.Env))
}

// hold brings loopback up, says so, and keeps the namespace until standard input ends.
func hold() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	loopback, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	loopback.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, loopback); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	if _, err := os.Stdout.WriteString("ready\n"); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	if err == nil {
		os.Exit(0)
	}
	return err
}

// process is a program that runs inside.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	done   chan struct{}
	err    error // once done
	mu     sync.Mutex
	output bytes.Buffer
}

// Write keeps what the program writes.
func (p *process) Write(text []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(text)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

func command(ctx context.Context, t *testing.T, in inside) *exec.Cmd {
	t.Helper()
	require.Zero(t, os.Geteuid(), "the tests mount and change the root as a container runtime does: run them as root")
	spec, err := json.Marshal(in)
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = []string{insideVariable + "=" + string(spec)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// start starts a program inside. It, and all that it has started, is gone when the test ends.
func start(t *testing.T, in inside) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	return follow(t, command(ctx, t, in), cancel, in.Args)
}

// follow starts a command, which kill ends when the test does. What it wrote is told of a test
// that fails, under its name and arguments.
func follow(t *testing.T, cmd *exec.Cmd, kill func(), args []string) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		kill()
		<-p.done
		if t.Failed() {
			t.Logf("%s wrote:\n%s", strings.Join(args, " "), p.text())
		}
	})
	return p
}

// stop sends SIGTERM, as a runtime does, and gives the exit code.
func (p *process) stop() int {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		require.Fail(p.t, "it does not stop", p.text())
	}
	return p.cmd.ProcessState.ExitCode()
}

// await returns when ok, which is asked again and again while the program runs.
func (p *process) await(what string, ok func() bool) {
	p.t.Helper()
	deadline := time.After(time.Minute)
	for !ok() {
		select {
		case <-p.done:
			require.Fail(p.t, "it ended before "+what, "%v\n%s", p.err, p.text())
		case <-deadline:
			require.Fail(p.t, what+": not within a minute", p.text())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// newNetwork gives a network namespace with nothing but loopback, so that programs have the
// ports that they have in a container. It lives as long as the test.
func newNetwork(t *testing.T) string {
	t.Helper()
	cmd := command(context.Background(), t, inside{})
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, stdin.Close())
		require.NoError(t, cmd.Wait())
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns", "net")
}
