package npm

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/outbound"
	"github.com/weir-registry/weir/registry/reply"
)

const (
	// maxAuditBody bounds a question that is passed on: the tree of a
	// repository of 50,000 packages, ungzipped.
	maxAuditBody = 32 << 20
	// maxPassed bounds an answer that is passed on.
	maxPassed = 64 << 20
	// passShare is which part of an upstream's connections, one in so many,
	// may be held by exchanges that are passed on: each holds one for as long
	// as its client takes to send and to read. The rest are for what is kept.
	passShare = 4
	// passTime is how long one exchange that is passed on may take in all.
	passTime = 2 * time.Minute
)

// asked are the request's headers that are passed on; the client's
// credentials are not among them.
var asked = []string{"Accept", "Accept-Encoding", "Content-Type", "Content-Encoding", "Npm-Command"}

// answered are the response's headers that are passed on.
var answered = []string{"Content-Type", "Content-Encoding", "Content-Length", "Vary"}

// passing is how many exchanges may be passed on at once.
func (u *Upstreams) passing() int {
	connections := 64 // outbound's
	if u != nil && u.home != nil && u.home.Connections > 0 {
		connections = u.home.Connections
	}
	return max(connections/passShare, 1)
}

// pass puts a question that is not cached (search, audit) to the upstream that
// answers what is of no one package. size is the body's, negative if it is not
// known. A status that says that the upstream has no such thing is
// ErrNotFound; one that says the question is wrong is a response like a good
// one. The caller closes the body.
func (u *Upstreams) pass(ctx context.Context, method, path, query string, h http.Header, body io.Reader, size int64) (*http.Response, error) {
	if u.home == nil {
		return nil, registry.Errorf(registry.ErrNotFound, "no upstream is configured")
	}
	at, err := u.home.at(path)
	if err != nil {
		return nil, err
	}
	at.RawQuery = query
	req := u.home.request(method, at)
	for _, k := range asked {
		if v := h.Values(k); len(v) > 0 {
			req.Header[k] = v
		}
	}
	if body != nil {
		req.Body, req.ContentLength = io.NopCloser(body), size
	}
	resp, err := u.home.client.Do(ctx, req, outbound.Load{})
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return resp, nil
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		resp.Body.Close()
		return nil, registry.Errorf(registry.ErrNotFound, "%s does not support this", u.home.Name)
	}
	return resp, u.home.client.Check(resp, method+" "+path)
}

// place admits a question that is passed on and waits for its place: whoever may
// pull anything at all may ask, and is told of that. It may take until ctx ends;
// done gives the place back.
func (h *handler) place(r *http.Request, q request) (ctx context.Context, done func(), err error) {
	call := h.call(r, q, registry.Name{Space: space, Repo: "-", Ref: q.ref})
	call.Some = true
	if err := h.o.Service.Guard.Admit(r.Context(), &call); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), passTime)
	select {
	case h.passing <- struct{}{}:
		return ctx, func() { <-h.passing; cancel() }, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, registry.Errorf(registry.ErrUnavailable, "too many questions are being passed on")
	}
}

// passOn answers with what the upstream says to the same question, body and
// all, without keeping it.
func (h *handler) passOn(w http.ResponseWriter, r *http.Request, q request) error {
	ctx, done, err := h.place(r, q)
	if err != nil {
		return err
	}
	defer done()
	method, body, size := http.MethodGet, io.Reader(nil), int64(0)
	if r.Method == http.MethodPost {
		if r.ContentLength > maxAuditBody {
			return &tooLong{maxAuditBody}
		}
		method, body, size = r.Method, http.MaxBytesReader(w, r.Body, maxAuditBody), r.ContentLength
		if size == 0 {
			body = nil
		}
	}
	resp, err := h.o.Upstreams.pass(ctx, method, q.ref, r.URL.RawQuery, r.Header, body, size)
	if err != nil {
		return err
	}
	relay(w, r, resp)
	return nil
}

// relay answers with resp, whose body it closes.
func relay(w http.ResponseWriter, r *http.Request, resp *http.Response) {
	defer resp.Body.Close()
	for _, k := range answered {
		if v := resp.Header.Values(k); len(v) > 0 {
			w.Header()[k] = v
		}
	}
	w.Header().Set("Cache-Control", "no-store")
	reply.Record(w, registry.Via{Fwd: "miss", Detail: "upstream"})
	w.WriteHeader(resp.StatusCode)
	if r.Method != http.MethodHead {
		stream(w, http.MaxBytesReader(nil, resp.Body, maxPassed))
	}
}

// stream copies r to w, giving the client passTime for all of it; a failure
// ends the connection, because the status line is out.
func stream(w http.ResponseWriter, r io.Reader) {
	// A recorder in a test has no deadlines.
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(passTime))
	if _, err := io.Copy(w, r); err != nil {
		reply.Failed(w, err)
		panic(http.ErrAbortHandler)
	}
}
