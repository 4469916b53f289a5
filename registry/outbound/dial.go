package outbound

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A dialer connects to the base, to what is listed, and to public addresses.
type dialer struct {
	base    string // host:port
	allowed Hosts
}

// dial implements http.Transport's DialContext. Connections are pooled by the
// host and port that are checked here, so one that was allowed for a trusted
// name is never reused for another.
func (d dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	nd := net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	if !d.trusts(addr) {
		nd.Control = publicOnly
	}
	return nd.DialContext(ctx, network, addr)
}

// trusts reports whether the operator vouches for addr, whatever it resolves to.
func (d dialer) trusts(addr string) bool {
	if strings.EqualFold(addr, d.base) {
		return true
	}
	return d.allowed.Has(addr)
}

// publicOnly is net.Dialer's Control: it sees the address that is about to be
// connected to, after resolution, for each of a name's addresses.
func publicOnly(network, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return refused("%s is not an address to dial", address)
	}
	if !isPublic(ap.Addr()) {
		return refused("%s is not a public address and is not listed among the redirects", ap.Addr())
	}
	return nil
}

// special are the ranges that net/netip has no method for and that are not
// public, or carry an IPv4 address that may not be (IANA special-purpose
// address registries, RFC 6890).
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),        // this network
	netip.MustParsePrefix("100.64.0.0/10"),    // shared, CGNAT: RFC 6598
	netip.MustParsePrefix("168.63.129.16/32"), // a cloud's metadata service
	netip.MustParsePrefix("192.0.0.0/24"),     // protocol assignments; cloud metadata too
	netip.MustParsePrefix("192.0.2.0/24"),     // documentation
	netip.MustParsePrefix("192.88.99.0/24"),   // 6to4 relays
	netip.MustParsePrefix("198.18.0.0/15"),    // benchmarks
	netip.MustParsePrefix("198.51.100.0/24"),  // documentation
	netip.MustParsePrefix("203.0.113.0/24"),   // documentation
	netip.MustParsePrefix("240.0.0.0/4"),      // reserved, broadcast
	netip.MustParsePrefix("::/96"),            // IPv4-compatible
	netip.MustParsePrefix("64:ff9b::/96"),     // NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"),   // NAT64, local
	netip.MustParsePrefix("100::/64"),         // discard
	netip.MustParsePrefix("2001::/23"),        // Teredo and other assignments
	netip.MustParsePrefix("2001:db8::/32"),    // documentation
	netip.MustParsePrefix("2002::/16"),        // 6to4
	netip.MustParsePrefix("3fff::/20"),        // documentation
	netip.MustParsePrefix("5f00::/16"),        // segment routing
	netip.MustParsePrefix("fec0::/10"),        // site-local
}

// isPublic reports whether a is an address of the open internet: not loopback,
// private, link-local (where clouds keep their metadata), CGNAT, multicast,
// unspecified or reserved, in either family.
func isPublic(a netip.Addr) bool {
	a = a.WithZone("").Unmap()
	if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
		return false
	}
	for _, p := range special {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// Hosts are host patterns as [Options].Redirects describes them.
type Hosts []pattern

// A pattern is one of Hosts, in lower case.
type pattern struct {
	host string // with a leading "." for a wildcard
	port string // "" for 80 and 443, "*" for any
}

// ParseHosts parses patterns, or says which makes no sense.
func ParseHosts(list []string) (Hosts, error) {
	var out Hosts
	for _, s := range list {
		p, ok := parsePattern(s)
		if !ok {
			return nil, registry.Errorf(registry.ErrInvalid, "%q is not a host, host:port, host:* or *.host", s)
		}
		out = append(out, p)
	}
	return out, nil
}

// Has reports whether addr, a host and a port, matches one of the patterns.
func (hs Hosts) Has(addr string) bool {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	for _, p := range hs {
		if p.matches(strings.ToLower(host), port) {
			return true
		}
	}
	return false
}

func parsePattern(s string) (pattern, bool) {
	p := pattern{host: strings.ToLower(s)}
	bare := p.host
	if strings.HasPrefix(bare, "[") && strings.HasSuffix(bare, "]") {
		bare = bare[1 : len(bare)-1]
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return pattern{host: a.String()}, true // an IPv6 address has colons of its own
	}
	if host, port, err := net.SplitHostPort(p.host); err == nil {
		p.host, p.port = host, port
		if port == "" {
			return p, false
		}
	}
	if rest, ok := strings.CutPrefix(p.host, "*."); ok {
		p.host = "." + rest
		if rest == "" {
			return p, false
		}
	}
	wellFormed := p.port == "*" || strings.Trim(p.port, "0123456789") == ""
	return p, wellFormed && p.host != "" && !strings.ContainsAny(p.host, "*/@ \t[]")
}

func (p pattern) matches(host, port string) bool {
	if strings.HasPrefix(p.host, ".") {
		if len(host) <= len(p.host) || !strings.HasSuffix(host, p.host) {
			return false
		}
	} else if host != p.host {
		return false
	}
	switch p.port {
	case "*":
		return true
	case "":
		return port == "80" || port == "443"
	}
	return port == p.port
}
