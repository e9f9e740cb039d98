package httpapi

import (
	"net"
	"net/http"
	"slices"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Paths lists the patterns of the router.
func Paths() []string {
	var out []string
	router := newHandler(Config{}, Deps{Metrics: prometheus.NewRegistry(), Log: zap.NewNop()}, "").(chi.Router)
	_ = chi.Walk(router, func(_, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		if !slices.Contains(out, route) {
			out = append(out, route)
		}
		return nil
	})
	return out
}

// Handler is what the server serves.
func Handler(cfg Config, deps Deps) http.Handler { return newHandler(cfg, deps, cfg.AdminListen) }

// ReadCertificate makes the server read the files of its certificate otherwise.
func (s *Server) ReadCertificate(read func(path string) ([]byte, error)) {
	s.certificate.readFile = read
}

// On makes the server serve at a listener of a test's in place of Listen.
func (s *Server) On(l net.Listener) { s.api.listener = l }
