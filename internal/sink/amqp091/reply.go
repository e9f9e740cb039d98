package amqp091

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

// directReplyTo is where RabbitMQ leads answers straight to the channel that published.
const directReplyTo = "amq.rabbitmq.reply-to"

// Reply is for acknowledge: reply.
type Reply struct {
	// Timeout is how long a consumer may take, from the publish on: more than 0, at
	// most 12h.
	Timeout time.Duration `yaml:"timeout" schema:"positive"`
	// InFlight is how many messages may wait for an answer at once: 1 to 65535.
	InFlight int `yaml:"in_flight" schema:"min=1,max=65535"`
}

const (
	maxReplyTimeout  = 12 * time.Hour
	maxReplyInFlight = 1<<16 - 1
)

func (r *Reply) validate() error {
	var problems []error
	if r.Timeout <= 0 || r.Timeout > maxReplyTimeout {
		problems = append(problems, setting.Problemf("reply.timeout", "%v is out of range: write more than 0s and at most 12h", r.Timeout))
	}
	if r.InFlight < 1 || r.InFlight > maxReplyInFlight {
		problems = append(problems, setting.Problemf("reply.in_flight", "%d is out of range: write 1 to %d", r.InFlight, maxReplyInFlight))
	}
	return errors.Join(problems...)
}

// replies are the answers that a sink waits for. It publishes on a channel of its own and
// has room of its own, so that a slow consumer holds up nobody else.
type replies struct {
	sink *Sink
	room chan struct{} // holds an entry for each message without an answer

	mu      sync.Mutex
	channel *replyChannel // nil: none yet
}

func newReplies(s *Sink) *replies {
	return &replies{sink: s, room: make(chan struct{}, s.settings.Reply.InFlight)}
}

// replyChannel is a channel with the answers that are awaited on it.
type replyChannel struct {
	channel

	connection *connection
	// failure is the result of all that have no answer when the channel ends, and is there
	// before ended is closed.
	failure atomic.Pointer[relay.Result]
	ended   chan struct{}

	mu      sync.Mutex
	last    uint64
	waiting map[string]func(relay.Result) // by correlation id
}

// ask publishes the messages and waits for the answers, each for its own time, until ctx
// ends. Where one of them made the broker close the channel, that one is found and rejected,
// and those that fell with it are asked again.
func (r *replies) ask(ctx context.Context, c *connection, ms []relay.Message, b *relay.Answers) {
	index := make([]int, len(ms))
	for i := range ms {
		index[i] = i
	}
	fell := r.askOnce(ctx, c, ms, index, b)
	var again []int
	for _, i := range fell {
		if !r.sink.refusedAlone(ctx, c, &ms[i], i, b) {
			again = append(again, i)
		}
	}
	for _, i := range r.askOnce(ctx, c, ms, again, b) {
		b.Give(i, relay.Result{Err: relay.Fail(reasonChannelClosed, fmt.Errorf("publish to exchange %q: the broker has closed the channel twice", r.sink.exchange.Name))})
	}
}

// askOnce asks what index names and gives those that fell with a channel over a refusal.
func (r *replies) askOnce(ctx context.Context, c *connection, ms []relay.Message, index []int, b *relay.Answers) (fell []int) {
	if len(index) == 0 || ctx.Err() != nil {
		return nil
	}
	ch, err := r.open(c)
	if err != nil {
		b.Finish(relay.Result{Err: err})
		return nil
	}
	var (
		unanswered sync.WaitGroup
		asked      []string
		mu         sync.Mutex // of fell
	)
	table := amqp.Table{}
	for _, i := range index {
		key, p, err := r.sink.prepare(c.limits, &ms[i], table)
		if err != nil {
			b.Give(i, relay.Result{Outcome: relay.Rejected, Err: err})
			continue
		}
		if !r.enter(ctx, ch) {
			break
		}
		unanswered.Add(1)
		id := ch.expect(ms[i].ID, func(result relay.Result) {
			if errors.Is(result.Err, errMessageRefused) {
				mu.Lock()
				fell = append(fell, i)
				mu.Unlock()
			} else {
				b.Give(i, result)
			}
			<-r.room
			unanswered.Done()
		})
		asked = append(asked, id)
		p.ReplyTo, p.CorrelationId = directReplyTo, id
		if err := ch.amqp.Publish(r.sink.exchange.wire(), key, r.sink.settings.Mandatory, false, p); err != nil {
			ch.failed(ctx, id, fmt.Errorf("publish to exchange %q: %w", r.sink.exchange.Name, err))
			continue
		}
		late := time.AfterFunc(r.sink.settings.Reply.Timeout, func() { ch.answer(id, r.late()) })
		defer late.Stop()
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		unanswered.Wait()
	}()
	select {
	case <-answered:
	case <-ctx.Done():
		for _, id := range asked {
			ch.answer(id, r.sink.late(ctx))
		}
		<-answered
	}
	// What was not asked any more.
	failure := ch.failure.Load()
	switch {
	case failure == nil:
	case errors.Is(failure.Err, errMessageRefused):
		for _, i := range index {
			if !b.Given(i) && !slices.Contains(fell, i) {
				fell = append(fell, i)
			}
		}
	default:
		b.Finish(*failure)
	}
	return fell
}

// enter waits for room; false: the channel or ctx has ended.
func (r *replies) enter(ctx context.Context, ch *replyChannel) bool {
	select {
	case r.room <- struct{}{}:
		return true
	case <-ch.ended:
	case <-ctx.Done():
	}
	return false
}

func (r *replies) late() relay.Result {
	return relay.Result{Err: relay.Fail(reasonReplyTimeout, fmt.Errorf("publish to exchange %q: no consumer has answered within %v", r.sink.exchange.Name, r.sink.settings.Reply.Timeout))}
}

// open gives the channel of the connection, a new one where there is none.
func (r *replies) open(c *connection) (*replyChannel, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ch := r.channel; ch != nil && ch.connection == c && !ch.amqp.IsClosed() && ch.failure.Load() == nil {
		return ch, nil
	}
	ch := &replyChannel{connection: c, ended: make(chan struct{}), waiting: map[string]func(relay.Result){}}
	var answers <-chan amqp.Delivery
	err := c.bounded(func() (err error) {
		if ch.amqp, err = c.amqp.Channel(); err != nil {
			return err
		}
		answers, err = ch.amqp.Consume(directReplyTo, "", true, false, false, false, nil)
		return err
	})
	if err != nil {
		if c.amqp.IsClosed() {
			r.sink.endpoint.gone(c, err)
			return nil, relay.Fail(reasonConnectionLost, fmt.Errorf("await answers: %w: %w", relay.ErrSinkDown, err))
		}
		return nil, relay.Fail(reasonChannelClosed, fmt.Errorf("await answers on %s: %w", directReplyTo, err))
	}
	returns := ch.amqp.NotifyReturn(make(chan amqp.Return, r.sink.settings.Reply.InFlight))
	ch.closed = ch.amqp.NotifyClose(make(chan *amqp.Error, 1))
	r.channel = ch
	r.sink.endpoint.workers.Go(func() { r.read(ch, answers, returns) })
	return ch, nil
}

// unbind ends the channel; nothing waits for an answer any more. A broker that blocks publishers
// answers nothing, so it is left behind, until the connection ends at the latest.
func (r *replies) unbind() {
	e := r.sink.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running {
		e.workers.Go(r.close)
	}
}

func (r *replies) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := r.channel
	if ch == nil || ch.amqp.IsClosed() {
		return
	}
	if err := ch.connection.bounded(ch.amqp.Close); err != nil {
		r.sink.endpoint.log.Debug("close the channel of answers", zap.Error(err))
	}
}

// read hands out what comes in, until the channel ends.
func (r *replies) read(ch *replyChannel, answers <-chan amqp.Delivery, returns <-chan amqp.Return) {
	for answers != nil {
		select {
		case d, ok := <-answers:
			if !ok {
				answers = nil
				continue
			}
			r.sink.works()
			ch.answer(d.CorrelationId, answerOf(d.Body))
		case returned, ok := <-returns:
			if !ok {
				returns = nil
				continue
			}
			r.sink.works()
			ch.answer(returned.CorrelationId, r.sink.unroutable(returned.ReplyCode))
		}
	}
	var failure relay.Result
	if cause := refusal(&ch.channel); cause != nil && cause.Code == amqp.PreconditionFailed {
		failure.Err = fmt.Errorf("%w: %w", errMessageRefused, brokerError{cause})
	} else {
		failure.Err = r.sink.lost(ch.connection, &ch.channel, amqp.ErrClosed)
	}
	ch.failure.Store(&failure)
	close(ch.ended)
	if !ch.amqp.IsClosed() {
		_ = ch.connection.bounded(ch.amqp.Close) // the broker has taken the consumer away
	}
	for _, answer := range ch.end() {
		answer(failure)
	}
}

// failed gives the result of a message that could not be published. The library says so a
// moment before it ends the channel, whose end tells more.
func (ch *replyChannel) failed(ctx context.Context, id string, err error) {
	late := time.NewTimer(time.Second)
	defer late.Stop()
	select {
	case <-ch.ended: // and the message has its result, or gets it
		return
	case <-late.C:
	case <-ctx.Done():
	}
	ch.answer(id, relay.Result{Err: relay.Fail(reasonChannelClosed, err)})
}

// maxSuffix is how much a correlation id is longer than the message id.
const maxSuffix = len("#18446744073709551615")

func correlationID(messageID string, n uint64) string {
	return messageID + "#" + strconv.FormatUint(n, 10)
}

// expect calls answer with the result of the message that is published with the
// correlation id that it gives.
func (ch *replyChannel) expect(messageID string, answer func(relay.Result)) (id string) {
	ch.mu.Lock()
	ch.last++
	// A message that is sent again is told apart from its first copy.
	id = correlationID(messageID, ch.last)
	over := ch.waiting == nil
	if !over {
		ch.waiting[id] = answer
	}
	ch.mu.Unlock()
	if over {
		answer(*ch.failure.Load())
	}
	return id
}

// answer gives the result of a message, if it has none.
func (ch *replyChannel) answer(id string, result relay.Result) {
	ch.mu.Lock()
	answer, found := ch.waiting[id]
	delete(ch.waiting, id)
	ch.mu.Unlock()
	if found {
		answer(result)
	}
}

// end gives all that are waiting; nobody can wait from then on.
func (ch *replyChannel) end() map[string]func(relay.Result) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	waiting := ch.waiting
	ch.waiting = nil
	return waiting
}

// maxConsumerError is how much of a consumer's error is shown, in bytes.
const maxConsumerError = 200

// answerOf reads the body of an answer. Nothing, `ok` and {"ok": true} mean that the
// consumer has done its work. {"error": "why"} and any other text mean that it has
// failed: the message is tried again later, after "retry_after" seconds where it says so.
// {"error": "why", "reject": true} means that it never will.
func answerOf(body []byte) relay.Result {
	text := strings.TrimSpace(string(body))
	if text == "" || strings.EqualFold(text, "ok") {
		return relay.Result{Outcome: relay.Delivered}
	}
	var said struct {
		OK         bool    `json:"ok"`
		Error      string  `json:"error"`
		Reject     bool    `json:"reject"`
		RetryAfter float64 `json:"retry_after"`
	}
	if bytes.HasPrefix([]byte(text), []byte("{")) && json.Unmarshal([]byte(text), &said) == nil {
		if said.OK && said.Error == "" && !said.Reject {
			return relay.Result{Outcome: relay.Delivered}
		}
		text = said.Error
	}
	cause := fmt.Errorf("the consumer says: %s", oneLine(text))
	if said.Reject {
		return relay.Result{Outcome: relay.Rejected, Err: relay.Fail(reasonConsumerRejected, cause)}
	}
	after := time.Duration(min(max(said.RetryAfter, 0), maxReplyTimeout.Seconds()) * float64(time.Second))
	return relay.Result{Err: relay.Fail(reasonConsumerFailed, cause), RetryAfter: after}
}

// oneLine makes of a consumer's error what a log line can hold.
func oneLine(text string) string {
	if len(text) > maxConsumerError {
		text = strings.ToValidUTF8(text[:maxConsumerError], "") + "..."
	}
	return strings.Join(strings.Fields(text), " ")
}
