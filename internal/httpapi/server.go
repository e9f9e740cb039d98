// Package httpapi serves the probes, the metrics and the status of a relay.
//
// A handler answers from memory and waits for nothing outside the process, so that
// the API tells the truth about a broker that is down within 100 ms. Every answer
// names the instance in the header X-Mnsrelay-Instance, and what is JSON in its body
// too; every error is a problem document (RFC 9457).
package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"mnsrelay/internal/setting"
)

// shutdownTimeout is how long answers under way may take once Run is told to stop.
const shutdownTimeout = 5 * time.Second

// Config is where the server listens.
type Config struct {
	// Listen is an address of TCP: ":8080", "127.0.0.1:0".
	Listen string
	// AdminToken opens the endpoints that change something; unset, they answer 403.
	AdminToken setting.Secret
}

// Deps are what the server is made of.
type Deps struct {
	// Instance names this process in every answer.
	Instance string
	Relay    Relay
	Metrics  prometheus.Gatherer
	Log      *zap.Logger
	// Level is how much is logged.
	Level zap.AtomicLevel
}

// Server serves the API. Make it with New.
type Server struct {
	listen   string
	log      *zap.Logger
	http     *http.Server
	listener net.Listener
}

// New makes a server that does not listen yet.
func New(cfg Config, deps Deps) *Server {
	return &Server{
		listen: cfg.Listen,
		log:    deps.Log,
		http: &http.Server{
			Handler:           newHandler(cfg, deps),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          zap.NewStdLog(deps.Log.WithOptions(zap.IncreaseLevel(zap.WarnLevel))),
		},
	}
}

// Listen binds the address, so that a port in use fails the start, and gives what
// was bound, which differs from what was asked for where that was port 0. Call it
// once, before Run.
func (s *Server) Listen(ctx context.Context) (net.Addr, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", s.listen)
	if err != nil {
		return nil, fmt.Errorf("listen for the API: %w", err)
	}
	s.listener = l
	return l.Addr(), nil
}

// Run serves until ctx ends, then finishes what is under way, for up to 5 s, and
// returns nil. Call it once, after Listen; stop it last, because probes ask to the
// end.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(s.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := s.http.Shutdown(stopping)
	if err != nil {
		// A client that reads slowly does not hold up the end of the process.
		s.log.Warn("cut answers of the API that were under way", zap.Error(err))
		err = s.http.Close()
	}
	if served := <-served; err == nil && !errors.Is(served, http.ErrServerClosed) {
		err = served
	}
	if err != nil {
		return fmt.Errorf("stop the API: %w", err)
	}
	return nil
}
