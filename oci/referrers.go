package oci

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	"github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/weir-registry/weir/registry"
)

// An index is an image index whose descriptors keep fields that weir does not
// know.
type index struct {
	specs.Versioned
	MediaType string            `json:"mediaType"`
	Manifests []json.RawMessage `json:"manifests"`
}

func newIndex(manifests []json.RawMessage) index {
	if manifests == nil {
		manifests = []json.RawMessage{}
	}
	return index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: manifests}
}

// referrers gets the index of what refers to d: from the referrers API, or
// where the upstream has none, from the tag that clients keep it under
// (distribution-spec, "Referrers Tag Schema"). No referrers is an empty index if
// have says that it is to be kept: for a digest that the repository holds.
// Otherwise it is ErrNotFound, which is remembered for a while instead of being
// bound for good: there is no end to the digests that can be asked about.
func (rm *remote) referrers(ctx context.Context, repo string, d digest.Digest, have registry.Binding) (registry.Binding, io.ReadCloser, error) {
	if !validDigest(string(d)) {
		return registry.Binding{}, nil, registry.Errorf(registry.ErrInvalid, "%q is not a digest", clip(string(d)))
	}
	supported := false
	list, err := rm.index(ctx, repo, referrersRef+string(d), func(resp *http.Response) bool {
		supported = !noReferrers(resp)
		return supported
	})
	if err == nil && !supported {
		list, err = rm.index(ctx, repo, "manifests/"+referrersTag(d), func(resp *http.Response) bool {
			return resp.StatusCode != http.StatusNotFound && (resp.StatusCode != http.StatusOK || isIndex(resp))
		})
	}
	if err != nil {
		return registry.Binding{}, nil, err
	}
	if len(list) == 0 && have.MediaType == "" {
		return registry.Binding{}, nil, registry.Errorf(registry.ErrNotFound, "nothing refers to %s", d)
	}
	return composed(v1.MediaTypeImageIndex, newIndex(list))
}

// noReferrers reports whether an answer comes from a registry that does not
// have the API: its 404 for an unknown path, or a page that is no index.
func noReferrers(resp *http.Response) bool {
	switch resp.StatusCode {
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	case http.StatusOK:
		return !isIndex(resp)
	}
	return false
}

func isIndex(resp *http.Response) bool {
	mediaType, _ := manifestType(resp)
	return mediaType == v1.MediaTypeImageIndex
}

// index gets the descriptors of all pages of an index.
func (rm *remote) index(ctx context.Context, repo, what string, first func(*http.Response) bool) ([]json.RawMessage, error) {
	var all []json.RawMessage
	room := int64(maxManifest)
	err := rm.pages(ctx, repo, what, http.Header{"Accept": {v1.MediaTypeImageIndex}}, first, func(resp *http.Response) error {
		var page index
		if err := readJSON(resp.Body, &room, &page); err != nil {
			return err
		}
		for _, raw := range page.Manifests {
			var desc v1.Descriptor
			if json.Unmarshal(raw, &desc) == nil && validDigest(string(desc.Digest)) && desc.Size >= 0 {
				all = append(all, raw)
			}
		}
		return nil
	})
	return all, err
}

// referrersTag is the tag under which clients keep the referrers of d where
// there is no API: the algorithm cut to 32 bytes, a dash, the encoding cut to
// 64, and "-" for what may not be in a tag.
func referrersTag(d digest.Digest) string {
	alg, enc, _ := strings.Cut(string(d), ":")
	tag := alg[:min(len(alg), 32)] + "-" + enc[:min(len(enc), 64)]
	return strings.Map(func(c rune) rune {
		if c < 128 && validTag("a"+string(c)) {
			return c
		}
		return '-'
	}, tag)
}

// ofType keeps the descriptors of one artifact type.
func ofType(doc io.Reader, artifactType string) (index, error) {
	var all index
	if err := json.NewDecoder(doc).Decode(&all); err != nil {
		return index{}, registry.Wrap(registry.ErrUnavailable, err, "read the list of referrers")
	}
	var some []json.RawMessage
	for _, raw := range all.Manifests {
		var desc v1.Descriptor
		if json.Unmarshal(raw, &desc) == nil && desc.ArtifactType == artifactType {
			some = append(some, raw)
		}
	}
	return newIndex(some), nil
}
