package npm

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

// A Registry is one registry behind this node. Name, URL and Packages must be
// set.
type Registry struct {
	// Name is how errors and metrics call it: "public".
	Name string
	// URL is its address, with a path if it has one.
	URL string
	// Packages are the names it is asked for: "*" (all), "@acme/*" (a scope),
	// "left-*" (a beginning), "lodash" (one). Of several registries the one
	// with the longest pattern that matches is asked, and no other.
	Packages []string
	// Token is sent as a bearer token, or Username and Password as Basic; to
	// URL's own host only.
	Token, Username, Password string
	// Fresh, Stale and Negative are for packuments, see registry.Policy.
	// 0: 5 minutes, 720 hours and 30 seconds.
	Fresh, Stale, Negative time.Duration
	// Patience and Wait are registry.Policy's.
	Patience, Wait time.Duration
	// Tarballs are hosts that tarballs may come from beside URL's own:
	// "files.example.com" (its ports 80 and 443), "files.example.com:8080",
	// "127.0.0.2:*", "*.example.com". Redirects are those that answers may
	// redirect to although they resolve to addresses that are not public.
	Tarballs, Redirects []string
	// Connections is how many requests may be open at it at once, and how many
	// connections to a host; 0: 64.
	Connections int
}

// Options are what all upstreams share. The zero value is right.
type Options struct {
	UserAgent string
	// HeaderTimeout and IdleTimeout are outbound.Options'.
	HeaderTimeout, IdleTimeout time.Duration
	Meter                      registry.Meter
	Log                        *slog.Logger
	Transport                  http.RoundTripper // tests only
}

const (
	defaultFresh    = 5 * time.Minute
	defaultStale    = 720 * time.Hour
	defaultNegative = 30 * time.Second
	maxPackument    = 256 << 20
	maxAttestation  = 16 << 20
	maxKeys         = 1 << 20
	// derivedFresh only tells a sweep when a view may be dropped: a view
	// counts as long as its document.
	derivedFresh = 720 * time.Hour
)

// Upstreams are the registries behind this node, as one registry.Upstream. A
// package that none of them is configured for does not exist, and nobody is
// asked about it.
type Upstreams struct {
	list []*upstream
	home *upstream // who answers what is of no package: search, audit, keys
}

// NewUpstreams makes Upstreams of a configuration, or says what is wrong
// with it.
func NewUpstreams(list []Registry, o Options) (*Upstreams, error) {
	u := &Upstreams{}
	taken := map[string]string{}
	for _, r := range list {
		up, err := newUpstream(r, o)
		if err != nil {
			return nil, err
		}
		for _, p := range r.Packages {
			if other, ok := taken[p]; ok {
				return nil, registry.Errorf(registry.ErrInvalid, "npm upstreams %q and %q both have the packages %q", other, r.Name, p)
			}
			taken[p] = r.Name
			if p == "*" {
				u.home = up
			}
		}
		u.list = append(u.list, up)
	}
	if u.home == nil && len(u.list) > 0 {
		u.home = u.list[0]
	}
	return u, nil
}

// pick is the upstream for a package, or nil.
func (u *Upstreams) pick(pkg string) *upstream {
	if pkg == "-" {
		return u.home
	}
	var best *upstream
	longest := -1
	for _, up := range u.list {
		for _, p := range up.Packages {
			if n := specificity(p, pkg); n > longest {
				best, longest = up, n
			}
		}
	}
	return best
}

// Called is the name of the registry that a package is asked of, as it is
// configured; "" if there is none.
func (u *Upstreams) Called(pkg string) string {
	if up := u.pick(pkg); up != nil {
		return up.Name
	}
	return ""
}

// specificity is how closely a pattern says pkg; negative if it does not.
func specificity(pattern, pkg string) int {
	if pattern == pkg {
		return maxName + 1
	}
	if before, ok := strings.CutSuffix(pattern, "*"); ok && strings.HasPrefix(pkg, before) {
		return len(before)
	}
	return -1
}

// Space is what registry.Service needs to know of npm.
func (u *Upstreams) Space() registry.Space {
	return registry.Space{Upstream: u, Policy: u.Policy, Documents: isDocument, Owns: u.Owns,
		Serves: func(n registry.Name) bool { return u.pick(n.Repo) != nil }}
}

// Policy says how long what is known of n counts.
func (u *Upstreams) Policy(n registry.Name) registry.Policy {
	p := registry.Policy{Fresh: defaultFresh, Stale: defaultStale, Negative: defaultNegative, MaxDoc: maxPackument}
	if up := u.pick(n.Repo); up != nil {
		p.Fresh, p.Stale, p.Negative = up.Fresh, up.Stale, up.Negative
		p.Patience, p.Wait = up.Patience, up.Wait
	}
	p.Refresh = p.Fresh
	switch {
	case n.Ref == "":
	case n.Ref == keysPath:
		// Keys come and go within months; signatures are checked offline too.
		p.Fresh, p.Refresh, p.Negative, p.MaxDoc = time.Hour, 24*time.Hour, 5*time.Minute, maxKeys
	case strings.HasPrefix(n.Ref, attestationsPath):
		// A published version's attestations do not change.
		p.Fresh, p.Refresh, p.Negative, p.MaxDoc = 168*time.Hour, 168*time.Hour, time.Minute, maxAttestation
	default:
		p.Fresh = derivedFresh
	}
	return p
}

// Owns reports whether b, kept earlier for n, came from the upstream that n
// belongs to now. What is derived from a document goes with the document.
func (u *Upstreams) Owns(n registry.Name, b registry.Binding) bool {
	if !isDocument(n) {
		return true
	}
	up := u.pick(n.Repo)
	return up != nil && b.Location == up.base.String()
}

// isDocument reports whether n is answered by an upstream, and not derived.
func isDocument(n registry.Name) bool { return n.Ref == "" || strings.HasPrefix(n.Ref, "-/") }

// upstream is one registry.
type upstream struct {
	Registry
	base     *url.URL // without a trailing slash
	client   *outbound.Client
	tarballs []hostPattern
}

func newUpstream(r Registry, o Options) (*upstream, error) {
	invalid := func(format string, args ...any) error {
		return registry.Errorf(registry.ErrInvalid, "npm upstream %q: %s", r.Name, fmt.Sprintf(format, args...))
	}
	base, err := url.Parse(strings.TrimRight(r.URL, "/"))
	if err != nil {
		return nil, invalid("its url is malformed")
	}
	if len(r.Packages) == 0 {
		return nil, invalid("it has no packages")
	}
	for _, p := range r.Packages {
		if star := strings.IndexByte(p, '*'); p == "" || star >= 0 && star < len(p)-1 {
			return nil, invalid("packages %q: a star may only be the last character", p)
		}
	}
	if r.Token != "" && r.Username != "" {
		return nil, invalid("it has a token and a username: which of them is meant?")
	}
	client, err := outbound.New(outbound.Options{Name: r.Name, Base: base, Redirects: append(r.Redirects[:len(r.Redirects):len(r.Redirects)], r.Tarballs...),
		UserAgent: o.UserAgent, HeaderTimeout: o.HeaderTimeout, IdleTimeout: o.IdleTimeout, MaxConns: r.Connections,
		Meter: o.Meter, Log: o.Log, Transport: o.Transport})
	if err != nil {
		return nil, err
	}
	up := &upstream{Registry: r, base: base, client: client}
	for _, h := range r.Tarballs {
		up.tarballs = append(up.tarballs, parseHostPattern(h))
	}
	up.Fresh = orElse(r.Fresh, defaultFresh)
	up.Stale = orElse(r.Stale, defaultStale)
	up.Negative = orElse(r.Negative, defaultNegative)
	return up, nil
}

func orElse(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return d
}

// at is the address of an escaped path below the base.
func (up *upstream) at(escaped string) (*url.URL, error) {
	u, err := url.Parse(up.base.String() + "/" + escaped)
	if err != nil {
		return nil, registry.Errorf(registry.ErrInvalid, "the path is malformed")
	}
	return u, nil
}

// request makes a request to u, with credentials if u is the upstream's own.
func (up *upstream) request(method string, u *url.URL) *http.Request {
	req := &http.Request{Method: method, URL: u, Host: u.Host, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if !up.own(u) {
		return req
	}
	switch {
	case up.Token != "":
		req.Header.Set("Authorization", "Bearer "+up.Token)
	case up.Username != "":
		req.SetBasicAuth(up.Username, up.Password)
	}
	return req
}

// own reports whether u is on the upstream's own scheme, host and port.
func (up *upstream) own(u *url.URL) bool {
	return u.Scheme == up.base.Scheme && strings.EqualFold(u.Hostname(), up.base.Hostname()) && port(u) == port(up.base)
}
