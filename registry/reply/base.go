package reply

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/weir-registry/weir/registry"
)

// Base is the address that r's client calls this node by, without a slash at
// its end: publicURL if that is set, else the Host that the client sent, by
// https if this connection is. It goes into answers, so a Host that is none is
// ErrInvalid.
func Base(r *http.Request, publicURL string) (string, error) {
	if publicURL != "" {
		return strings.TrimRight(publicURL, "/"), nil
	}
	host := strings.ToLower(r.Host)
	if !validHost(host) {
		return "", registry.Errorf(registry.ErrInvalid, "the Host header is not a host")
	}
	if r.TLS != nil {
		return "https://" + host, nil
	}
	return "http://" + host, nil
}

// validHost reports whether s is a host name or an address, with or without a
// port, and nothing that could break out of an address (RFC 3986 section 3.2).
func validHost(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		if port == "" || len(port) > 5 || strings.Trim(port, "0123456789") != "" {
			return false
		}
		host = h
		if strings.Contains(host, ":") != strings.HasPrefix(s, "[") {
			return false
		}
	} else if inner, ok := strings.CutPrefix(s, "["); ok {
		if host, ok = strings.CutSuffix(inner, "]"); !ok || !strings.Contains(host, ":") {
			return false
		}
	} else if strings.Contains(s, ":") {
		return false
	}
	if strings.Contains(host, ":") {
		a, err := netip.ParseAddr(host)
		return err == nil && a.Zone() == ""
	}
	return host != "" && strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789.-_") == ""
}
