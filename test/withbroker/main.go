// Command withbroker runs a command with a RabbitMQ of its own:
//
//	go run ./test/withbroker -- go test ./...
//
// The command finds the broker's address in MNSRELAY_TEST_AMQP_URL. Where that is
// set already no broker is started. It finds a temporary folder of its own in
// TMPDIR too. Broker, folder, and what the command left running are gone when
// withbroker ends: after success and failure, after Ctrl-C and SIGTERM. It exits
// with the code of the command.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"mnsrelay/test/broker"
)

const (
	exitFailed = 1
	exitUsage  = 2
	// exitSignal is added to a signal's number, as a shell does.
	exitSignal = 128

	// startTimeout bounds the broker's start.
	startTimeout = 90 * time.Second
	// grace is how long the command may take to end after a signal.
	grace = 20 * time.Second
)

func main() {
	// The command is killed at the death of the thread that started it, which must
	// therefore be one that lives as long as we do.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		complain("usage: withbroker -- COMMAND [ARGUMENT...]")
		return exitUsage
	}
	// Before the broker starts, so that no signal leaves it behind.
	signals := make(chan os.Signal, 2) // The second one cuts the grace short.
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	if err := endWithParent(); err != nil {
		complain("%v", err)
		return exitFailed
	}

	dir, err := os.MkdirTemp("", "mnsrelay-test-")
	if err != nil {
		complain("%v", err)
		return exitFailed
	}
	code := runIn(dir, args, signals)
	// Go writes its module and build caches read-only in places.
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) //nolint:gosec // A folder needs its x.
		}
		return nil
	})
	if err := os.RemoveAll(dir); err != nil {
		complain("remove the temporary folder: %v", err)
		return max(code, exitFailed)
	}
	return code
}

// runIn runs the command with a broker, everything temporary below dir.
func runIn(dir string, args []string, signals <-chan os.Signal) (code int) {
	tmp := filepath.Join(dir, "tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		complain("%v", err)
		return exitFailed
	}
	environment := append(os.Environ(), "TMPDIR="+tmp)
	if os.Getenv(broker.Variable) == "" {
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		node, err := start(ctx, dir, signals)
		if err != nil {
			complain("%v", err)
			return exitFailed
		}
		defer func() {
			if err := node.Close(); err != nil {
				complain("%v", err)
				code = max(code, exitFailed)
			}
		}()
		environment = append(environment, broker.Variable+"="+node.URL())
	}

	cmd := exec.Command(args[0], args[1:]...) //nolint:gosec,noctx // Running what it is told to is its purpose; signals end it.
	cmd.Env = environment
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// A group of its own: a signal reaches all of it, through us, once.
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		complain("%v", err)
		return exitFailed
	}
	group := -cmd.Process.Pid
	// What the command started and left behind.
	defer func() { _ = syscall.Kill(group, syscall.SIGKILL) }()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()

	var overdue <-chan time.Time
	interrupted := 0
	for {
		select {
		case err := <-ended:
			return exitCode(err, interrupted)
		case s := <-signals:
			number, _ := s.(syscall.Signal)
			if interrupted != 0 {
				_ = syscall.Kill(group, syscall.SIGKILL)
				continue
			}
			interrupted = exitSignal + int(number)
			overdue = time.After(grace)
			_ = syscall.Kill(group, number)
		case <-overdue:
			complain("the command did not end within %v of the signal: it is killed", grace)
			_ = syscall.Kill(group, syscall.SIGKILL)
		}
	}
}

// start starts the broker, unless a signal comes first.
func start(ctx context.Context, dir string, signals <-chan os.Signal) (*broker.Node, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type result struct {
		node *broker.Node
		err  error
	}
	started := make(chan result, 1)
	go func() {
		node, err := broker.Start(ctx, broker.Config{Dir: dir})
		started <- result{node, err}
	}()
	for {
		select {
		case r := <-started:
			if err := context.Cause(ctx); err != nil && r.err == nil {
				return nil, errors.Join(err, r.node.Close()) //nolint:contextcheck // ctx has ended.
			}
			return r.node, r.err
		case s := <-signals:
			cancel(fmt.Errorf("ended by %v", s))
		}
	}
}

func exitCode(err error, interrupted int) int {
	if interrupted != 0 {
		return interrupted
	}
	if err == nil {
		return 0
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		complain("%v", err)
		return exitFailed
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return exitSignal + int(status.Signal())
	}
	return exit.ExitCode()
}

func complain(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "withbroker: "+format+"\n", args...)
}
