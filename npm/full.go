package npm

import (
	"bufio"
	"io"
)

// writeFull writes the full view of the packument doc: every value as the
// upstream wrote it, but for the addresses in each version's dist.
func writeFull(doc io.Reader, w io.Writer, t target) error {
	f := &full{w: bufio.NewWriterSize(w, 64<<10), t: t}
	f.w.WriteByte('{')
	if err := scan(doc, f); err != nil {
		return err
	}
	f.w.WriteByte('}')
	return f.w.Flush()
}

// full is the visitor that writes the full view. Its writer keeps the first
// error and gives it on every later write.
type full struct {
	w     *bufio.Writer
	t     target
	comma bool // something is before the next member
	inner bool // and before the next version
	buf   []byte
}

var _ visitor = (*full)(nil)

func (f *full) begin(name []byte) {
	if f.comma {
		f.w.WriteByte(',')
	}
	f.comma = true
	f.w.Write(name)
	f.w.WriteByte(':')
}

func (f *full) member(name, value []byte) error {
	f.begin(name)
	_, err := f.w.Write(value)
	return err
}

func (f *full) versions(name []byte) error {
	f.begin(name)
	f.inner = false
	return f.w.WriteByte('{')
}

func (f *full) version(name, value []byte, _ int64) error {
	if f.inner {
		f.w.WriteByte(',')
	}
	f.inner = true
	f.w.Write(name)
	f.w.WriteByte(':')
	f.buf = f.t.manifest(f.buf[:0], text(name), value)
	_, err := f.w.Write(f.buf)
	return err
}

func (f *full) done() error { return f.w.WriteByte('}') }
