package setting

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
)

// AdviseNetwork adds to an error of a connection what to do about it. Any other error it
// gives as it is. What AdviseTLS has words for is left to it.
func AdviseNetwork(err error) error {
	var (
		dns     *net.DNSError
		invalid x509.CertificateInvalidError
		notTLS  tls.RecordHeaderError
		network net.Error
		advice  string
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		advice = "correct the host's name, or see to it that the name servers of this machine know it"
	case errors.As(err, &dns):
		advice = "the name server does not answer: check those of this machine"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		advice = "have the server's certificate renewed; if it is valid, set the clock of this machine"
	case errors.As(err, &notTLS):
		advice = "what answers there does not speak TLS: check scheme and port"
	case errors.Is(err, syscall.ECONNREFUSED):
		advice = "nothing listens there: check host and port, and that the server runs"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		advice = "there is no way to it from here: check the network, and that it lets this machine through"
	case HungUp(err):
		advice = "the server, or something before it, hangs up: check host, port and scheme, and what lies between"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		advice = "nobody answers: check host and port, and that no firewall lies between"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, advice)
}

// HungUp tells whether an error says that the other side has ended the connection.
func HungUp(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// IsLoopback tells whether a host, a name or an address, is this machine itself: what goes
// there crosses no network.
func IsLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.Unmap().IsLoopback()
}
