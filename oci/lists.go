package oci

import (
	"encoding/json"
	"io"
	"strings"

	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/registry"
)

// maxHeld is how many digests one document may make its repository hold: each
// is a binding to be written. The largest real indexes have some hundreds.
const maxHeld = 4096

// contents is what a manifest or an index lists, in either's form.
type contents struct {
	Manifests []v1.Descriptor `json:"manifests"` // an index's
	Config    *v1.Descriptor  `json:"config"`
	Layers    []v1.Descriptor `json:"layers"`
	Blobs     []v1.Descriptor `json:"blobs"` // an artifact manifest's (image-spec 1.1.0-rc)
}

// Lists implements registry.Space's field of that name: a manifest makes its
// repository hold itself, its config and layers, an index the manifests of
// known types in it. What is to be had elsewhere (a descriptor with urls) is not
// held; where the upstream has it all the same, it says so when asked.
func Lists(n registry.Name, b registry.Binding, doc io.Reader) ([]registry.Held, error) {
	if n.Ref == tagsRef || strings.HasPrefix(n.Ref, referrersRef) || strings.HasPrefix(n.Ref, blobsRef) {
		return nil, nil
	}
	data, err := io.ReadAll(doc)
	if err != nil {
		return nil, registry.Wrap(registry.ErrUnavailable, err, "read the manifest of "+n.String())
	}
	var c contents
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, registry.Wrap(registry.ErrInvalid, err, "parse the manifest of "+n.String())
	}
	var h held
	if n.Ref != string(b.Digest) && validDigest(string(b.Digest)) {
		// What a tag stands for will be asked for by digest next.
		h.add("", v1.Descriptor{Digest: b.Digest, Size: b.Size, MediaType: b.MediaType})
	}
	if c.Config != nil {
		h.add(blobsRef, *c.Config)
	}
	for _, d := range c.Layers {
		h.add(blobsRef, d)
	}
	for _, d := range c.Blobs {
		h.add(blobsRef, d)
	}
	for _, d := range c.Manifests {
		if knownManifest(d.MediaType) {
			h.add("", d)
		}
	}
	if h.bad != "" {
		return nil, registry.Errorf(registry.ErrInvalid, "the manifest of %v lists %s", n, h.bad)
	}
	return h.list, nil
}

// held gathers what is listed, each digest once.
type held struct {
	list []registry.Held
	seen map[string]bool
	bad  string // what makes no sense
}

func (h *held) add(prefix string, d v1.Descriptor) {
	ref := prefix + string(d.Digest)
	switch {
	case !validDigest(string(d.Digest)):
		h.bad = "something without a good digest"
	case d.Size < 0:
		h.bad = "something of a negative size"
	case len(h.list) >= maxHeld:
		h.bad = "too much"
	case len(d.URLs) > 0 || h.seen[ref]:
	default:
		if h.seen == nil {
			h.seen = map[string]bool{}
		}
		h.seen[ref] = true
		h.list = append(h.list, registry.Held{Ref: ref,
			Descriptor: registry.Descriptor{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}})
	}
}

// knownManifest reports whether a descriptor's media type is that of something
// which registries give under /manifests/ and with exactly that type.
func knownManifest(mediaType string) bool {
	switch mediaType {
	case v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, dockerList, dockerManifest:
		return true
	}
	return false
}
