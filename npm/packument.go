package npm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

const (
	// gzipLevel: 40 MB of packument take a quarter of a second, once.
	gzipLevel = 6
	// maxUnkept is how many views may be made at once that are not kept; the
	// rest wait. Sending them is not counted.
	maxUnkept = 4
	// clientAge is for how long a client may use a packument without asking:
	// long enough for one install, too short to hide that a version was
	// published, deprecated or taken back.
	clientAge = time.Minute
)

// A view is one form of a packument.
type view struct {
	corgi, gzip bool
}

// key names the view of one base in a binding's Ref; it changes when the rule
// by which the bytes are made does.
func (v view) key(base string) string { return v.tag() + "1/" + shortHash(base) }

// tag tells representations and encodings apart in keys and entity tags.
func (v view) tag() string {
	tag := "full"
	if v.corgi {
		tag = "corgi"
	}
	if v.gzip {
		tag += "-gzip"
	}
	return tag
}

func (v view) mediaType() string {
	if v.corgi {
		return mediaCorgi
	}
	return mediaJSON
}

// write makes the view of a packument.
func (v view) write(doc io.Reader, w io.Writer, t target) error {
	write := writeFull
	if v.corgi {
		write = writeCorgi
	}
	if !v.gzip {
		return write(doc, w, t)
	}
	z, err := gzip.NewWriterLevel(w, gzipLevel)
	if err != nil {
		return err
	}
	if err := write(doc, z, t); err != nil {
		return err
	}
	return z.Close()
}

// packument answers GET and HEAD of a package's document in the form and
// encoding that the client prefers.
func (h *handler) packument(w http.ResponseWriter, r *http.Request, q request) error {
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	base, err := h.base(r)
	if err != nil {
		return err
	}
	v := view{corgi: wantsCorgi(r.Header), gzip: wantsGzip(r.Header)}
	call := h.call(r, q, registry.Name{Space: space, Repo: q.pkg})
	// npm asks so before it changes a document: whole, and as it is now.
	authority := r.URL.Query().Get("write") == "true"
	if authority {
		v.corgi, call.Since = false, time.Now()
	}
	_, via, err := h.o.Service.Resolve(r.Context(), &call)
	if err != nil {
		return err
	}
	if authority && via.Warning != "" {
		return registry.Errorf(registry.ErrUnavailable, "%s", via.Warning)
	}
	t := target{base: base, pkg: q.pkg}
	answer := h.unkeptView
	if h.o.PublicURL != "" || h.bases.keeps(base, time.Now()) {
		answer = h.keptView
	}
	body, made, err := answer(r, &call, v, t)
	if err != nil {
		return truthful(err)
	}
	via = whence(via.Over(made))
	reply.Record(w, via)
	h.cacheFor(w, r, &call, via, min(clientAge, h.o.Upstreams.Policy(call.Name).Fresh))
	if v.gzip && !reply.Matches(r, body.ETag) {
		w.Header().Set("Content-Encoding", "gzip")
	}
	w.Header().Set("Content-Type", v.mediaType())
	return reply.Serve(w, r, body)
}

// keptView is a view that is made once and kept.
func (h *handler) keptView(r *http.Request, call *registry.Call, v view, t target) (reply.Body, registry.Via, error) {
	b, blob, made, err := h.o.Service.View(r.Context(), call, v.key(t.base), func(_ context.Context, doc registry.Blob, out io.Writer) (string, error) {
		return v.mediaType(), v.write(doc, out, t)
	})
	return reply.Body{Descriptor: b.Descriptor, ETag: etag(v.tag(), string(b.Digest)), Blob: blob}, made, err
}

// unkeptView is a view made for one answer. Nothing is made for a client that
// has it.
func (h *handler) unkeptView(r *http.Request, call *registry.Call, v view, t target) (reply.Body, registry.Via, error) {
	tag := func() string { return etag(v.tag(), string(call.Binding.Digest)+" "+v.key(t.base)) }
	if known := tag(); reply.Matches(r, known) {
		return reply.Body{ETag: known}, registry.Via{}, nil
	}
	blob, via, err := h.spool(r.Context(), call, v, t)
	if err != nil {
		return reply.Body{}, via, err
	}
	return reply.Body{Descriptor: blob.Descriptor(), ETag: tag(), Blob: h.o.Service.Hold(call, blob)}, via, nil
}

// spool makes a view into a stage that is never committed. It waits for a
// place, which is free again when it returns: how slowly the client reads is
// nobody else's concern.
func (h *handler) spool(ctx context.Context, call *registry.Call, v view, t target) (registry.Blob, registry.Via, error) {
	select {
	case h.unkept <- struct{}{}:
		defer func() { <-h.unkept }()
	case <-ctx.Done():
		return nil, registry.Via{}, registry.Errorf(registry.ErrUnavailable, "too many views are being made: %s", manyNames)
	}
	doc, via, err := h.o.Service.Document(ctx, call)
	if err != nil {
		return nil, via, err
	}
	defer doc.Close()
	stage, err := h.o.Service.Blobs.Stage(ctx, registry.Descriptor{Size: -1})
	if err != nil {
		return nil, via, err
	}
	b := &spooled{stage: stage, held: &h.held, mediaType: v.mediaType(), via: via}
	if err := v.write(doc, b, t); err != nil {
		b.Close()
		return nil, via, err
	}
	b.SectionReader = io.NewSectionReader(stage, 0, b.size)
	return b, via, nil
}

// etag is a strong entity tag for bytes of which of says all; tag keeps those
// of different representations apart even where the bytes are the same.
func etag(tag, of string) string {
	sum := sha256.Sum256([]byte(of))
	return `"` + tag + "-" + hex.EncodeToString(sum[:16]) + `"`
}

// whence says that what was asked for behind came from there.
func whence(via registry.Via) registry.Via {
	if via.Fwd == "miss" {
		via.Detail = "upstream"
	}
	return via
}

// truthful keeps a document or a view that is missing here from looking like a
// package that is missing there: its name did resolve.
func truthful(err error) error {
	if registry.KindOf(err) != registry.ErrNotFound {
		return err
	}
	return &registry.Error{Kind: registry.ErrUnavailable, Text: "a packument that resolved is gone", Public: "the package's document is being fetched again", Err: err}
}
