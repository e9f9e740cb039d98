package webhook

import (
	"fmt"
	"net/netip"
	"syscall"

	"code.dny.dev/ssrf"
)

// guard decides which addresses may be connected to: those of the public internet,
// and the networks that the configuration allows.
type guard struct{ guardian *ssrf.Guardian }

func newGuard(allow []string) (guard, error) {
	var v4, v6 []netip.Prefix
	for _, network := range allow {
		prefix, err := parseNetwork(network)
		if err != nil {
			return guard{}, err
		}
		if prefix.Addr().Is4() {
			v4 = append(v4, prefix)
		} else {
			v6 = append(v6, prefix)
		}
	}
	return guard{ssrf.New(ssrf.WithAnyPort(), ssrf.WithAllowedV4Prefixes(v4...), ssrf.WithAllowedV6Prefixes(v6...))}, nil
}

// control is a net.Dialer's Control: it sees the address that DNS gave, at the last
// moment before the connection.
func (g guard) control(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("read the address to connect to: %w", err)
	}
	return g.check(addr.Addr())
}

// check refuses with a *refusedError. An IPv4 address in the clothes of IPv6, mapped
// or behind NAT64, is judged as the IPv4 address it leads to as well.
func (g guard) check(addr netip.Addr) error {
	plain := addr.Unmap().WithZone("")
	if g.guardian.SafeAddr(plain) != nil {
		return &refusedError{addr: plain}
	}
	if ssrf.IPv6NAT64Prefix.Contains(plain) {
		bytes := plain.As16()
		behind := netip.AddrFrom4([4]byte(bytes[12:]))
		if g.guardian.SafeAddr(behind) != nil {
			return &refusedError{addr: behind}
		}
	}
	return nil
}

// refusedError says that the configuration does not allow an address.
type refusedError struct{ addr netip.Addr }

func (e *refusedError) Error() string {
	return fmt.Sprintf("%v is not an address of the public internet; if messages are meant to go there, add its network to network.allow, as in [%q]",
		e.addr, netip.PrefixFrom(e.addr, e.addr.BitLen()))
}
