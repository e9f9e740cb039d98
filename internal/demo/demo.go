// Package demo shows the main job with nothing installed: an emulated MNS queue, a
// relay with a configuration as a user would write it, and a webhook receiver, in one
// process. With a broker's URL the messages go to RabbitMQ as well.
//
// It counts at both ends: what it put into the queue, and what arrived at each
// destination, by message id. What has left the queue without having arrived
// everywhere is lost; there must be none.
package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"go.uber.org/zap"

	"mnsrelay/internal/app"
	"mnsrelay/internal/config"
	"mnsrelay/internal/emulator"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/telemetry"
)

// Config is what can be chosen about a demo.
type Config struct {
	// Messages is how many are sent before the demo stops by itself; 0: until it is
	// told to stop.
	Messages int
	// Rate is how many are sent a second, at least 1.
	Rate int
	// AMQPURL is that of a broker to deliver to as well; unset: none.
	AMQPURL setting.URL
	// Listen is the address of the relay's API.
	Listen string
	// TokenLife is how long a token lives: whole seconds, at least 2.
	TokenLife time.Duration
	// Live redraws the summary in place, for a terminal; otherwise it is a line every
	// few seconds.
	Live bool
	// Version is that of the build.
	Version string
}

// ErrLost says that messages left the queue and did not arrive.
var ErrLost = errors.New("messages were lost")

// queueType is what the queue of the demo holds.
const queueType = "SmsReport"

// Run shows the main job until ctx ends or the messages have all been deleted, then
// drains, for which cut is the end, and prints the balance to out. Its error is ErrLost
// if messages were lost; any other says why the demo could not run.
func Run(ctx, cut context.Context, cfg Config, out, logs io.Writer) error {
	d := &demo{cfg: cfg}
	defer d.close()
	if err := d.start(ctx, logs); err != nil {
		return err
	}

	relayCtx, stopRelay := context.WithCancel(ctx)
	defer stopRelay()
	relayEnded := make(chan error, 1)
	go func() { relayEnded <- d.relay.Run(relayCtx, cut) }()
	if err := d.awaitAPI(relayCtx, relayEnded); err != nil {
		return err
	}
	d.introduce(out)

	sendCtx, stopSending := context.WithCancel(ctx)
	defer stopSending()
	sent := make(chan error, 1)
	go func() { sent <- d.send(sendCtx) }()

	show := newSummary(d, out)
	show.until(ctx, d.done)
	stopSending()
	err := <-sent
	show.stopping(ctx.Err() != nil)
	stopRelay()
	err = errors.Join(err, <-relayEnded)
	d.awaitArrivals()
	return errors.Join(err, d.report(out))
}

// demo is everything that runs.
type demo struct {
	cfg      Config
	text     string
	token    string // of the operator
	emulator *emulator.Server
	queue    string
	receiver *receiver
	consumer *consumer // nil without a broker
	relay    *app.App
	sender   sender
	closers  []func()
}

// start makes every part and starts all but the relay. What it has started is closed by
// close, after a failure too.
func (d *demo) start(ctx context.Context, logs io.Writer) error {
	log, _, err := telemetry.NewLogger("warn", telemetry.FormatConsole, logs)
	if err != nil {
		return err
	}
	d.emulator, err = emulator.New(emulator.Config{TokenLife: d.cfg.TokenLife, Log: zap.NewNop()})
	if err != nil {
		return fmt.Errorf("make the emulator: %w", err)
	}
	d.queue = d.emulator.AlicomQueue(queueType)
	if err := d.emulator.CreateQueue(d.queue, emulator.QueueConfig{}); err != nil {
		return fmt.Errorf("create the queue: %w", err)
	}
	endpoint, err := d.emulator.Start(ctx, "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("start the emulator: %w", err)
	}
	d.closers = append(d.closers, func() { _ = d.emulator.Close() }) //nolint:contextcheck // it closes what ctx may have ended before
	if d.receiver, err = listen(ctx); err != nil {
		return err
	}
	d.closers = append(d.closers, d.receiver.close)
	if !d.cfg.AMQPURL.IsZero() {
		if d.consumer, err = consume(d.cfg.AMQPURL); err != nil {
			return err
		}
		d.closers = append(d.closers, d.consumer.close)
	}

	d.token = rand.Text()
	d.text = configuration(d, endpoint)
	parsed, _, err := config.Parse("demo.yaml", []byte(d.text), config.Environment{})
	if err != nil {
		return err
	}
	d.relay, err = app.New(parsed, app.Deps{ //nolint:contextcheck // A relay has the context of its Run.
		Version: d.cfg.Version, Instance: "demo",
		Registry: telemetry.NewRegistry(d.cfg.Version), Log: log, Level: zap.NewAtomicLevel(),
	})
	return err
}

// configuration is what a user would write for this demo.
func configuration(d *demo, endpoint string) string {
	to, sinks := "[webhook]", ""
	if d.consumer != nil {
		to = "[webhook, rabbitmq]"
		sinks = fmt.Sprintf(`  rabbitmq:
    type: amqp091
    url: %q
    exchange: %s
    routing_key: %s
`, d.cfg.AMQPURL.Reveal(), exchangeName, routingKey)
	}
	return fmt.Sprintf(`server: {listen: %q, admin_token: %s}
sources:
  sms-report:
    queue: %s
    endpoint: %s
    credentials:
      endpoint: %s
      access_key_id: %s
      access_key_secret: %s
    to: %s
sinks:
  webhook:
    type: webhook
    url: %s
    network: {allow: [127.0.0.0/8]}
%s`, d.cfg.Listen, d.token, d.queue, endpoint, endpoint, emulator.DemoAccessKeyID, emulator.DemoAccessKeySecret, to, d.receiver.url, sinks)
}

// awaitAPI waits until the relay listens.
func (d *demo) awaitAPI(ctx context.Context, ended <-chan error) error {
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for d.relay.Addr() == nil {
		select {
		case <-ticker.C:
		case err := <-ended:
			return err
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// done reports whether everything that was to be sent has been sent and deleted.
func (d *demo) done() bool {
	if d.cfg.Messages == 0 || d.sender.sent() < d.cfg.Messages {
		return false
	}
	_, left := d.queued()
	return left == 0
}

// queued tells how many messages were deleted from the queue and how many are left.
func (d *demo) queued() (deleted int64, left int) {
	stats, _ := d.emulator.QueueStats(d.queue)
	return stats.Deleted, stats.Active + stats.Inactive + stats.Delayed
}

// awaitArrivals gives what was confirmed a moment to be counted: a broker confirms a
// message before its consumer has it.
func (d *demo) awaitArrivals() {
	deadline := time.NewTimer(arrivalTime)
	defer deadline.Stop()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for d.missing() > 0 {
		select {
		case <-ticker.C:
		case <-deadline.C:
			return
		}
	}
}

const arrivalTime = 2 * time.Second

// missing is how many messages have left the queue and not arrived everywhere.
func (d *demo) missing() int {
	_, left := d.queued()
	gone, most := d.sender.sent()-left, 0
	for _, at := range d.destinations() {
		messages, _ := at.count()
		most = max(most, gone-messages)
	}
	return most
}

func (d *demo) close() {
	for _, closer := range slices.Backward(d.closers) {
		closer()
	}
	d.closers = nil
}
