package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
)

// ErrNotFound is what a Relay wraps where it has nothing of the name it was given.
var ErrNotFound = errors.New("not found")

// Configuration is which configuration is in force.
type Configuration struct {
	// Generation counts the configurations that were in force; the first is 1.
	Generation int `json:"generation"`
	// Digest is the SHA-256 of the file in hex.
	Digest string `json:"digest"`
	// Loaded is when it came into force.
	Loaded time.Time `json:"loaded"`
	// LastReload is when a reload was last asked for.
	LastReload time.Time `json:"last_reload,omitzero"`
	// LastError is why the last reload was refused.
	LastError *Error `json:"last_error,omitempty"`
}

// Done is the answer of a change that was made.
type Done struct {
	Instance      string         `json:"instance"`
	Status        string         `json:"status"`
	Configuration *Configuration `json:"configuration,omitempty"`
}

// reloadTimeout bounds the wait for a reload that is under way.
const reloadTimeout = 10 * time.Second

// admin adds the endpoints that change something. A browser on another site cannot
// reach them, and nobody without the token.
func (h *handler) admin(r chi.Router) {
	r.Use(http.NewCrossOriginProtection().Handler, h.authorized)
	r.Post("/api/v1/sources/{name}/pause", h.steer(func(name string) error { return h.Relay.Pause(name) }))
	r.Post("/api/v1/sources/{name}/resume", h.steer(func(name string) error { return h.Relay.Resume(name) }))
	r.Post("/api/v1/reload", h.reload)
}

// authorized lets those pass who show the admin token: 403 where none is configured,
// 401 without the right one.
func (h *handler) authorized(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.adminToken.IsZero() {
			h.problem(w, Problem{Status: http.StatusForbidden, Detail: "server.admin_token is not set, so nothing can be changed here"})
			return
		}
		shown, found := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		// Sums of one length: the comparison tells nothing about the token's.
		got, want := sha256.Sum256([]byte(shown)), sha256.Sum256([]byte(h.adminToken.Reveal()))
		if !found || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="mnsrelay"`)
			h.problem(w, Problem{Status: http.StatusUnauthorized, Detail: "send the admin token: Authorization: Bearer TOKEN"})
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (h *handler) steer(do func(source string) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch err := do(chi.URLParam(r, "name")); {
		case errors.Is(err, ErrNotFound):
			h.problem(w, Problem{Status: http.StatusNotFound, Detail: err.Error()})
		case err != nil:
			h.problem(w, Problem{Status: http.StatusInternalServerError, Detail: err.Error()})
		default:
			h.json(w, http.StatusOK, "application/json", Done{Instance: h.Instance, Status: "ok"})
		}
	}
}

func (h *handler) reload(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), reloadTimeout)
	defer cancel()
	configuration, err := h.Relay.Reload(ctx)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		h.problem(w, Problem{Status: http.StatusConflict, Detail: "the last reload is still draining; try again"})
	case err != nil:
		h.problem(w, Problem{Status: http.StatusUnprocessableEntity, Detail: err.Error()})
	default:
		h.json(w, http.StatusOK, "application/json", Done{Instance: h.Instance, Status: "ok", Configuration: &configuration})
	}
}
