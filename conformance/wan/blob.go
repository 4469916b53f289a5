package wan

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"hash/crc32"
	"io"

	"github.com/opencontainers/go-digest"
)

// A Blob is bytes that an [Upstream] has, or a manifest.
type Blob struct {
	Digest digest.Digest
	Size   int64
	// Sum is the CRC-32C of it all, which finds bytes that are not right, in
	// a network of friends, at a tenth of what the digest costs.
	Sum uint32
}

// content is what a blob's bytes are made of: given ones, or those of a key.
type content struct {
	given []byte
	key   cipher.Block // AES, whose counter mode they are; nil: given
	size  int64
}

// noise is size bytes that do not compress, the same for the same seed.
func noise(size int64, seed string) content {
	key := sha256.Sum256([]byte(seed))
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		panic(err) // 16 bytes are a key
	}
	return content{key: block, size: size}
}

func literal(b []byte) content { return content{given: b, size: int64(len(b))} }

// fill makes p the bytes from off on, which must all be there.
func (c content) fill(p []byte, off int64) {
	if c.key == nil {
		copy(p, c.given[off:])
		return
	}
	var counter [aes.BlockSize]byte
	binary.BigEndian.PutUint64(counter[8:], uint64(off/aes.BlockSize))
	stream := cipher.NewCTR(c.key, counter[:])
	if skip := off % aes.BlockSize; skip > 0 {
		var none [aes.BlockSize]byte
		stream.XORKeyStream(none[:skip], none[:skip])
	}
	clear(p)
	stream.XORKeyStream(p, p)
}

// describe reads it all once.
func (c content) describe() Blob {
	sum := newSum(true)
	buf := make([]byte, 64<<10)
	for off := int64(0); off < c.size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), c.size-off)]
		c.fill(p, off)
		sum.Write(p)
	}
	return Blob{Digest: digest.NewDigest(digest.SHA256, sum.sha), Size: c.size, Sum: sum.crc.Sum32()}
}

// reader is a content as http.ServeContent wants it.
type reader struct {
	content
	off int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.off >= r.size {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), r.size-r.off)]
	r.fill(p, r.off)
	r.off += int64(len(p))
	return len(p), nil
}

func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.off
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 {
		return 0, errors.New("before the beginning")
	}
	r.off = offset
	return offset, nil
}

// A sum sums up what is written to it.
type sum struct {
	crc  hash.Hash32
	sha  hash.Hash // nil: not wanted
	size int64
}

func newSum(sha bool) *sum {
	s := &sum{crc: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
	if sha {
		s.sha = sha256.New()
	}
	return s
}

func (s *sum) Write(p []byte) (int, error) {
	s.crc.Write(p)
	if s.sha != nil {
		s.sha.Write(p)
	}
	s.size += int64(len(p))
	return len(p), nil
}

// is reports whether b is what was written.
func (s *sum) is(b Blob) bool {
	return s.size == b.Size && s.crc.Sum32() == b.Sum &&
		(s.sha == nil || digest.NewDigest(digest.SHA256, s.sha) == b.Digest)
}
