package reply

import (
	"net/http"
	"strconv"
	"strings"
)

// A span is one satisfiable range of a body.
type span struct{ offset, length int64 }

func (s span) contentRange(size int64) string {
	return "bytes " + strconv.FormatInt(s.offset, 10) + "-" + strconv.FormatInt(s.offset+s.length-1, 10) +
		"/" + strconv.FormatInt(size, 10)
}

// parseRange reads a Range field (RFC 9110 section 14.1.2) against a body of
// size bytes. ok is false if it is not a well-formed bytes range, and is then
// to be ignored; no spans means that none can be satisfied.
//
// "500-0" has its last position before its first, which makes it invalid; the
// distribution conformance suite wants 416 for it as for one past the end, and
// so it counts as not satisfiable here.
func parseRange(field string, size int64) (spans []span, ok bool) {
	unit, set, found := strings.Cut(field, "=")
	if !found || !strings.EqualFold(strings.TrimSpace(unit), "bytes") {
		return nil, false
	}
	seen := false
	for spec := range strings.SplitSeq(set, ",") {
		spec = strings.Trim(spec, " \t")
		if spec == "" {
			continue // an empty list element (RFC 9110 section 5.6.1)
		}
		first, last, found := strings.Cut(spec, "-")
		if !found {
			return nil, false
		}
		seen = true
		sp, valid := parseSpan(strings.Trim(first, " \t"), strings.Trim(last, " \t"), size)
		if !valid {
			return nil, false
		}
		if sp.length > 0 {
			spans = append(spans, sp)
		}
	}
	return spans, seen
}

// sum is how many bytes spans have together.
func sum(spans []span) (n int64) {
	for _, sp := range spans {
		n += sp.length
	}
	return n
}

// parseSpan gives a zero span for a range that cannot be satisfied.
func parseSpan(first, last string, size int64) (sp span, ok bool) {
	if first == "" {
		n, ok := position(last)
		if !ok {
			return span{}, false
		}
		n = min(n, size)
		return span{size - n, n}, true
	}
	from, ok := position(first)
	if !ok {
		return span{}, false
	}
	to := size - 1
	if last != "" {
		if to, ok = position(last); !ok {
			return span{}, false
		}
		to = min(to, size-1)
	}
	if from >= size || to < from {
		return span{}, true
	}
	return span{from, to - from + 1}, true
}

// position is a run of digits; one too large for an int64 is past every end.
func position(s string) (int64, bool) {
	if s == "" {
		return 0, false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 1<<63 - 1, true
	}
	return n, true
}

// ifRange reports whether a Range in r is to be honoured given its If-Range
// (RFC 9110 section 13.1.5): only a strong match of the entity tag does. A date
// never matches, since nothing here has a Last-Modified.
func ifRange(r *http.Request, etag string) bool {
	cond := r.Header.Get("If-Range")
	return cond == "" || etag != "" && strings.TrimSpace(cond) == etag
}

// Matches reports whether r's If-None-Match names etag (RFC 9110 section
// 13.1.2: weak comparison, a list, or *).
func Matches(r *http.Request, etag string) bool {
	for _, field := range r.Header.Values("If-None-Match") {
		for {
			field = strings.TrimLeft(field, " \t,")
			if field == "" {
				break
			}
			if field[0] == '*' {
				return true
			}
			field = strings.TrimPrefix(field, "W/")
			if !strings.HasPrefix(field, `"`) {
				break // not a tag: the rest of the line is not to be guessed
			}
			end := strings.IndexByte(field[1:], '"')
			if end < 0 {
				break
			}
			if field[:end+2] == etag {
				return true
			}
			field = field[end+2:]
		}
	}
	return false
}
