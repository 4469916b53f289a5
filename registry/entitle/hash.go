package entitle

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
)

// A sum is the hash of a set of records: the SHA-256 of each, added up modulo
// 2^256. So it follows a change at the cost of what is changed, and the order in
// which records came does not matter. It finds copies that have come apart and
// bytes that were damaged; against somebody who may choose records freely it is
// not meant to hold, who could as well grant himself what he likes.
type sum [4]uint64

// digest is the hash of one record.
func digest(key string, value []byte, rev uint64) sum {
	var stack [1024]byte
	b := binary.BigEndian.AppendUint64(stack[:0], rev)
	b = binary.BigEndian.AppendUint32(b, uint32(len(key)))
	b = append(b, key...)
	b = append(b, value...)
	h := sha256.Sum256(b)
	var s sum
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(h[8*i:])
	}
	return s
}

func (s *sum) add(o sum) {
	var carry uint64
	for i := range s {
		s[i], carry = bits.Add64(s[i], o[i], carry)
	}
}

func (s *sum) sub(o sum) {
	var borrow uint64
	for i := range s {
		s[i], borrow = bits.Sub64(s[i], o[i], borrow)
	}
}

func (s sum) String() string {
	var b [32]byte
	for i := range s {
		binary.LittleEndian.PutUint64(b[8*i:], s[i])
	}
	return hex.EncodeToString(b[:])
}
