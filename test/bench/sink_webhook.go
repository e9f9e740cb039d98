package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
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

func (r *receiver) senders() []sender {
	return []sender{
		{fmt.Sprintf("bare net/http, %d at once", webhook.Defaults().Concurrency), r.postBare},
		{"webhook sink", func(ctx context.Context, ms []message) error { return r.postSink(ctx, ms) }},
		{"webhook sink, signed", func(ctx context.Context, ms []message) error {
			return r.postSink(ctx, ms, setting.NewSecret("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="))
		}},
	}
}

// receiverArg makes this program a receiver: see receive.
const receiverArg = "receiver"

// arrived is what a receiver has got since it was emptied.
type arrived struct {
	Requests int64 `json:"requests"`
	// Bytes are those of bodies, and of header names and values.
	Bytes int64 `json:"bytes"`
	// Numbered are the messages with a number that came, each once, Again how often one
	// came again.
	Numbered int `json:"numbered"`
	Again    int `json:"again"`
}

// inbox counts what a receiver gets.
type inbox struct {
	mu sync.Mutex
	arrived
	seen map[int]struct{}
}

func (b *inbox) add(size int64, n int, numbered bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Requests++
	b.Bytes += size
	if !numbered {
		return
	}
	if _, again := b.seen[n]; again {
		b.Again++
	}
	b.seen[n] = struct{}{}
}

func (b *inbox) state() arrived {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Numbered = len(b.seen)
	return b.arrived
}

func (b *inbox) empty() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.arrived, b.seen = arrived{}, map[int]struct{}{}
}

// receive answers each POST with 204 once it has read the body; GET tells what has
// arrived, DELETE forgets it. It writes its address, and ends when in does.
func receive(in io.Reader, out io.Writer) error {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var box inbox
	box.empty()
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.Method {
		case http.MethodGet:
			_ = json.NewEncoder(w).Encode(box.state())
			return
		case http.MethodDelete:
			box.empty()
		default:
			head := make([]byte, 32) // the number stands at the beginning
			read, err := io.ReadFull(r.Body, head)
			if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
				return // The client has gone.
			}
			size, err := io.Copy(io.Discard, r.Body)
			if err != nil {
				return
			}
			size += int64(read)
			for name, values := range r.Header {
				size += int64(len(name) + len(values[0]))
			}
			n, numbered := numberOf(head[:read])
			box.add(size, n, numbered)
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
	*child

	url    string
	client *http.Client
}

func startReceiver(ctx context.Context) (*receiver, error) {
	c, err := startChild(ctx, receiverArg)
	if err != nil {
		return nil, err
	}
	r := &receiver{child: c, client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}}
	address, err := c.out.ReadString('\n')
	if err != nil {
		r.close()
		return nil, fmt.Errorf("read the receiver's address: %w", err)
	}
	r.url = "http://" + strings.TrimSpace(address) + "/hook"
	return r, nil
}

func (r *receiver) close() { _ = r.end() }

func (r *receiver) empty(ctx context.Context) error {
	_, err := r.ask(ctx, http.MethodDelete)
	return err
}

func (r *receiver) count(ctx context.Context) (int, error) {
	a, err := r.arrived(ctx)
	return int(a.Requests), err
}

func (r *receiver) arrived(ctx context.Context) (a arrived, err error) {
	answer, err := r.ask(ctx, http.MethodGet)
	if err != nil {
		return a, err
	}
	return a, json.Unmarshal(answer, &a)
}

func (r *receiver) ask(ctx context.Context, method string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, r.url, http.NoBody)
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
