package npm

import (
	"io"
	"sync/atomic"

	"github.com/weir-registry/weir/registry"
)

// maxHeld is how many bytes of views that are not kept may be on their way to
// clients at once: slow ones hold no place, but they do hold room, which those
// who read are not to run out of.
const maxHeld = 1 << 30

// manyNames is what an operator can do against running into a bound.
const manyNames = "this node is called by more names than it keeps views for; its public_url should be set"

// spooled is the Blob of what was written to a stage; closing it gives the
// stage up. It is written first, as an io.Writer, and then read.
type spooled struct {
	*io.SectionReader // over the stage, once all is written
	stage             registry.Stage
	held              *atomic.Int64 // bytes of all that are open
	size              int64         // what was written so far
	mediaType         string
	via               registry.Via
}

var _ registry.Blob = (*spooled)(nil)

// Write implements io.Writer.
func (b *spooled) Write(p []byte) (int, error) {
	if b.held.Add(int64(len(p))) > maxHeld {
		b.held.Add(-int64(len(p)))
		return 0, registry.Errorf(registry.ErrNoRoom, "too many views are being sent: %s", manyNames)
	}
	n, err := b.stage.Write(p)
	b.held.Add(int64(n - len(p)))
	b.size += int64(n)
	return n, err
}

// WriteTo implements registry.Blob.
func (b *spooled) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, b.SectionReader) }

// Close implements registry.Blob.
func (b *spooled) Close() error {
	if b.held != nil {
		b.held.Add(-b.size)
		b.held = nil
	}
	return b.stage.Close()
}

// Descriptor implements registry.Blob; what is not kept has no digest.
func (b *spooled) Descriptor() registry.Descriptor {
	return registry.Descriptor{Size: b.size, MediaType: b.mediaType}
}

// Span implements registry.Blob.
func (b *spooled) Span() (offset, length int64) { return 0, b.size }

// Via implements registry.Blob.
func (b *spooled) Via() registry.Via { return b.via }
