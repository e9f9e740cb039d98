package httpapi

import (
	"embed"
	"net/http"
	"path"
	"strconv"

	"mnsrelay/api"
)

// web is the status page: no build step, and nothing from elsewhere.
//
//go:embed web
var web embed.FS

// pagePolicy lets the page load its own parts and ask its own server, and nothing else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// Page is GET /.
func (h *handler) Page(w http.ResponseWriter, _ *http.Request) { h.part(w, "index.html") }

// Asset is GET /assets/{file}.
func (h *handler) Asset(w http.ResponseWriter, _ *http.Request, file string) { h.part(w, file) }

func (h *handler) part(w http.ResponseWriter, name string) {
	types := map[string]string{
		".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
	}
	content, err := web.ReadFile("web/" + path.Base(name))
	contentType, known := types[path.Ext(name)]
	if err != nil || !known {
		h.problem(w, api.Problem{Status: http.StatusNotFound, Detail: "the status page has no such part"})
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Security-Policy", pagePolicy)
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	_, _ = w.Write(content)
}
