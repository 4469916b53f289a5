package npm

import (
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// strength orders the algorithms a subresource integrity string may name.
var strength = map[string]int{"sha512": 4, "sha384": 3, "sha256": 2, "sha1": 1}

// tarballDigest is the digest by which a tarball is found and verified: the
// strongest hash of its integrity, of equally strong ones the first, or else
// its shasum. It is empty if there is none that is well-formed.
func tarballDigest(integrity, shasum string) digest.Digest {
	var best digest.Digest
	top := 0
	for _, word := range strings.Fields(integrity) {
		if d, s := sriDigest(word); s > top {
			best, top = d, s
		}
	}
	if best != "" {
		return best
	}
	if d := digest.Digest(string(registry.SHA1) + ":" + strings.ToLower(strings.TrimSpace(shasum))); registry.ValidDigest(d) {
		return d
	}
	return ""
}

// sriDigest is one hash of an integrity string ("sha512-BASE64?options") and
// its strength; zero if it is malformed or of no use.
func sriDigest(word string) (digest.Digest, int) {
	alg, sum, ok := strings.Cut(word, "-")
	s := strength[alg]
	if !ok || s == 0 {
		return "", 0
	}
	sum, _, _ = strings.Cut(sum, "?")
	raw, err := base64.StdEncoding.DecodeString(sum)
	if err != nil {
		if raw, err = base64.RawStdEncoding.DecodeString(sum); err != nil {
			return "", 0
		}
	}
	d := digest.Digest(alg + ":" + hex.EncodeToString(raw))
	if !registry.ValidDigest(d) {
		return "", 0
	}
	return d, s
}
