package broker

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"mnsrelay/internal/setting"
)

// Address is a broker's URL, taken apart.
type Address struct {
	// HostPort is safe to show.
	HostPort string
	Host     string
	// Secure says that the scheme is amqps.
	Secure bool
	// Username and Password are those in the URL.
	Username string
	Password setting.Secret
}

// ReadURL takes an AMQP URL apart. What else is in it is the protocol's own. Its errors
// never quote it.
func ReadURL(u setting.URL) (Address, *url.URL, error) {
	parsed, err := u.Parse()
	if err != nil {
		return Address{}, nil, err
	}
	a := Address{Host: parsed.Hostname()}
	port := parsed.Port()
	switch parsed.Scheme {
	case "amqp":
		port = cmp.Or(port, "5672")
	case "amqps":
		a.Secure = true
		port = cmp.Or(port, "5671")
	default:
		return Address{}, nil, errors.New("the scheme must be amqp:// or amqps://")
	}
	if a.Host == "" {
		return Address{}, nil, errors.New("the host is missing")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return Address{}, nil, errors.New("the port must be 1 to 65535")
	}
	if parsed.Fragment != "" {
		return Address{}, nil, errors.New("there is a # in it: percent-encode it as %23, or use the username and password settings")
	}
	a.HostPort = net.JoinHostPort(a.Host, port)
	if parsed.User != nil {
		a.Username = parsed.User.Username()
		password, _ := parsed.User.Password()
		a.Password = setting.NewSecret(password)
	}
	return a, parsed, nil
}

// OneOf gives the URLs of a sink with their paths in its settings: the one of `url`, or
// those of `urls`.
func OneOf(one setting.URL, several []setting.URL) (urls []setting.URL, paths []string, problem error) {
	if !one.IsZero() {
		if len(several) > 0 {
			problem = setting.Problemf("urls", "url is set too: write one of them")
		}
		return []setting.URL{one}, []string{"url"}, problem
	}
	for i := range several {
		paths = append(paths, "urls["+strconv.Itoa(i)+"]")
	}
	return several, paths, nil
}

// Dial connects, with TLS where the address has it. The files of TLS are read anew. Timeout
// bounds name lookup and TCP, ctx all of it.
func (a *Address) Dial(ctx context.Context, timeout time.Duration, files *setting.TLS) (net.Conn, error) {
	dialer := net.Dialer{Timeout: timeout}
	raw, err := dialer.DialContext(ctx, "tcp", a.HostPort)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return nil, op.Err // the rest repeats the address
		}
		return nil, err
	}
	if !a.Secure {
		return raw, nil
	}
	config, err := files.Config(a.Host)
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	secured := tls.Client(raw, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("agree on TLS: %w", setting.AdviseTLS(err))
	}
	return secured, nil
}
