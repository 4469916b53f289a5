package npm

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/reply"
)

// statuses turn a kind of failure into a status: the one place where npm does.
var statuses = map[error]int{
	registry.ErrInvalid:         http.StatusBadRequest,
	registry.ErrNotFound:        http.StatusNotFound,
	registry.ErrConflict:        http.StatusConflict,
	registry.ErrGone:            http.StatusGone,
	registry.ErrCorrupt:         http.StatusBadGateway,
	registry.ErrUnauthenticated: http.StatusUnauthorized,
	registry.ErrDenied:          http.StatusForbidden,
	registry.ErrLimited:         http.StatusTooManyRequests,
	registry.ErrTooLarge:        http.StatusBadGateway, // a document behind this node is
	registry.ErrNoRoom:          http.StatusServiceUnavailable,
	registry.ErrUnavailable:     http.StatusServiceUnavailable,
}

// leastRetry is the least that Retry-After says: a client that comes back at
// once finds the same failure.
const leastRetry = 2 * time.Second

// noVersion is ErrNotFound for a version, which npm's registry answers with a
// bare JSON string.
type noVersion struct{ ref string }

func (e *noVersion) Error() string { return "version not found: " + e.ref }
func (e *noVersion) Unwrap() error { return registry.ErrNotFound }

// tooLong is a request's body over the limit.
type tooLong struct{ limit int64 }

func (e *tooLong) Error() string {
	return fmt.Sprintf("the request's body is over the limit of %d bytes", e.limit)
}
func (e *tooLong) Unwrap() error { return registry.ErrInvalid }

// badLogin is ErrUnauthenticated for a name or a password in a request's body.
// It is answered without a challenge, which would be about the Authorization
// header: npm keeps the text of an answer with one to itself, and tells people
// to recover their password at the registry that is built into it.
type badLogin struct{ err error }

func (e *badLogin) Error() string { return e.err.Error() }
func (e *badLogin) Unwrap() error { return e.err }

// notNow is ErrUnavailable for what a person waits for at a terminal. npm tries
// again by itself after a 503, twice within seventy seconds, and shows nothing
// meanwhile; a 424 it shows at once.
type notNow struct{ err error }

func (e *notNow) Error() string { return e.err.Error() }
func (e *notNow) Unwrap() error { return e.err }

// challenge is what goes with a 401. Of several challenges npm looks at the
// first alone: for Bearer it says that the token seems to be invalid and that
// "npm login" helps, which is the case, and for Basic that the password is
// wrong. It shows the answer's text in neither case; so that is put into
// npm-notice too, which it shows always.
func challenge(h http.Header, text string) {
	h["Www-Authenticate"] = []string{`Bearer realm="weir"`, `Basic realm="weir", charset="UTF-8"`}
	h.Set("Npm-Notice", headerText(text))
}

// headerText makes a text fit for a header.
func headerText(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, s)
	return s[:min(len(s), 256)]
}

// notAllowed is a method that a path does not have.
type notAllowed struct{ method, allow string }

func (e *notAllowed) Error() string { return e.method + " is not allowed" }
func (e *notAllowed) Unwrap() error { return registry.ErrInvalid }

// fail answers with err in npm's form. Nothing has been written yet.
func fail(w http.ResponseWriter, err error) {
	h := w.Header()
	for _, k := range []string{"ETag", "Content-Encoding", "Content-Length", "Accept-Ranges", "Last-Modified", "Content-Range"} {
		h.Del(k)
	}
	kind := registry.KindOf(err)
	status, ok := statuses[kind]
	if !ok {
		status = http.StatusServiceUnavailable
	}
	text := registry.Public(err)
	body := []byte(nil)
	var version *noVersion
	var long *tooLong
	var read *http.MaxBytesError
	var method *notAllowed
	switch {
	case errors.As(err, &version):
		body = quoted(nil, version.Error())
	case errors.As(err, &long):
		status, text = http.StatusRequestEntityTooLarge, long.Error()
	case errors.As(err, &read):
		status, text = http.StatusRequestEntityTooLarge, (&tooLong{read.Limit}).Error()
	case errors.As(err, &method):
		status, text = http.StatusMethodNotAllowed, method.Error()
		h.Set("Allow", method.allow)
	case status == http.StatusNotFound:
		text = "Not found"
	case errors.As(err, new(*badLogin)):
		status = http.StatusUnauthorized
	case errors.As(err, new(*notNow)):
		status = http.StatusFailedDependency
	case status == http.StatusUnauthorized:
		challenge(h, text)
	}
	if body == nil {
		body = append(quoted([]byte(`{"error":`), text), '}')
	}
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests || status == http.StatusFailedDependency {
		reply.SetRetryAfter(h, err, leastRetry)
	}
	if h.Get("Cache-Status") == "" {
		reply.Record(w, registry.Via{Fwd: forwarded(kind)})
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", mediaJSON)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	reply.Failed(w, err)
	w.WriteHeader(status)
	// The client may be gone; there is nobody else to tell.
	_, _ = w.Write(body)
}

// forwarded is what Cache-Status says of an error: whether it was about what
// is behind this node, or about the request alone (RFC 9211 section 2.2).
func forwarded(kind error) string {
	switch kind {
	case registry.ErrInvalid, registry.ErrDenied, registry.ErrUnauthenticated:
		return "bypass"
	}
	return "miss"
}
