package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/rs/zerolog"

	"mnsrelay/test/broker"
	"mnsrelay/test/process"
)

// name is that of the exchange, and begins what else is made in the broker.
const name = "bench"

// patience is how long something may take that does not end by itself.
const patience = 90 * time.Second

// world is what the contenders stand between. Its parts are started when they are needed.
type world struct {
	options

	dir      string
	binary   string
	emulator *process.Process
	control  string // the emulator's URL
	client   *http.Client
	node     *broker.Node
	channel  *amqp.Channel
	receiver *receiver
	proxies  *toxiproxy.ApiServer
	// far is how emulator and broker are reached with some milliseconds in between.
	farEmulator, farBroker *toxiproxy.Proxy
}

// open starts emulator and broker, and builds the program.
func (w *world) open(ctx context.Context) (err error) {
	if w.node != nil {
		return nil
	}
	if w.dir, err = os.MkdirTemp("", "mnsrelay-bench-"); err != nil {
		return err
	}
	w.client = newHTTPClient(1)
	if w.binary, err = build(ctx, w.dir); err != nil {
		return err
	}
	if err := w.startEmulator(ctx); err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if w.node, err = broker.Start(starting, broker.Config{Dir: w.dir}); err != nil {
		return err
	}
	conn, err := amqp.Dial(w.node.URL())
	if err != nil {
		return err
	}
	if w.channel, err = conn.Channel(); err != nil {
		return err
	}
	return w.channel.ExchangeDeclare(name, amqp.ExchangeTopic, true, false, false, false, nil)
}

// build builds the program as it is released.
func build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "mnsrelay")
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "mnsrelay/cmd/mnsrelay") //nolint:gosec // The folder is our own.
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the program: %w\n%s", err, out)
	}
	return binary, nil
}

func (w *world) startEmulator(ctx context.Context) error {
	const announced = "The emulator is at "
	output := process.NewOutput(announced)
	command := exec.Command(w.binary, "emulator", "--listen", "127.0.0.1:0", "--access-key", keyID+":"+keySecret) //nolint:noctx,gosec // It lives until close.
	var err error
	if w.emulator, err = process.Start(command, output); err != nil {
		return fmt.Errorf("start the emulator: %w", err)
	}
	select {
	case <-output.Seen():
	case <-w.emulator.Done():
		return fmt.Errorf("start the emulator: %w; it wrote:\n%s", w.emulator.Outcome(), output.Tail())
	case <-ctx.Done():
		return ctx.Err()
	}
	_, after, _ := strings.Cut(output.Tail(), announced)
	w.control, _, _ = strings.Cut(after, " ")
	return nil
}

// needReceiver starts the receiver of webhooks.
func (w *world) needReceiver(ctx context.Context) (err error) {
	if w.receiver == nil {
		w.receiver, err = startReceiver(ctx)
	}
	return err
}

// The round trips of a distant contender.
const (
	brokerRoundTrip   = 5 * time.Millisecond
	emulatorRoundTrip = 10 * time.Millisecond
)

// needDistance puts proxies before emulator and broker, which delay what comes back.
func (w *world) needDistance() (err error) {
	if w.proxies != nil {
		return nil
	}
	zerolog.SetGlobalLevel(zerolog.Disabled) // the proxies log past their logger
	w.proxies = toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	if w.farEmulator, err = w.delayed("mns", w.control, emulatorRoundTrip); err != nil {
		return err
	}
	w.farBroker, err = w.delayed("amqp", w.node.URL(), brokerRoundTrip)
	return err
}

func (w *world) delayed(name, upstream string, by time.Duration) (*toxiproxy.Proxy, error) {
	u, err := url.Parse(upstream)
	if err != nil {
		return nil, err
	}
	p := toxiproxy.NewProxy(w.proxies, name, "127.0.0.1:0", u.Host)
	if err := p.Start(); err != nil {
		return nil, err
	}
	_, err = p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name": "way", "type": "latency", "stream": "downstream", "attributes": {"latency": %d}}`, by.Milliseconds())))
	return p, err
}

// endpoint is where a contender finds MNS.
func (w *world) endpoint(l load) string {
	if l.distant {
		return "http://" + w.farEmulator.Listen
	}
	return w.control
}

// brokerURL is where a contender finds RabbitMQ.
func (w *world) brokerURL(l load) string {
	if l.distant {
		return "amqp://guest:guest@" + w.farBroker.Listen + "/"
	}
	return w.node.URL()
}

// close ends what was started.
func (w *world) close() error {
	var errs []error
	if w.receiver != nil {
		errs = append(errs, w.receiver.end())
	}
	for _, p := range []*toxiproxy.Proxy{w.farEmulator, w.farBroker} {
		if p != nil {
			p.Stop()
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if w.emulator != nil {
		errs = append(errs, w.emulator.End(ctx, syscall.SIGTERM))
	}
	if w.node != nil {
		errs = append(errs, w.node.Close())
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}

// ask calls a control of the emulator; answer, if not nil, is read from JSON.
func (w *world) ask(ctx context.Context, method, path string, body []byte, answer any) error {
	request, err := http.NewRequestWithContext(ctx, method, w.control+"/_emulator/"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := w.client.Do(request)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s of the emulator: %s: %s", method, path, response.Status, bytes.TrimSpace(text))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// state is what the emulator tells of queues, together.
type state struct {
	Active   int `json:"active"`
	Inactive int `json:"inactive"`
	Delayed  int `json:"delayed"`
	Deleted  int `json:"deleted"`
	Waiting  int `json:"waiting"`
	// polled counts the queues at which a receive waits.
	polled int
}

func (w *world) state(ctx context.Context, queues int) (all state, err error) {
	type view struct{ Messages state }
	var views []view
	if queues == 1 {
		views = make([]view, 1)
		err = w.ask(ctx, http.MethodGet, "queues/"+queueName(0), nil, &views[0])
	} else {
		err = w.ask(ctx, http.MethodGet, "queues", nil, &views)
	}
	for _, v := range views {
		all.Active += v.Messages.Active
		all.Inactive += v.Messages.Inactive
		all.Delayed += v.Messages.Delayed
		all.Deleted += v.Messages.Deleted
		all.Waiting += v.Messages.Waiting
		if v.Messages.Waiting > 0 {
			all.polled++
		}
	}
	return all, err
}

// requests counts those that the emulator has answered, but for its controls.
func (w *world) requests(ctx context.Context) (total int, err error) {
	var counts map[string]map[string]int
	err = w.ask(ctx, http.MethodGet, "requests", nil, &counts)
	for _, codes := range counts {
		for _, n := range codes {
			total += n
		}
	}
	return total, err
}

// makeQueues makes the emulator's queues anew, and no others.
func (w *world) makeQueues(ctx context.Context, count int) error {
	var old []struct{ Name string }
	if err := w.ask(ctx, http.MethodGet, "queues", nil, &old); err != nil {
		return err
	}
	for _, q := range old {
		if err := w.ask(ctx, http.MethodDelete, "queues/"+q.Name, nil, nil); err != nil {
			return err
		}
	}
	for i := range count {
		// Longer than any run: a message that came twice would be a fault.
		if err := w.ask(ctx, http.MethodPut, "queues/"+queueName(i), []byte(`{"visibility_timeout":"10m"}`), nil); err != nil {
			return err
		}
	}
	return nil
}

// kept is the queue of the broker that keeps what a sink publishes.
func kept(sink int) string { return name + "." + sinkName(sink) }

// makeKept makes the broker's queues anew. They are lazy, as all are from RabbitMQ 3.12 on: an
// older one keeps a backlog in its own memory, and what it takes to collect that falls on one
// run and not on the next.
func (w *world) makeKept(count int) error {
	for i := range count {
		if _, err := w.channel.QueueDelete(kept(i), false, false, false); err != nil {
			return err
		}
		if _, err := w.channel.QueueDeclare(kept(i), true, false, false, false, amqp.Table{"x-queue-mode": "lazy"}); err != nil {
			return err
		}
		if err := w.channel.QueueBind(kept(i), sinkName(i), name, false, nil); err != nil {
			return err
		}
	}
	return nil
}
