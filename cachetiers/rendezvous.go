package cachetiers

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"slices"
)

// rendezvous is all in the order in which key belongs to them (Thaler and
// Ravishankar, 1998; weights as Schindelhauer and Schomaker, 2005): each draws a
// number from key and its own name, and the highest has it. So one that is
// added or taken away moves only its own share. of gives a name, the same in
// every process, and a weight above 0: with twice the weight it is first for
// twice as many keys.
func rendezvous[T any](all []T, key string, of func(T) (name string, weight float64)) []T {
	type drawn struct {
		one   T
		score float64
	}
	draws := make([]drawn, len(all))
	for i, one := range all {
		name, weight := of(one)
		sum := sha256.Sum256([]byte(name + "\x00" + key))
		// In (0, 1): neither end, so that the logarithm is finite and not 0.
		u := (float64(binary.BigEndian.Uint64(sum[:])>>11) + 0.5) / (1 << 53)
		draws[i] = drawn{one, -weight / math.Log(u)}
	}
	slices.SortStableFunc(draws, func(a, b drawn) int { return cmp.Compare(b.score, a.score) })
	ranked := make([]T, len(all))
	for i, d := range draws {
		ranked[i] = d.one
	}
	return ranked
}
