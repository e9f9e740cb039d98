package mns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"mnsrelay/internal/setting"
)

// Endpoint is the address of an MNS server. Make it with ParseEndpoint.
type Endpoint struct {
	secure bool
	// name is the host without port and brackets: what a certificate must name.
	name string
	// host is the Host header: as written, without the zone of an address.
	host string
	// addr is what is dialled.
	addr string
	// prefix goes before every path and is not signed; no slash at its end.
	prefix string
}

// ParseEndpoint reads an http or https URL: a name or an address, with a port or
// without. A path is put before every request's own and left out of the signature, as
// the SDK does: for a gateway that takes it off again. Its errors say what to write
// and do not quote the text, which may hold a password.
func ParseEndpoint(raw string) (Endpoint, error) {
	if raw == "" {
		return Endpoint{}, errors.New("required: write the queue's endpoint, as in https://ACCOUNT.mns.REGION.aliyuncs.com")
	}
	u, err := url.Parse(raw)
	if err != nil {
		return Endpoint{}, errors.New("is not a URL: write https://ACCOUNT.mns.REGION.aliyuncs.com")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return Endpoint{}, errors.New("is no http or https URL: write https:// before the host")
	}
	e := Endpoint{secure: u.Scheme == "https", name: u.Hostname(), host: u.Host}
	switch {
	case u.Opaque != "" || e.name == "":
		return Endpoint{}, errors.New("has no host: write https://ACCOUNT.mns.REGION.aliyuncs.com")
	case u.User != nil:
		return Endpoint{}, errors.New("holds a user name: keys go under credentials")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return Endpoint{}, errors.New("has a query or a fragment: leave out what follows the host")
	}
	if err := e.checkName(); err != nil {
		return Endpoint{}, err
	}
	port := u.Port()
	switch {
	case port != "":
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return Endpoint{}, errors.New("has no valid port: write a number from 1 to 65535")
		}
	case strings.HasSuffix(u.Host, ":"):
		return Endpoint{}, errors.New("has a colon without a port: leave it out or write a number from 1 to 65535")
	case e.secure:
		port = "443"
	default:
		port = "80"
	}
	e.addr = net.JoinHostPort(e.name, port)
	// "/." is how users of the SDK get an address past its constructor.
	e.prefix = strings.TrimRight(strings.TrimSuffix(u.EscapedPath(), "/."), "/")
	if strings.Trim(e.prefix, pathCharacters) != "" || strings.Contains(e.prefix, "//") || strings.Contains(e.prefix, "/.") {
		return Endpoint{}, errors.New("has a path that is no plain prefix: use letters, digits, '-', '_' and '/'")
	}
	return e, nil
}

const (
	letters        = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits         = "0123456789"
	nameCharacters = letters + digits + "-._"
	pathCharacters = nameCharacters + "~/"
)

func (e *Endpoint) checkName() error {
	if strings.HasPrefix(e.host, "[") {
		a, err := netip.ParseAddr(e.name)
		if err != nil {
			return errors.New("has no valid IPv6 address between its brackets")
		}
		if a.Zone() != "" {
			// The zone means something to this machine only (RFC 6874).
			e.host = "[" + a.WithZone("").String() + "]" + e.host[strings.IndexByte(e.host, ']')+1:]
		}
		return nil
	}
	if i := strings.IndexFunc(e.name, func(r rune) bool { return !strings.ContainsRune(nameCharacters, r) }); i >= 0 {
		return errors.New("has a host with characters that no host has: use letters, digits, '-' and '.', a name in another script as its xn-- form")
	}
	return nil
}

// String is the URL.
func (e Endpoint) String() string {
	if e.host == "" {
		return ""
	}
	scheme := "http://"
	if e.secure {
		scheme = "https://"
	}
	return scheme + e.host + e.prefix
}

// Exposed tells whether messages and signatures would cross a network in clear: plain
// http to a host that is not this one.
func (e Endpoint) Exposed() bool { return !e.secure && !setting.IsLoopback(e.name) }

// checkQueue reports a name that no queue can have: such a one would change the path
// of the request.
func checkQueue(name string) error {
	const most = 256
	switch {
	case name == "":
		return errors.New("required: write the queue's name")
	case len(name) > most:
		return fmt.Errorf("longer than %d characters", most)
	case strings.Trim(name, letters+digits+"-_") != "" || strings.IndexFunc(name, func(r rune) bool { return !strings.ContainsRune(letters+digits+"-_", r) }) >= 0:
		return errors.New("no queue's name: letters, digits and '-' only")
	}
	return nil
}
