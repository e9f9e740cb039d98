package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"

	"mnsrelay/api"
	"mnsrelay/internal/setting"
)

// HeaderInstance is the header of every answer that names the process.
const HeaderInstance = "X-Mnsrelay-Instance"

type handler struct {
	Deps
	adminToken setting.Secret
	// adminAt is the address that alone has what needs the token; empty: this one.
	adminAt string
	router  *chi.Mux
	metrics http.Handler
	// profiling is held while the one profile is taken that the runtime takes at a time.
	profiling sync.Mutex
}

var _ api.ServerInterface = (*handler)(nil)

func newHandler(cfg Config, deps Deps, adminAt string) http.Handler {
	h := &handler{
		Deps: deps, adminToken: cfg.AdminToken, adminAt: adminAt, router: chi.NewRouter(),
		metrics: promhttp.HandlerFor(deps.Metrics, promhttp.HandlerOpts{
			ErrorLog: zap.NewStdLog(deps.Log),
			// A collector that fails hides its own metrics, not those of the others.
			ErrorHandling: promhttp.ContinueOnError,
			// Exemplars are in this format only.
			EnableOpenMetrics: true,
		}),
	}
	r := h.router
	// A browser on another site changes nothing here; probes by the address of a pod pass.
	foreign := http.NewCrossOriginProtection()
	foreign.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h.problem(w, api.Problem{Status: http.StatusForbidden, Detail: "a page of another site may change nothing here"})
	}))
	r.Use(h.head, h.recover, h.bounded, foreign.Handler, middleware.GetHead)
	r.NotFound(func(w http.ResponseWriter, _ *http.Request) {
		h.problem(w, api.Problem{Status: http.StatusNotFound, Detail: "no such path; GET /openapi.yaml lists them"})
	})
	r.MethodNotAllowed(h.methodNotAllowed)
	// The routes and the reading of parameters are generated from openapi.yaml.
	return api.HandlerWithOptions(h, api.ChiServerOptions{
		BaseRouter: r,
		ErrorHandlerFunc: func(w http.ResponseWriter, _ *http.Request, err error) {
			h.problem(w, api.Problem{Status: http.StatusBadRequest, Detail: unreadable(err)})
		},
	})
}

// mostFailures and mostSeconds are the most that may be asked for of errors and of a profile;
// a profile ends within the time that an answer may take.
const (
	mostFailures = 1000
	mostSeconds  = 25
)

// unreadable says how a parameter is written that could not be read, without the words of
// the parser.
func unreadable(err error) string {
	e, ok := errors.AsType[*api.InvalidParamFormatError](err)
	if !ok {
		return err.Error()
	}
	switch e.ParamName {
	case "limit":
		return wholeNumber(e.ParamName, 1, mostFailures)
	case "seconds":
		return wholeNumber(e.ParamName, 1, mostSeconds)
	case "debug":
		return wholeNumber(e.ParamName, 0, 2)
	}
	return e.ParamName + " cannot be read: write it once, with what is special in a URL escaped"
}

func wholeNumber(name string, least, most int) string {
	return fmt.Sprintf("%s must be one whole number, %d to %d", name, least, most)
}

// Livez is GET /livez.
func (h *handler) Livez(w http.ResponseWriter, _ *http.Request) {
	if err := h.Relay.Live(); err != nil {
		h.problem(w, api.Problem{Status: http.StatusServiceUnavailable, Detail: err.Error()})
		return
	}
	h.ok(w, api.Probe{Instance: h.Instance, Status: api.ProbeStatusOk})
}

// Healthz is GET /healthz.
func (h *handler) Healthz(w http.ResponseWriter, r *http.Request) { h.Livez(w, r) }

// Readyz is GET /readyz.
func (h *handler) Readyz(w http.ResponseWriter, _ *http.Request) {
	ok, waiting := h.Relay.Ready()
	if !ok {
		h.problem(w, api.Problem{
			Status:  http.StatusServiceUnavailable,
			Detail:  "not ready: " + strings.Join(waiting, "; "),
			Waiting: waiting,
		})
		return
	}
	h.ok(w, api.Probe{Instance: h.Instance, Status: api.ProbeStatusOk})
}

// Metrics is GET /metrics.
func (h *handler) Metrics(w http.ResponseWriter, r *http.Request) { h.metrics.ServeHTTP(w, r) }

// Openapi is GET /openapi.yaml.
func (h *handler) Openapi(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml") // RFC 9512
	_, _ = w.Write(api.OpenAPI)
}

// now is the present state.
func (h *handler) now() api.Status {
	status := whole(h.Relay.Status())
	status.Instance = h.Instance
	status.Admin = h.adminAt == "" && !h.adminToken.IsZero()
	status.AdminListen = h.adminAt
	return status
}

// Status is GET /api/v1/status.
func (h *handler) Status(w http.ResponseWriter, _ *http.Request) { h.ok(w, h.now()) }

// Sources is GET /api/v1/sources.
func (h *handler) Sources(w http.ResponseWriter, _ *http.Request) {
	h.ok(w, api.Sources{Instance: h.Instance, Sources: h.now().Sources})
}

// Source is GET /api/v1/sources/{name}.
func (h *handler) Source(w http.ResponseWriter, _ *http.Request, name api.Name) {
	for _, s := range h.now().Sources {
		if s.Name == name {
			h.ok(w, api.OneSource{Instance: h.Instance, Source: s})
			return
		}
	}
	h.none(w, "source", name)
}

// Sinks is GET /api/v1/sinks.
func (h *handler) Sinks(w http.ResponseWriter, _ *http.Request) {
	h.ok(w, api.Sinks{Instance: h.Instance, Sinks: h.now().Sinks})
}

// Sink is GET /api/v1/sinks/{name}.
func (h *handler) Sink(w http.ResponseWriter, _ *http.Request, name api.Name) {
	for _, s := range h.now().Sinks {
		if s.Name == name {
			h.ok(w, api.OneSink{Instance: h.Instance, Sink: s})
			return
		}
	}
	h.none(w, "sink", name)
}

func (h *handler) none(w http.ResponseWriter, what, name string) {
	h.problem(w, api.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("there is no %s %q", what, name)})
}

// Routes is GET /api/v1/routes.
func (h *handler) Routes(w http.ResponseWriter, _ *http.Request) {
	h.ok(w, api.Routes{Instance: h.Instance, Routes: h.now().Routes})
}

// Config is GET /api/v1/config.
func (h *handler) Config(w http.ResponseWriter, _ *http.Request) {
	configuration, text := h.Relay.Configuration()
	h.ok(w, api.EffectiveConfiguration{Instance: h.Instance, Configuration: configuration, Yaml: text})
}

// Errors is GET /api/v1/errors.
func (h *handler) Errors(w http.ResponseWriter, r *http.Request, params api.ErrorsParams) {
	const usual = 100
	limit := params.Limit
	if !r.URL.Query().Has("limit") {
		limit = usual
	}
	if limit < 1 || limit > mostFailures {
		h.problem(w, api.Problem{Status: http.StatusBadRequest, Detail: wholeNumber("limit", 1, mostFailures)})
		return
	}
	if params.Source != "" && !slices.ContainsFunc(h.Relay.Status().Sources, func(s api.Source) bool { return s.Name == params.Source }) {
		h.none(w, "source", params.Source)
		return
	}
	failures := h.Relay.Failures(params.Source)
	h.ok(w, api.Failures{Instance: h.Instance, Errors: list(failures[:min(len(failures), limit)])})
}

// History is GET /api/v1/history.
func (h *handler) History(w http.ResponseWriter, _ *http.Request) {
	history := h.Relay.History()
	history.Instance = h.Instance
	h.ok(w, history)
}

// ledgerTimeout bounds the wait for a ledger outside the process.
const ledgerTimeout = 2 * time.Second

// Message is GET /api/v1/messages/{id}.
func (h *handler) Message(w http.ResponseWriter, r *http.Request, id string) {
	ctx, cancel := context.WithTimeout(r.Context(), ledgerTimeout)
	defer cancel()
	state, err := h.Relay.Message(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		h.problem(w, api.Problem{Status: http.StatusNotFound, Detail: "nothing is known of this message here: it was delivered and deleted, has not come yet, or another process has it"})
	case err != nil:
		h.problem(w, api.Problem{Status: http.StatusBadGateway, Detail: err.Error()})
	default:
		state.Instance, state.Confirmed, state.Failures = h.Instance, list(state.Confirmed), list(state.Failures)
		h.ok(w, state)
	}
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
	h.problem(w, api.Problem{Status: http.StatusMethodNotAllowed, Detail: r.Method + " is not for this path"})
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

// maxBody is the most that is read of a request's body, in bytes.
const maxBody = 64 << 10

// bounded refuses a longer one, or ends the connection where the length was not told.
func (h *handler) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > maxBody {
			h.tooLarge(w)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		next.ServeHTTP(w, r)
	})
}

func (h *handler) tooLarge(w http.ResponseWriter) {
	w.Header().Set("Connection", "close") // or the server would read on, for the next request
	h.problem(w, api.Problem{Status: http.StatusRequestEntityTooLarge, Detail: "a body of more than 64 KiB is not for this API"})
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
			h.problem(w, api.Problem{Status: http.StatusInternalServerError, Detail: "a fault of mnsrelay; its log says more"})
		}()
		next.ServeHTTP(w, r)
	})
}

func (h *handler) problem(w http.ResponseWriter, p api.Problem) {
	p.Type, p.Title, p.ServedBy = api.AboutBlank, http.StatusText(p.Status), h.Instance
	h.json(w, p.Status, "application/problem+json", p)
}

// ok answers with v.
func (h *handler) ok(w http.ResponseWriter, v any) { h.json(w, http.StatusOK, "application/json", v) }

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
