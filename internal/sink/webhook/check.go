package webhook

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/net/idna"

	"mnsrelay/internal/relay"
	"mnsrelay/internal/setting"
)

var _ relay.Checker = (*Endpoint)(nil)

// quiet is how long a check listens on a connection for a receiver that ends it at once. A
// client certificate is refused only after the handshake (TLS 1.3).
const quiet = 250 * time.Millisecond

// Check is part of relay.Checker. It connects, by TLS where the URL says so, and makes no
// request.
func (e *Endpoint) Check(ctx context.Context) []relay.Finding {
	ctx, cancel := context.WithTimeout(ctx, e.settings.Timeout)
	defer cancel()
	what := "connection to " + e.show
	conn, err := e.connect(ctx)
	if err != nil {
		return []relay.Finding{relay.Failing(what, err)}
	}
	defer conn.Close() //nolint:errcheck // nothing was written to it
	how := "unencrypted"
	if secured, is := conn.(*tls.Conn); is {
		state := secured.ConnectionState()
		how = fmt.Sprintf("%s, the certificate is good until %s", tls.VersionName(state.Version), state.PeerCertificates[0].NotAfter.UTC().Format(time.DateTime+" MST"))
	}
	asked := e.connections.dialer.asked.Load()
	if err := listen(ctx, conn); err != nil {
		if asked {
			return []relay.Finding{relay.Failing(what, fmt.Errorf("%s; the receiver asks for a client certificate: set or check tls.cert_file and tls.key_file", brief(err)))}
		}
		return []relay.Finding{relay.Failing(what, setting.AdviseNetwork(fmt.Errorf("the receiver ends the connection at once: %w", err)))}
	}
	if asked && e.connections.dialer.tls.CertFile == "" {
		how += ", and a client certificate is asked for: set tls.cert_file and tls.key_file if it is demanded"
	}
	return []relay.Finding{{What: what, Verdict: relay.OK, Text: how + "; nothing was posted, so what it answers is not known"}}
}

// connect makes a connection as a request would have.
func (e *Endpoint) connect(ctx context.Context) (net.Conn, error) {
	d := e.connections.dialer
	port := "80"
	if e.url.Scheme == "https" {
		port = "443"
	}
	host := e.url.Hostname()
	if ascii, err := idna.Lookup.ToASCII(host); err == nil { // as net/http does
		host = ascii
	}
	address := net.JoinHostPort(host, cmp.Or(e.url.Port(), port))
	if e.url.Scheme != "https" {
		conn, err := d.connect(ctx, e.url.Scheme, "tcp", address)
		return conn, advised(ctx, "", err)
	}
	doing := ""
	conn, err := d.dialTLS(ctx, "tcp", address, func(c net.Conn) (net.Conn, error) {
		doing = "agree on TLS: "
		return c, nil
	})
	return conn, advised(ctx, doing, err)
}

// advised says what an error means and what to do.
func advised(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil { // what the library says of it varies
		return setting.AdviseNetwork(fmt.Errorf("%sno answer in time: %w", doing, os.ErrDeadlineExceeded))
	}
	err = classify(ctx, err)
	// Its text has the name of the reason, for counters.
	if failure, is := errors.AsType[*relay.Failure](err); is {
		err = failure.Err
	}
	return fmt.Errorf("%s%w", doing, setting.AdviseNetwork(err))
}

// brief is the text of what a connection ended with.
func brief(err error) string {
	if errors.Is(err, io.EOF) {
		return "the receiver ends the connection at once"
	}
	return (&shortError{err}).Error()
}

// listen waits until the other side ends the connection, says something, or is quiet, which
// is what a receiver does that waits for a request.
func listen(ctx context.Context, conn net.Conn) error {
	until := time.Now().Add(quiet)
	if deadline, limited := ctx.Deadline(); limited && deadline.Before(until) {
		until = deadline
	}
	if err := conn.SetReadDeadline(until); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}
