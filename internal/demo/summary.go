package demo

import (
	"context"
	"fmt"
	"io"
	"time"
)

// introduce says what runs and where to look.
func (d *demo) introduce(out io.Writer) {
	api := "http://" + d.relay.Addr().String()
	_, _ = fmt.Fprintf(out, `queue     %s (emulated, tokens live %s)
to        %s
`, d.queue, d.cfg.TokenLife, d.receiver.url)
	if d.consumer != nil {
		_, _ = fmt.Fprintf(out, "and to    %s exchange %s, routing key %s\n", d.consumer.url, exchangeName, routingKey)
	}
	_, _ = fmt.Fprintf(out, `page      %s/
token     %s (to pause and resume on the page)
metrics   %s/metrics
`, api, d.token, api)
	if d.cfg.Messages > 0 {
		_, _ = fmt.Fprintf(out, "sends %d messages, %d a second, and stops when all are deleted; Ctrl-C drains and stops\n\n", d.cfg.Messages, d.cfg.Rate)
	} else {
		_, _ = fmt.Fprintf(out, "sends %d messages a second; Ctrl-C drains and stops\n\n", d.cfg.Rate)
	}
}

// How often the summary is shown: redrawn in place, or as a new line.
const (
	redraw  = 200 * time.Millisecond
	newLine = 2 * time.Second
)

// summary shows how the demo goes.
type summary struct {
	demo  *demo
	out   io.Writer
	begun time.Time
}

func newSummary(d *demo, out io.Writer) *summary {
	return &summary{demo: d, out: out, begun: time.Now()}
}

// until shows the summary until ctx ends or done is true.
func (s *summary) until(ctx context.Context, done func() bool) {
	every := newLine
	if s.demo.cfg.Live {
		every = redraw
	}
	show := time.NewTicker(every)
	defer show.Stop()
	check := time.NewTicker(20 * time.Millisecond)
	defer check.Stop()
	for {
		select {
		case <-check.C:
			if done() {
				return
			}
		case <-show.C:
			s.show()
		case <-ctx.Done():
			return
		}
	}
}

// stopping leaves the last summary standing.
func (s *summary) stopping(interrupted bool) {
	s.show()
	if s.demo.cfg.Live {
		_, _ = fmt.Fprintln(s.out)
	}
	if interrupted {
		_, _ = fmt.Fprintln(s.out, "draining: what is in flight is delivered and deleted; Ctrl-C again cuts it short")
	}
}

func (s *summary) show() {
	source := s.demo.relay.Status().Sources[0]
	delivered, _ := s.demo.receiver.count()
	text := fmt.Sprintf("%4.0fs  sent %d  received %d  delivered %d  deleted %d", time.Since(s.begun).Seconds(),
		s.demo.sender.sent(), source.Balance.Received, delivered, source.Balance.Deleted)
	if s.demo.consumer != nil {
		consumed, _ := s.demo.consumer.count()
		text += fmt.Sprintf("  rabbitmq %d", consumed)
	}
	if c := source.Credential; c != nil && !c.Expires.IsZero() {
		text += fmt.Sprintf("  token %.0fs", max(time.Until(c.Expires).Seconds(), 0))
	}
	if s.demo.cfg.Live {
		_, _ = fmt.Fprintf(s.out, "\r\x1b[K%s", text)
		return
	}
	_, _ = fmt.Fprintln(s.out, text)
}

// report prints the balance; its error is ErrLost if something was lost.
func (d *demo) report(out io.Writer) error {
	deleted, left := d.queued()
	sent := d.sender.sent()
	_, _ = fmt.Fprintf(out, "\nsent %d, deleted %d, left in the queue %d\n", sent, deleted, left)
	for _, at := range d.destinations() {
		messages, duplicates := at.count()
		_, _ = fmt.Fprintf(out, "%-8s  %d arrived, %d of them twice\n", at.name, messages, duplicates)
	}
	balance := d.relay.Status().Sources[0].Balance
	_, _ = fmt.Fprintf(out, "balance   received %d = deleted %d + returned %d + lost leases %d + in flight %d\n",
		balance.Received, balance.Deleted, balance.Returned, balance.LostLeases, balance.InFlight)
	lost := d.missing()
	_, _ = fmt.Fprintf(out, "lost      %d\n", lost)
	if lost > 0 {
		return fmt.Errorf("%w: %d", ErrLost, lost)
	}
	return nil
}

type destination struct {
	name string
	*arrivals
}

func (d *demo) destinations() []destination {
	all := []destination{{"webhook", &d.receiver.arrivals}}
	if d.consumer != nil {
		all = append(all, destination{"rabbitmq", &d.consumer.arrivals})
	}
	return all
}
