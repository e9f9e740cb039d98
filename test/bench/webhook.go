package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

func openWebhook(ctx context.Context) (*field, error) {
	r, err := startReceiver(ctx)
	if err != nil {
		return nil, err
	}
	return &field{far: r, contenders: []contender{
		{fmt.Sprintf("bare net/http, %d at once", webhook.Defaults().Concurrency), r.postBare},
		{"webhook sink", func(ctx context.Context, ms []message) error { return r.postSink(ctx, ms) }},
		{"webhook sink, signed", func(ctx context.Context, ms []message) error {
			return r.postSink(ctx, ms, setting.NewSecret("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="))
		}},
	}}, nil
}

// receiverArg makes this program a receiver: see receive.
const receiverArg = "receiver"

// arrived is what a receiver has got since it was emptied.
type arrived struct {
	Requests int64 `json:"requests"`
	// Bytes are those of bodies, and of header names and values.
	Bytes int64 `json:"bytes"`
}

// receive answers each POST with 204 once it has read the body; GET tells what has
// arrived, DELETE forgets it. It writes its address, and ends when in does.
func receive(in io.Reader, out io.Writer) error {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var requests, size atomic.Int64
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet:
			_ = json.NewEncoder(w).Encode(arrived{requests.Load(), size.Load()})
			return
		case http.MethodDelete:
			requests.Store(0)
			size.Store(0)
		default:
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				return // The client has gone.
			}
			for name, values := range r.Header {
				n += int64(len(name) + len(values[0]))
			}
			requests.Add(1)
			size.Add(n)
		}
		w.WriteHeader(http.StatusNoContent)
	})}
	if _, err := fmt.Fprintln(out, l.Addr()); err != nil {
		return err
	}
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(l) })
	_, err = io.Copy(io.Discard, in)
	_ = server.Close()
	served.Wait()
	return err
}

// receiver is a process that receives.
type receiver struct {
	command *exec.Cmd
	in      io.Closer
	url     string
	client  *http.Client
}

func startReceiver(ctx context.Context) (*receiver, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, self, receiverArg) //nolint:gosec // This very program.
	command.Stderr = os.Stderr
	in, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	r := &receiver{command: command, in: in, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		r.close()
		return nil, fmt.Errorf("read the receiver's address: %w", err)
	}
	r.url = "http://" + strings.TrimSpace(address) + "/hook"
	return r, nil
}

func (r *receiver) close() {
	_ = r.in.Close()
	_ = r.command.Wait()
}

func (r *receiver) empty() error {
	_, err := r.ask(http.MethodDelete)
	return err
}

func (r *receiver) count() (int, error) {
	a, err := r.arrived()
	return int(a.Requests), err
}

func (r *receiver) arrived() (a arrived, err error) {
	answer, err := r.ask(http.MethodGet)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(answer, &a)
}

func (r *receiver) ask(method string) ([]byte, error) {
	request, err := http.NewRequestWithContext(context.Background(), method, r.url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // It was only read.
	return io.ReadAll(resp.Body)
}

// postBare is the least there is: a client whose connections are kept, and as many workers
// as there are requests at once.
func (r *receiver) postBare(ctx context.Context, ms []message) error {
	workers := webhook.Defaults().Concurrency
	transport := &http.Transport{MaxConnsPerHost: workers, MaxIdleConnsPerHost: workers, DisableCompression: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	var next atomic.Int64
	var failure atomic.Pointer[error]
	var posting sync.WaitGroup
	for range workers {
		posting.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(ms)) && failure.Load() == nil; i = next.Add(1) - 1 {
				if err := post(ctx, client, r.url, &ms[i]); err != nil {
					failure.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	posting.Wait()
	if err := failure.Load(); err != nil {
		return *err
	}
	return nil
}

func post(ctx context.Context, client *http.Client, url string, m *message) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(m.Body))
	if err != nil {
		return err
	}
	request.Header.Set("User-Agent", name)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(webhook.HeaderID, m.ID)
	request.Header.Set(relay.HeaderSource, m.Source)
	request.Header.Set(relay.HeaderAttempt, strconv.Itoa(m.Attempt))
	request.Header.Set(relay.HeaderEnqueuedAt, m.EnqueuedAtText())
	request.Header.Set(relay.HeaderBody, m.BodyEncoding())
	resp, err := client.Do(request)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // It was only read.
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusNoContent {
		return errors.New("the receiver answered " + resp.Status)
	}
	return nil
}

func (r *receiver) postSink(ctx context.Context, ms []message, secrets ...setting.Secret) error {
	c := webhook.Defaults()
	c.URL, c.Network.Allow, c.Signing.Secrets = setting.NewURL(r.url), []string{"127.0.0.0/8"}, secrets
	endpoint, err := c.Open(relay.SinkDeps{Name: name, Instance: name, Log: zap.NewNop()})
	if err != nil {
		return err
	}
	return feed(ctx, endpoint, ms)
}
