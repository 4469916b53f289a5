package npm

import (
	"net/http"
	"strconv"
	"strings"
)

// wantsCorgi reports whether a packument's Accept prefers the abbreviated form
// to the full one (RFC 9110 section 12.5.1). The abbreviated form must be
// named: an absent Accept and wildcards mean the full one. Of two that are
// wanted alike the one named first is given, and a named one before a wildcard.
func wantsCorgi(h http.Header) bool {
	var corgi, full choice
	full.rank = -1
	for i, e := range qualities(h.Values("Accept")) {
		switch e.name {
		case mediaCorgi:
			corgi = choice{e.q, 2, i}
		case mediaJSON:
			full = choice{e.q, 2, i}
		case "application/*":
			if full.rank < 1 {
				full = choice{e.q, 1, i}
			}
		case "*/*":
			if full.rank < 0 {
				full = choice{e.q, 0, i}
			}
		}
	}
	switch {
	case corgi.q <= 0 || full.q > corgi.q:
		return false
	case full.q < corgi.q || full.rank < 2:
		return true
	}
	return corgi.at < full.at
}

// A choice is how much a representation is wanted, by how specific a range,
// and where in the list that was.
type choice struct {
	q    float64
	rank int
	at   int
}

// wantsGzip reports whether a gzipped answer is acceptable and not less wanted
// than a plain one (RFC 9110 section 12.5.3).
func wantsGzip(h http.Header) bool {
	gzip, identity, any := -1.0, -1.0, -1.0
	for _, e := range qualities(h.Values("Accept-Encoding")) {
		switch e.name {
		case "gzip", "x-gzip":
			gzip = e.q
		case "identity":
			identity = e.q
		case "*":
			any = e.q
		}
	}
	if gzip < 0 {
		gzip = any
	}
	return gzip > 0 && gzip >= identity
}

// A quality is one member of a list like Accept's.
type quality struct {
	name string // in lower case, without parameters
	q    float64
}

// qualities parses a quality list. Members whose q makes no sense count as
// q=0; more than 64 are not looked at.
func qualities(lines []string) []quality {
	var out []quality
	for _, line := range lines {
		for _, member := range strings.SplitN(line, ",", 65) {
			name, params, _ := strings.Cut(member, ";")
			if name = strings.ToLower(strings.TrimSpace(name)); name == "" {
				continue
			}
			if out = append(out, quality{name, weight(params)}); len(out) == 64 {
				return out
			}
		}
	}
	return out
}

// weight is the q among the parameters; 1 if there is none.
func weight(params string) float64 {
	for _, p := range strings.Split(params, ";") {
		k, v, ok := strings.Cut(p, "=")
		if !ok || !strings.EqualFold(strings.TrimSpace(k), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return q
	}
	return 1
}
