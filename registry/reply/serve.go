package reply

import (
	"errors"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// WriteTimeout is what the http.Server must have as its own: a client has that
// long to take an answer, and as long again for each further slice of it.
const WriteTimeout = 2 * time.Minute

const (
	// sliceBytes is how much is handed to the kernel before the write deadline
	// moves: together with WriteTimeout, 35 KB/s is the slowest client there
	// can be before it is cut off.
	sliceBytes = 4 << 20
	// maxParts is how many ranges one request may ask; more get the whole.
	maxParts = 16
)

// A Body is what Serve answers with.
type Body struct {
	// Descriptor gives the Content-Type (unless the header is set already) and
	// the length; its Size may be negative, then it is learnt by opening.
	Descriptor registry.Descriptor
	// ETag is the strong entity tag, quoted; "" for none.
	ETag string
	// Blob is the whole run, opened already, or nil. Serve closes it.
	Blob registry.Blob
	// Open opens a run: a negative length is to the end, 0 for the descriptor
	// alone. It is called if Blob is nil, or for a range. nil: no ranges.
	Open func(offset, length int64) (registry.Blob, error)
	// Ranges says that Range is honoured (RFC 9110 section 14).
	Ranges bool
}

// Serve answers a GET or HEAD with b: 304 to a matching If-None-Match, 206 and
// 416 to a Range, else 200. For a HEAD nothing is opened when the size is
// known. It sets Cache-Status from the blob unless that has been set.
//
// An error is returned only while nothing has been written. After that Serve
// panics with http.ErrAbortHandler, which ends the connection.
func Serve(w http.ResponseWriter, r *http.Request, b Body) error {
	s := serving{w: w, r: r, b: b, blob: b.Blob}
	defer s.close()
	h := w.Header()
	if b.ETag != "" {
		h.Set("ETag", b.ETag)
	}
	if b.Ranges {
		h.Set("Accept-Ranges", "bytes")
	}
	if b.ETag != "" && Matches(r, b.ETag) {
		s.via()
		h.Del("Content-Length")
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if h.Get("Content-Type") == "" && b.Descriptor.MediaType != "" {
		h.Set("Content-Type", b.Descriptor.MediaType)
	}
	if r.Method == http.MethodHead {
		return s.head()
	}
	ranges := ""
	if b.Ranges && b.Open != nil && ifRange(r, b.ETag) {
		ranges = r.Header.Get("Range")
	}
	if ranges == "" {
		return s.whole()
	}
	return s.ranged(ranges)
}

// serving is one answer on its way out.
type serving struct {
	w    http.ResponseWriter
	r    *http.Request
	b    Body
	blob registry.Blob // what is open, to be closed
	bare bool          // blob is the descriptor alone
}

func (s *serving) close() {
	if s.blob != nil {
		s.blob.Close()
	}
}

// open makes s.blob a run of length bytes from offset on.
func (s *serving) open(offset, length int64) error {
	if s.b.Open == nil {
		return registry.Errorf(registry.ErrUnavailable, "the blob cannot be opened twice")
	}
	s.close()
	s.blob = nil
	blob, err := s.b.Open(offset, length)
	if err != nil {
		return err
	}
	s.blob, s.bare = blob, length == 0
	return nil
}

// size is the blob's, or negative if even opening it does not tell; it opens
// the descriptor alone if nothing is open yet.
func (s *serving) size() (int64, error) {
	if s.b.Descriptor.Size >= 0 {
		return s.b.Descriptor.Size, nil
	}
	if s.blob == nil {
		if err := s.open(0, 0); err != nil {
			return 0, err
		}
	}
	return s.blob.Descriptor().Size, nil
}

func (s *serving) via() {
	if s.blob != nil && s.w.Header().Get("Cache-Status") == "" {
		Record(s.w, s.blob.Via())
	}
}

func (s *serving) head() error {
	size, err := s.size()
	if err != nil {
		return err
	}
	s.via()
	if size >= 0 {
		s.w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	}
	s.w.WriteHeader(http.StatusOK)
	return nil
}

func (s *serving) whole() error {
	if s.blob == nil || s.bare {
		if err := s.open(0, -1); err != nil {
			return err
		}
	}
	s.via()
	if _, length := s.blob.Span(); length >= 0 {
		s.w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	}
	s.w.WriteHeader(http.StatusOK)
	s.body(s.w, s.blob)
	return nil
}

func (s *serving) ranged(header string) error {
	size, err := s.size()
	if err != nil {
		return err
	}
	if size < 0 {
		return s.whole() // ranges of something of unknown length: RFC 9110 section 14.2 lets a server ignore them
	}
	spans, ok := parseRange(header, size)
	switch {
	case !ok || len(spans) > maxParts || sum(spans) > size:
		// Not a valid bytes range, which section 14.2 demands to be ignored, or
		// a set of ranges that overlap, which it allows to be.
		return s.whole()
	case len(spans) == 0:
		s.via()
		h := s.w.Header()
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
		h.Del("Content-Type")
		h.Set("Content-Length", "0")
		s.w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return nil
	case len(spans) > 1:
		return s.parts(spans, size)
	}
	if err := s.open(spans[0].offset, spans[0].length); err != nil {
		return err
	}
	s.via()
	h := s.w.Header()
	h.Set("Content-Range", spans[0].contentRange(size))
	h.Set("Content-Length", strconv.FormatInt(spans[0].length, 10))
	s.w.WriteHeader(http.StatusPartialContent)
	s.body(s.w, s.blob)
	return nil
}

// parts answers several ranges as multipart/byteranges (RFC 9110 section 14.6).
func (s *serving) parts(spans []span, size int64) error {
	if err := s.open(spans[0].offset, spans[0].length); err != nil {
		return err
	}
	s.via()
	mediaType := s.w.Header().Get("Content-Type")
	mw := multipart.NewWriter(s.w)
	s.w.Header().Set("Content-Type", "multipart/byteranges; boundary="+mw.Boundary())
	s.w.Header().Del("Content-Length")
	s.w.WriteHeader(http.StatusPartialContent)
	for i, sp := range spans {
		if i > 0 {
			if err := s.open(sp.offset, sp.length); err != nil {
				failed(s.w, err)
				s.abort()
			}
		}
		s.body(&part{begin: func() (io.Writer, error) {
			return mw.CreatePart(textproto.MIMEHeader{"Content-Type": {mediaType}, "Content-Range": {sp.contentRange(size)}})
		}}, s.blob)
	}
	if err := mw.Close(); err != nil {
		s.abort()
	}
	return nil
}

// part is one part of a multipart body, whose header is written with its first
// bytes: what writes to the client is to be in a Blob's WriteTo, so that it can be
// cut.
type part struct {
	begin func() (io.Writer, error)
	w     io.Writer // nil: not begun
}

// Write implements io.Writer.
func (p *part) Write(b []byte) (n int, err error) {
	if p.w == nil {
		if p.w, err = p.begin(); err != nil {
			return 0, err
		}
	}
	return p.w.Write(b)
}

// body copies all of blob to w, or ends the connection.
func (s *serving) body(w io.Writer, blob registry.Blob) {
	p := &pacer{w: w, rc: http.NewResponseController(s.w), last: time.Now()}
	_, length := blob.Span()
	n, err := blob.WriteTo(p)
	if err == nil && length >= 0 && n != length {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		return
	}
	failed(s.w, err)
	if p.cut() {
		s.reset()
	}
	s.abort()
}

// abort ends the connection so that nobody takes what was sent for the whole: if
// the end of the connection is the end of the body, as it is in HTTP/1.0 where no
// length was said, by a reset.
func (s *serving) abort() {
	if s.r.ProtoAtLeast(1, 1) || s.w.Header().Get("Content-Length") != "" {
		panic(http.ErrAbortHandler)
	}
	s.reset()
}

// reset ends the connection at once, without what the kernel still has to send: of
// a file on a slow line that can be seconds of it. (A failed write from memory
// net/http answers by closing the connection itself; there is nothing left to reset.)
func (s *serving) reset() {
	if conn, _, err := http.NewResponseController(s.w).Hijack(); err == nil {
		under := conn
		if secure, ok := conn.(interface{ NetConn() net.Conn }); ok {
			under = secure.NetConn()
		}
		if tcp, ok := under.(interface{ SetLinger(sec int) error }); ok {
			_ = tcp.SetLinger(0)
		}
		under.Close()
	}
	panic(http.ErrAbortHandler)
}

// pacer moves the connection's write deadline, which the server has set when it
// read the request, with what is written, and hands files to the kernel in
// slices so that it can. A short answer never gets that far. Once it has been cut
// the deadline is past and stays so, which ends a write that is blocked in the
// kernel too.
type pacer struct {
	w  io.Writer
	rc *http.ResponseController

	mu   sync.Mutex
	last time.Time // guarded by mu
	why  error     // guarded by mu; it has been cut
}

var _ registry.Cutter = (*pacer)(nil)

// Cut implements registry.Cutter.
func (p *pacer) Cut(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.why = why
	_ = p.rc.SetWriteDeadline(time.Unix(1, 0))
}

// cut reports whether Cut has been called.
func (p *pacer) cut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.why != nil
}

// extend gives the client time, unless it has been cut.
func (p *pacer) extend() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.why != nil {
		return p.why
	}
	if now := time.Now(); now.Sub(p.last) > WriteTimeout/8 {
		p.last = now
		// A connection without deadlines (a test's recorder) has no slow end.
		_ = p.rc.SetWriteDeadline(now.Add(WriteTimeout))
	}
	return nil
}

// failed is why a write failed with err.
func (p *pacer) failed(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.why != nil {
		return p.why
	}
	return gone(err)
}

// Write implements io.Writer.
func (p *pacer) Write(b []byte) (int, error) {
	if err := p.extend(); err != nil {
		return 0, err
	}
	n, err := p.w.Write(b)
	return n, p.failed(err)
}

// ReadFrom lets net/http use sendfile when src is a file or a part of one.
func (p *pacer) ReadFrom(src io.Reader) (n int64, err error) {
	rf, ok := p.w.(io.ReaderFrom)
	lr, limited := src.(*io.LimitedReader)
	if !ok || !limited {
		return io.Copy(writerOnly{p}, src)
	}
	for lr.N > 0 {
		if err := p.extend(); err != nil {
			return n, err
		}
		slice := &io.LimitedReader{R: lr.R, N: min(lr.N, sliceBytes)}
		m, err := rf.ReadFrom(slice)
		n += m
		lr.N -= m
		if err != nil {
			return n, p.failed(err)
		}
		if m == 0 {
			return n, nil // the file ended early; the blob knows what that means
		}
	}
	return n, nil
}

type writerOnly struct{ io.Writer }

// errGone is a client that left or is too slow: not weir's failure.
var errGone = errors.New("the client is gone")

func gone(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.Join(errGone, errors.New("it took nothing in two minutes"))
	}
	var kind *registry.Error
	if errors.As(err, &kind) {
		return err
	}
	return errors.Join(errGone, err)
}
