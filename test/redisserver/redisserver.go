// Package redisserver gives tests a real Redis of their own, which they may take away.
//
// No test is skipped for want of one: it fails, and says what to do.
package redisserver

import (
	"context"
	"net"
	"net/url"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"mnsrelay/test/process"
)

// binary is looked for in PATH.
const binary = "redis-server"

// readyLine is part of what the server writes when it accepts connections.
const readyLine = "Ready to accept connections"

// patience is how long a server may take to start or to stop on a busy machine.
const patience = 30 * time.Second

// Config is what a Server is started with. The zero value is a plain server.
type Config struct {
	// Password is asked of the user default, if it is not empty.
	Password string
	// CertFile and KeyFile make the server speak TLS and nothing else.
	CertFile, KeyFile string
	// Args are added to the command line, as in "--maxmemory", "1mb".
	Args []string
}

// Server is a Redis on loopback that keeps nothing on disk. It is gone when its test
// ends, and dies with this process too.
type Server struct {
	tb      testing.TB
	cfg     Config
	dir     string
	port    int
	process *process.Process
}

// Start starts a server for tb and returns when it accepts connections.
func Start(tb testing.TB, cfg Config) *Server {
	tb.Helper()
	if _, err := exec.LookPath(binary); err != nil {
		tb.Fatalf("%s is not installed: run test/setup", binary)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ports, err := process.FreePorts(ctx, 1)
	if err != nil {
		tb.Fatal(err)
	}
	s := &Server{tb: tb, cfg: cfg, dir: tb.TempDir(), port: ports[0]}
	tb.Cleanup(s.Kill)
	s.Start()
	return s
}

// URL is where the server listens, the password included. It stays the same over Stop,
// Kill and Start.
func (s *Server) URL() string {
	u := url.URL{Scheme: "redis", Host: s.Addr()}
	if s.cfg.CertFile != "" {
		u.Scheme = "rediss"
	}
	if s.cfg.Password != "" {
		u.User = url.UserPassword("default", s.cfg.Password)
	}
	return u.String()
}

// Addr is the host and port of URL.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// Start starts the server again after Stop or Kill, empty, and returns when it accepts
// connections.
func (s *Server) Start() {
	s.tb.Helper()
	port := strconv.Itoa(s.port)
	args := []string{"--bind", "127.0.0.1", "--dir", s.dir, "--save", "", "--appendonly", "no"}
	if s.cfg.CertFile == "" {
		args = append(args, "--port", port)
	} else {
		args = append(args, "--port", "0", "--tls-port", port, "--tls-auth-clients", "no",
			"--tls-cert-file", s.cfg.CertFile, "--tls-key-file", s.cfg.KeyFile)
	}
	if s.cfg.Password != "" {
		args = append(args, "--requirepass", s.cfg.Password)
	}
	ready := process.NewOutput(readyLine)
	started, err := process.Start(exec.Command(binary, append(args, s.cfg.Args...)...), ready) //nolint:noctx,gosec // It lives until it is stopped; the arguments are a test's own.
	if err != nil {
		s.tb.Fatalf("start %s: %v", binary, err)
	}
	s.process = started
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-ready.Seen():
	case <-started.Done():
		s.tb.Fatalf("start %s: %v; it wrote:\n%s", binary, started.Outcome(), ready.Tail())
	case <-timer.C:
		s.tb.Fatalf("start %s: not ready after %v; it wrote:\n%s", binary, patience, ready.Tail())
	}
}

// Stop ends the server in order.
func (s *Server) Stop() { s.end(syscall.SIGTERM) }

// Kill ends the server at once. One that has ended is fine.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// Pause stops the server's process: the kernel keeps its connections open, and accepts
// new ones that nobody answers.
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume lets the server's process run on.
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) end(by syscall.Signal) {
	s.tb.Helper()
	if s.process == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.process.End(ctx, by); err != nil {
		s.tb.Errorf("end %s: %v", binary, err)
	}
}

func (s *Server) signal(number syscall.Signal) {
	s.tb.Helper()
	if err := s.process.Signal(number); err != nil {
		s.tb.Errorf("signal %s: %v", binary, err)
	}
}
