package oci

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
)

// Media types of Docker's own, older than OCI's.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	octetStream    = "application/octet-stream"
)

// accept is sent with every question for a manifest, whatever the client sent:
// the answer must not depend on who asked first.
var accept = []string{strings.Join([]string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, dockerList, dockerManifest, "*/*"}, ", ")}

// Resolve implements registry.Upstream. A tag that is not known costs a GET
// whose body comes as the document; one that is known, a HEAD. A digest that is
// not known costs a GET as a manifest and a HEAD as a blob, which it is if n
// or have says so.
func (u *Upstreams) Resolve(ctx context.Context, q registry.Question) (registry.Binding, io.ReadCloser, error) {
	n, have := q.Name, q.Have
	rm, repo, err := u.of(n)
	if err != nil {
		return registry.Binding{}, nil, err
	}
	if !validRef(n.Ref) {
		return registry.Binding{}, nil, registry.Errorf(registry.ErrInvalid, "%q is neither a tag nor a digest", clip(n.Ref))
	}
	d, isBlob := blobOf(n.Ref, have.MediaType)
	rm = rm.under(outbound.Load{Blob: isBlob, Background: q.Background, Subject: n.Repo})
	switch {
	case isBlob:
		b, err := rm.blob(ctx, repo, d, have)
		return b, nil, err
	case n.Ref == tagsRef:
		return rm.tags(ctx, repo)
	case strings.HasPrefix(n.Ref, referrersRef):
		return rm.referrers(ctx, repo, digest.Digest(strings.TrimPrefix(n.Ref, referrersRef)), have)
	case have.Digest != "" && have.MediaType != "":
		b, known, err := rm.still(ctx, repo, n.Ref, have)
		if known || err != nil {
			return b, nil, err
		}
	}
	return rm.manifest(ctx, repo, n.Ref, have)
}

// blobOf is the digest that ref names as a blob.
func blobOf(ref, mediaType string) (digest.Digest, bool) {
	if d, ok := strings.CutPrefix(ref, blobsRef); ok {
		return digest.Digest(d), true
	}
	return digest.Digest(ref), strings.Contains(ref, ":") && !strings.Contains(ref, "/") && mediaType == octetStream
}

// still asks by HEAD whether ref stands for what it did. known is false if it
// does not, if the answer does not tell, as some registries' do not, or if the
// method is refused.
func (rm *remote) still(ctx context.Context, repo, ref string, have registry.Binding) (b registry.Binding, known bool, err error) {
	resp, err := rm.do(ctx, http.MethodHead, repo, "manifests/"+ref, http.Header{"Accept": accept})
	if err != nil {
		return registry.Binding{}, false, err
	}
	if headless(resp.StatusCode) {
		resp.Body.Close()
		return registry.Binding{}, false, nil
	}
	if err := rm.client.Check(resp, "ask for manifest "+repo+" "+ref); err != nil {
		return registry.Binding{}, false, err
	}
	resp.Body.Close()
	d := contentDigest(resp)
	if strings.Contains(ref, ":") || d != "" && d == have.Digest {
		return registry.Binding{Descriptor: have.Descriptor, Validator: have.Validator, Shown: true}, true, nil
	}
	// It has moved. What a HEAD says of size and type nobody vouches for, and
	// it would be believed for as long as the tag stays: get the manifest.
	return registry.Binding{}, false, nil
}

// headless reports whether a HEAD's status may be about the method rather than
// the thing: registries that do not implement it, and object stores behind
// them whose signed addresses are good for GET only.
func headless(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	}
	return false
}

// manifest gets what ref stands for, with its bytes.
func (rm *remote) manifest(ctx context.Context, repo, ref string, have registry.Binding) (registry.Binding, io.ReadCloser, error) {
	h := http.Header{"Accept": accept}
	if have.Digest != "" && have.Validator != "" {
		h["If-None-Match"] = []string{have.Validator}
	}
	resp, err := rm.do(ctx, http.MethodGet, repo, "manifests/"+ref, h)
	if err != nil {
		return registry.Binding{}, nil, err
	}
	if resp.StatusCode == http.StatusNotModified && h["If-None-Match"] != nil {
		resp.Body.Close()
		return registry.Binding{Descriptor: have.Descriptor, Validator: have.Validator, Shown: true}, nil, nil
	}
	if err := rm.client.Check(resp, "get manifest "+repo+" "+ref); err != nil {
		return registry.Binding{}, nil, err
	}
	mediaType, ok := manifestType(resp)
	if !ok {
		resp.Body.Close()
		return registry.Binding{}, nil, registry.Errorf(registry.ErrUnavailable,
			"%s answers with a document of type %q where a manifest should be", rm.name, clip(resp.Header.Get("Content-Type")))
	}
	b := registry.Binding{
		Descriptor: registry.Descriptor{Digest: contentDigest(resp), Size: resp.ContentLength, MediaType: mediaType},
		Validator:  resp.Header.Get("Etag"),
	}
	if strings.Contains(ref, ":") {
		b.Digest = digest.Digest(ref) // what was asked for is what it must hash to
	}
	return b, resp.Body, nil
}

// contentDigest is what the upstream says it answers with; "" if it does not.
func contentDigest(resp *http.Response) digest.Digest {
	if d := resp.Header.Get("Docker-Content-Digest"); validDigest(d) {
		return digest.Digest(d)
	}
	return ""
}

// manifestType is a response's media type without parameters. ok is false if
// it is no type for a manifest: a captive portal's or a proxy's web page.
func manifestType(resp *http.Response) (mediaType string, ok bool) {
	mediaType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
	mediaType = strings.TrimSpace(mediaType)
	switch low := strings.ToLower(mediaType); {
	case strings.HasSuffix(low, "+json"), strings.HasSuffix(low, "/json"), strings.HasSuffix(low, "+prettyjws"):
		return mediaType, true
	}
	return mediaType, false
}

// blob asks by HEAD whether the repository has a blob, and how long it is.
func (rm *remote) blob(ctx context.Context, repo string, d digest.Digest, have registry.Binding) (registry.Binding, error) {
	size, err := rm.stat(ctx, repo, "blobs/"+string(d), nil)
	if err != nil {
		return registry.Binding{}, err
	}
	b := registry.Binding{Descriptor: registry.Descriptor{Digest: d, Size: size, MediaType: have.MediaType}, Validator: have.Validator, Shown: true}
	if b.MediaType == "" {
		b.MediaType = octetStream
	}
	if have.Digest == d && have.Size >= 0 {
		b.Size = have.Size // a manifest said so, and its digest vouches for it
	}
	return b, nil
}

// stat is the size of what lies at what, negative if the upstream does not say.
// Where HEAD does not work, the first byte is asked for.
func (rm *remote) stat(ctx context.Context, repo, what string, h http.Header) (int64, error) {
	doing := "look at " + repo + " " + what
	resp, err := rm.do(ctx, http.MethodHead, repo, what, h)
	if err != nil {
		return 0, err
	}
	if !headless(resp.StatusCode) {
		if err := rm.client.Check(resp, doing); err != nil {
			return 0, err
		}
		resp.Body.Close()
		if resp.ContentLength >= 0 {
			return resp.ContentLength, nil
		}
	}
	resp.Body.Close()
	if h = h.Clone(); h == nil {
		h = http.Header{}
	}
	h.Set("Range", "bytes=0-0")
	if resp, err = rm.do(ctx, http.MethodGet, repo, what, h); err != nil {
		return 0, err
	}
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		resp.Body.Close()
		return 0, nil // no first byte: it is empty
	}
	if err := rm.client.Check(resp, doing); err != nil {
		return 0, err
	}
	blob, err := outbound.NewBlob(resp, registry.Want{Descriptor: registry.Descriptor{Size: -1}, Length: 1})
	if err != nil {
		return 0, err
	}
	defer blob.Close()
	return blob.Descriptor().Size, nil
}

// Open implements registry.Source: by digest, as a manifest or as a blob by
// the name that w came from. Documents that weir composes cannot be had by
// digest, and are ErrNotFound here: their name has to be asked again.
func (u *Upstreams) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	rm, repo, err := u.of(w.From)
	if err != nil {
		return nil, err
	}
	if !validDigest(string(w.Digest)) {
		return nil, registry.Errorf(registry.ErrInvalid, "%q is not a digest", clip(string(w.Digest)))
	}
	if w.From.Ref == tagsRef || strings.HasPrefix(w.From.Ref, referrersRef) {
		return nil, registry.Errorf(registry.ErrNotFound, "%v is composed, not fetched by digest", w.From)
	}
	what, h := "manifests/"+string(w.Digest), http.Header{"Accept": accept}
	_, isBlob := blobOf(w.From.Ref, w.MediaType)
	rm = rm.under(outbound.LoadOf(w, isBlob))
	if isBlob {
		what, h = "blobs/"+string(w.Digest), http.Header{}
	}
	if w.Length == 0 {
		size, err := rm.stat(ctx, repo, what, h)
		if err != nil {
			return nil, err
		}
		if size >= 0 && w.Offset > size {
			return nil, registry.Errorf(registry.ErrInvalid, "the range is past the end")
		}
		return outbound.NewStat(&http.Response{Body: http.NoBody, ContentLength: size}, w), nil
	}
	if r := outbound.RangeOf(w); r != "" {
		h.Set("Range", r)
	}
	resp, err := rm.do(ctx, http.MethodGet, repo, what, h)
	if err != nil {
		return nil, err
	}
	if err := rm.client.Check(resp, "get "+repo+" "+what); err != nil {
		return nil, err
	}
	return outbound.NewBlob(resp, w)
}
