package entitle

import "math/bits"

// Odd numbers without a pattern in them.
const (
	fold1 = 0x9e3779b97f4a7c15
	fold2 = 0xc2b2ae3d27d4eb4f
	fold3 = 0xd6e8feb86659fd93
)

// fold mixes all bits of x.
func fold(x, by uint64) uint64 {
	hi, lo := bits.Mul64(x, by)
	return hi ^ lo
}

// A prefixes hashes the beginnings of a name, one after the other and each longer
// than the one before, at the cost of about one hash of the whole. The hash finds
// things and decides nothing: what is found is compared.
type prefixes struct {
	s     string
	at    int    // how much of s is in state: a multiple of 8
	state uint64 // begins as a hash of the space
}

// hash is that of the first n bytes.
func (p *prefixes) hash(n int) uint64 {
	for ; p.at+8 <= n; p.at += 8 {
		p.state = fold(p.state^load(p.s[p.at:p.at+8]), fold1)
	}
	var tail uint64
	if left := n - p.at; p.at+8 <= len(p.s) {
		tail = load(p.s[p.at:p.at+8]) & (1<<(8*left) - 1)
	} else {
		for i := range left {
			tail |= uint64(p.s[p.at+i]) << (8 * i)
		}
	}
	return fold(p.state^tail+uint64(n), fold2)
}

// load is the 8 bytes of s.
func load(s string) uint64 {
	_ = s[7]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}
