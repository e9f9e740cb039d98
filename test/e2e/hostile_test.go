package e2e_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
)

// A receiver that does all but take messages loses none of them: when it is well, each
// arrives, alone or in a batch.
func TestAHostileWebhookLosesNothing(t *testing.T) {
	t.Parallel()
	raw := func(answer string, reset bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, answer)
			if reset {
				_ = conn.(*net.TCPConn).SetLinger(0)
			}
			_ = conn.Close()
		}
	}
	const lies = "lies about its results"
	for name, hostile := range map[string]http.HandlerFunc{
		"resets":                raw("", true),
		"hangs":                 func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() },
		"redirects":             func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTemporaryRedirect) },
		"lies about its length": raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", false),
		lies: func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `[{"index": 0, "error": "x"}]`)
		},
		"floods": func(w http.ResponseWriter, _ *http.Request) {
			for line := strings.Repeat("x", 16<<10); ; {
				if _, err := io.WriteString(w, line); err != nil {
					return
				}
			}
		},
	} {
		for kind, more := range map[string]string{"alone": "", "batches": ", batch: {max_messages: 8}"} {
			if name == lies && kind == "alone" {
				continue // there are no results of one
			}
			t.Run(name+" "+kind, func(t *testing.T) {
				t.Parallel()
				var well atomic.Bool
				var attacked atomic.Int64
				var mu sync.Mutex
				got := map[string]int{}
				hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
					body, err := io.ReadAll(req.Body)
					if err != nil {
						return
					}
					if !well.Load() {
						attacked.Add(1)
						hostile(w, req)
						return
					}
					bodies := []json.RawMessage{body}
					if more != "" && json.Unmarshal(body, &bodies) != nil {
						w.WriteHeader(http.StatusTeapot)
						return
					}
					mu.Lock()
					defer mu.Unlock()
					for _, body := range bodies {
						got[string(body)]++
					}
				}))
				defer hook.Close()
				server, url, queue := startEmulator(t, emulator.Config{}, emulator.QueueConfig{})
				sent := send(t, server, queue, 50, 0)
				r := startRelay(t, strings.Replace(toWebhook(url, queue, hook.URL, "    redelivery: {initial: 1s, max: 1s}"), "timeout: 2s", "timeout: 500ms"+more, 1))
				eventually(t, 20*time.Second, "it is attacked", func() bool { return attacked.Load() > 1 })
				<-time.After(time.Second)
				require.Equal(t, len(sent), left(t, server, queue), "nothing was taken")
				well.Store(true)
				eventually(t, time.Minute, "every message is deleted", func() bool { return left(t, server, queue) == 0 })
				require.Zero(t, r.end(syscall.SIGTERM))
				mu.Lock()
				defer mu.Unlock()
				for _, body := range sent {
					require.Positive(t, got[body])
				}
				require.Len(t, got, len(sent))
			})
		}
	}
}
