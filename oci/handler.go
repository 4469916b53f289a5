package oci

import (
	"bufio"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/gorilla/mux"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/gate"
	"github.com/weir-registry/weir/registry/reply"
)

// Config is what a handler is made of. Service and Upstreams must be set.
type Config struct {
	Service   *registry.Service
	Upstreams *Upstreams
	Log       *slog.Logger // nil: slog.Default()
	// Gate says who makes a request; nil: everyone is anonymous, and nobody is
	// asked to log in.
	Gate *gate.Gate
	// Tokens makes what "docker login" keeps in place of the password; nil:
	// clients keep the password.
	Tokens registry.Tokens
	// PublicURL is what clients call this node by, if that is not the Host that
	// they send.
	PublicURL string
	// Open reports whether anonymous clients may pull everything there is: then
	// GET /v2/ does not send them to log in. nil: they may not.
	Open func() bool
}

// New is the handler of everything under /v2. It wants the request's path as
// it came: a mux in front of it that cleans paths would answer "/v2/a//b" with
// a redirect to another repository.
func New(c Config) http.Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	h := &handler{service: c.Service, upstreams: c.Upstreams, log: c.Log, gate: c.Gate, publicURL: c.PublicURL, open: c.Open}
	rest := mux.NewRouter().SkipClean(true).UseEncodedPath()
	for _, ping := range []string{"/v2", "/v2/"} {
		rest.Path(ping).Methods(http.MethodGet, http.MethodHead).HandlerFunc(h.ping)
	}
	rest.NotFoundHandler = http.HandlerFunc(h.nowhere)
	rest.MethodNotAllowedHandler = http.HandlerFunc(h.unsupported)
	h.rest = rest
	return h
}

type handler struct {
	service   *registry.Service
	upstreams *Upstreams
	rest      http.Handler
	log       *slog.Logger
	gate      *gate.Gate
	publicURL string
	open      func() bool
}

// A request is one for a repository, parsed.
type request struct {
	path
	call  registry.Call
	query url.Values // nil if there is none
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	p, fault := parsePath(r.URL.EscapedPath())
	if p.kind == other {
		h.rest.ServeHTTP(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.unsupported(w, r)
		return
	}
	switch fault {
	case badName:
		refuse(w, r, http.StatusBadRequest, errcode.ErrorCodeNameInvalid, "the repository's name is malformed")
		return
	case badTag:
		refuse(w, r, http.StatusBadRequest, errcode.ErrorCodeTagInvalid, "the tag is malformed")
		return
	case badDigest:
		refuse(w, r, http.StatusBadRequest, errcode.ErrorCodeDigestInvalid, "the digest is malformed or of an unknown algorithm")
		return
	}
	req := &request{path: p}
	if err := h.prepare(w, r, req); err != nil {
		id := errcode.ErrorCodeNameUnknown
		if registry.KindOf(err) == registry.ErrInvalid {
			id = errcode.ErrorCodeUnsupported
		}
		reply.Failed(w, err)
		refuse(w, r, statusOf(err, p.kind).code, id, registry.Public(err))
		return
	}
	who, err := h.gate.Who(r)
	if err != nil {
		h.failWho(w, r, p.kind, req.call.Name.Repo, err)
		return
	}
	reply.Identified(w, who)
	req.call.Who = who
	if err := h.serve(w, r, req); err != nil {
		h.log.DebugContext(r.Context(), "request failed", "name", req.call.Name.String(), "err", err)
		h.failCall(w, r, req, err)
	}
}

// prepare finds the upstream that is meant and makes the call.
func (h *handler) prepare(w http.ResponseWriter, r *http.Request, req *request) error {
	ns := ""
	if r.URL.RawQuery != "" {
		q, err := parseQuery(r.URL.RawQuery)
		if err != nil {
			return err
		}
		if len(q["ns"]) > 1 {
			return registry.Errorf(registry.ErrInvalid, "the query has ns more than once")
		}
		req.query, ns = q, q.Get("ns")
	}
	repo, err := h.upstreams.choose(ns, req.repo)
	if err != nil {
		return err
	}
	if ns != "" {
		w.Header().Set("OCI-Namespace", ns) // one of the configured names, or of Docker Hub's
	}
	req.call = registry.Call{Action: registry.Pull, Name: registry.Name{Space: Space, Repo: repo}, Agent: r.UserAgent(), Addr: gate.Addr(r)}
	return nil
}

// parseQuery parses a query, of which nothing is passed over.
func parseQuery(raw string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, registry.Errorf(registry.ErrInvalid, "the query is malformed")
	}
	return q, nil
}

// serve answers, or fails before anything is written.
func (h *handler) serve(w http.ResponseWriter, r *http.Request, req *request) error {
	switch req.kind {
	case manifests:
		return h.manifest(w, r, req)
	case blobs:
		return h.blob(w, r, req)
	case tags:
		return h.tags(w, r, req)
	case referrers:
		return h.referrers(w, r, req)
	}
	return registry.Errorf(registry.ErrNotFound, "there are no uploads here")
}

func etag(d digest.Digest) string { return `"` + string(d) + `"` }

// manifest answers with the bytes that a tag or digest stands for, whatever
// Accept says: converting or choosing would change the digest.
func (h *handler) manifest(w http.ResponseWriter, r *http.Request, req *request) error {
	req.call.Name.Ref = req.ref
	byDigest := strings.IndexByte(req.ref, ':') >= 0
	if byDigest {
		req.call.Binding = registry.Binding{Descriptor: registry.Descriptor{Digest: digest.Digest(req.ref), Size: -1}}
	}
	var body reply.Body
	if r.Method == http.MethodHead {
		if _, err := h.look(w, r, &req.call); err != nil {
			return err
		}
		body.Open = func(offset, length int64) (registry.Blob, error) {
			return h.service.Open(r.Context(), &req.call, offset, length)
		}
	} else {
		blob, err := h.document(w, r, &req.call)
		if err != nil {
			return err
		}
		body.Blob = blob
	}
	b := req.call.Binding
	head := w.Header()
	head.Set("Content-Type", b.MediaType)
	head.Set("Docker-Content-Digest", string(b.Digest))
	age := "no-cache"
	if byDigest {
		age = immutable
	}
	h.cacheFor(w, r, &req.call, age)
	body.Descriptor, body.ETag = b.Descriptor, etag(b.Digest)
	return reply.Serve(w, r, body)
}

const (
	// immutable is Cache-Control's value for what a digest names and everybody
	// may have.
	immutable = "max-age=31536000, immutable"
	// private is that for what not everybody may have: no cache that is shared
	// may keep it, and a client's own asks each time, because its right may have
	// ended. A request's Authorization alone does not keep every cache from that.
	private = "private, no-cache"
)

// cacheFor sets Cache-Control for the answer to c, which has been admitted: age,
// if anybody would have been.
func (h *handler) cacheFor(w http.ResponseWriter, r *http.Request, c *registry.Call, age string) {
	if !c.Who.Anonymous() {
		anybody := *c
		anybody.Who, anybody.Whether = registry.Principal{}, true
		if h.service.Guard.Admit(r.Context(), &anybody) != nil {
			age = private
		}
	}
	w.Header().Set("Cache-Control", age)
}

// look resolves the call and admits it to what it found, as opening would, and
// opens nothing.
func (h *handler) look(w http.ResponseWriter, r *http.Request, c *registry.Call) (registry.Via, error) {
	_, via, err := h.service.Resolve(r.Context(), c)
	if err == nil {
		err = h.service.Guard.Admit(r.Context(), c)
	}
	record(w, via, err)
	return via, err
}

// document opens all of what c stands for. A list that is known, but neither
// at hand nor to be had again because the upstream does not answer, is not
// "not found".
func (h *handler) document(w http.ResponseWriter, r *http.Request, c *registry.Call) (registry.Blob, error) {
	blob, via, err := h.service.Document(r.Context(), c)
	if registry.KindOf(err) == registry.ErrNotFound && via.Warning != "" {
		err = &registry.Error{Kind: registry.ErrUnavailable, Text: "the document has gone and cannot be fetched", Public: via.Warning, Err: err}
	}
	record(w, via, err)
	return blob, err
}

// record says how the answer came about; of a failure only if something behind
// was asked.
func record(w http.ResponseWriter, via registry.Via, err error) {
	if err == nil {
		reply.Record(w, via)
	} else if !via.Hit() {
		reply.Record(w, registry.Via{Fwd: via.Fwd, Detail: "upstream", Collapsed: via.Collapsed})
	}
}

// blob answers with a blob that the repository holds. The binding tells its
// size, so that a HEAD opens nothing.
func (h *handler) blob(w http.ResponseWriter, r *http.Request, req *request) error {
	d := digest.Digest(req.ref)
	req.call.Name.Ref = blobsRef + req.ref
	req.call.Binding = registry.Binding{Descriptor: registry.Descriptor{Digest: d, Size: -1, MediaType: octetStream}}
	via, err := h.look(w, r, &req.call)
	if err != nil {
		return err
	}
	if r.Header.Get("Range") != "" {
		w = ranged{w, r}
	}
	head := w.Header()
	head.Set("Content-Type", octetStream)
	head.Set("Docker-Content-Digest", req.ref)
	h.cacheFor(w, r, &req.call, immutable)
	return reply.Serve(w, r, reply.Body{
		Descriptor: req.call.Binding.Descriptor,
		ETag:       etag(d),
		Ranges:     true,
		Open: func(offset, length int64) (registry.Blob, error) {
			blob, err := h.service.Open(r.Context(), &req.call, offset, length)
			if err == nil {
				reply.Record(w, via.Over(blob.Via()))
			}
			return blob, err
		},
	})
}

// tags answers with a page of the repository's tags.
func (h *handler) tags(w http.ResponseWriter, r *http.Request, req *request) error {
	asked, err := pageAsked(req.query)
	if err != nil {
		return err // before anybody else is asked
	}
	req.call.Name.Ref = tagsRef
	doc, err := h.document(w, r, &req.call)
	if err != nil {
		return err
	}
	defer doc.Close()
	page, next, err := asked.cut(bufio.NewReader(doc))
	if err != nil {
		return err
	}
	if next != "" {
		w.Header().Set("Link", linkTo(req.repo, next))
	}
	h.cacheFor(w, r, &req.call, "no-cache")
	return h.answer(w, r, &req.call, "application/json", tagList{Name: req.repo, Tags: page})
}

// referrers answers with the index of what refers to a digest.
func (h *handler) referrers(w http.ResponseWriter, r *http.Request, req *request) error {
	req.call.Name.Ref = referrersRef + req.ref
	wanted := req.query.Get("artifactType")
	subject := registry.Name{Space: Space, Repo: req.call.Name.Repo, Ref: req.ref}
	// Before that is looked up: how long it takes tells whether it is known.
	if err := h.service.Guard.Admit(r.Context(), &req.call); err != nil {
		return err
	}
	if _, err := h.service.Names.Lookup(r.Context(), subject); err == nil {
		req.call.Binding.MediaType = v1.MediaTypeImageIndex
	}
	doc, err := h.document(w, r, &req.call)
	if registry.KindOf(err) == registry.ErrNotFound {
		h.cacheFor(w, r, &req.call, "no-cache")
		return noReferrersOf(w, r, wanted)
	}
	if err != nil {
		return err
	}
	h.cacheFor(w, r, &req.call, "no-cache")
	if wanted == "" {
		w.Header().Set("Content-Type", v1.MediaTypeImageIndex)
		b := req.call.Binding
		return reply.Serve(w, r, reply.Body{Descriptor: b.Descriptor, ETag: etag(b.Digest), Blob: doc})
	}
	defer doc.Close()
	some, err := ofType(doc, wanted)
	if err != nil {
		return err
	}
	w.Header().Set("OCI-Filters-Applied", "artifactType")
	return h.answer(w, r, &req.call, v1.MediaTypeImageIndex, some)
}

// noReferrersOf answers that nothing refers to a digest, which is no error.
func noReferrersOf(w http.ResponseWriter, r *http.Request, wanted string) error {
	if wanted != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	writeJSON(w, r, http.StatusOK, v1.MediaTypeImageIndex, newIndex(nil))
	return nil
}

func (h *handler) nowhere(w http.ResponseWriter, r *http.Request) {
	refuse(w, r, http.StatusNotFound, errcode.ErrorCodeUnsupported, "there is no such endpoint")
}

func (h *handler) unsupported(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Allow", "GET, HEAD")
	refuse(w, r, http.StatusMethodNotAllowed, errcode.ErrorCodeUnsupported, "this registry is for pulling only")
}
