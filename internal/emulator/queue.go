package emulator

import (
	"container/heap"
	"container/list"
	"context"
	"crypto/md5" //nolint:gosec // G501: MNS answers the MD5 of a body.
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// place is where in its queue a message is.
type place uint8

const (
	ready   place = iota // visible, in the FIFO of its priority
	leased               // received, invisible until visibleAt
	delayed              // sent with a delay, invisible until visibleAt
)

// message is one message of a queue. What sits above the line never changes after
// the send and may be read without the queue's lock. Times are in milliseconds
// since 1970 by the server's own clock, without its offset.
type message struct {
	seq      uint64
	id       string
	text     []byte // the body, escaped for XML
	beside   []byte // the properties, as XML
	md5      [md5.Size]byte
	priority int
	enqueued int64
	// ----
	place        place
	visibleAt    int64
	firstDequeue int64
	dequeues     int64
	// generation tells the one receipt handle that is valid from those before.
	generation   uint64
	hiddenIndex  int      // in queue.hidden
	prev, next   *message // in the FIFO of its priority
	older, newer *message // in the order of sending
}

// fifo is a list of visible messages.
type fifo struct{ head, tail *message }

func (f *fifo) pushBack(m *message) {
	m.prev, m.next = f.tail, nil
	if f.tail == nil {
		f.head = m
	} else {
		f.tail.next = m
	}
	f.tail = m
}

func (f *fifo) pushFront(m *message) {
	m.prev, m.next = nil, f.head
	if f.head == nil {
		f.tail = m
	} else {
		f.head.prev = m
	}
	f.head = m
}

func (f *fifo) remove(m *message) {
	if m.prev == nil {
		f.head = m.next
	} else {
		m.prev.next = m.next
	}
	if m.next == nil {
		f.tail = m.prev
	} else {
		m.next.prev = m.prev
	}
	m.prev, m.next = nil, nil
}

// hidden orders invisible messages by the time at which they become visible.
type hidden []*message

func (h hidden) Len() int           { return len(h) }
func (h hidden) Less(i, j int) bool { return h[i].visibleAt < h[j].visibleAt }

func (h hidden) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].hiddenIndex, h[j].hiddenIndex = i, j
}

func (h *hidden) Push(x any) {
	m := x.(*message)
	m.hiddenIndex = len(*h)
	*h = append(*h, m)
}

func (h *hidden) Pop() any {
	last := len(*h) - 1
	m := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return m
}

// lease is what a receive was given: a copy of what changes in a message.
type lease struct {
	*message
	generation   uint64
	visibleAt    int64
	firstDequeue int64
	dequeues     int64
}

// poll is a receive that waits.
type poll struct {
	max  int
	done chan struct{} // closed when leases are there or the queue is gone
	// element is the poll's place among the waiting ones; nil once done is closed.
	element *list.Element
	leases  []lease
}

// QueueStats counts the messages of a queue.
type QueueStats struct {
	// Active messages are visible, Inactive ones are leased, Delayed ones have not
	// been visible yet.
	Active   int `json:"active"`
	Inactive int `json:"inactive"`
	Delayed  int `json:"delayed"`
	// Sent, Received, Deleted and Expired count since the queue was created. A
	// message received three times counts three times as Received and twice as
	// Redelivered. Expired are those that outlived their retention.
	Sent        int64 `json:"sent"`
	Received    int64 `json:"received"`
	Redelivered int64 `json:"redelivered"`
	Deleted     int64 `json:"deleted"`
	Expired     int64 `json:"expired"`
	// Waiting is the number of long polls under way.
	Waiting int `json:"waiting"`
}

// queue is one MNS queue.
type queue struct {
	name  string
	nonce uint32 // tells its handles from those of other queues
	now   func() int64

	mu       sync.Mutex
	config   QueueConfig
	created  int64
	modified int64
	gone     bool

	lastSeq        uint64
	messages       map[uint64]*message
	oldest, newest *message
	ready          [lowestPriority + 1]fifo // by priority; 0 is unused
	hidden         hidden
	polls          *list.List // of *poll
	stats          QueueStats

	timer *time.Timer // runs while polls wait; see arm
	// timerAt is when the timer fires, by q.now; 0: it does not.
	timerAt int64
}

func newQueue(name string, config QueueConfig, now func() int64) *queue {
	created := now()
	return &queue{
		name:     name,
		nonce:    rand.Uint32(), //nolint:gosec // G404: it tells queues apart and guards nothing.
		now:      now,
		config:   config,
		created:  created,
		modified: created,
		messages: map[uint64]*message{},
		polls:    list.New(),
	}
}

func milliseconds(d time.Duration) int64 { return d.Milliseconds() }

// update brings the queue to the time now: drops what outlived its retention, makes
// visible what is due, hands visible messages to waiting polls. Every entry point
// calls it first, and again after it changed something.
func (q *queue) update(now int64) {
	for retention := milliseconds(q.config.MessageRetentionPeriod); q.oldest != nil && q.oldest.enqueued+retention <= now; {
		q.remove(q.oldest)
		q.stats.Expired++
	}
	for len(q.hidden) > 0 && q.hidden[0].visibleAt <= now {
		m := q.hidden[0]
		q.unplace(m)
		q.place(m, ready)
	}
	for q.stats.Active > 0 && q.polls.Len() > 0 {
		p := q.polls.Front().Value.(*poll)
		p.leases = q.lease(now, p.max)
		q.finish(p)
	}
	q.arm(now)
}

// arm sets the timer to the time at which the next message becomes visible, while
// polls wait for one.
func (q *queue) arm(now int64) {
	var at int64
	if q.polls.Len() > 0 && len(q.hidden) > 0 {
		at = q.hidden[0].visibleAt
	}
	if at == q.timerAt {
		return
	}
	q.timerAt = at
	if at == 0 {
		q.timer.Stop()
		return
	}
	after := time.Duration(at-now) * time.Millisecond
	if q.timer == nil {
		q.timer = time.AfterFunc(after, q.tick)
	} else {
		q.timer.Reset(after)
	}
}

func (q *queue) tick() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.timerAt = 0
	q.update(q.now())
}

// finish takes p from the waiting polls and wakes it.
func (q *queue) finish(p *poll) {
	q.polls.Remove(p.element)
	p.element = nil
	close(p.done)
}

// place puts m, which is nowhere, where it now belongs.
func (q *queue) place(m *message, at place) {
	m.place = at
	switch at {
	case ready:
		q.ready[m.priority].pushBack(m)
	case leased, delayed:
		heap.Push(&q.hidden, m)
	}
	*q.count(at)++
}

// unplace takes m from where it is.
func (q *queue) unplace(m *message) {
	switch m.place {
	case ready:
		q.ready[m.priority].remove(m)
	case leased, delayed:
		heap.Remove(&q.hidden, m.hiddenIndex)
	}
	*q.count(m.place)--
}

func (q *queue) count(at place) *int {
	switch at {
	case leased:
		return &q.stats.Inactive
	case delayed:
		return &q.stats.Delayed
	case ready:
	}
	return &q.stats.Active
}

func (q *queue) remove(m *message) {
	q.unplace(m)
	delete(q.messages, m.seq)
	if m.older == nil {
		q.oldest = m.newer
	} else {
		m.older.newer = m.newer
	}
	if m.newer == nil {
		q.newest = m.older
	} else {
		m.newer.older = m.older
	}
}

// outgoing is a message to be sent.
type outgoing struct {
	body     []byte
	delay    time.Duration // negative: the queue's own
	priority int
	properties
}

func (o *outgoing) check(maximum int) *wireError {
	if len(o.body) > maximum {
		return outOfRange("MessageBody", 1, int64(maximum), "bytes")
	}
	if o.delay > maxDelay {
		return outOfRange("DelaySeconds", 0, int64(maxDelay/time.Second), "seconds")
	}
	if o.priority < 1 || o.priority > lowestPriority {
		return outOfRange("Priority", 1, lowestPriority, "")
	}
	return nil
}

// send stores all of out or none and gives a lease of each: what a send answers,
// with a receipt handle for those that are delayed.
func (q *queue) send(out []outgoing) ([]lease, *wireError) {
	messages := make([]*message, len(out))
	for i, o := range out {
		messages[i] = &message{
			text:     escape(o.body),
			beside:   o.xml(),
			md5:      md5.Sum(o.body), //nolint:gosec // G401: MNS answers the MD5 of a body.
			priority: o.priority,
		}
	}
	leases := make([]lease, len(out))
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return nil, queueNotExist()
	}
	for i := range out {
		if err := out[i].check(q.config.MaximumMessageSize); err != nil {
			return nil, err
		}
	}
	now := q.now()
	for i, m := range messages {
		q.lastSeq++
		m.seq, m.enqueued = q.lastSeq, now
		m.id = q.messageID(m.seq, now)
		delay := out[i].delay
		if delay < 0 {
			delay = q.config.Delay
		}
		at := ready
		if delay > 0 {
			at = delayed
			m.generation++
			m.visibleAt = now + milliseconds(delay)
		}
		q.messages[m.seq] = m
		if m.older = q.newest; m.older == nil {
			q.oldest = m
		} else {
			m.older.newer = m
		}
		q.newest = m
		q.place(m, at)
		leases[i] = m.lease()
	}
	q.stats.Sent += int64(len(out))
	q.update(now)
	return leases, nil
}

func (m *message) lease() lease {
	return lease{
		message: m, generation: m.generation, visibleAt: m.visibleAt,
		firstDequeue: m.firstDequeue, dequeues: m.dequeues,
	}
}

// messageID has the form of MNS's own ids: hexadecimal groups, unique in the queue.
func (q *queue) messageID(seq uint64, now int64) string {
	id := make([]byte, 0, 48)
	id = append(id, fmt.Sprintf("%08X%08X", q.nonce, uint32(seq>>32))...)
	id = append(id, "-1-"...)
	id = append(id, strings.ToUpper(strconv.FormatInt(now, 16))...)
	id = append(id, '-')
	id = strconv.AppendUint(id, 200000000+seq, 10)
	return string(id)
}

// lease receives up to maximum visible messages, the highest priority first, which
// is the lowest number.
func (q *queue) lease(now int64, maximum int) []lease {
	leases := make([]lease, 0, min(maximum, q.stats.Active))
	until := now + milliseconds(q.config.VisibilityTimeout)
	for priority := 1; priority <= lowestPriority; priority++ {
		for m := q.ready[priority].head; m != nil && len(leases) < maximum; m = q.ready[priority].head {
			q.unplace(m)
			m.generation++
			m.dequeues++
			m.visibleAt = until
			if m.firstDequeue == 0 {
				m.firstDequeue = now
			}
			if m.dequeues > 1 {
				q.stats.Redelivered++
			}
			q.place(m, leased)
			leases = append(leases, m.lease())
		}
	}
	q.stats.Received += int64(len(leases))
	return leases
}

// receive leases up to maximum messages. Where there are none it waits, unless
// maxPolls polls wait already (0: no limit), until messages come, wait has passed,
// ctx ends or closing is closed. Nothing there: nil, nil.
func (q *queue) receive(ctx context.Context, maximum int, wait func(QueueConfig) time.Duration, maxPolls int, closing <-chan struct{}) ([]lease, *wireError) {
	q.mu.Lock()
	if q.gone {
		q.mu.Unlock()
		return nil, queueNotExist()
	}
	now := q.now()
	q.update(now)
	if q.stats.Active > 0 { // update left no poll waiting, so nobody is overtaken
		leases := q.lease(now, maximum)
		q.mu.Unlock()
		return leases, nil
	}
	patience := wait(q.config)
	if patience <= 0 || maxPolls > 0 && q.polls.Len() >= maxPolls {
		q.mu.Unlock()
		return nil, nil
	}
	p := &poll{max: maximum, done: make(chan struct{})}
	p.element = q.polls.PushBack(p)
	q.arm(now)
	q.mu.Unlock()

	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-p.done:
	case <-timeout.C:
	case <-ctx.Done():
	case <-closing:
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	now = q.now()
	if p.element != nil {
		q.finish(p)
		q.arm(now)
	}
	if ctx.Err() != nil {
		q.giveBack(now, p.leases)
		return nil, nil
	}
	if q.gone {
		return nil, queueNotExist()
	}
	return p.leases, nil
}

// giveBack undoes leases that nobody has seen: their messages are next in line
// again, with the count that they had.
func (q *queue) giveBack(now int64, leases []lease) {
	for _, l := range slices.Backward(leases) {
		m := l.message
		if q.messages[m.seq] != m || m.generation != l.generation || m.place != leased {
			continue
		}
		q.unplace(m)
		m.dequeues--
		if m.dequeues == 0 {
			m.firstDequeue = 0
		} else {
			q.stats.Redelivered--
		}
		m.place = ready
		q.ready[m.priority].pushFront(m)
		q.stats.Active++
		q.stats.Received--
	}
	q.update(now)
}

// peek shows up to maximum visible messages and changes nothing.
func (q *queue) peek(maximum int) ([]lease, *wireError) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return nil, queueNotExist()
	}
	q.update(q.now())
	var seen []lease
	for priority := 1; priority <= lowestPriority; priority++ {
		for m := q.ready[priority].head; m != nil && len(seen) < maximum; m = m.next {
			seen = append(seen, m.lease())
		}
	}
	return seen, nil
}

// failedHandle is a receipt handle that a batch delete could not use.
type failedHandle struct {
	handle string
	err    *wireError
}

// delete removes the messages of valid handles and gives the other handles.
func (q *queue) delete(handles []string) ([]failedHandle, *wireError) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return nil, queueNotExist()
	}
	q.update(q.now())
	var failed []failedHandle
	for _, handle := range handles {
		m, err := q.find(handle)
		if err != nil {
			failed = append(failed, failedHandle{handle, err})
			continue
		}
		q.remove(m)
		q.stats.Deleted++
	}
	return failed, nil
}

// changeVisibility lets the message of handle be visible again after timeout, and
// makes a new handle.
func (q *queue) changeVisibility(handle string, timeout time.Duration) (lease, *wireError) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return lease{}, queueNotExist()
	}
	now := q.now()
	q.update(now)
	m, err := q.find(handle)
	if err != nil {
		return lease{}, err
	}
	m.generation++
	m.visibleAt = now + milliseconds(timeout)
	heap.Fix(&q.hidden, m.hiddenIndex)
	q.arm(now)
	return m.lease(), nil
}

// find gives the message of a handle whose lease lasts.
func (q *queue) find(handle string) (*message, *wireError) {
	nonce, seq, generation, err := parseHandle(handle)
	if err != nil || nonce != q.nonce {
		return nil, receiptHandleError()
	}
	m := q.messages[seq]
	if m == nil || m.generation != generation || m.place == ready {
		return nil, messageNotExist()
	}
	return m, nil
}

// close ends the queue: polls get their answer, every later call is refused.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = true
	for q.polls.Len() > 0 {
		q.finish(q.polls.Front().Value.(*poll))
	}
	q.arm(q.now())
}

// attributes gives the configuration and the counts.
func (q *queue) attributes() queueAttributes {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.update(q.now())
	a := queueAttributes{name: q.name, config: q.config, created: q.created, modified: q.modified, stats: q.stats}
	a.stats.Waiting = q.polls.Len()
	return a
}

type queueAttributes struct {
	name              string
	config            QueueConfig
	created, modified int64
	stats             QueueStats
}

// setAttributes applies a change to the configuration.
func (q *queue) setAttributes(change func(*QueueConfig)) *wireError {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return queueNotExist()
	}
	config := q.config
	change(&config)
	if err := config.validate(); err != nil {
		return err
	}
	now := q.now()
	q.config, q.modified = config, now
	q.update(now)
	return nil
}

// A receipt handle is, as in MNS, "1-" and base64 of decimal numbers between
// hyphens. That never holds a + or a /, which clients forget to escape.
const handlePrefix = "1-"

func (q *queue) appendHandle(b []byte, seq, generation uint64) []byte {
	var plain [64]byte
	p := strconv.AppendUint(plain[:0], uint64(q.nonce), 10)
	p = append(p, '-')
	p = strconv.AppendUint(p, seq, 10)
	p = append(p, '-')
	p = strconv.AppendUint(p, generation, 10)
	b = append(b, handlePrefix...)
	return base64.StdEncoding.AppendEncode(b, p)
}

var errHandle = errors.New("not a receipt handle")

func parseHandle(handle string) (nonce uint32, seq, generation uint64, err error) {
	encoded, found := strings.CutPrefix(handle, handlePrefix)
	if !found {
		return 0, 0, 0, errHandle
	}
	plain, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return 0, 0, 0, errHandle
	}
	first, rest, _ := strings.Cut(string(plain), "-")
	second, third, _ := strings.Cut(rest, "-")
	n, err1 := strconv.ParseUint(first, 10, 32)
	seq, err2 := strconv.ParseUint(second, 10, 64)
	generation, err3 := strconv.ParseUint(third, 10, 64)
	if err := errors.Join(err1, err2, err3); err != nil {
		return 0, 0, 0, errHandle
	}
	return uint32(n), seq, generation, nil
}
