package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"mnsrelay/api"
	"mnsrelay/internal/setting"
)

// HeaderInstance is the header of every answer that names the process.
const HeaderInstance = "X-Mnsrelay-Instance"

// Probe is the answer of a probe that passes; one that does not is a Problem.
type Probe struct {
	Instance string `json:"instance"`
	Status   string `json:"status"`
}

// Problem is a problem document, RFC 9457. Its type is always about:blank, so the
// title is the phrase of the status code.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	// ServedBy names the process. RFC 9457 gives the member "instance" another
	// meaning: this occurrence of the problem.
	ServedBy string `json:"served_by"`
	// Waiting lists, in the answer of /readyz, what has not worked yet.
	Waiting []string `json:"waiting,omitempty"`
}

type handler struct {
	Deps
	adminToken setting.Secret
	router     *chi.Mux
}

func newHandler(cfg Config, deps Deps) http.Handler {
	h := &handler{Deps: deps, adminToken: cfg.AdminToken, router: chi.NewRouter()}
	r := h.router
	r.Use(h.head, h.recover, middleware.GetHead)
	r.NotFound(func(w http.ResponseWriter, _ *http.Request) {
		h.problem(w, Problem{Status: http.StatusNotFound, Detail: "no such path; GET /openapi.yaml lists them"})
	})
	r.MethodNotAllowed(h.methodNotAllowed)

	r.Get("/livez", h.live)
	r.Get("/healthz", h.live)
	r.Get("/readyz", h.ready)
	r.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(deps.Metrics, promhttp.HandlerOpts{
		ErrorLog: zap.NewStdLog(deps.Log),
		// A collector that fails hides its own metrics, not those of the others.
		ErrorHandling: promhttp.ContinueOnError,
	}))
	r.Get("/openapi.yaml", h.openAPI)
	r.Get("/api/v1/status", h.status)
	r.Group(h.admin)
	return r
}

func (h *handler) live(w http.ResponseWriter, _ *http.Request) {
	if err := h.Relay.Live(); err != nil {
		h.problem(w, Problem{Status: http.StatusServiceUnavailable, Detail: err.Error()})
		return
	}
	h.json(w, http.StatusOK, "application/json", Probe{Instance: h.Instance, Status: "ok"})
}

func (h *handler) ready(w http.ResponseWriter, _ *http.Request) {
	ok, waiting := h.Relay.Ready()
	if !ok {
		h.problem(w, Problem{
			Status:  http.StatusServiceUnavailable,
			Detail:  "not ready: " + strings.Join(waiting, "; "),
			Waiting: waiting,
		})
		return
	}
	h.json(w, http.StatusOK, "application/json", Probe{Instance: h.Instance, Status: "ok"})
}

func (h *handler) status(w http.ResponseWriter, _ *http.Request) {
	status := h.Relay.Status().whole()
	status.Instance = h.Instance
	h.json(w, http.StatusOK, "application/json", status)
}

func (h *handler) openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml") // RFC 9512
	_, _ = w.Write(api.OpenAPI)
}

func (h *handler) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut} {
		// GetHead answers HEAD wherever there is a GET.
		asked := method
		if method == http.MethodHead {
			asked = http.MethodGet
		}
		if h.router.Match(chi.NewRouteContext(), asked, r.URL.Path) {
			w.Header().Add("Allow", method)
		}
	}
	h.problem(w, Problem{Status: http.StatusMethodNotAllowed, Detail: r.Method + " is not for this path"})
}

// head sets the headers that every answer has.
func (h *handler) head(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(HeaderInstance, h.Instance)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

// recover turns a panic of a handler into an answer: it is a fault of one page, and
// the relay behind it goes on.
func (h *handler) recover(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			cause := recover()
			if cause == nil {
				return
			}
			if cause == http.ErrAbortHandler { //nolint:errorlint // a sentinel that net/http compares like this
				panic(cause)
			}
			h.Log.Error("a handler of the API panicked",
				zap.String("path", r.URL.Path), zap.Any("panic", cause), zap.ByteString("stack", debug.Stack()))
			h.problem(w, Problem{Status: http.StatusInternalServerError, Detail: "a fault of mnsrelay; its log says more"})
		}()
		next.ServeHTTP(w, r)
	})
}

func (h *handler) problem(w http.ResponseWriter, p Problem) {
	p.Type, p.Title, p.ServedBy = "about:blank", http.StatusText(p.Status), h.Instance
	h.json(w, p.Status, "application/problem+json", p)
}

// json encodes before it writes anything, so that an answer is whole or a problem.
func (h *handler) json(w http.ResponseWriter, code int, contentType string, v any) {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		panic(err) // only a type of this package that JSON cannot hold
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(body.Len()))
	w.WriteHeader(code)
	_, _ = w.Write(body.Bytes())
}
