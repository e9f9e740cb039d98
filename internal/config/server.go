package config

import (
	"net"
	"strconv"
	"strings"
	"time"

	"mnsrelay/internal/setting"
)

func (d *decoder) checkServer(s *Server) {
	d.checkAddress("server.listen", s.Listen)
	if s.AdminListen != "" {
		d.checkAddress("server.admin_listen", s.AdminListen)
		d.checkApart(s)
	}
	d.checkAdminToken(s)
	d.checkServerTLS(s.TLS)
}

func (d *decoder) checkAddress(path, address string) {
	if host, port, err := net.SplitHostPort(address); err != nil {
		d.checked(path, `must be an address with a port, as in ":8080" or "127.0.0.1:8080", not %s`, d.shown(path, address))
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || strings.ContainsAny(host, "/ ") {
		d.checked(path, `must end in a port from 0 to 65535, as in ":8080", not %s`, d.shown(path, address))
	} else if n == 0 {
		d.warn(path, "port 0 is another port with each start: probes will not find it")
	}
}

// checkApart refuses two addresses of which the second could not be bound.
func (d *decoder) checkApart(s *Server) {
	const path = "server.admin_listen"
	host, port, err := net.SplitHostPort(s.Listen)
	adminHost, adminPort, adminErr := net.SplitHostPort(s.AdminListen)
	if err != nil || adminErr != nil || port != adminPort || port == "0" {
		return
	}
	if host == adminHost || isEverywhere(host) || isEverywhere(adminHost) {
		d.checked(path, "has the port of server.listen: write another, or remove the line to serve everything there")
	}
}

// isEverywhere tells whether a host to listen at stands for all addresses of the machine.
func isEverywhere(host string) bool {
	ip := net.ParseIP(host)
	return host == "" || ip != nil && ip.IsUnspecified()
}

// minToken is how many characters an admin token should have: as many as a generated
// one of 64 bits has in hex.
const minToken = 16

func (d *decoder) checkAdminToken(s *Server) {
	const path = "server.admin_token"
	token := s.AdminToken.Reveal()
	x, fromOutside := d.expanded[path]
	switch {
	case token == "" && fromOutside:
		d.warn(path, "%s is empty: the endpoints that change something stay closed", origins(x))
	case token == "" && s.AdminListen != "":
		d.warn("server.admin_listen", "has nothing to serve that server.listen has not: write server.admin_token, too")
	case token == "":
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		d.checked(path, "must be visible ASCII characters without spaces, since it is sent in a header, as openssl rand -hex 32 makes it")
	case len(token) < minToken:
		d.warn(path, "is shorter than %d characters, so it can be guessed; openssl rand -hex 32 makes one that cannot", minToken)
	}
	address := s.Listen
	if s.AdminListen != "" {
		address = s.AdminListen
	}
	if host, _, err := net.SplitHostPort(address); token != "" && err == nil && s.TLS.IsZero() && !setting.IsLoopback(host) {
		d.warn(path, `crosses the network unencrypted: write server.tls, or server.admin_listen: "127.0.0.1:8081", which only this machine reaches`)
	}
}

// checkServerTLS reads the files. A relay does not start without them; those that serve
// nothing are only warned: where a message went can be asked on a machine that has no such key.
func (d *decoder) checkServerTLS(t setting.ServerTLS) {
	const path = "server.tls"
	if (t.CertFile == "") != (t.KeyFile == "") {
		d.checked(path, "cert_file and key_file belong together: write both")
	}
	if t.CertFile == "" || t.KeyFile == "" || d.suspect(path) {
		return
	}
	read := func(key, file string) (data []byte, found bool) {
		data, err := d.env.readFile(file)
		at := join(path, key)
		switch {
		case err != nil && d.serves:
			d.checked(at, "%s: %s", d.shown(at, file), cause(err))
		case err != nil:
			d.warn(at, "%s: %s; the relay does not start without it", d.shown(at, file), cause(err))
		}
		return data, err == nil
	}
	cert, found := read("cert_file", t.CertFile)
	key, foundKey := read("key_file", t.KeyFile)
	if !found || !foundKey {
		return
	}
	pair, err := setting.ServerPair(cert, key)
	if err != nil {
		d.checked(path, "%s", err)
		return
	}
	if end := pair.Leaf.NotAfter; time.Now().After(end) {
		d.warn(join(path, "cert_file"), "ended at %s: who asks will refuse it; have it renewed", end.UTC().Format(time.DateTime))
	}
}
