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
	stdlog "log"
	"net"
	"net/http"
	"sync"
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
	// AdminListen is another one for what needs the admin token; empty: Listen has it.
	AdminListen string
	// AdminToken opens the endpoints that change something; unset, they answer 403.
	AdminToken setting.Secret
	// TLS is the certificate of both; its zero value: no TLS.
	TLS setting.ServerTLS
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

// Server serves the API, at one address or at two. Make it with New.
type Server struct {
	log         *zap.Logger
	certificate *certificate // nil: no TLS
	api         *endpoint
	admin       *endpoint // nil: api serves all
}

// endpoint is one address and what is served there.
type endpoint struct {
	listen   string
	http     *http.Server
	listener net.Listener
}

// New makes a server that does not listen yet. Its error says what is wrong with the
// files of cfg.TLS.
func New(cfg Config, deps Deps) (*Server, error) {
	s := &Server{log: deps.Log}
	if !cfg.TLS.IsZero() {
		var err error
		if s.certificate, err = newCertificate(cfg.TLS, deps.Log); err != nil {
			return nil, err
		}
	}
	s.api = s.endpoint(cfg.Listen, newHandler(cfg, deps, cfg.AdminListen))
	if cfg.AdminListen != "" {
		s.admin = s.endpoint(cfg.AdminListen, newHandler(cfg, deps, ""))
	}
	return s, nil
}

func (s *Server) endpoint(listen string, handler http.Handler) *endpoint {
	e := &endpoint{listen: listen, http: &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second, // the handshake's too
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		// What clients do wrong fills no log, and is there for who looks for it.
		ErrorLog: stdLog(s.log),
		// HTTP/1 alone: these times bound its connections, and of HTTP/2 only its streams.
		Protocols: new(http.Protocols),
	}}
	e.http.Protocols.SetHTTP1(true)
	if s.certificate != nil {
		e.http.TLSConfig = s.certificate.config()
	}
	return e
}

func stdLog(log *zap.Logger) *stdlog.Logger {
	std, err := zap.NewStdLogAt(log, zap.DebugLevel)
	if err != nil {
		panic(err) // only of a level that there is not
	}
	return std
}

// endpoints are one or two.
func (s *Server) endpoints() []*endpoint {
	if s.admin == nil {
		return []*endpoint{s.api}
	}
	return []*endpoint{s.api, s.admin}
}

// Listen binds the addresses, so that a port in use fails the start, and gives what
// was bound, which differs from what was asked for where that was port 0; admin is nil
// where there is one address. Call it once, before Run.
func (s *Server) Listen(ctx context.Context) (api, admin net.Addr, err error) {
	var lc net.ListenConfig
	for _, e := range s.endpoints() {
		if e.listener, err = lc.Listen(ctx, "tcp", e.listen); err != nil {
			err = fmt.Errorf("listen for the API: %w", err)
			for _, e := range s.endpoints() {
				if e.listener != nil {
					err = errors.Join(err, e.listener.Close())
				}
			}
			return nil, nil, err
		}
	}
	if s.admin != nil {
		admin = s.admin.listener.Addr()
	}
	return s.api.listener.Addr(), admin, nil
}

// Run serves until ctx ends, then finishes what is under way, for up to 5 s, and
// returns nil. Call it once, after Listen; stop it last, because probes ask to the
// end.
func (s *Server) Run(ctx context.Context) error {
	serving, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	defer all.Wait()
	if s.certificate != nil {
		all.Go(func() { s.certificate.watch(serving) })
	}
	errs := make(chan error, len(s.endpoints())) // one of each
	for _, e := range s.endpoints() {
		all.Go(func() {
			defer stop() // one that fails ends the other
			errs <- s.serve(serving, e)
		})
	}
	var err error
	for range s.endpoints() {
		err = errors.Join(err, <-errs)
	}
	return err
}

func (s *Server) serve(ctx context.Context, e *endpoint) error {
	served := make(chan error, 1)
	go func() {
		if s.certificate != nil {
			served <- e.http.ServeTLS(e.listener, "", "")
			return
		}
		served <- e.http.Serve(e.listener)
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := e.http.Shutdown(stopping)
	if err != nil {
		// A client that reads slowly does not hold up the end of the process.
		s.log.Warn("API responses still in progress were cut off", zap.Error(err))
		err = e.http.Close()
	}
	if served := <-served; err == nil && !errors.Is(served, http.ErrServerClosed) {
		err = served
	}
	if err != nil {
		return fmt.Errorf("stop the API: %w", err)
	}
	return nil
}
