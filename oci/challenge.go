package oci

import "strings"

// maxChallenges and maxParams bound what is read of a WWW-Authenticate field.
const (
	maxChallenges = 16
	maxParams     = 32
)

// A challenge is one of a WWW-Authenticate field's (RFC 9110 section 11.6.1).
type challenge struct {
	scheme string            // in lower case
	params map[string]string // by name in lower case; the first of a name counts
}

// parseChallenges reads all challenges of all the fields. It is lenient where
// registries are sloppy (unquoted values, missing commas) and stops at what
// makes no sense: what was read before it counts.
func parseChallenges(fields []string) []challenge {
	var out []challenge
	for _, f := range fields {
		s := scanner{f}
		for s.skip(); s.rest != "" && len(out) < maxChallenges; s.skip() {
			c, ok := s.challenge()
			if !ok {
				break
			}
			out = append(out, c)
		}
	}
	return out
}

// A scanner reads from the front of rest.
type scanner struct{ rest string }

// skip passes over white space and empty list elements.
func (s *scanner) skip() { s.rest = strings.TrimLeft(s.rest, " \t,") }

func (s *scanner) space() { s.rest = strings.TrimLeft(s.rest, " \t") }

// token reads a token (RFC 9110 section 5.6.2); "" if there is none.
func (s *scanner) token() string {
	i := 0
	for i < len(s.rest) && isToken(s.rest[i]) {
		i++
	}
	t := s.rest[:i]
	s.rest = s.rest[i:]
	return t
}

func isToken(c byte) bool {
	return alnum(c) || 'A' <= c && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// challenge reads a scheme and its parameters, up to the next scheme.
func (s *scanner) challenge() (challenge, bool) {
	c := challenge{scheme: strings.ToLower(s.token()), params: map[string]string{}}
	if c.scheme == "" {
		return c, false
	}
	if s.space(); s.token68() {
		return c, true
	}
	for len(c.params) < maxParams {
		s.skip()
		before := s.rest
		name := strings.ToLower(s.token())
		s.space()
		rest, ok := strings.CutPrefix(s.rest, "=")
		if name == "" || !ok {
			s.rest = before // the next scheme, or nonsense
			return c, true
		}
		s.rest = rest
		s.space()
		value, ok := s.value()
		if !ok {
			s.rest = ""
			return c, true
		}
		if _, twice := c.params[name]; !twice {
			c.params[name] = value
		}
	}
	s.rest = ""
	return c, true
}

// token68 passes over the other form of credentials (RFC 9110 section 11.2),
// a single word that is not the beginning of a parameter or the next scheme.
func (s *scanner) token68() bool {
	word := s.rest
	if i := strings.IndexAny(word, " \t,"); i >= 0 {
		word = word[:i]
	}
	bare := strings.TrimRight(word, "=")
	if bare == "" || strings.ContainsAny(bare, `="`) {
		return false
	}
	after := strings.TrimLeft(s.rest[len(word):], " \t")
	if after != "" && after[0] != ',' || len(bare) == len(word) && strings.HasPrefix(after, "=") {
		return false
	}
	s.rest = after
	return true
}

// value reads a quoted string, or an unquoted value up to a comma or space.
func (s *scanner) value() (string, bool) {
	if !strings.HasPrefix(s.rest, `"`) {
		i := strings.IndexAny(s.rest, ", \t")
		if i < 0 {
			i = len(s.rest)
		}
		v := s.rest[:i]
		s.rest = s.rest[i:]
		return v, true
	}
	var v strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '"':
			s.rest = s.rest[i+1:]
			return v.String(), true
		case c == '\\' && i+1 < len(s.rest):
			i++
			v.WriteByte(s.rest[i])
		default:
			v.WriteByte(c)
		}
	}
	return "", false // never closed
}
