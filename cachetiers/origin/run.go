package origin

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/weir-registry/weir/registry"
)

// copyBuffer is how much of a body is read at once by WriteTo.
const copyBuffer = 128 << 10

// A run is an open run of a blob in a bucket. Without bytes it has no body.
type run struct {
	watch  *watch // nil if there is no body
	idle   time.Duration
	body   io.ReadCloser
	what   string
	desc   registry.Descriptor
	offset int64
	length int64
	left   int64 // of length
	err    error // of a Read that gave bytes too
	closed bool
}

var _ registry.Blob = (*run)(nil)

// fit makes b the run of w in an object of size bytes.
func (b *run) fit(w registry.Want, size int64) error {
	if size < 0 || w.Size >= 0 && w.Size != size {
		return &registry.Error{Kind: registry.ErrCorrupt, Text: fmt.Sprintf("%s has %d bytes where %d were wanted", b.what, size, w.Size)}
	}
	var ok bool
	if b.offset, b.length, ok = w.Clip(size); !ok {
		return pastTheEnd(w)
	}
	b.desc, b.left = w.Descriptor, b.length
	b.desc.Size = size
	return nil
}

// Read implements io.Reader. The time limit runs only while a reader waits: a
// slow client is no fault of the bucket.
func (b *run) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, io.EOF
	}
	if b.err != nil || b.closed {
		return 0, b.broken(b.err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	b.watch.again(b.idle)
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.watch.pause()
	b.left -= int64(n)
	if err != nil {
		b.err = err
		if n == 0 {
			return 0, b.broken(err)
		}
	}
	return n, nil
}

// broken is the error of a body that does not go on.
func (b *run) broken(err error) error {
	if b.closed {
		err = os.ErrClosed
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return b.watch.explain(err, fmt.Sprintf("read %s, %d bytes before the end of the run", b.what, b.left))
}

// WriteTo implements io.WriterTo.
func (b *run) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{b}, make([]byte, max(1, min(b.left, copyBuffer))))
}

// Close implements registry.Blob.
func (b *run) Close() error {
	if b.closed || b.body == nil {
		return nil
	}
	b.closed = true
	err := b.body.Close()
	b.watch.stop()
	if b.left > 0 {
		return nil // a body that was left half-read has nothing to say
	}
	return err
}

// Descriptor implements registry.Blob.
func (b *run) Descriptor() registry.Descriptor { return b.desc }

// Span implements registry.Blob.
func (b *run) Span() (int64, int64) { return b.offset, b.length }

// Via implements registry.Blob.
func (b *run) Via() registry.Via { return registry.Via{Fwd: "miss", Detail: originDetail} }
