package webhook

import (
	"bufio"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpproxy"

	"mnsrelay/internal/setting"
)

// dialer connects to the receiver: straight, or through the proxy that the environment
// names for it (HTTPS_PROXY, HTTP_PROXY, NO_PROXY).
//
// A proxy is asked for a tunnel (CONNECT) to an address, never to a name: the name is
// resolved here and its address checked as without a proxy, so that no answer of DNS can
// make the proxy connect to what the configuration does not allow.
type dialer struct {
	plain   *net.Dialer // checks addresses
	guard   guard
	proxy   func(*url.URL) (*url.URL, error)
	tls     setting.TLS
	timeout time.Duration

	// asked says that a receiver has asked for a client certificate and has not answered
	// since. With TLS 1.3 it refuses one after the handshake, by ending the connection:
	// what the next write or read then says varies.
	asked atomic.Bool
}

func newDialer(c *Config, g guard) *dialer {
	return &dialer{
		plain:   &net.Dialer{Timeout: c.Timeout, Control: g.control},
		guard:   g,
		proxy:   environmentProxy(),
		tls:     c.TLS,
		timeout: c.Timeout,
	}
}

// environmentProxy is the proxy that the environment names for a URL. A variable that is no
// URL is an error, and not, as to the library, no proxy: the operator wants one.
func environmentProxy() func(*url.URL) (*url.URL, error) {
	config := httpproxy.FromEnvironment()
	find := config.ProxyFunc()
	return func(u *url.URL) (*url.URL, error) {
		value, name := config.HTTPProxy, "HTTP_PROXY"
		if u.Scheme == "https" {
			value, name = config.HTTPSProxy, "HTTPS_PROXY"
		}
		proxy, err := find(u)
		if err != nil || proxy == nil && value != "" && !isProxyURL(value) {
			return nil, errors.New("the environment's " + name + " cannot be read as a URL") // and may hold a password
		}
		return proxy, nil
	}
}

// isProxyURL tells whether the library can read a proxy, which may be a host and port.
func isProxyURL(value string) bool {
	for _, text := range []string{value, "http://" + value} {
		if u, err := url.Parse(text); err == nil && u.Host != "" {
			return true
		}
	}
	return false
}

// dialTLS makes a connection for https. The plain one below it is handed to keep. It
// returns a *tls.Conn: by that net/http knows the protocol agreed on.
func (d *dialer) dialTLS(ctx context.Context, network, address string, keep func(net.Conn) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, errTimeout)
	defer cancel()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	config, err := d.tls.Config(host)
	if err != nil {
		return nil, &filesError{err}
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	config.GetClientCertificate = func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		d.asked.Store(true)
		for i := range config.Certificates {
			if asked.SupportsCertificate(&config.Certificates[i]) == nil {
				return &config.Certificates[i], nil
			}
		}
		return new(tls.Certificate), nil // none; the receiver says whether it goes on without
	}
	dialed, err := d.connect(ctx, "https", network, address)
	if err != nil {
		return nil, err
	}
	conn, err := keep(dialed)
	if err != nil {
		return nil, err
	}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

// connect makes a connection for a request of the scheme.
// Its time is bounded here: net/http goes on with a dial after its request has ended.
func (d *dialer) connect(ctx context.Context, scheme, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, d.timeout, errTimeout)
	defer cancel()
	proxy, err := d.proxy(&url.URL{Scheme: scheme, Host: address})
	switch {
	case err != nil:
		return nil, &proxyError{err}
	case proxy == nil:
		return d.plain.DialContext(ctx, network, address)
	}
	return d.tunnel(ctx, proxy, address)
}

// filesError says that the files of TLS cannot be used.
type filesError struct{ error }

// proxyError is what went wrong between us and the proxy.
type proxyError struct{ error }

func (e *proxyError) Error() string { return "through the proxy: " + e.error.Error() }
func (e *proxyError) Unwrap() error { return e.error }

// tunnel connects to the first address of the host that the proxy reaches.
func (d *dialer) tunnel(ctx context.Context, proxy *url.URL, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline() // connect has set it
	for i, addr := range addrs {
		if refused := d.guard.check(addr); refused != nil {
			err = refused
			continue
		}
		share := time.Until(deadline) / time.Duration(len(addrs)-i)
		var conn net.Conn
		if conn, err = d.open(ctx, share, proxy, net.JoinHostPort(addr.Unmap().String(), port)); err == nil {
			return conn, nil
		}
		err = &proxyError{err}
	}
	return nil, err
}

// open asks the proxy for a tunnel to target, an address and port, within a time. The
// proxy's own address is the operator's, and not checked.
func (d *dialer) open(ctx context.Context, within time.Duration, proxy *url.URL, target string) (_ net.Conn, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, within, errTimeout)
	defer cancel()
	conn, err := d.toProxy(ctx, proxy)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer func() {
		if !stop() {
			err = context.Cause(ctx) // and not that the connection is closed
		}
		if err != nil {
			_ = conn.Close()
		}
	}()
	request := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{}}
	if proxy.User != nil {
		password, _ := proxy.User.Password()
		request.Header.Set("Proxy-Authorization", basicHeader(proxy.User.Username(), password))
	}
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(io.LimitReader(conn, maxAnswer))
	answer, err := http.ReadResponse(reader, request) //nolint:bodyclose // An answer to CONNECT has none.
	if err != nil {
		return nil, fmt.Errorf("ask for a tunnel: %w", &shortError{err})
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the proxy answered status %d to CONNECT", answer.StatusCode)
	}
	if reader.Buffered() > 0 { // In TLS and in HTTP the client speaks first.
		return nil, errors.New("more than an answer to CONNECT came")
	}
	return conn, nil
}

// toProxy connects to the proxy itself.
func (d *dialer) toProxy(ctx context.Context, proxy *url.URL) (net.Conn, error) {
	port := proxy.Port()
	switch proxy.Scheme {
	case "http":
		port = cmp.Or(port, "80")
	case "https":
		port = cmp.Or(port, "443")
	default:
		return nil, fmt.Errorf("its scheme %q is not supported: use an http:// or https:// proxy", proxy.Scheme)
	}
	plain := net.Dialer{Timeout: d.timeout}
	conn, err := plain.DialContext(ctx, "tcp", net.JoinHostPort(proxy.Hostname(), port))
	if err != nil || proxy.Scheme == "http" {
		return conn, err
	}
	secured := tls.Client(conn, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: proxy.Hostname()})
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}
