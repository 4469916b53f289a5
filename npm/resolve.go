package npm

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

var _ registry.Upstream = (*Upstreams)(nil)

// Resolve asks for a document: a packument, the keys, a version's
// attestations. What is derived from a document is not asked for by name and
// is ErrNotFound.
func (u *Upstreams) Resolve(ctx context.Context, q registry.Question) (registry.Binding, io.ReadCloser, error) {
	n, have := q.Name, q.Have
	up := u.pick(n.Repo)
	if up == nil {
		return registry.Binding{}, nil, registry.Errorf(registry.ErrNotFound, "no upstream is configured for %s", n.Repo)
	}
	if !isDocument(n) {
		return registry.Binding{}, nil, registry.Errorf(registry.ErrNotFound, "%v follows from its packument", n)
	}
	if !validDocument(n) {
		return registry.Binding{}, nil, registry.Errorf(registry.ErrInvalid, "%.200q is not the name of a document", n.String())
	}
	return up.resolve(ctx, n, have, outbound.Load{Background: q.Background, Subject: n.Repo})
}

// validDocument reports whether an upstream can be asked about n. A client's
// path has been parsed; another node's words have not, and what is put into an
// address with this node's credentials must not lead anywhere else.
func validDocument(n registry.Name) bool {
	spec, attestations := strings.CutPrefix(n.Ref, attestationsPath)
	switch at := strings.LastIndexByte(spec, '@'); {
	case attestations:
		return ValidName(n.Repo) && at > 0 && ValidName(spec[:at]) && plainSegment(spec[at+1:])
	case n.Ref == keysPath:
		return n.Repo == "-"
	}
	return n.Ref == "" && ValidName(n.Repo)
}

func (up *upstream) resolve(ctx context.Context, n registry.Name, have registry.Binding, load outbound.Load) (registry.Binding, io.ReadCloser, error) {
	path := escapeName(n.Repo)
	if spec, ok := strings.CutPrefix(n.Ref, attestationsPath); ok {
		path = attestationsPath + strings.ReplaceAll(url.PathEscape(spec), "%2F", "%2f")
	} else if n.Ref != "" {
		path = n.Ref
	}
	at, err := up.at(path)
	if err != nil {
		return registry.Binding{}, nil, err
	}
	base := up.base.String()
	known := have.Validator != "" && !have.Zero() && have.Location == base
	req := up.request(http.MethodGet, at)
	req.Header.Set("Accept", mediaJSON)
	req.Header.Set("Accept-Encoding", "gzip")
	if known {
		req.Header.Set("If-None-Match", have.Validator)
	}
	resp, err := up.client.Do(ctx, req, load)
	if err != nil {
		return registry.Binding{}, nil, err
	}
	b := registry.Binding{Descriptor: registry.Descriptor{Size: -1, MediaType: mediaJSON},
		Validator: resp.Header.Get("ETag"), Location: base}
	if resp.StatusCode == http.StatusNotModified && known {
		resp.Body.Close()
		b.Descriptor, b.Validator = have.Descriptor, have.Validator
		return b, nil, nil
	}
	if err := up.client.Check(resp, "get "+n.String()); err != nil {
		return registry.Binding{}, nil, err
	}
	doc, err := up.document(resp, n)
	if err != nil {
		resp.Body.Close()
		return registry.Binding{}, nil, err
	}
	return b, doc, nil
}

// document is the body of a response, decoded, and checked as it is read.
func (up *upstream) document(resp *http.Response, n registry.Name) (io.ReadCloser, error) {
	if resp.StatusCode != http.StatusOK {
		return nil, up.nonsense("answers a document with %d", resp.StatusCode)
	}
	var r io.Reader = resp.Body
	switch enc := strings.ToLower(resp.Header.Get("Content-Encoding")); enc {
	case "", "identity":
	case "gzip", "x-gzip":
		r = &gunzip{src: resp.Body}
	default:
		return nil, up.nonsense("answers with a content encoding it was not offered")
	}
	d := &document{body: resp.Body, r: r, up: up}
	if n.Ref == "" {
		d.check.packument = n.Repo
	}
	return d, nil
}

// Open opens a tarball at the address its packument gives. Documents and views
// are not to be had by digest.
func (u *Upstreams) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	up := u.pick(w.From.Repo)
	if up == nil || isDocument(w.From) || strings.HasPrefix(w.From.Ref, viewPrefix) {
		return nil, registry.Errorf(registry.ErrNotFound, "%v is not to be had by its digest", w.From)
	}
	if !ValidName(w.From.Repo) {
		return nil, registry.Errorf(registry.ErrInvalid, "%.200q is not the name of a package", w.From.Repo)
	}
	at, err := up.locate(w)
	if err != nil {
		return nil, err
	}
	method := http.MethodGet
	if w.Length == 0 {
		method = http.MethodHead
	}
	req := up.request(method, at)
	req.Header.Set("Accept", "*/*")
	// A tarball is compressed; a second layer would not be what was hashed.
	req.Header.Set("Accept-Encoding", "identity")
	if r := outbound.RangeOf(w); r != "" && method == http.MethodGet {
		req.Header.Set("Range", r)
	}
	resp, err := up.client.Do(ctx, req, outbound.LoadOf(w, true))
	if err != nil {
		return nil, err
	}
	if err := up.client.Check(resp, method+" "+w.From.String()); err != nil {
		return nil, err
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		resp.Body.Close()
		return nil, up.nonsense("answers a tarball with a content encoding")
	}
	if method == http.MethodHead {
		return outbound.NewStat(resp, w), nil
	}
	return outbound.NewBlob(resp, w)
}

// viewPrefix begins the Ref under which Service keeps a view.
const viewPrefix = "view/"

// locate is where a tarball is fetched. An address on a host that is neither
// the upstream's own nor listed is never dialled: if it has the shape that
// every npm registry has, the upstream itself is asked in its place (it may
// have passed on the document of another registry, or not know its own name);
// what it answers is verified by digest like any other answer.
func (up *upstream) locate(w registry.Want) (*url.URL, error) {
	usual := w.From.Repo + "/-/" + url.PathEscape(w.From.Ref)
	if w.Location == "" {
		return up.at(usual)
	}
	u, err := url.Parse(w.Location)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, up.nonsense("names an address for %s that makes no sense", w.From.Ref)
	}
	u.Fragment, u.RawFragment = "", ""
	secure := *u
	secure.Scheme = "https" // a registry behind a proxy may not know that it has TLS
	switch {
	case up.own(u):
		return u, nil
	case u.Scheme == "http" && up.own(&secure):
		return &secure, nil
	}
	for _, p := range up.tarballs {
		if p.matches(u) {
			return u, nil
		}
	}
	if file, ok := strings.CutSuffix(u.Path, "/"+w.From.Repo+"/-/"+lastSegment(w.Location)); ok && file != u.Path {
		return up.at(w.From.Repo + "/-/" + url.PathEscape(lastSegment(w.Location)))
	}
	return nil, registry.Errorf(registry.ErrDenied, "the tarball of %s is on %s, which is not among the tarball hosts of %s", w.From.Repo, u.Host, up.Name)
}

func (up *upstream) nonsense(format string, args ...any) error {
	return registry.Errorf(registry.ErrUnavailable, "%s "+format, append([]any{up.Name}, args...)...)
}
