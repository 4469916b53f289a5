package npm

import (
	"net/netip"
	"net/url"
	"strings"
)

// A hostPattern is one entry of Registry.Tarballs; the grammar is that of
// outbound.Options.Redirects, which checks it.
type hostPattern struct {
	host string // in lower case, with a leading "." for the hosts below it
	port string // "" for 80 and 443, "*" for any
}

func parseHostPattern(s string) hostPattern {
	p := hostPattern{host: strings.ToLower(s)}
	if a, err := netip.ParseAddr(strings.Trim(p.host, "[]")); err == nil {
		return hostPattern{host: a.String()}
	}
	if i := strings.LastIndexByte(p.host, ':'); i >= 0 {
		p.host, p.port = strings.Trim(p.host[:i], "[]"), p.host[i+1:]
	}
	if rest, ok := strings.CutPrefix(p.host, "*."); ok {
		p.host = "." + rest
	}
	return p
}

func (p hostPattern) matches(u *url.URL) bool {
	host, port := strings.ToLower(u.Hostname()), port(u)
	switch p.port {
	case "*", port:
	case "":
		if port != "80" && port != "443" {
			return false
		}
	default:
		return false
	}
	if below, ok := strings.CutPrefix(p.host, "."); ok {
		return strings.HasSuffix(host, "."+below)
	}
	return host == p.host
}

// port is the one u is dialled at.
func port(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "https" {
		return "443"
	}
	return "80"
}
