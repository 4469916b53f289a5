package registry_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// TestDigestsMeanThemselves: whoever answers a digest with other bytes is not
// believed, and nothing is bound.
func TestDigestsMeanThemselves(t *testing.T) {
	f := newFixture()
	n := registry.Name{Space: "test", Repo: "r", Ref: "sha256:x"}
	for space, sp := range f.Spaces {
		n.Space = space
		sp.Means = func(registry.Name) digest.Digest { return digest.FromString("right") }
		f.Spaces[space] = sp
	}
	f.up.docs[n] = "wrong"
	if _, _, err := f.Document(t.Context(), &registry.Call{Action: registry.Pull, Name: n}); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("wrong bytes: %v", err)
	}
	if b, err := f.names.Lookup(t.Context(), n); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("bound to %+v, %v", b, err)
	}
	f.up.docs[n] = "right"
	doc, _, err := f.Document(t.Context(), &registry.Call{Action: registry.Pull, Name: n})
	if err != nil {
		t.Fatal(err)
	}
	doc.Close()
}
