package npm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

const (
	// tarballCache: a published tarball never changes.
	tarballCache = "public, immutable, max-age=31557600"
	// indexKey names the index view; it changes with the index's grammar.
	indexKey = "index1"
	// maxManifest bounds one version's object.
	maxManifest = 32 << 20
)

// tarball answers GET, HEAD and ranges of a tarball. What it is and where it
// comes from is in the packument as it is now: a version that was taken back
// is gone, though its bytes be cached.
func (h *handler) tarball(w http.ResponseWriter, r *http.Request, q request) error {
	call := h.call(r, q, registry.Name{Space: space, Repo: q.pkg})
	var e entry
	via, err := h.lookup(r.Context(), &call, func(index io.Reader) (ok bool, err error) {
		e, ok, err = findFile(index, q.pkg, q.ref)
		return ok, err
	})
	if err != nil {
		return err
	}
	if e.digest == "" {
		return registry.Errorf(registry.ErrCorrupt, "%s@%s has neither an integrity nor a shasum to verify its tarball by", q.pkg, e.version)
	}
	file := h.call(r, q, registry.Name{Space: space, Repo: q.pkg, Ref: e.file})
	file.Binding = registry.Binding{
		Descriptor: registry.Descriptor{Digest: e.digest, Size: -1, MediaType: mediaBytes},
		Checked:    call.Binding.Checked, Fresh: call.Binding.Fresh,
		Validator: string(call.Binding.Digest), Location: e.address,
	}
	w.Header().Set("Cache-Control", tarballCache)
	if !h.public(r.Context(), &call) {
		w.Header().Set("Cache-Control", privateCache)
	}
	w.Header().Set("Content-Type", mediaBytes)
	tag := etag("t", string(e.digest))
	if reply.Matches(r, tag) {
		// Nothing is opened for a 304; who is entitled is asked all the same.
		if err := h.o.Service.Guard.Admit(r.Context(), &file); err != nil {
			return err
		}
		reply.Record(w, via)
	}
	return reply.Serve(w, r, reply.Body{Descriptor: file.Binding.Descriptor, ETag: tag, Ranges: true,
		Open: func(offset, length int64) (registry.Blob, error) {
			b, err := h.o.Service.Open(r.Context(), &file, offset, length)
			if err != nil {
				return nil, err
			}
			return viaBlob{b, via.Over(b.Via())}, nil
		}})
}

// viaBlob is a Blob that says how its name came to be known too.
type viaBlob struct {
	registry.Blob
	via registry.Via
}

// Via implements registry.Blob.
func (b viaBlob) Via() registry.Via { return b.via }

// lookup resolves the packument of c and looks something up in its index. If
// it is not there the upstream is asked whether the packument has changed, so
// that what was published a moment ago is found; what is not there either is
// ErrNotFound, but only if the upstream did answer.
func (h *handler) lookup(ctx context.Context, c *registry.Call, find func(index io.Reader) (bool, error)) (registry.Via, error) {
	for try := 0; ; try++ {
		_, via, err := h.o.Service.Resolve(ctx, c)
		if err != nil {
			return via, err
		}
		ok, err := h.inIndex(ctx, c, find)
		switch {
		case err != nil:
			return via, err
		case ok:
			return whence(via), nil
		case via.Warning != "":
			return via, registry.Errorf(registry.ErrUnavailable, "not known here, and %s", via.Warning)
		case try > 0:
			return via, registry.Errorf(registry.ErrNotFound, "%s has no such version", c.Name.Repo)
		}
		c.Since = h.rechecks.since(c.Name.Repo, time.Now())
	}
}

// inIndex opens the index of the packument that c is bound to.
func (h *handler) inIndex(ctx context.Context, c *registry.Call, find func(index io.Reader) (bool, error)) (bool, error) {
	_, blob, _, err := h.o.Service.View(ctx, c, indexKey, func(_ context.Context, doc registry.Blob, w io.Writer) (string, error) {
		return "text/plain", writeIndex(doc, w, c.Name.Repo)
	})
	if err != nil {
		return false, truthful(err)
	}
	defer blob.Close()
	return find(blob)
}

// version answers with the object of one version, by its number or a tag.
// Ranges are not resolved: no registry does.
func (h *handler) version(w http.ResponseWriter, r *http.Request, q request) error {
	base, err := h.base(r)
	if err != nil {
		return err
	}
	call := h.call(r, q, registry.Name{Space: space, Repo: q.pkg})
	for try := 0; ; try++ {
		e, via, err := h.findVersion(r.Context(), &call, q.ref)
		if err != nil {
			if registry.KindOf(err) == registry.ErrNotFound && call.Binding.Digest != "" {
				return &noVersion{q.ref}
			}
			return err
		}
		object, err := h.span(r.Context(), &call, e)
		if registry.KindOf(err) == registry.ErrNotFound && try == 0 {
			// The document is in no tier any more, though its index is.
			if err = h.refetch(r.Context(), &call); err == nil {
				continue
			}
		}
		if err != nil {
			return truthful(err)
		}
		w.Header().Set("Vary", "Accept, Accept-Encoding")
		h.cacheFor(w, r, &call, via, min(clientAge, h.o.Upstreams.Policy(call.Name).Fresh))
		return small(w, r, target{base: base, pkg: q.pkg}.manifest(nil, e.version, object), via, h.holding(&call))
	}
}

// findVersion looks up a version, or the one that a tag stands for.
func (h *handler) findVersion(ctx context.Context, c *registry.Call, ref string) (entry, registry.Via, error) {
	var e entry
	tagged := ""
	via, err := h.lookup(ctx, c, func(index io.Reader) (ok bool, err error) {
		e, tagged, ok, err = findVersion(index, ref)
		return ok || tagged != "", err
	})
	if err != nil || e.version != "" {
		return e, via, err
	}
	_, err = h.inIndex(ctx, c, func(index io.Reader) (ok bool, err error) {
		e, _, ok, err = findVersion(index, tagged)
		return ok, err
	})
	if err == nil && e.version == "" {
		err = registry.Errorf(registry.ErrNotFound, "the tag %s stands for a version that is not there", ref)
	}
	return e, via, err
}

// span reads one version's object out of the document.
func (h *handler) span(ctx context.Context, c *registry.Call, e entry) ([]byte, error) {
	if e.length > maxManifest {
		return nil, registry.Errorf(registry.ErrTooLarge, "the manifest of %s@%s is over the limit of %d bytes", c.Name.Repo, e.version, maxManifest)
	}
	blob, err := h.o.Service.Open(ctx, c, e.offset, e.length)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	object := make([]byte, e.length)
	if _, err := io.ReadFull(blob, object); err != nil {
		return nil, registry.Wrap(registry.ErrUnavailable, err, "read a version of "+c.Name.Repo)
	}
	return object, nil
}

// refetch has the document of c's packument fetched again.
func (h *handler) refetch(ctx context.Context, c *registry.Call) error {
	doc, _, err := h.o.Service.Document(ctx, c)
	if err != nil {
		return err
	}
	return doc.Close()
}

// distTags answers with a package's tags.
func (h *handler) distTags(w http.ResponseWriter, r *http.Request, q request) error {
	call := h.call(r, q, registry.Name{Space: space, Repo: q.pkg})
	var tags []byte
	via, err := h.lookup(r.Context(), &call, func(index io.Reader) (ok bool, err error) {
		tags, err = distTags(index)
		return true, err
	})
	if err != nil {
		return err
	}
	h.cacheFor(w, r, &call, via, min(clientAge, h.o.Upstreams.Policy(call.Name).Fresh))
	return small(w, r, tags, via, h.holding(&call))
}

// holding has a blob made of what c is bound to end when c is revoked.
func (h *handler) holding(c *registry.Call) func(registry.Blob) registry.Blob {
	return func(b registry.Blob) registry.Blob { return h.o.Service.Hold(c, b) }
}

// nobodys is holding for what everyone may read.
func nobodys(b registry.Blob) registry.Blob { return b }

// small answers with a JSON text made for the occasion.
func small(w http.ResponseWriter, r *http.Request, body []byte, via registry.Via, hold func(registry.Blob) registry.Blob) error {
	sum := sha256.Sum256(body)
	d := registry.Descriptor{Digest: digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum[:])), Size: int64(len(body)), MediaType: mediaJSON}
	reply.Record(w, via)
	w.Header().Set("Content-Type", mediaJSON)
	return reply.Serve(w, r, reply.Body{Descriptor: d, ETag: etag("s", string(d.Digest)), Blob: hold(registry.NewBytesBlob(body, d, 0, -1, via))})
}

const (
	// recheckEvery is how often at most a package is asked about because of
	// versions that it does not have.
	recheckEvery = 3 * time.Second
	maxRechecks  = 8192
)

// rechecks remembers when packages were last asked about for the sake of a
// version that was not known. Its zero value works.
type rechecks struct {
	mu sync.Mutex
	m  map[string]time.Time // guarded by mu
}

// since is from when on an answer about pkg is good enough: now, or a moment
// ago if it was asked for then.
func (c *rechecks) since(pkg string, now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.m[pkg]; ok && now.Sub(at) < recheckEvery {
		return at
	}
	if c.m == nil || len(c.m) >= maxRechecks {
		c.m = map[string]time.Time{}
	}
	c.m[pkg] = now
	return now
}
