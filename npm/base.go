package npm

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"github.com/weir-registry/weir/registry"
)

// maxBases is how many addresses of its own a node keeps views for. Which host
// a client calls is the client's to say, so without a bound it could fill the
// store with views; beyond it a view is made for the one answer and not kept.
const maxBases = 64

// bases are the addresses that clients have called this node by.
type bases struct {
	mu   sync.Mutex
	seen map[string]bool // guarded by mu
}

// keeps reports whether views for base are kept.
func (b *bases) keeps(base string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.seen[base] {
		return true
	}
	if len(b.seen) >= maxBases {
		return false
	}
	if b.seen == nil {
		b.seen = map[string]bool{}
	}
	b.seen[base] = true
	return true
}

// base is the registry's address as the client of r calls it, without a
// trailing slash, and whether views for it are kept.
func (h *handler) base(r *http.Request) (string, bool, error) {
	if h.o.PublicURL != "" {
		return strings.TrimRight(h.o.PublicURL, "/") + h.o.Prefix, true, nil
	}
	host := strings.ToLower(r.Host)
	if !validHost(host) {
		return "", false, registry.Errorf(registry.ErrInvalid, "the Host header is not a host")
	}
	scheme := "http://"
	if r.TLS != nil {
		scheme = "https://"
	}
	base := scheme + host + h.o.Prefix
	return base, h.bases.keeps(base), nil
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

// shortHash names a base in a view's key.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
