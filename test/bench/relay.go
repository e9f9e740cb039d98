package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"mnsrelay/internal/emulator"
	"mnsrelay/test/rig"
)

// adminToken opens the relay's profiles.
const adminToken = "bench-admin-token"

func sourceName(i int) string { return "s" + strconv.Itoa(i) }
func queueName(i int) string  { return "bench-" + strconv.Itoa(i) }
func sinkName(i int) string   { return "k" + strconv.Itoa(i) }

// configuration is that of a relay: what is not written has its default.
func (w *world) configuration(l load) string {
	var text strings.Builder
	fmt.Fprintf(&text, "server: {listen: 127.0.0.1:0, admin_token: %s}\nsources:\n", adminToken)
	names := make([]string, l.sources)
	for i := range names {
		names[i] = sourceName(i)
		credentials := "type: static"
		if l.role {
			credentials = fmt.Sprintf("type: ram_role_arn, endpoint: %q, role_arn: %q", w.control, "acs:ram::"+emulator.DefaultAccountID+":role/mnsrelay")
		}
		fmt.Fprintf(&text, "  %s:\n    endpoint: %s\n    queue: %s\n    credentials: {%s, access_key_id: %s, access_key_secret: %s}\n",
			names[i], w.endpoint(l), queueName(i), credentials, keyID, keySecret)
		if l.pollers > 0 {
			// As many as the others have where there is a backlog, and fewer where there is
			// none: each poll is billed.
			fmt.Fprintf(&text, "    pollers: {max: %d}\n", l.pollers)
		}
		if l.templates { // every message matches, but this has to be written
			text.WriteString("    unmatched: retain\n")
		}
	}
	to := make([]string, l.sinks)
	text.WriteString("sinks:\n")
	for i := range to {
		to[i] = sinkName(i)
		if l.hook {
			fmt.Fprintf(&text, "  %s: {type: webhook, url: %q, network: {allow: [127.0.0.0/8]}}\n", to[i], w.receiver.url)
			continue
		}
		key := to[i]
		if l.templates {
			key = `'{{ body.success ? "` + key + `" : "failed" }}'`
		}
		fmt.Fprintf(&text, "  %s:\n    type: amqp091\n    url: %s\n    exchange: %s\n    routing_key: %s\n", to[i], w.brokerURL(l), name, key)
		if l.templates {
			text.WriteString("    headers: {x-dedupe-key: '{{ body.biz_id }}'}\n")
		}
	}
	fmt.Fprintf(&text, "routes:\n  - name: all\n    from: [%s]\n    to: [%s]\n", strings.Join(names, ", "), strings.Join(to, ", "))
	if l.templates {
		text.WriteString("    when: body.success == true && body.n >= 0\n")
	}
	return text.String()
}

// relayProcess is a running relay.
type relayProcess struct {
	*rig.Relay
}

// startRelay writes a configuration and runs the relay with it.
func (w *world) startRelay(ctx context.Context, configuration string) (*relayProcess, error) {
	path := filepath.Join(w.dir, "mnsrelay.yaml")
	if err := os.WriteFile(path, []byte(configuration), 0o600); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	started, err := rig.Start(ctx, w.binary, path)
	if err != nil {
		return nil, err
	}
	return &relayProcess{started}, nil
}

func (r *relayProcess) pid() int { return r.PID() }

func (r *relayProcess) ended() <-chan struct{} { return r.Done() }

// memory reads the metrics of Go's runtime.
func (r *relayProcess) memory(ctx context.Context) (use memoryUse, err error) {
	text, err := r.ask(ctx, "/metrics")
	if err != nil {
		return use, err
	}
	for line := range bytes.Lines(text) {
		metric, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		v, _ := strconv.ParseFloat(value, 64)
		switch metric {
		case "go_memstats_mallocs_total":
			use.Allocations = uint64(v)
		case "go_memstats_alloc_bytes_total":
			use.Bytes = uint64(v)
		}
	}
	if use.Allocations == 0 || use.Bytes == 0 {
		return use, errors.New("the relay's metrics do not say what was allocated")
	}
	return use, nil
}

// ask asks the API, with the admin token and without a look at the answer, which takes long.
func (r *relayProcess) ask(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+adminToken)
	client := newHTTPClient(1)
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(response.Body)
	err = errors.Join(err, response.Body.Close())
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("ask the relay for %s: %s: %s", path, response.Status, bytes.TrimSpace(text))
	}
	return text, err
}

// end tells it to end, as an orchestrator does.
func (r *relayProcess) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	code, err := r.End(ctx, syscall.SIGTERM)
	if err == nil && code != 0 {
		err = fmt.Errorf("the relay exits with %d; it wrote:\n%s", code, r.Log())
	}
	return err
}

// profile writes a processor profile of some seconds to a file, and after it what has been
// allocated, and by whom, beside it.
func (r *relayProcess) profile(ctx context.Context, path string, seconds int) error {
	for _, p := range [][2]string{{"profile?seconds=" + strconv.Itoa(seconds), path}, {"allocs", path + ".allocs"}} {
		text, err := r.ask(ctx, "/debug/pprof/"+p[0])
		if err != nil {
			return err
		}
		if err := os.WriteFile(p[1], text, 0o600); err != nil {
			return err
		}
	}
	return nil
}
