package npm

import (
	"log/slog"
	"net/http"
	"net/netip"
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
	Log    *slog.Logger // nil: slog.Default()
}

// New is the npm registry protocol towards clients. It is given requests with
// their whole path.
func New(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	c.Prefix = strings.TrimRight(c.Prefix, "/")
	return &handler{o: c, unkept: make(chan struct{}, maxUnkept), passing: make(chan struct{}, c.Upstreams.passing())}
}

type handler struct {
	o        Config
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

// table is what each route allows and who answers it.
var table = map[route]struct {
	allow  string
	answer action
}{
	routeRoot:         {reads, (*handler).ping},
	routePing:         {reads, (*handler).ping},
	routePackument:    {reads, (*handler).packument},
	routeVersion:      {reads, (*handler).version},
	routeDistTags:     {reads, (*handler).distTags},
	routeTarball:      {reads, (*handler).tarball},
	routeSearch:       {reads, (*handler).search},
	routeAudit:        {posts, (*handler).passOn},
	routeKeys:         {reads, (*handler).keys},
	routeAttestations: {reads, (*handler).attestations},
	routeWhoami:       {reads, (*handler).whoami},
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
	if !ok || path != "" && path[0] != '/' {
		return registry.Errorf(registry.ErrNotFound, "not below %s", h.o.Prefix)
	}
	q, err := parsePath(strings.TrimPrefix(path, "/"))
	if err != nil {
		return err
	}
	at, ok := table[q.route]
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case !ok && read:
		return registry.Errorf(registry.ErrNotFound, "there is no such route")
	case !ok && q.route == routeUnknown && special(path):
		return registry.Errorf(registry.ErrNotFound, "there is no such route")
	case !ok:
		return &notAllowed{r.Method, reads}
	case at.allow == reads && !read, at.allow == posts && r.Method != http.MethodPost:
		return &notAllowed{r.Method, at.allow}
	}
	return at.answer(h, w, r, q)
}

// special reports whether a path is among those of the registry itself, where
// clients take 404 as "not supported" and go on.
func special(path string) bool { return strings.HasPrefix(path, "/-/") }

// call is r as the guard sees it.
func (h *handler) call(r *http.Request, n registry.Name) registry.Call {
	c := registry.Call{Action: registry.Pull, Name: n, Agent: r.UserAgent()}
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		c.Addr = ap.Addr()
	}
	return c
}

// ping answers that this is a registry.
func (h *handler) ping(w http.ResponseWriter, r *http.Request, _ request) error {
	w.Header().Set("Cache-Control", "no-store")
	return small(w, r, []byte("{}"), registry.Via{}, nobodys)
}

// whoami answers that nobody is logged in: there are no accounts.
func (h *handler) whoami(http.ResponseWriter, *http.Request, request) error {
	return registry.Errorf(registry.ErrUnauthenticated, "nobody is logged in: this registry has no accounts")
}

// keys answers with the upstream's signing keys, by which clients verify
// dist.signatures.
func (h *handler) keys(w http.ResponseWriter, r *http.Request, q request) error {
	return h.document(w, r, registry.Name{Space: space, Repo: "-", Ref: q.ref}, time.Minute)
}

// attestations answers with a version's provenance.
func (h *handler) attestations(w http.ResponseWriter, r *http.Request, q request) error {
	return h.document(w, r, registry.Name{Space: space, Repo: q.pkg, Ref: attestationsPath + q.pkg + "@" + q.ref}, 5*time.Minute)
}

// document answers with an upstream's document as it is.
func (h *handler) document(w http.ResponseWriter, r *http.Request, n registry.Name, age time.Duration) error {
	call := h.call(r, n)
	blob, via, err := h.o.Service.Document(r.Context(), &call)
	if err != nil {
		return err
	}
	reply.Record(w, whence(via))
	cacheFor(w.Header(), via, age)
	d := blob.Descriptor()
	w.Header().Set("Content-Type", mediaJSON)
	return reply.Serve(w, r, reply.Body{Descriptor: d, ETag: etag("d", string(d.Digest)), Blob: blob})
}
