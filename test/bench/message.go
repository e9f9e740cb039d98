package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// rawFrom is from which size on bodies go as they are: as base64 they would be longer than
// MNS takes.
const rawFrom = 48 << 10

// bodyOf makes message n, JSON as what the relay is for, of size bytes, at least
// a hundred.
func bodyOf(n int, at time.Time, size int) []byte {
	const end = `"}`
	body := fmt.Appendf(make([]byte, 0, size), `{"n":%d,"at":%d,"success":true,"biz_id":"%d","text":"`, n, at.UnixNano(), 900000000+n)
	for len(body) < size-len(end) {
		body = append(body, 'x')
	}
	return append(body, end...)
}

// numberOf reads the number of a body.
func numberOf(body []byte) (n int, found bool) {
	rest, found := bytes.CutPrefix(body, []byte(`{"n":`))
	if !found {
		return 0, false
	}
	digits, _, _ := bytes.Cut(rest, []byte(","))
	n, err := strconv.Atoi(string(digits))
	return n, err == nil
}

// sentAt reads when a body was handed to MNS.
func sentAt(body []byte) (time.Time, error) {
	_, rest, _ := bytes.Cut(body, []byte(`"at":`))
	digits, _, _ := bytes.Cut(rest, []byte(","))
	ns, err := strconv.ParseInt(string(digits), 10, 64)
	return time.Unix(0, ns), err
}

// sending is a message as the emulator's control takes it.
type sending struct {
	Body   string `json:"body"`
	Encode string `json:"encode,omitempty"`
}

func (l load) sending(n int) sending {
	s := sending{Body: string(bodyOf(n, time.Now(), l.size))}
	if !l.raw() {
		s.Encode = "base64"
	}
	return s
}

// fill puts the whole backlog into the queues, each its share.
func (w *world) fill(ctx context.Context, l load) error {
	const piece = 4 << 20 // bytes of a request
	each := max(piece/l.size, 1)
	for q := range l.sources {
		// Message n is in queue n modulo sources.
		for n := q; n < l.messages; {
			var list []sending
			for ; n < l.messages && len(list) < each; n += l.sources {
				list = append(list, l.sending(n))
			}
			body, err := json.Marshal(list)
			if err != nil {
				return err
			}
			if err := w.ask(ctx, http.MethodPost, "queues/"+queueName(q)+"/messages", body, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// trickle sends message after message, each at its time or as soon after as it can.
func (w *world) trickle(ctx context.Context, l load) error {
	every := time.Second / time.Duration(l.rate)
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := range l.messages {
		timer.Reset(time.Until(began.Add(time.Duration(n) * every)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		body, err := json.Marshal(l.sending(n))
		if err != nil {
			return err
		}
		if err := w.ask(ctx, http.MethodPost, "queues/"+queueName(0)+"/messages", body, nil); err != nil {
			return err
		}
	}
	return nil
}

// verify looks at each message that has arrived: every one once, and nothing else.
func (w *world) verify(ctx context.Context, l load) error {
	left, err := w.state(ctx, l.sources)
	if err != nil {
		return err
	}
	if left.Active+left.Inactive+left.Delayed > 0 || left.Deleted != l.messages {
		return fmt.Errorf("%d of %d messages were deleted, %d are left", left.Deleted, l.messages, left.Active+left.Inactive+left.Delayed)
	}
	if l.hook {
		got, err := w.receiver.arrived(ctx)
		if err != nil {
			return err
		}
		if got.Numbered != l.messages || got.Again > 0 {
			return fmt.Errorf("%d of %d messages have arrived, %d of them again", got.Numbered, l.messages, got.Again)
		}
		return nil
	}
	for i := range l.sinks {
		if err := w.verifyKept(ctx, kept(i), l.messages); err != nil {
			return err
		}
	}
	return nil
}

// verifyKept takes everything out of a queue of the broker.
func (w *world) verifyKept(ctx context.Context, queue string, messages int) (err error) {
	inspected, err := w.channel.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		return err
	}
	if inspected.Messages != messages {
		return fmt.Errorf("%d of %d messages have arrived in %s", inspected.Messages, messages, queue)
	}
	// Not with ctx: the library would cancel the consumer when it ends, amid other calls.
	deliveries, err := w.channel.Consume(queue, queue, true, true, false, false, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.channel.Cancel(queue, false)) }()
	seen := make([]bool, messages)
	for range messages {
		select {
		case d, open := <-deliveries:
			if !open {
				return fmt.Errorf("the consumer of %s has ended", queue)
			}
			n, found := numberOf(d.Body)
			if !found || n >= messages || seen[n] {
				return fmt.Errorf("a message has arrived in %s that was not sent, or again: %s", queue, strings.TrimRight(string(d.Body[:min(len(d.Body), 40)]), "x"))
			}
			seen[n] = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
