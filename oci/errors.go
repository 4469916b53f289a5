package oci

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/distribution/distribution/v3/registry/api/errcode"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// How long a client is told to wait, at least, when nobody said how long.
const (
	limitedAfter     = 1 * time.Second
	unavailableAfter = 5 * time.Second
	fullAfter        = 30 * time.Second
)

// A status is how a kind of failure looks to a client.
type status struct {
	kind  error
	code  int
	id    errcode.ErrorCode
	after time.Duration // least Retry-After; 0: none
}

// statuses is the one table from kinds to status codes. Where id is zero it is
// the route's: see unknown and malformed.
var statuses = []status{
	{kind: registry.ErrNotFound, code: http.StatusNotFound},
	{kind: registry.ErrInvalid, code: http.StatusBadRequest},
	{kind: registry.ErrUnauthenticated, code: http.StatusUnauthorized, id: errcode.ErrorCodeUnauthorized},
	{kind: registry.ErrDenied, code: http.StatusForbidden, id: errcode.ErrorCodeDenied},
	{kind: registry.ErrLimited, code: http.StatusTooManyRequests, id: errcode.ErrorCodeTooManyRequests, after: limitedAfter},
	{kind: registry.ErrCorrupt, code: http.StatusBadGateway, id: errcode.ErrorCodeUnknown},
	{kind: registry.ErrTooLarge, code: http.StatusBadGateway, id: errcode.ErrorCodeUnknown},
	{kind: registry.ErrNoRoom, code: http.StatusServiceUnavailable, id: errcode.ErrorCodeUnavailable, after: fullAfter},
	{kind: registry.ErrUnavailable, code: http.StatusServiceUnavailable, id: errcode.ErrorCodeUnavailable, after: unavailableAfter},
}

// statusOf is err's row; what has none is unavailable.
func statusOf(err error, k kind) status {
	s := statuses[len(statuses)-1]
	for _, row := range statuses {
		if errors.Is(registry.KindOf(err), row.kind) {
			s = row
			break
		}
	}
	switch s.kind {
	case registry.ErrNotFound:
		s.id = unknown(k)
	case registry.ErrInvalid:
		s.id = malformed(k)
	}
	return s
}

// unknown is the code for what is not there.
func unknown(k kind) errcode.ErrorCode {
	switch k {
	case manifests:
		return errcode.ErrorCodeManifestUnknown
	case blobs:
		return errcode.ErrorCodeBlobUnknown
	case uploads:
		return errcode.ErrorCodeBlobUploadUnknown
	case other:
		return errcode.ErrorCodeUnsupported
	}
	return errcode.ErrorCodeNameUnknown
}

// malformed is the code for a request that makes no sense.
func malformed(k kind) errcode.ErrorCode {
	switch k {
	case blobs, referrers:
		return errcode.ErrorCodeDigestInvalid
	case manifests:
		return errcode.ErrorCodeManifestInvalid
	}
	return errcode.ErrorCodeUnsupported
}

// fail answers with err, which concerns a path of kind k.
func fail(w http.ResponseWriter, r *http.Request, k kind, err error) {
	s := statusOf(err, k)
	if s.after > 0 {
		reply.SetRetryAfter(w.Header(), err, s.after)
	}
	reply.Failed(w, err)
	refuse(w, r, s.code, s.id, registry.Public(err))
}

// refuse answers in the protocol's form (distribution-spec, "Error Codes").
// A HEAD's answer has the same fields and no body.
func refuse(w http.ResponseWriter, r *http.Request, code int, id errcode.ErrorCode, message string) {
	h := w.Header()
	for _, name := range []string{"Etag", "Accept-Ranges", "Cache-Control", "Docker-Content-Digest", "Link"} {
		h.Del(name)
	}
	if code != http.StatusRequestedRangeNotSatisfiable {
		h.Del("Content-Range")
	}
	if h.Get("Cache-Status") == "" {
		reply.Record(w, registry.Via{Detail: "refused"})
	}
	e := errcode.Error{Code: id, Message: message}
	if rid := reply.RequestID(w); rid != "" {
		e.Detail = map[string]string{"request": rid}
	}
	writeJSON(w, r, code, "application/json", errcode.Errors{e})
}

// answer answers with v, which was made of what c is bound to.
func (h *handler) answer(w http.ResponseWriter, r *http.Request, c *registry.Call, mediaType string, v any) error {
	data, err := json.Marshal(v)
	if err != nil { // nothing that is answered has a value that cannot be marshalled
		panic(err)
	}
	w.Header().Set("Content-Type", mediaType)
	d := registry.Descriptor{Size: int64(len(data)), MediaType: mediaType}
	return reply.Serve(w, r, reply.Body{Descriptor: d, Blob: h.service.Hold(c, registry.NewBytesBlob(data, d, 0, -1, registry.Via{}))})
}

// writeJSON answers with v, which is nobody's in particular.
func writeJSON(w http.ResponseWriter, r *http.Request, code int, mediaType string, v any) {
	data, err := json.Marshal(v)
	if err != nil { // nothing that is answered has a value that cannot be marshalled
		panic(err)
	}
	h := w.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(code)
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) // a client that has gone has no use for the error
	}
}
