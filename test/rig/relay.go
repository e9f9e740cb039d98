// Package rig runs the built program for tests that see it as users do: a process with
// a configuration file, an API, a log and signals.
package rig

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"mnsrelay/api"
	"mnsrelay/test/contract"
	"mnsrelay/test/process"
)

// Build builds the program into dir and gives its path. GOFLAGS=-race applies to it too.
func Build(dir string) (string, error) {
	binary := filepath.Join(dir, "mnsrelay")
	build := exec.Command("go", "build", "-o", binary, "mnsrelay/cmd/mnsrelay") //nolint:noctx,gosec // A build has no time limit of its own; the folder is the test's.
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("build the program: %w", err)
	}
	return binary, nil
}

// BuildAndRun builds the program for the tests of a package, says where it is in binary,
// runs them and gives what TestMain exits with.
func BuildAndRun(tests interface{ Run() int }, binary *string) int {
	dir, err := os.MkdirTemp("", "mnsrelay-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if *binary, err = Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return tests.Run()
}

// described is what every answer is held against.
var described = sync.OnceValues(contract.New) //nolint:gochecknoglobals // read once for all relays

// Relay is a running mnsrelay.
type Relay struct {
	process *process.Process
	log     *log
	at      addresses
	client  *http.Client
}

// Start runs the program with the configuration at path and returns when its API
// listens; the configuration should say 127.0.0.1:0. The environment is that of the test
// with what is given added. It is killed when the test's process dies.
func Start(ctx context.Context, binary, path string, environment ...string) (*Relay, error) {
	cmd := exec.Command(binary, "run", "--config", path) //nolint:noctx,gosec // It is ended by signals; it is what the test built.
	cmd.Env = append(os.Environ(), environment...)
	r := &Relay{log: newLog(), client: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		TLSClientConfig:   &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}, //nolint:gosec // It is on loopback, and the test's own.
	}}}
	var err error
	if r.process, err = process.Start(cmd, r.log); err != nil {
		return nil, fmt.Errorf("start the relay: %w", err)
	}
	select {
	case r.at = <-r.log.api:
		return r, nil
	case <-r.process.Done():
		return nil, fmt.Errorf("start the relay: %w; it wrote:\n%s", r.process.Outcome(), r.Log())
	case <-ctx.Done():
		err := errors.Join(ctx.Err(), r.process.End(context.WithoutCancel(ctx), syscall.SIGKILL))
		return nil, fmt.Errorf("start the relay: it does not listen: %w; it wrote:\n%s", err, r.Log())
	}
}

// URL is where the API listens, without a path.
func (r *Relay) URL() string { return r.at.api }

// Admin is where server.admin_listen is, likewise; empty: there is none.
func (r *Relay) Admin() string { return r.at.admin }

// Log is all that the relay wrote.
func (r *Relay) Log() string { return r.log.String() }

// Done is closed when the relay has ended.
func (r *Relay) Done() <-chan struct{} { return r.process.Done() }

// Signal sends s to the relay.
func (r *Relay) Signal(s syscall.Signal) error { return r.process.Signal(s) }

// End sends s, waits until the relay has ended and gives its exit code, -1 where s
// killed it.
func (r *Relay) End(ctx context.Context, s syscall.Signal) (int, error) {
	if err := r.process.End(ctx, s); err != nil {
		return 0, err
	}
	return r.process.ExitCode(), known.look("the log of the relay", r.Log())
}

// Get asks the API. An answer that openapi.yaml does not have, or that holds a secret, is an
// error.
func (r *Relay) Get(ctx context.Context, path string) (status int, body string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.at.api+path, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	response, err := r.client.Do(request)
	if err != nil {
		return 0, "", err
	}
	text, err := io.ReadAll(response.Body)
	spec, wrong := described()
	if wrong == nil {
		wrong = spec.Check(http.MethodGet, path, response.StatusCode, response.Header, text)
	}
	return response.StatusCode, string(text), errors.Join(err, response.Body.Close(), known.look("the answer to "+path, string(text)), wrong)
}

// Status asks the API how the relay is.
func (r *Relay) Status(ctx context.Context) (api.Status, error) {
	var status api.Status
	code, body, err := r.Get(ctx, "/api/v1/status")
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("the answer is %d: %s", code, body)
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &status)
	}
	if err != nil {
		return status, fmt.Errorf("ask for the status: %w", err)
	}
	return status, nil
}

// Metric asks for the value of a metric, the sum over its labels.
func (r *Relay) Metric(ctx context.Context, name string) (float64, error) {
	_, body, err := r.Get(ctx, "/metrics")
	if err != nil {
		return 0, fmt.Errorf("ask for the metrics: %w", err)
	}
	sum, found := 0.0, false
	for line := range strings.Lines(body) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if labelled, _, _ := strings.Cut(series, "{"); !ok || labelled != name {
			continue
		}
		// A label of ours holds no space: they are names of the configuration and reasons.
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, fmt.Errorf("read the metric %s: %w", name, err)
		}
		sum, found = sum+v, true
	}
	if !found {
		return 0, fmt.Errorf("there is no metric %s", name)
	}
	return sum, nil
}

// PID is the number of the process.
func (r *Relay) PID() int { return r.process.PID() }

// Files counts the descriptors that the relay has open, which only Linux tells.
func (r *Relay) Files() (int, error) {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.process.PID()))
	return len(open), err
}
