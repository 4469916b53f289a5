package outbound

import (
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/weir-registry/weir/registry"
)

// NewBlob is a Blob over a response to a GET of w with a good status: a 206
// must be the range that w asks for, and a 200 to a ranged request is skipped
// forward to w.Offset as it is read. The blob's size is the response's, or w's
// if the response does not say. Closing the Blob closes the body; if NewBlob
// fails it has closed it.
func NewBlob(resp *http.Response, w registry.Want) (registry.Blob, error) {
	b := &blob{body: resp.Body, d: w.Descriptor, offset: w.Offset}
	err := b.begin(resp, w)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return b, nil
}

// RangeOf is the Range field of a GET for w (RFC 9110 section 14.1.2); "" for
// the whole, and for no bytes at all, which is a HEAD.
func RangeOf(w registry.Want) string {
	switch {
	case w.Length > 0:
		return "bytes=" + strconv.FormatInt(w.Offset, 10) + "-" + strconv.FormatInt(w.Offset+w.Length-1, 10)
	case w.Offset > 0 && w.Length < 0:
		return "bytes=" + strconv.FormatInt(w.Offset, 10) + "-"
	}
	return ""
}

// NewStat is the empty Blob for a Want of Length 0 over a response to a HEAD.
// It closes the body.
func NewStat(resp *http.Response, w registry.Want) registry.Blob {
	resp.Body.Close()
	b := &blob{body: http.NoBody, d: w.Descriptor, offset: w.Offset, left: 0, bounded: true}
	if resp.ContentLength >= 0 {
		b.d.Size = resp.ContentLength
	}
	return b
}

type blob struct {
	body    io.ReadCloser
	d       registry.Descriptor
	offset  int64
	length  int64 // as Span says it
	skip    int64 // bytes of body before the run
	left    int64 // bytes of the run not yet read, if bounded
	bounded bool
	all     bool // the body is the whole blob although a run was asked for
}

var _ registry.Widener = (*blob)(nil)

// begin finds out from resp where the run is in the body.
func (b *blob) begin(resp *http.Response, w registry.Want) error {
	have := int64(-1) // bytes in the body from w.Offset on
	switch resp.StatusCode {
	case http.StatusPartialContent:
		first, last, size, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || first != w.Offset {
			return registry.Errorf(registry.ErrUnavailable, "the upstream answered another range than the one asked for")
		}
		have = last - first + 1
		if size >= 0 {
			b.d.Size = size
		}
	case http.StatusOK:
		b.all = w.Offset > 0 || w.Length >= 0
		b.skip = w.Offset
		if resp.ContentLength >= 0 {
			b.d.Size = resp.ContentLength
			have = max(resp.ContentLength-w.Offset, 0)
		}
	default:
		return registry.Errorf(registry.ErrUnavailable, "the upstream answered a GET with %d", resp.StatusCode)
	}
	_, length, ok := w.Clip(b.d.Size)
	if !ok {
		return registry.Errorf(registry.ErrInvalid, "the range is past the end")
	}
	if have >= 0 && length > have {
		return registry.Errorf(registry.ErrUnavailable, "the upstream answered with fewer bytes than were asked for")
	}
	b.left, b.bounded = length, length >= 0
	b.length = length
	if b.d.Size < 0 {
		b.length = -1
	}
	return nil
}

// contentRange parses "bytes 0-9/10" and "bytes 0-9/*" (size -1), RFC 9110
// section 14.4.
func contentRange(s string) (first, last, size int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	span, total, ok1 := strings.Cut(s, "/")
	a, z, ok2 := strings.Cut(span, "-")
	first, err1 := strconv.ParseInt(a, 10, 64)
	last, err2 := strconv.ParseInt(z, 10, 64)
	if !ok1 || !ok2 || err1 != nil || err2 != nil || first < 0 || last < first || last == math.MaxInt64 {
		return 0, 0, 0, false
	}
	if total == "*" {
		return first, last, -1, true
	}
	size, err := strconv.ParseInt(total, 10, 64)
	return first, last, size, err == nil && last < size
}

// Read implements io.Reader.
func (b *blob) Read(p []byte) (int, error) {
	if err := b.forward(); err != nil {
		return 0, err
	}
	if b.bounded {
		if b.left == 0 {
			return 0, io.EOF
		}
		if int64(len(p)) > b.left {
			p = p[:b.left]
		}
	}
	n, err := b.body.Read(p)
	if !b.bounded {
		return n, err
	}
	b.left -= int64(n)
	if err == io.EOF && b.left > 0 && b.d.Size >= 0 {
		err = registry.Errorf(registry.ErrUnavailable, "the upstream broke off in the middle of an answer")
	}
	return n, err
}

// forward discards what comes before the run.
func (b *blob) forward() error {
	if b.skip == 0 {
		return nil
	}
	n, err := io.CopyN(io.Discard, b.body, b.skip)
	b.skip -= n
	if err == io.EOF {
		return registry.Errorf(registry.ErrInvalid, "the range is past the end")
	}
	return err
}

// WriteTo implements io.WriterTo.
func (b *blob) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b})
}

// Widen implements registry.Widener: a 200 to a ranged request is the whole.
func (b *blob) Widen() bool {
	if !b.all {
		return false
	}
	b.skip, b.offset, b.length = 0, 0, b.d.Size
	b.left, b.bounded = b.d.Size, b.d.Size >= 0
	return true
}

// Close implements io.Closer.
func (b *blob) Close() error { return b.body.Close() }

// Descriptor implements registry.Blob.
func (b *blob) Descriptor() registry.Descriptor { return b.d }

// Span implements registry.Blob.
func (b *blob) Span() (offset, length int64) {
	if b.d.Size < 0 {
		return b.offset, -1
	}
	return b.offset, b.length
}

// Via implements registry.Blob.
func (b *blob) Via() registry.Via { return registry.Via{Fwd: "miss", Detail: "upstream"} }
