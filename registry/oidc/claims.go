package oidc

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
)

// claims are a JWT's. Names count as they are written, and one that is there
// twice makes the JWT malformed: who is believed must say one thing.
type claims map[string]any

func parseClaims(payload []byte) (claims, error) {
	var c claims
	if err := json.Unmarshal(payload, &c); err != nil {
		return nil, err
	}
	if c == nil {
		return nil, errors.New("no claims")
	}
	return c, nil
}

// unverified reads the claims of a JWT whose signature nobody has looked at.
func unverified(jwt string) (claims, error) {
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 {
		return nil, errors.New("not three parts")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return nil, err
	}
	return parseClaims(payload)
}

// audience is "aud", which is a text or a list.
func (c claims) audience() []string { return texts(c["aud"]) }

// times checks what a token says about when it is good, and returns until when.
// It is stricter than go-oidc, which lets "nbf" be five minutes ahead and does not
// look at "iat".
func (c claims) times(now time.Time) (time.Time, error) {
	at := map[string]time.Time{}
	for _, name := range []string{"exp", "nbf", "iat"} {
		v, there := c[name]
		if !there {
			continue
		}
		const most = 1 << 36 // seconds: the year 4147, beyond which nobody means it
		n, ok := v.(float64)
		if !ok || !(n > 0 && n < most) {
			return time.Time{}, refuse("the JWT's %s is no time", name)
		}
		whole, part := math.Modf(n)
		at[name] = time.Unix(int64(whole), int64(part*1e9))
	}
	exp, ok := at["exp"]
	switch {
	case !ok:
		return time.Time{}, refuse("the JWT does not say when it expires")
	case !now.Before(exp):
		return time.Time{}, refuse("the JWT has expired at %s", exp.UTC().Format(time.RFC3339))
	case at["nbf"].After(now.Add(leeway)):
		return time.Time{}, refuse("the JWT is good only from %s on", at["nbf"].UTC().Format(time.RFC3339))
	case at["iat"].After(now.Add(leeway)):
		return time.Time{}, refuse("the JWT says that it was made in the future, at %s", at["iat"].UTC().Format(time.RFC3339))
	case at["iat"].After(exp):
		return time.Time{}, refuse("the JWT says that it has expired before it was made")
	}
	return exp, nil
}

// rule is a Rule that is ready to be matched.
type rule struct {
	Rule
	names []string // of the claims, in order
}

func newRule(r Rule) (rule, error) {
	switch {
	case len(r.Claims) == 0:
		return rule{}, errors.New("no claims: every token of the issuer would match")
	case r.Robot == "":
		return rule{}, errors.New("no robot")
	case r.Lifetime < 0:
		return rule{}, fmt.Errorf("a lifetime of %v", r.Lifetime)
	case r.Lifetime == 0:
		r.Lifetime = defaultLifetime
	}
	r.Claims, r.Rights = maps.Clone(r.Claims), slices.Clone(r.Rights)
	for name, pattern := range r.Claims {
		if name == "" || pattern == "" {
			return rule{}, fmt.Errorf("the claim %q with the pattern %q", name, pattern)
		}
	}
	return rule{Rule: r, names: slices.Sorted(maps.Keys(r.Claims))}, nil
}

// missed says which claims do not match and what they are, for the log.
func (r rule) missed(c claims) []string {
	var missed []string
	for _, name := range r.names {
		var found []any
		find(c, name, &found)
		switch {
		case len(found) == 0:
			missed = append(missed, name+" is missing")
			continue
		case len(found) > 1:
			missed = append(missed, name+" is there in two ways")
			continue
		}
		values := texts(found[0])
		if !slices.ContainsFunc(values, func(v string) bool { return glob(r.Claims[name], v) }) {
			missed = append(missed, fmt.Sprintf("%s is %s, not %q", name, quote(strings.Join(values, ", ")), r.Claims[name]))
		}
	}
	return missed
}

// find collects what a path may lead to: a claim of that very name, or one within
// a claim that is called as the path begins. Names have dots and slashes in them
// themselves ("kubernetes.io"), so there can be more than one.
func find(c map[string]any, path string, found *[]any) {
	if v, ok := c[path]; ok {
		*found = append(*found, v)
	}
	for i := range len(path) {
		if path[i] != '.' && path[i] != '/' {
			continue
		}
		if inner, ok := c[path[:i]].(map[string]any); ok {
			find(inner, path[i+1:], found)
		}
	}
}

// texts are the values of a claim that patterns are for: itself, or what is in
// its list.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case bool:
		return []string{strconv.FormatBool(v)}
	case float64:
		// Beyond this, two numbers in a JWT are one here.
		if math.Abs(v) < 1<<53 {
			return []string{strconv.FormatFloat(v, 'f', -1, 64)}
		}
	case []any:
		var all []string
		for _, e := range v {
			if _, list := e.([]any); !list {
				all = append(all, texts(e)...)
			}
		}
		return all
	}
	return nil
}

// glob reports whether s is what pattern says. It goes through s once for each
// part between two "*", so it takes no longer than their product.
func glob(pattern, s string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return s == pattern
	}
	s, ok := strings.CutPrefix(s, first)
	for ok {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		// The earliest place leaves the most for what follows.
		_, s, ok = strings.Cut(s, part)
		rest = after
	}
	return false
}

// loopback reports whether a host is this machine.
func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}
