package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// arrivals counts what arrived at one destination, by message id.
type arrivals struct {
	mu    sync.Mutex
	times map[string]int
	total int
}

func (a *arrivals) add(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.times == nil {
		a.times = make(map[string]int)
	}
	a.times[id]++
	a.total++
}

// count gives the messages that arrived and how many of them more than once.
func (a *arrivals) count() (messages, duplicates int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.times), a.total - len(a.times)
}

// receiver is a webhook that answers 204.
type receiver struct {
	arrivals
	url    string
	server *http.Server
	served chan struct{}
}

func listen(ctx context.Context) (*receiver, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the webhook: %w", err)
	}
	r := &receiver{url: "http://" + listener.Addr().String() + "/sms", served: make(chan struct{})}
	r.server = &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			r.add(req.Header.Get("webhook-id"))
			w.WriteHeader(http.StatusNoContent)
		}),
	}
	go func() {
		defer close(r.served)
		_ = r.server.Serve(listener) // it ends with close
	}()
	return r, nil
}

func (r *receiver) close() {
	_ = r.server.Close()
	<-r.served
}
