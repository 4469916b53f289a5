package peer

import (
	"cmp"
	"slices"
)

// rank orders nodes for a key by rendezvous hashing (Thaler and Ravishankar,
// "Using name-based mappings to increase hit rates", 1998): every node that
// knows the same addresses finds the same order, and one that comes or goes
// moves only the keys it owns. The hash is FNV-1a with a final mix, and not
// maphash, whose seed differs from process to process.
func rank(nodes []string, key string) []int {
	type scored struct {
		node  int
		score uint64
	}
	all := make([]scored, len(nodes))
	for i, n := range nodes {
		all[i] = scored{i, score(n, key)}
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), cmp.Compare(nodes[a.node], nodes[b.node]))
	})
	order := make([]int, len(all))
	for i, s := range all {
		order[i] = s.node
	}
	return order
}

func score(node, key string) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	for _, s := range [...]string{node, "\x00", key} {
		for i := 0; i < len(s); i++ {
			h = (h ^ uint64(s[i])) * prime
		}
	}
	// The last bytes have hardly reached the upper bits: mix (Stafford's mix 13).
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
