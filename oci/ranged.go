package oci

import (
	"io"
	"net/http"

	"github.com/distribution/distribution/v3/registry/api/errcode"
)

// ranged gives the refusal of a range the protocol's own form: package reply,
// which finds out that there is nothing in the range, does not know it. All
// else it passes on, the way to sendfile included.
type ranged struct {
	http.ResponseWriter
	r *http.Request
}

// WriteHeader implements http.ResponseWriter.
func (w ranged) WriteHeader(code int) {
	if code == http.StatusRequestedRangeNotSatisfiable {
		refuse(w.ResponseWriter, w.r, code, errcode.ErrorCodeRangeInvalid, "the range is past the end")
		return
	}
	w.ResponseWriter.WriteHeader(code)
}

// ReadFrom implements io.ReaderFrom.
func (w ranged) ReadFrom(src io.Reader) (int64, error) {
	if rf, ok := w.ResponseWriter.(io.ReaderFrom); ok {
		return rf.ReadFrom(src)
	}
	return io.Copy(struct{ io.Writer }{w.ResponseWriter}, src)
}

// Unwrap is for http.ResponseController, and for reply's middleware.
func (w ranged) Unwrap() http.ResponseWriter { return w.ResponseWriter }
