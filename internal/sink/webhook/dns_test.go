package webhook_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
	"mnsrelay/internal/sink/webhook"
)

// names is a DNS server for hook.test, which the process asks until the test ends.
type names struct {
	mu    sync.Mutex
	addrs []netip.Addr
	asked int
}

func (n *names) set(addrs ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addrs = nil
	for _, a := range addrs {
		n.addrs = append(n.addrs, netip.MustParseAddr(a))
	}
}

func (n *names) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.asked
}

func serveNames(t *testing.T) *names {
	t.Helper()
	n := &names{}
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		buffer := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer, err := n.answer(buffer[:size]); err == nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	})
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		_ = conn.Close()
		serving.Wait()
	})
	return n
}

// answer gives the addresses of the family that is asked for, none where there is none.
func (n *names) answer(question []byte) ([]byte, error) {
	var q dnsmessage.Message
	if err := q.Unpack(question); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked++
	q.Response, q.RecursionAvailable, q.Additionals = true, true, nil
	for _, a := range n.addrs {
		header := dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Class: dnsmessage.ClassINET, TTL: 1}
		switch {
		case a.Is4() && q.Questions[0].Type == dnsmessage.TypeA:
			q.Answers = append(q.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Questions[0].Type == dnsmessage.TypeAAAA:
			q.Answers = append(q.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	if len(n.addrs) == 0 {
		q.RCode = dnsmessage.RCodeNameError
	}
	return q.Pack()
}

// serveAt serves on a port of an address; 0 is any.
func serveAt(t *testing.T, addr, port string, handle http.HandlerFunc) (at string) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(addr, port))
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(handle)
	_ = server.Listener.Close()
	server.Listener = listener
	server.Start()
	t.Cleanup(server.Close)
	_, at, _ = net.SplitHostPort(listener.Addr().String())
	return at
}

// A name whose address changes is followed: with the next connection, and where a
// connection lives on, when it has been used for long enough.
func TestAddressesThatChange(t *testing.T) {
	dns := serveNames(t)
	var blue, green atomic.Int64
	port := serveAt(t, "127.0.0.1", "0", func(http.ResponseWriter, *http.Request) { blue.Add(1) })
	serveAt(t, "127.0.0.2", port, func(http.ResponseWriter, *http.Request) { green.Add(1) })
	endpoint := open(t, func(c *webhook.Config) { c.URL = setting.NewURL("http://hook.test:" + port) })
	run(t, endpoint)
	sink := bind(t, endpoint)

	dns.set("127.0.0.1")
	requireDelivered(t, deliver(t, sink, message("1"), message("2")))
	asked := dns.count()
	dns.set("127.0.0.2")
	requireDelivered(t, deliver(t, sink, message("3")))
	require.EqualValues(t, 3, blue.Load(), "the connection is used on")
	require.Equal(t, asked, dns.count())
	webhook.MaxAge(endpoint, time.Nanosecond)
	requireDelivered(t, deliver(t, sink, message("4")))
	require.EqualValues(t, 1, green.Load())

	// It is checked again, too.
	dns.set("127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "64:ff9b::7f00:1")
	requireDelivered(t, deliver(t, sink, message("5"))) // by the one that is allowed
	dns.set("10.1.2.3", "::1")
	requireFailure(t, relay.Retry, "address_refused", deliver(t, sink, message("6"))[0])
	dns.set()
	requireFailure(t, relay.Retry, "dns", deliver(t, sink, message("6"))[0])
	dns.set("127.0.0.2")
	requireDelivered(t, deliver(t, sink, message("6")))
}

// Each address of a name has its share of the time, through a proxy as well: a tunnel that
// the proxy cannot make is not waited for to the end.
func TestProxySharesTheTimeOverAddresses(t *testing.T) {
	dns := serveNames(t)
	dns.set("127.0.0.3", "127.0.0.1")
	far := start(t, accept)
	p := newProxy(t, strings.TrimPrefix(far.url, "http://"))
	p.swallow = "127.0.0.3:8080"
	t.Setenv("HTTP_PROXY", p.URL)
	began := time.Now()
	requireDelivered(t, deliver(t, sinkTo(t, "http://hook.test:8080/"), message("1")))
	require.Less(t, time.Since(began), timeout)
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Equal(t, []string{"CONNECT 127.0.0.3:8080", "CONNECT 127.0.0.1:8080"}, p.asked)
}

// A tunnel to an address of IPv6 is asked for in brackets.
func TestProxyToAnIPv6Address(t *testing.T) {
	far := start(t, accept)
	p := newProxy(t, strings.TrimPrefix(far.url, "http://"))
	t.Setenv("HTTP_PROXY", p.URL)
	sink := sinkWith(t, func(c *webhook.Config) {
		c.URL = setting.NewURL("http://[2001:db8::7]:8080/hook")
		c.Network.Allow = append(c.Network.Allow, "2001:db8::/32")
	})
	requireDelivered(t, deliver(t, sink, message("1")))
	require.Equal(t, []string{"CONNECT [2001:db8::7]:8080"}, p.asked)
	require.Equal(t, "[2001:db8::7]:8080", far.last().Host)
}
