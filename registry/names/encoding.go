package names

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// A value in the database, version 1:
//
//	byte     version
//	4 bytes  CRC-32C of all that follows, big-endian
//	uvarint  revision
//	byte     flags: 1 listed, 2 Checked is set, 4 Fresh is set, 8 shown
//	varint   size
//	varint, uvarint  Checked: seconds since 1970 and nanoseconds, if set
//	varint, uvarint  Fresh, likewise
//	uvarint ×4  lengths of digest, media type, validator, location
//	the four texts, one after the other
//
// The texts come last so that a reader makes one string of them all. The
// checksum is what notices a damaged page: a bit flipped in a digest would
// otherwise be another digest.
//
// Flags are added without a new version: what wrote a value before there was a
// flag did not set it, and what reads one that it does not know passes over it.
const version = 1

const (
	flagListed  = 1
	flagChecked = 2
	flagFresh   = 4
	flagShown   = 8
)

var errDamaged = errors.New("binding is damaged")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode appends b with its revision to buf.
func encode(buf []byte, b registry.Binding, rev uint64) []byte {
	start := len(buf)
	buf = append(buf, version, 0, 0, 0, 0)
	buf = binary.AppendUvarint(buf, rev)
	var flags byte
	if b.Listed {
		flags |= flagListed
	}
	if b.Shown {
		flags |= flagShown
	}
	if !b.Checked.IsZero() {
		flags |= flagChecked
	}
	if !b.Fresh.IsZero() {
		flags |= flagFresh
	}
	buf = append(buf, flags)
	buf = binary.AppendVarint(buf, b.Size)
	if flags&flagChecked != 0 {
		buf = appendTime(buf, b.Checked)
	}
	if flags&flagFresh != 0 {
		buf = appendTime(buf, b.Fresh)
	}
	texts := [...]string{string(b.Digest), b.MediaType, b.Validator, b.Location}
	for _, s := range texts {
		buf = binary.AppendUvarint(buf, uint64(len(s)))
	}
	for _, s := range texts {
		buf = append(buf, s...)
	}
	binary.BigEndian.PutUint32(buf[start+1:], crc32.Checksum(buf[start+5:], castagnoli))
	return buf
}

func appendTime(buf []byte, t time.Time) []byte {
	buf = binary.AppendVarint(buf, t.Unix())
	return binary.AppendUvarint(buf, uint64(t.Nanosecond()))
}

// decode reads what encode wrote; anything else is errDamaged. It keeps
// nothing of v, which is the database's memory.
func decode(v []byte) (b registry.Binding, rev uint64, err error) {
	if len(v) < 5 || v[0] != version || binary.BigEndian.Uint32(v[1:]) != crc32.Checksum(v[5:], castagnoli) {
		return registry.Binding{}, 0, errDamaged
	}
	return decodeFields(v[5:])
}

func decodeFields(v []byte) (b registry.Binding, rev uint64, err error) {
	d := decoder{rest: v}
	rev = d.uvarint()
	flags := d.byte()
	b.Listed = flags&flagListed != 0
	b.Shown = flags&flagShown != 0
	b.Size = d.varint()
	if flags&flagChecked != 0 {
		b.Checked = d.time()
	}
	if flags&flagFresh != 0 {
		b.Fresh = d.time()
	}
	var lengths [4]int
	total := 0
	for i := range lengths {
		n := d.uvarint()
		if n > uint64(len(v)) {
			d.bad = true
			break
		}
		lengths[i] = int(n)
		total += int(n)
	}
	if d.bad || total != len(d.rest) {
		return registry.Binding{}, 0, errDamaged
	}
	text := string(d.rest)
	next := func(i int) string {
		s := text[:lengths[i]]
		text = text[lengths[i]:]
		return s
	}
	b.Digest = digest.Digest(next(0))
	b.MediaType, b.Validator, b.Location = next(1), next(2), next(3)
	b.Rev = strconv.FormatUint(rev, 36)
	if !registry.ValidDigest(b.Digest) {
		return registry.Binding{}, 0, errDamaged
	}
	return b, rev, nil
}

// A decoder takes numbers off the front of rest; bad is set once one is not
// there, and everything is zero from then on.
type decoder struct {
	rest []byte
	bad  bool
}

func (d *decoder) byte() byte {
	if d.bad || len(d.rest) == 0 {
		d.bad = true
		return 0
	}
	c := d.rest[0]
	d.rest = d.rest[1:]
	return c
}

func (d *decoder) uvarint() uint64 {
	n, size := binary.Uvarint(d.rest)
	if d.bad || size <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) varint() int64 {
	n, size := binary.Varint(d.rest)
	if d.bad || size <= 0 {
		d.bad = true
		return 0
	}
	d.rest = d.rest[size:]
	return n
}

func (d *decoder) time() time.Time {
	sec, nsec := d.varint(), d.uvarint()
	if nsec >= 1e9 {
		d.bad = true
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec)).UTC()
}
