package registry

import "net/netip"

// Network is what counts as one client where clients are counted by address: an
// IPv4 address itself, however it is written, and of an IPv6 address the first 64
// bits, which one customer has for himself. It is the zero Prefix for the zero Addr.
func Network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap()
	p, _ := addr.WithZone("").Prefix(min(addr.BitLen(), 64))
	return p
}

// ClientAddr is the address in a RemoteAddr of net/http, as an IPv4 address if it
// is one; the zero Addr if there is none in it.
func ClientAddr(remote string) netip.Addr {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}
