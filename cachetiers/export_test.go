package cachetiers

import (
	"crypto/sha256"
	"slices"

	"github.com/opencontainers/go-digest"
)

// Injected is o with f in the way of every operation on files: f does it by
// calling do, or not.
func (o DiskOptions) Injected(f func(op, path string, do func() error) error) DiskOptions {
	o.inject = f
	return o
}

// Rendezvous is rendezvous over names with weights.
func Rendezvous(names []string, weights map[string]float64, key string) []string {
	return rendezvous(names, key, func(n string) (string, float64) { return n, weights[n] })
}

// FileOf is a blob's file with checksums that fit data, whatever dg is.
func FileOf(dg digest.Digest, data []byte) []byte {
	c := &contents{size: int64(len(data)), hash: sha256.New()}
	c.add(data)
	return appendTail(slices.Clone(data), dg, c.sums, c.size)
}
