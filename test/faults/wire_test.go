package faults_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// notary notes what passed by the wires: which messages were published, and which of them
// the broker confirmed without having given them back before. What is not noted here when
// its delete comes to the queue was deleted without a confirm.
type notary struct {
	mu          sync.Mutex
	published   map[string]int       // how often, by message id
	confirmed   map[string]int       // the same
	returned    int                  // messages given back
	refused     int                  // messages nacked
	last        time.Time            // of the latest confirm
	gap         time.Duration        // the longest between two confirms
	wrong       []string             // ids of messages that were deleted without a confirm
	handles     map[string]string    // message ids by receipt handle
	unconfirmed map[*channelLog]bool // of connections that are open
}

func newNotary() *notary {
	return &notary{
		published: make(map[string]int), confirmed: make(map[string]int),
		handles: make(map[string]string), unconfirmed: make(map[*channelLog]bool),
	}
}

// channelLog is what was published on one channel and not answered yet.
type channelLog struct {
	confirming bool
	tag        uint64
	waiting    map[uint64]string // message ids by delivery tag
	back       map[string]bool   // given back, not confirmed yet
}

// inFlight counts what was published on open connections and has no answer.
func (n *notary) inFlight() (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.unconfirmed {
		count += len(c.waiting)
	}
	return count
}

// publishes counts messages that were published, copies too.
func (n *notary) publishes() (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, times := range n.published {
		count += times
	}
	return count
}

// confirms counts different messages that the broker has confirmed.
func (n *notary) confirms() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.confirmed)
}

// isConfirmed tells whether the broker has confirmed a message at least once.
func (n *notary) isConfirmed(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.confirmed[id] > 0
}

// longestGap is the longest time between two confirms since the last call.
func (n *notary) longestGap() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	gap := n.gap
	n.gap = 0
	return gap
}

// Methods of AMQP 0-9-1 that matter here, class and method.
const (
	channelOpen   = 20<<16 | 10
	channelClose  = 20<<16 | 40
	confirmSelect = 85<<16 | 10
	basicPublish  = 60<<16 | 40
	basicReturn   = 60<<16 | 50
	basicAck      = 60<<16 | 80
	basicNack     = 60<<16 | 120
)

// frame is one frame of AMQP 0-9-1, whole.
type frame struct {
	kind    byte
	channel uint16
	bytes   []byte // with header and end
}

func (f frame) payload() []byte { return f.bytes[7 : len(f.bytes)-1] }

// method is the class and the method of a method frame, 0 of another.
func (f frame) method() uint32 {
	if f.kind != 1 || len(f.payload()) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(f.payload())
}

func readFrame(r io.Reader) (frame, error) {
	var header [7]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return frame{}, err
	}
	f := frame{kind: header[0], channel: binary.BigEndian.Uint16(header[1:])}
	f.bytes = make([]byte, 7+int(binary.BigEndian.Uint32(header[3:]))+1)
	copy(f.bytes, header[:])
	_, err := io.ReadFull(r, f.bytes[7:])
	return f, err
}

// messageID reads the property of a content header (AMQP 0-9-1: 4.2.6.1).
func messageID(payload []byte) string {
	if len(payload) < 14 {
		return ""
	}
	flags, rest := binary.BigEndian.Uint16(payload[12:]), payload[14:]
	short := func() string {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			rest = nil
			return ""
		}
		text := string(rest[1 : 1+rest[0]])
		rest = rest[1+len(text):]
		return text
	}
	for bit := 15; bit >= 7; bit-- {
		if flags&(1<<bit) == 0 {
			continue
		}
		switch bit {
		case 13: // headers, a table
			if len(rest) < 4 || len(rest) < 4+int(binary.BigEndian.Uint32(rest)) {
				return ""
			}
			rest = rest[4+binary.BigEndian.Uint32(rest):]
		case 12, 11: // delivery mode, priority
			rest = rest[min(1, len(rest)):]
		case 7:
			return short()
		default:
			short()
		}
	}
	return ""
}

// wire stands between the relay and one broker, close to the relay: what has passed it the
// relay has been sent. It can do to the traffic what a broker and a network do.
type wire struct {
	notary   *notary
	upstream string
	url      string // with the user of the upstream's
	address  string
	listener net.Listener
	running  sync.WaitGroup

	mu       sync.Mutex
	open     map[*link]struct{}
	accepted []time.Time
	refusing bool
	swallow  bool          // confirms do not pass, everything else does
	gate     chan struct{} // closed: confirms pass
	budget   int           // how many bytes of publishes pass before a reset; negative: all
	cuts     int           // resets for want of budget
	size     int           // of the frames of the latest publish
}

type link struct {
	client, server net.Conn
	once           sync.Once
	cut            chan struct{}
	channels       map[uint16]*channelLog // guarded by the notary
}

// reset ends both ways without a word.
func (l *link) reset() { l.end(false) }

// end ends both ways; in order, so that what is on its way arrives, or with a reset.
func (l *link) end(orderly bool) {
	l.once.Do(func() {
		close(l.cut)
		for _, c := range []net.Conn{l.client, l.server} {
			if tcp, ok := c.(*net.TCPConn); ok && !orderly {
				_ = tcp.SetLinger(0)
			}
			_ = c.Close()
		}
	})
}

// newWire leads to the broker at an AMQP URL; it ends with the test.
func newWire(t *testing.T, n *notary, upstream string) *wire {
	t.Helper()
	u, err := url.Parse(upstream)
	require.NoError(t, err)
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wire{notary: n, upstream: u.Host, listener: l, open: make(map[*link]struct{}), gate: make(chan struct{}), budget: -1}
	close(w.gate)
	w.address = l.Addr().String()
	u.Host = w.address
	w.url = u.String()
	w.running.Go(w.accept)
	t.Cleanup(func() {
		_ = l.Close()
		w.refuse(true)
		w.running.Wait()
	})
	return w
}

// hold keeps confirms back, and what the broker sends after them.
func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gate = make(chan struct{})
}

// release lets what was held pass.
func (w *wire) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.gate)
}

// swallowConfirms drops confirms and refusals, for as long as it is on.
func (w *wire) swallowConfirms(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.swallow = on
}

// reset ends every connection.
func (w *wire) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for l := range w.open {
		l.reset()
	}
}

// refuse ends every connection and those to come, for as long as it is on.
func (w *wire) refuse(on bool) {
	w.mu.Lock()
	w.refusing = on
	w.mu.Unlock()
	if on {
		w.reset()
	}
}

// cutAfter resets the connection when so many bytes of publishes have passed from now on.
func (w *wire) cutAfter(bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.budget = bytes
}

// resets counts connections that were cut in a publish; size is how many bytes the latest
// publish had.
func (w *wire) resets() (cuts, size int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cuts, w.size
}

// connects tells when connections came.
func (w *wire) connects() []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]time.Time(nil), w.accepted...)
}

// connected tells whether a connection is open.
func (w *wire) connected() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.open) > 0
}

func (w *wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.running.Go(func() { w.serve(client) })
	}
}

func (w *wire) serve(client net.Conn) {
	l := &link{client: client, cut: make(chan struct{}), channels: make(map[uint16]*channelLog)}
	var dialer net.Dialer
	server, err := dialer.DialContext(context.Background(), "tcp", w.upstream)
	w.mu.Lock()
	w.accepted = append(w.accepted, time.Now())
	refusing := w.refusing
	l.server = server
	if err == nil && !refusing {
		w.open[l] = struct{}{}
	}
	w.mu.Unlock()
	if err != nil {
		_ = client.Close()
		return
	}
	defer l.reset()
	if refusing {
		return
	}
	// Small buffers, so that a broker that does not read is soon felt.
	_ = client.(*net.TCPConn).SetReadBuffer(64 << 10)
	_ = server.(*net.TCPConn).SetWriteBuffer(64 << 10)
	var both sync.WaitGroup
	both.Go(func() { w.requests(l); l.reset() })
	both.Go(func() { l.end(w.answers(l)) })
	both.Wait()
	w.mu.Lock()
	delete(w.open, l)
	w.mu.Unlock()
	w.notary.mu.Lock()
	for _, c := range l.channels {
		delete(w.notary.unconfirmed, c)
	}
	w.notary.mu.Unlock()
}

// requests passes on what the relay sends.
func (w *wire) requests(l *link) {
	from := bufio.NewReaderSize(l.client, 64<<10)
	greeting := make([]byte, 8)
	if _, err := io.ReadFull(from, greeting); err != nil || !strings.HasPrefix(string(greeting), "AMQP") {
		return
	}
	if _, err := l.server.Write(greeting); err != nil {
		return
	}
	publishing := make(map[uint16]int) // bytes of a publish so far, by channel
	left := make(map[uint16]uint64)    // of its body
	for {
		f, err := readFrame(from)
		if err != nil {
			return
		}
		part := w.note(l, f, publishing, left)
		if !w.forward(l, f.bytes, part) {
			return
		}
	}
}

// note writes down a frame of the relay's and tells whether it is part of a publish.
func (w *wire) note(l *link, f frame, publishing map[uint16]int, left map[uint16]uint64) (part bool) {
	n := w.notary
	n.mu.Lock()
	defer n.mu.Unlock()
	c := l.channels[f.channel]
	switch f.method() {
	case channelOpen:
		delete(n.unconfirmed, c)
		l.channels[f.channel] = &channelLog{waiting: make(map[uint64]string), back: make(map[string]bool)}
		return false
	case channelClose:
		delete(n.unconfirmed, c)
		return false
	case confirmSelect:
		c.confirming = true
		n.unconfirmed[c] = true
		return false
	case basicPublish:
		publishing[f.channel] = len(f.bytes)
		return true
	}
	if publishing[f.channel] == 0 || f.kind == 1 || f.kind == 8 {
		return false
	}
	publishing[f.channel] += len(f.bytes)
	switch f.kind {
	case 2: // content header
		id := messageID(f.payload())
		n.published[id]++
		left[f.channel] = binary.BigEndian.Uint64(f.payload()[4:])
		if c.confirming {
			c.tag++
			c.waiting[c.tag] = id
		}
	case 3: // content body
		left[f.channel] -= min(left[f.channel], uint64(len(f.payload())))
	}
	if left[f.channel] == 0 {
		w.mu.Lock()
		w.size = publishing[f.channel]
		w.mu.Unlock()
		publishing[f.channel] = 0
	}
	return true
}

// forward writes to the broker, and resets the connection when the budget is used up.
func (w *wire) forward(l *link, p []byte, part bool) bool {
	w.mu.Lock()
	cut := false
	if part && w.budget >= 0 {
		if cut = len(p) >= w.budget; cut {
			p = p[:w.budget]
			w.budget = 0
		}
		w.budget -= len(p)
		if cut {
			w.budget = -1
			w.cuts++
		}
	}
	w.mu.Unlock()
	_, err := l.server.Write(p)
	return err == nil && !cut
}

// answers passes on what the broker sends, and tells whether the broker ended that in order.
func (w *wire) answers(l *link) (orderly bool) {
	from := bufio.NewReaderSize(l.server, 64<<10)
	returning := make(map[uint16]bool)
	for {
		f, err := readFrame(from)
		if err != nil {
			return errors.Is(err, io.EOF)
		}
		switch f.method() {
		case basicAck, basicNack:
			w.mu.Lock()
			swallow, gate := w.swallow, w.gate
			w.mu.Unlock()
			if swallow {
				continue
			}
			select {
			case <-gate:
			case <-l.cut:
				return false
			}
			w.answered(l, f)
		case basicReturn:
			returning[f.channel] = true
		case 0:
			if f.kind == 2 && returning[f.channel] {
				returning[f.channel] = false
				w.notary.mu.Lock()
				if c := l.channels[f.channel]; c != nil {
					c.back[messageID(f.payload())] = true
				}
				w.notary.returned++
				w.notary.mu.Unlock()
			}
		}
		if _, err := l.client.Write(f.bytes); err != nil {
			return false
		}
	}
}

// answered writes down a confirm or a refusal.
func (w *wire) answered(l *link, f frame) {
	n := w.notary
	n.mu.Lock()
	defer n.mu.Unlock()
	c := l.channels[f.channel]
	if c == nil || len(f.payload()) < 13 {
		return
	}
	tag, multiple := binary.BigEndian.Uint64(f.payload()[4:]), f.payload()[12]&1 == 1
	for waiting, id := range c.waiting {
		if waiting != tag && (!multiple || waiting > tag) {
			continue
		}
		delete(c.waiting, waiting)
		switch {
		case f.method() == basicNack:
			n.refused++
		case c.back[id]:
			delete(c.back, id)
		default:
			n.confirmed[id]++
			now := time.Now()
			if !n.last.IsZero() {
				n.gap = max(n.gap, now.Sub(n.last))
			}
			n.last = now
		}
	}
}
