package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/pprof"
	runtimepprof "runtime/pprof"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"

	"mnsrelay/api"
)

// reloadTimeout bounds the wait for a reload that is under way.
const reloadTimeout = 10 * time.Second

// authorized tells whether the admin token is shown, and answers where it is not: 403 where
// none is configured or another address has this, 401 without the right one.
func (h *handler) authorized(w http.ResponseWriter, r *http.Request) bool {
	if h.adminAt != "" {
		// Whatever token is shown: nobody finds out here whether it is the right one.
		h.problem(w, api.Problem{Status: http.StatusForbidden, Detail: "this is served at server.admin_listen, " + h.adminAt + ", alone; the status page is there too"})
		return false
	}
	if h.adminToken.IsZero() {
		h.problem(w, api.Problem{Status: http.StatusForbidden, Detail: "server.admin_token is not set, so this is closed"})
		return false
	}
	shown, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	// Sums of one length: the comparison tells nothing about the token's.
	got, want := sha256.Sum256([]byte(shown)), sha256.Sum256([]byte(h.adminToken.Reveal()))
	if !found || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		w.Header().Set("WWW-Authenticate", `Bearer realm="mnsrelay"`)
		h.problem(w, api.Problem{Status: http.StatusUnauthorized, Detail: "send the admin token: Authorization: Bearer TOKEN"})
		return false
	}
	return true
}

// PauseSource is POST /api/v1/sources/{name}/pause.
func (h *handler) PauseSource(w http.ResponseWriter, r *http.Request, name api.Name) {
	h.steer(w, r, name, h.Relay.Pause)
}

// ResumeSource is POST /api/v1/sources/{name}/resume.
func (h *handler) ResumeSource(w http.ResponseWriter, r *http.Request, name api.Name) {
	h.steer(w, r, name, h.Relay.Resume)
}

func (h *handler) steer(w http.ResponseWriter, r *http.Request, name string, do func(source string) error) {
	if !h.authorized(w, r) {
		return
	}
	switch err := do(name); {
	case errors.Is(err, ErrNotFound):
		h.none(w, "source", name)
	case err != nil:
		h.problem(w, api.Problem{Status: http.StatusInternalServerError, Detail: err.Error()})
	default:
		h.ok(w, api.Done{Instance: h.Instance, Status: api.DoneStatusOk})
	}
}

// Reload is POST /api/v1/reload.
func (h *handler) Reload(w http.ResponseWriter, r *http.Request) {
	if !h.authorized(w, r) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), reloadTimeout)
	defer cancel()
	configuration, err := h.Relay.Reload(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		h.problem(w, api.Problem{Status: http.StatusConflict, Detail: "the last reload is still draining; try again"})
	case err != nil:
		h.problem(w, api.Problem{Status: http.StatusUnprocessableEntity, Detail: err.Error()})
	default:
		h.ok(w, api.Done{Instance: h.Instance, Status: api.DoneStatusOk, Configuration: &configuration})
	}
}

// LogLevel is GET /api/v1/log-level.
func (h *handler) LogLevel(w http.ResponseWriter, r *http.Request) {
	if h.authorized(w, r) {
		h.ok(w, api.LogLevel{Instance: h.Instance, Level: api.Level(h.Level.String())})
	}
}

// SetLogLevel is PUT /api/v1/log-level.
func (h *handler) SetLogLevel(w http.ResponseWriter, r *http.Request) {
	if !h.authorized(w, r) {
		return
	}
	var change api.LogLevelChange
	body := json.NewDecoder(r.Body)
	body.DisallowUnknownFields()
	level := zapcore.InvalidLevel
	err := body.Decode(&change)
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		h.tooLarge(w)
		return
	}
	if err == nil && change.Level.Valid() {
		level, _ = zapcore.ParseLevel(string(change.Level))
	}
	if level == zapcore.InvalidLevel {
		h.problem(w, api.Problem{Status: http.StatusBadRequest, Detail: `send {"level": "debug"}, or info, warn or error`})
		return
	}
	h.Level.SetLevel(level)
	h.ok(w, api.LogLevel{Instance: h.Instance, Level: api.Level(h.Level.String())})
}

// Pprof is GET /debug/pprof/{profile}.
func (h *handler) Pprof(w http.ResponseWriter, r *http.Request, profile string, params api.PprofParams) {
	query := r.URL.Query()
	timed, asked := profile == "profile" || profile == "trace", query.Has("seconds")
	switch {
	case !h.authorized(w, r):
	case asked && !timed:
		h.problem(w, api.Problem{Status: http.StatusBadRequest, Detail: "seconds is for profile and trace"})
	case asked && (params.Seconds < 1 || params.Seconds > mostSeconds):
		h.problem(w, api.Problem{Status: http.StatusBadRequest, Detail: wholeNumber("seconds", 1, mostSeconds)})
	case timed:
		if !h.profiling.TryLock() {
			h.problem(w, api.Problem{Status: http.StatusConflict, Detail: "another profile is being taken; try again"})
			return
		}
		defer h.profiling.Unlock()
		if !asked {
			query.Set("seconds", "10")
			r.URL.RawQuery = query.Encode()
		}
		if profile == "trace" {
			pprof.Trace(w, r)
			return
		}
		pprof.Profile(w, r)
	case runtimepprof.Lookup(profile) == nil:
		h.problem(w, api.Problem{Status: http.StatusNotFound, Detail: "there is no such profile"})
	default:
		pprof.Handler(profile).ServeHTTP(w, r)
	}
}
