package relay

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/weir-registry/weir/registry"
)

// Kinds of frame.
const (
	helloFrame   = 'h' // a stateText: how the copy of who serves is; begins a stream, and says later that it lives
	pieceFrame   = 'p' // a piece of a snapshot
	endFrame     = 'e' // the end of a snapshot: its length, 8 bytes
	deltaFrame   = 'd' // a list of registry.Delta, each following up the one before
	confirmFrame = 'c' // a stateText: what the follower should have by now
	byeFrame     = 'b' // the stream ends as it should, and may be asked for again
)

// A frame begins with its kind, the length of its payload (4 bytes) and the
// CRC-32C of both and of the payload (4 bytes); numbers are big-endian.
const frameHead = 9

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameLimit is the largest payload of a kind of frame, in bytes; negative if
// there is no such kind.
func frameLimit(kind byte) int {
	switch kind {
	case helloFrame, confirmFrame:
		return maxState
	case pieceFrame:
		return maxPiece
	case endFrame:
		return 8
	case deltaFrame:
		return maxDeltas
	case byeFrame:
		return 0
	}
	return -1
}

func frameSum(head, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:5], castagnoli), castagnoli, payload)
}

// appendFrame appends a frame to b. The payload is within the limit of its kind.
func appendFrame(b []byte, kind byte, payload []byte) []byte {
	var head [frameHead]byte
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(len(payload)))
	binary.BigEndian.PutUint32(head[5:], frameSum(head[:], payload))
	return append(append(b, head[:]...), payload...)
}

// frames reads frames one after the other.
type frames struct {
	r   io.Reader
	buf bytes.Buffer // the payload
}

// next is the next frame; its payload is good until the one after. A length is
// not believed before as many bytes have come. Errors: io.EOF at the end of a
// stream, what r says, or ErrCorrupt.
func (f *frames) next() (kind byte, payload []byte, err error) {
	var head [frameHead]byte
	if n, err := io.ReadFull(f.r, head[:]); err != nil {
		if n == 0 {
			return 0, nil, err
		}
		return 0, nil, broken(err)
	}
	kind = head[0]
	length := binary.BigEndian.Uint32(head[1:])
	if limit := frameLimit(kind); limit < 0 || int64(length) > int64(limit) {
		return 0, nil, registry.Errorf(registry.ErrCorrupt, "a frame of kind %d with %d bytes", kind, length)
	}
	if f.buf.Cap() > 2*manyDeltas {
		f.buf = bytes.Buffer{} // an exception is no reason to hold so much for ever
	}
	f.buf.Reset()
	if _, err := io.CopyN(&f.buf, f.r, int64(length)); err != nil {
		return 0, nil, broken(err)
	}
	payload = f.buf.Bytes()
	if frameSum(head[:], payload) != binary.BigEndian.Uint32(head[5:]) {
		return 0, nil, registry.Errorf(registry.ErrCorrupt, "a frame whose checksum is wrong")
	}
	return kind, payload, nil
}

// broken is the failure of a frame that was cut off.
func broken(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// pieceWriter makes frames of a snapshot. Its Writes are of at most maxPiece
// bytes.
type pieceWriter struct {
	send  func([]byte) error
	total int64
	buf   []byte
}

// Write implements io.Writer.
func (p *pieceWriter) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		part := b[done:min(len(b), done+maxPiece)]
		p.buf = appendFrame(p.buf[:0], pieceFrame, part)
		if err := p.send(p.buf); err != nil {
			return done, err
		}
		done += len(part)
		p.total += int64(len(part))
	}
	return done, nil
}

// end sends what says that the snapshot was all.
func (p *pieceWriter) end() error {
	return p.send(appendFrame(p.buf[:0], endFrame, binary.BigEndian.AppendUint64(nil, uint64(p.total))))
}

// pieceReader reads a snapshot from its frames, of which the first has been
// read. It ends with io.EOF only after the end frame.
type pieceReader struct {
	f     *frames
	left  []byte // of the last piece
	total int64
	ended bool
	err   error
}

// Read implements io.Reader.
func (p *pieceReader) Read(b []byte) (int, error) {
	for len(p.left) == 0 {
		if p.err != nil {
			return 0, p.err
		}
		if p.err = p.more(); p.err != nil {
			return 0, p.err
		}
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

// more reads the next piece.
func (p *pieceReader) more() error {
	kind, payload, err := p.f.next()
	switch {
	case err != nil:
		return broken(err)
	case kind == pieceFrame:
		p.left = payload
		p.total += int64(len(payload))
		return nil
	case kind == endFrame && len(payload) == 8 && binary.BigEndian.Uint64(payload) == uint64(p.total):
		p.ended = true
		return io.EOF
	}
	return registry.Errorf(registry.ErrCorrupt, "a snapshot with something else in it")
}

// finish reads what whoever used the snapshot has left of it.
func (p *pieceReader) finish() error {
	for !p.ended {
		p.left = nil
		if err := p.more(); err != nil && !p.ended {
			return err
		}
	}
	return nil
}
