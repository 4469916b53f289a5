package registry

import (
	"crypto"
	_ "crypto/sha1" // for NewHash
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"

	"github.com/opencontainers/go-digest"
)

// SHA1 is the algorithm of npm's dist.shasum, the only checksum that packages
// published before 2017 have. go-digest leaves it out for good reason: it is
// accepted for bytes that an upstream names by it, never from a client, and
// such bytes are found only under their SHA-1, so that a collision can harm no
// one but the package that was published with it.
const SHA1 digest.Algorithm = "sha1"

// NewHash returns a hash for d's algorithm, or ErrInvalid for a digest that is
// not well-formed or whose algorithm is unknown. It is the one place that says
// which digests weir accepts.
func NewHash(d digest.Digest) (hash.Hash, error) {
	alg, hexes, ok := strings.Cut(string(d), ":")
	if !ok {
		return nil, Errorf(ErrInvalid, "digest %q has no algorithm", clip(string(d)))
	}
	var h crypto.Hash
	switch digest.Algorithm(alg) {
	case digest.SHA256:
		h = crypto.SHA256
	case digest.SHA384:
		h = crypto.SHA384
	case digest.SHA512:
		h = crypto.SHA512
	case SHA1:
		h = crypto.SHA1
	default:
		return nil, Errorf(ErrInvalid, "digest %q is of an unknown algorithm", clip(string(d)))
	}
	if len(hexes) != 2*h.Size() || !lowerHex(hexes) {
		return nil, Errorf(ErrInvalid, "digest %q is malformed", clip(string(d)))
	}
	return h.New(), nil
}

// ValidDigest reports whether d is well-formed and of a known algorithm.
func ValidDigest(d digest.Digest) bool {
	alg, hexes, _ := strings.Cut(string(d), ":")
	switch digest.Algorithm(alg) {
	case digest.SHA256:
		return len(hexes) == 64 && lowerHex(hexes)
	case digest.SHA384:
		return len(hexes) == 96 && lowerHex(hexes)
	case digest.SHA512:
		return len(hexes) == 128 && lowerHex(hexes)
	case SHA1:
		return len(hexes) == 40 && lowerHex(hexes)
	}
	return false
}

// Sum is the digest of what h has been given so far, with alg as its prefix.
func Sum(alg digest.Algorithm, h hash.Hash) digest.Digest {
	return digest.Digest(string(alg) + ":" + hex.EncodeToString(h.Sum(nil)))
}

// AlgorithmOf is the part of d before the colon; SHA-256 if d is empty.
func AlgorithmOf(d digest.Digest) digest.Algorithm {
	if alg, _, ok := strings.Cut(string(d), ":"); ok {
		return digest.Algorithm(alg)
	}
	return digest.SHA256
}

func lowerHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// clip keeps a client's words short enough for a log line.
func clip(s string) string {
	if len(s) > 160 {
		return fmt.Sprintf("%s… (%d bytes)", s[:160], len(s))
	}
	return s
}
