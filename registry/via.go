package registry

import (
	"strconv"
	"strings"
	"time"
)

// Via says how an answer came about: what the Cache-Status field (RFC 9211)
// and the metrics tell. Its zero value means a plain hit of nothing in
// particular.
type Via struct {
	// Fwd is why something behind had to be asked: "miss" (nothing was here)
	// or "stale" (what was here had to be revalidated, or could not be);
	// "" if nothing was asked.
	Fwd string
	// Detail is where the bytes were: "memory", "disk", "shield", "upstream".
	Detail string
	// Collapsed reports that another reader's fill or question was joined.
	Collapsed bool
	// Stale is by how much the answer is past its freshness; zero if it is not.
	Stale time.Duration
	// Warning is what went wrong behind a stale answer, in a client's words.
	Warning string
}

// Hit reports whether nothing behind this node had to be asked.
func (v Via) Hit() bool { return v.Fwd == "" }

// String is the member of a Cache-Status list that weir adds.
func (v Via) String() string {
	var s strings.Builder
	s.WriteString("weir")
	if v.Fwd == "" {
		s.WriteString("; hit")
	} else {
		s.WriteString("; fwd=" + v.Fwd)
	}
	if v.Stale > 0 {
		s.WriteString("; ttl=-" + strconv.FormatInt(int64(v.Stale/time.Second), 10))
	}
	if v.Detail != "" {
		s.WriteString("; detail=" + v.Detail)
	}
	if v.Collapsed {
		s.WriteString("; collapsed")
	}
	return s.String()
}

// Over is the Via of an answer whose name resolved by v and whose bytes came
// by bytes: asking for the name counts before where the bytes were.
func (v Via) Over(bytes Via) Via {
	if v.Fwd == "" {
		v.Fwd = bytes.Fwd
		v.Collapsed = bytes.Collapsed
	}
	if v.Detail == "" {
		v.Detail = bytes.Detail
	}
	return v
}
