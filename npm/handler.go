package npm

import (
	"html/template"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// Config says what a Handler serves. Service and Upstreams must be set.
type Config struct {
	Service   *registry.Service
	Upstreams *Upstreams
	// PublicURL is what clients call this node, without Prefix
	// ("https://packages.example.com"); empty: what each says in its Host.
	PublicURL string
	// Prefix is the path this registry is under, as it is in requests, with a
	// leading slash and none at the end; "" for none.
	Prefix string
	// Gate says who makes a request; nil: everybody is anonymous.
	Gate Gate
	// Logins, Tokens and Identities are set together, with Gate, or not at all:
	// then there are no accounts, and no way to log in.
	Logins     registry.Logins
	Tokens     registry.Tokens
	Identities registry.Identities
	// Open reports whether anonymous clients may pull everything, so that
	// their search results and audits need not be looked through; nil: they
	// may not. It answers from memory.
	Open func() bool
	Log  *slog.Logger // nil: slog.Default()
}

// A Gate tells from a request's credentials who makes it. Errors:
// ErrUnauthenticated for credentials that are not good, ErrLimited when there
// were too many such, ErrUnavailable when they cannot be checked.
type Gate interface {
	Who(r *http.Request) (registry.Principal, error)
}

// New is the npm registry protocol towards clients. It is given requests with
// their whole path.
func New(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	c.Prefix = strings.TrimRight(c.Prefix, "/")
	origins := http.NewCrossOriginProtection()
	if u, err := url.Parse(c.PublicURL); err == nil && u.Host != "" {
		// Only an address without host or scheme is refused.
		_ = origins.AddTrustedOrigin(u.Scheme + "://" + u.Host)
	}
	return &handler{o: c, origins: origins, page: parsePage(), unkept: make(chan struct{}, maxUnkept), passing: make(chan struct{}, c.Upstreams.passing())}
}

type handler struct {
	o        Config
	origins  *http.CrossOriginProtection // of the login page's form
	page     *template.Template
	bases    bases
	rechecks rechecks
	passing  chan struct{} // a place for each exchange that is passed on
	unkept   chan struct{} // a place for each view being made for one answer
	held     atomic.Int64  // bytes of such views being sent
}

// An action answers one request, or returns an error while nothing is written.
type action func(h *handler, w http.ResponseWriter, r *http.Request, q request) error

const (
	reads = "GET, HEAD"
	posts = "POST"
)

// An endpoint is what a route allows and who answers it.
type endpoint struct {
	allow  string
	answer action
	// accounts says that there is no such route without accounts.
	accounts bool
	// unasked says that the gate is not asked who it is: a client that logs in
	// sends its old token along, which may have expired.
	unasked bool
	// person says that somebody waits for the answer who is better told at once
	// than by a client that tries again by itself.
	person bool
}

// table has the endpoint of each route.
var table = map[route]endpoint{
	routeRoot:         {allow: reads, answer: (*handler).ping},
	routePing:         {allow: reads, answer: (*handler).ping},
	routePackument:    {allow: reads, answer: (*handler).packument},
	routeVersion:      {allow: reads, answer: (*handler).version},
	routeDistTags:     {allow: reads, answer: (*handler).distTags},
	routeTarball:      {allow: reads, answer: (*handler).tarball},
	routeSearch:       {allow: reads, answer: (*handler).search},
	routeAudit:        {allow: posts, answer: (*handler).audit},
	routeKeys:         {allow: reads, answer: (*handler).keys},
	routeAttestations: {allow: reads, answer: (*handler).attestations},
	routeWhoami:       {allow: reads, answer: (*handler).whoami},

	routeLegacyLogin: {allow: "PUT", answer: (*handler).legacyLogin, accounts: true, unasked: true, person: true},
	routeLogin:       {allow: posts, answer: (*handler).login, accounts: true, unasked: true},
	routeLoginPage:   {allow: "GET, HEAD, POST", answer: (*handler).loginPage, accounts: true, unasked: true},
	routeDone:        {allow: "GET", answer: (*handler).done, accounts: true, unasked: true},
	routeLogout:      {allow: "DELETE", answer: (*handler).logout, accounts: true, unasked: true, person: true},
	routeTokens:      {allow: "GET, HEAD, POST", answer: (*handler).tokens, accounts: true, person: true},
	routeToken:       {allow: "DELETE", answer: (*handler).revoke, accounts: true, person: true},
	routeProfile:     {allow: "GET, HEAD, POST", answer: (*handler).profile, accounts: true},
	routeExchange:    {allow: posts, answer: (*handler).exchange, accounts: true, unasked: true},
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.serve(w, r); err != nil {
		if registry.KindOf(err) == nil {
			h.o.Log.WarnContext(r.Context(), "an error without a kind", "id", reply.RequestID(w), "err", err)
		}
		fail(w, err)
	}
}

func (h *handler) serve(w http.ResponseWriter, r *http.Request) error {
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), h.o.Prefix)
	if exchange := r.URL.EscapedPath(); !ok && strings.HasPrefix(exchange, "/"+exchangePath) {
		// npm asks for this one from the host's root, whatever the registry's path.
		path, ok = exchange, true
	}
	if !ok || path != "" && path[0] != '/' {
		return registry.Errorf(registry.ErrNotFound, "not below %s", h.o.Prefix)
	}
	hideSecrets(w, h.o.Prefix, path)
	q, err := parsePath(strings.TrimPrefix(path, "/"))
	if err != nil {
		return err
	}
	at, ok := table[q.route]
	if at.accounts && h.o.Logins == nil {
		ok = false
	}
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case !ok && (read || special(path)):
		return registry.Errorf(registry.ErrNotFound, "there is no such route")
	case !ok:
		return &notAllowed{r.Method, reads}
	case !slices.Contains(strings.Split(at.allow, ", "), r.Method):
		return &notAllowed{r.Method, at.allow}
	}
	if h.o.Gate != nil && !at.unasked {
		// Once for a request: what follows goes by q.who.
		if q.who, err = h.o.Gate.Who(r); err == nil {
			reply.Identified(w, q.who)
		}
	}
	if err == nil {
		err = at.answer(h, w, r, q)
	}
	if at.person && registry.KindOf(err) == registry.ErrUnavailable {
		return &notNow{err}
	}
	return err
}

// special reports whether a path is among those of the registry itself, where
// clients take 404 as "not supported" and go on.
func special(path string) bool { return strings.HasPrefix(path, "/-/") }

// ping answers that this is a registry.
func (h *handler) ping(w http.ResponseWriter, r *http.Request, _ request) error {
	w.Header().Set("Cache-Control", "no-store")
	return small(w, r, []byte("{}"), registry.Via{}, nobodys)
}

// keys answers with the upstream's signing keys, by which clients verify
// dist.signatures: they are for whoever may pull anything.
func (h *handler) keys(w http.ResponseWriter, r *http.Request, q request) error {
	return h.document(w, r, q, registry.Name{Space: space, Repo: "-", Ref: q.ref}, time.Minute)
}

// attestations answers with a version's provenance.
func (h *handler) attestations(w http.ResponseWriter, r *http.Request, q request) error {
	return h.document(w, r, q, registry.Name{Space: space, Repo: q.pkg, Ref: attestationsPath + q.pkg + "@" + q.ref}, 5*time.Minute)
}

// document answers with an upstream's document as it is.
func (h *handler) document(w http.ResponseWriter, r *http.Request, q request, n registry.Name, age time.Duration) error {
	call := h.call(r, q, n)
	call.Some = n.Repo == "-"
	blob, via, err := h.o.Service.Document(r.Context(), &call)
	if err != nil {
		return err
	}
	reply.Record(w, whence(via))
	h.cacheFor(w, r, &call, via, age)
	d := blob.Descriptor()
	w.Header().Set("Content-Type", mediaJSON)
	return reply.Serve(w, r, reply.Body{Descriptor: d, ETag: etag("d", string(d.Digest)), Blob: blob})
}
