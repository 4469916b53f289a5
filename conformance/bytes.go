package conformance

import (
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// descriptorOf hashes data with alg ("" is SHA-256).
func descriptorOf(alg digest.Algorithm, data []byte) registry.Descriptor {
	if alg == "" {
		alg = digest.SHA256
	}
	widths := map[digest.Algorithm]int{digest.SHA256: 64, digest.SHA384: 96, digest.SHA512: 128, registry.SHA1: 40}
	zeros := make([]byte, widths[alg])
	for i := range zeros {
		zeros[i] = '0'
	}
	h, err := registry.NewHash(digest.Digest(string(alg) + ":" + string(zeros)))
	if err != nil {
		panic(err)
	}
	h.Write(data)
	return registry.Descriptor{Digest: registry.Sum(alg, h), Size: int64(len(data))}
}

// Bytes returns n bytes that look random and are the same in every run with
// one seed: content that does not compress and in which a shifted or missing
// run shows.
func Bytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	data := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for j := range 8 {
			data[i+j] = byte(v >> (8 * j))
		}
	}
	for i := n &^ 7; i < n; i++ {
		data[i] = byte(r.Uint32())
	}
	return data
}

// Describe is the descriptor of data by SHA-256.
func Describe(mediaType string, data []byte) registry.Descriptor {
	d := descriptorOf("", data)
	d.MediaType = mediaType
	return d
}

func equalBytes(t *testing.T, got, want []byte, what string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d bytes, want %d", what, len(got), len(want))
		return
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s: byte %d is %#x, want %#x", what, i, got[i], want[i])
			return
		}
	}
}
