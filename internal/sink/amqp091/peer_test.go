package amqp091_test

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// peer speaks as much of a broker's AMQP 0-9-1 as a publisher needs, and does what
// no real broker can be told to do.
type peer struct {
	listener net.Listener
	// acknowledge tells whether the nth publish on a channel, from 1, is confirmed.
	acknowledge func(tag uint64) bool
	// login says what becomes of a login with this SASL response.
	login func(response string) verdict
	// missing is an exchange that a publish to closes the channel over; empty: none.
	missing string

	running sync.WaitGroup
	mu      sync.Mutex
	logins  []string
	opened  int // channels
	live    int // of them, those that neither side has closed
	refused int // publishes to what is missing
	open    []net.Conn
}

type verdict int

const (
	accepted verdict = iota
	refused          // with connection.close, as RabbitMQ does for those who ask for it
	hungUp           // without a word, as the specification has it
)

func newPeer(t *testing.T) *peer {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &peer{
		listener:    l,
		acknowledge: func(uint64) bool { return true },
		login:       func(string) verdict { return accepted },
	}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.mu.Lock()
		for _, c := range p.open {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.running.Wait()
	})
	return p
}

func (p *peer) address() string { return p.listener.Addr().String() }

// attempts are the SASL responses of the logins so far.
func (p *peer) attempts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.logins...)
}

// counts tells how many channels were opened, how many of them are open, and how many publishes
// were refused.
func (p *peer) counts() (opened, live, refused int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened, p.live, p.refused
}

func (p *peer) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.open = append(p.open, c)
		p.mu.Unlock()
		p.running.Go(func() {
			defer c.Close() //nolint:errcheck // The test is over.
			(&peerConn{peer: p, conn: c, in: bufio.NewReader(c), tags: map[uint16]uint64{}, left: map[uint16]uint64{}, closed: map[uint16]bool{}}).serve()
		})
	}
}

type peerConn struct {
	peer *peer
	conn net.Conn
	in   *bufio.Reader
	tags map[uint16]uint64
	left map[uint16]uint64 // bytes of the body that are to come
	// closed are channels that the peer has closed: what comes on them is for nobody.
	closed map[uint16]bool
}

// send writes a method frame (AMQP 0-9-1: 4.2.4).
func (c *peerConn) send(channel, class, method uint16, arguments ...byte) {
	frame := []byte{1}
	frame = binary.BigEndian.AppendUint16(frame, channel)
	frame = binary.BigEndian.AppendUint32(frame, uint32(4+len(arguments)))
	frame = binary.BigEndian.AppendUint16(frame, class)
	frame = binary.BigEndian.AppendUint16(frame, method)
	frame = append(append(frame, arguments...), 0xCE)
	_, _ = c.conn.Write(frame)
}

func long(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

func short(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func (c *peerConn) serve() {
	var protocol [8]byte
	if _, err := io.ReadFull(c.in, protocol[:]); err != nil {
		return
	}
	start := []byte{0, 9, 0, 0, 0, 0} // version, no properties
	c.send(0, 10, 10, append(append(start, long("AMQPLAIN PLAIN")...), long("en_US")...)...)
	for {
		var header [7]byte
		if _, err := io.ReadFull(c.in, header[:]); err != nil {
			return
		}
		channel := binary.BigEndian.Uint16(header[1:])
		payload := make([]byte, binary.BigEndian.Uint32(header[3:])+1)
		if _, err := io.ReadFull(c.in, payload); err != nil {
			return
		}
		switch header[0] {
		case 1:
			if !c.method(channel, payload) {
				return
			}
		case 2: // class, weight, size
			c.content(channel, binary.BigEndian.Uint64(payload[4:]))
		case 3:
			c.content(channel, c.left[channel]-uint64(len(payload)-1))
		}
	}
}

func (c *peerConn) content(channel uint16, left uint64) {
	if c.left[channel] = left; left > 0 || c.closed[channel] {
		return
	}
	c.tags[channel]++
	if tag := c.tags[channel]; c.peer.acknowledge(tag) {
		c.send(channel, 60, 80, append(binary.BigEndian.AppendUint64(nil, tag), 0)...)
	}
}

func (c *peerConn) method(channel uint16, payload []byte) bool {
	class, method := binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
	switch [2]uint16{class, method} {
	case [2]uint16{10, 11}: // connection.start-ok: table, mechanism, response, locale
		rest := payload[4:]
		asked := strings.Contains(string(rest), "authentication_failure_close")
		rest = rest[4+binary.BigEndian.Uint32(rest):]
		rest = rest[1+int(rest[0]):]
		response := string(rest[4 : 4+binary.BigEndian.Uint32(rest)])
		c.peer.mu.Lock()
		c.peer.logins = append(c.peer.logins, response)
		c.peer.mu.Unlock()
		switch verdict := c.peer.login(response); {
		case verdict == refused && asked:
			c.send(0, 10, 50, append(append([]byte{1, 147}, short("ACCESS_REFUSED - "+response)...), 0, 0, 0, 0)...)
		case verdict != accepted:
			return false
		default:
			c.send(0, 10, 30, 7, 255, 0, 2, 0, 0, 0, 0) // 2047 channels, 128 KiB, no heartbeat
		}
	case [2]uint16{10, 40}:
		c.send(0, 10, 41, 0)
	case [2]uint16{10, 50}:
		c.send(0, 10, 51)
	case [2]uint16{10, 51}:
		return false
	case [2]uint16{20, 10}:
		delete(c.closed, channel)
		c.peer.mu.Lock()
		c.peer.opened++
		c.peer.live++
		c.peer.mu.Unlock()
		c.send(channel, 20, 11, 0, 0, 0, 0)
	case [2]uint16{20, 40}:
		c.peer.mu.Lock()
		c.peer.live--
		c.peer.mu.Unlock()
		delete(c.tags, channel)
		c.send(channel, 20, 41)
	case [2]uint16{40, 10}:
		c.send(channel, 40, 11)
	case [2]uint16{60, 40}: // basic.publish: reserved, exchange
		if exchange := string(payload[7 : 7+int(payload[6])]); exchange == c.peer.missing && exchange != "" {
			c.peer.mu.Lock()
			c.peer.refused++
			c.peer.live--
			c.peer.mu.Unlock()
			c.closed[channel] = true
			delete(c.tags, channel)
			c.send(channel, 20, 40, append(append([]byte{1, 148}, short("NOT_FOUND - no such exchange")...), 0, 60, 0, 40)...)
		}
	case [2]uint16{85, 10}:
		c.send(channel, 85, 11)
	}
	return true
}
