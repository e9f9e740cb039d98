package chaos_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"mnsrelay/internal/emulator"
	"mnsrelay/internal/setting"
	"mnsrelay/test/broker"
	"mnsrelay/test/redisserver"
	"mnsrelay/test/rig"
)

// The keys that the emulator accepts; the secret must appear in no log.
const (
	keyID     = "LTAI-chaos-test"
	keySecret = "chaos:secret/with#odd@characters"
)

const (
	// tokenLife is short, so that an outage of the token service is soon one.
	tokenLife = 8 * time.Second
	// lease is the visibility timeout of the queue: short, so that renewal is at work in
	// every outage and what was lost with a relay soon comes again.
	lease = 6 * time.Second
	// room is the most that one relay has in flight.
	room = 64
)

// first and second are places for relays, of which there are as many as replicas.
const (
	first = iota
	second
	replicas = 4
)

// world is everything there is in a run.
type world struct {
	emulator *emulator.Server
	queue    string
	node     *broker.Node
	amqp     *way
	mns      *way
	redis    *redisserver.Server // nil: there is none
	hook     *hook
	inbox    *inbox

	configuration string // the path of the file
	version       int    // of the settings in it

	mu     sync.Mutex
	relays [replicas]*rig.Relay
	ended  []*rig.Relay
}

// way is the proxy between the relays and a server. Its address does not change; the
// proxy's own field is written anew with each start, and a reload may read it meanwhile.
type way struct {
	*toxiproxy.Proxy
	address string
}

// newWorld makes a world without relays; shared says that they will share a ledger.
func newWorld(t *testing.T, shared bool) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w := &world{configuration: filepath.Join(t.TempDir(), "mnsrelay.yaml")}
	var err error
	w.node, err = broker.Start(ctx, broker.Config{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.node.Close()) })

	w.emulator, err = emulator.New(emulator.Config{
		Issued:     rig.Secret,
		AccessKeys: []emulator.AccessKey{{ID: keyID, Secret: setting.NewSecret(keySecret)}},
		TokenLife:  tokenLife,
	})
	require.NoError(t, err)
	w.queue = w.emulator.AlicomQueue("SmsReport")
	require.NoError(t, w.emulator.CreateQueue(w.queue, emulator.QueueConfig{VisibilityTimeout: lease}))
	address, err := w.emulator.Start(ctx, "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.emulator.Close()) })

	zerolog.SetGlobalLevel(zerolog.Disabled) // the proxy's toxics log past its logger
	proxies := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	w.mns = newWay(t, proxies, "mns", address)
	w.amqp = newWay(t, proxies, "amqp", w.node.URL())
	_, err = w.amqp.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(
		`{"name": "usual", "type": "latency", "stream": "downstream", "attributes": {"latency": %d}}`, usualDelay.Milliseconds())))
	require.NoError(t, err)
	w.hook = newHook(t)
	w.inbox, err = newInbox(ctx, w.node.URL())
	require.NoError(t, err)
	require.NoError(t, w.node.Sync(ctx))
	w.inbox.watch(t)

	if shared {
		w.redis = redisserver.Start(t, redisserver.Config{})
	}
	require.NoError(t, w.configure(w.settings(0)))
	t.Cleanup(func() { w.killAll(t) })
	return w
}

func newWay(t *testing.T, server *toxiproxy.ApiServer, name, upstream string) *way {
	t.Helper()
	u, err := url.Parse(upstream)
	require.NoError(t, err)
	p := toxiproxy.NewProxy(server, name, "127.0.0.1:0", u.Host)
	require.NoError(t, p.Start())
	t.Cleanup(p.Stop)
	return &way{Proxy: p, address: p.Listen}
}

// settings is the configuration of every relay: all messages go to the broker, every
// second one to the webhook too. Versions differ in what a reload changes: an odd one in
// the source, every second pair in the webhook.
func (w *world) settings(version int) string {
	ledger := "type: memory"
	if w.redis != nil {
		ledger = "type: redis, url: " + w.redis.URL()
	}
	return fmt.Sprintf(`
server: {listen: 127.0.0.1:0}
ledger: {%s}
sources:
  sms:
    queue: %s
    endpoint: http://%s
    credentials: {endpoint: http://%s}
    wait: %ds
    in_flight: {messages: %d}
    redelivery: {initial: 1s, max: 4s}
sinks:
  events:
    type: amqp091
    url: amqp://guest:guest@%s/
    exchange: %s
    routing_key: chaos
    timeout: 5s
  hook:
    type: webhook
    url: %s
    network: {allow: [127.0.0.0/8]}
    timeout: %dms
routes:
  - {name: all, from: sms, to: events}
  - {name: even, from: sms, when: body.n %% 2 == 0, to: hook}
`, ledger, w.queue, w.mns.address, w.mns.address, 4+version%2, room, w.amqp.address, exchange, w.hook.server.URL, 2000+version/2%2)
}

// toHook says whether message n goes to the webhook.
func toHook(n int) bool { return n%2 == 0 }

// configure writes a configuration as an editor does: it is there as a whole.
func (w *world) configure(text string) error {
	next := w.configuration + ".next"
	if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(next, w.configuration)
}

// start starts a relay in a place that is free.
func (w *world) start(ctx context.Context, place int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r, err := rig.Start(ctx, binary, w.configuration,
		"ALIBABA_CLOUD_ACCESS_KEY_ID="+keyID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET="+keySecret)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.relays[place] = r
	return nil
}

// end ends the relay in a place; one that was asked to must exit with 0.
func (w *world) end(ctx context.Context, place int, with syscall.Signal) error {
	w.mu.Lock()
	r := w.relays[place]
	w.relays[place] = nil
	w.ended = append(w.ended, r)
	w.mu.Unlock()
	// drain_timeout, and some.
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	code, err := r.End(ctx, with)
	switch {
	case err != nil:
		return fmt.Errorf("end the relay: %w; it wrote:\n%s", err, tail(r.Log()))
	case with == syscall.SIGTERM && code != 0:
		return fmt.Errorf("the relay that was told to end exited with %d; it wrote:\n%s", code, tail(r.Log()))
	}
	return nil
}

// reload lets the first relay read another configuration, and waits until it is in force
// or refused. What is changed may still be draining.
func (w *world) reload(ctx context.Context, text string, wrong bool) error {
	if err := w.configure(text); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	// A change waits for the one before it, and that for what is in flight.
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("the reload does not end"))
	defer cancel()
	r := w.living()[first]
	before, err := r.Status(ctx)
	if err != nil {
		return err
	}
	if err := r.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	for {
		now, err := r.Status(ctx)
		if err != nil {
			return err
		}
		c := now.Configuration
		switch {
		case c.LastReload.Equal(before.Configuration.LastReload):
		case (c.LastError != nil) != wrong:
			return fmt.Errorf("reload a configuration: it is %+v, and should have been refused: %t", c, wrong)
		default:
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

func (w *world) swap() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.relays[first], w.relays[second] = w.relays[second], w.relays[first]
}

// places gives the relay in each place, nil where there is none.
func (w *world) places() [replicas]*rig.Relay {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.relays
}

// living gives the relays that run.
func (w *world) living() (relays []*rig.Relay) {
	for _, r := range w.places() {
		if r != nil {
			relays = append(relays, r)
		}
	}
	return relays
}

// killAll ends what a failed run left, and looks at the logs of all.
func (w *world) killAll(t *testing.T) {
	t.Helper()
	living := w.living()
	for _, r := range living {
		_, err := r.End(context.Background(), syscall.SIGKILL)
		require.NoError(t, err)
	}
	for _, r := range append(w.ended, living...) {
		require.NotContains(t, r.Log(), keySecret)
		if t.Failed() {
			t.Logf("log of a relay:\n%s", tail(r.Log()))
		}
		if *logsFlag != "" {
			f, err := os.CreateTemp(*logsFlag, "relay-*.log")
			require.NoError(t, err)
			_, err = f.WriteString(r.Log())
			require.NoError(t, errors.Join(err, f.Close()))
		}
	}
}

// tail is the end of a log.
func tail(log string) string {
	const kept = 100
	lines := strings.Split(log, "\n")
	return strings.Join(lines[max(len(lines)-kept, 0):], "\n")
}

// fault breaks the emulator for a while.
func (w *world) fault(ctx context.Context, lasts time.Duration, fault emulator.Fault) error {
	remove, err := w.emulator.AddFault(fault)
	if err != nil {
		return fmt.Errorf("add a fault: %w", err)
	}
	defer remove()
	return pause(ctx, lasts)
}

// send puts messages, numbered from 0, into the queue, evenly over span.
func (w *world) send(ctx context.Context, messages int, span time.Duration) error {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	begun := time.Now()
	for sent := 0; sent < messages; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		due := min(int(float64(messages)*time.Since(begun).Seconds()/span.Seconds()), messages)
		var batch []emulator.Message
		for ; sent < due; sent++ {
			batch = append(batch, emulator.Message{Body: []byte(base64.StdEncoding.EncodeToString(body(sent)))})
		}
		if len(batch) == 0 {
			continue
		}
		if _, err := w.emulator.SendAll(w.queue, batch); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// left is how many messages the queue holds.
func (w *world) left() int {
	stats, _ := w.emulator.QueueStats(w.queue)
	return stats.Active + stats.Inactive + stats.Delayed
}
