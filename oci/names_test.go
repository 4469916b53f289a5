package oci

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// TestNamesOfNodes: what another node asks about is put into no address unless a
// client could have asked it.
func TestNamesOfNodes(t *testing.T) {
	u, err := NewUpstreams([]Registry{{Name: "up.test", URL: "http://127.0.0.1:1"}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromString("x")
	for _, n := range []registry.Name{
		{Space: Space, Repo: "up.test/a/../../admin", Ref: "3"},
		{Space: Space, Repo: "up.test/a?b", Ref: "3"},
		{Space: Space, Repo: "up.test/" + strings.Repeat("a", 300), Ref: "3"},
		{Space: Space, Repo: "up.test/a", Ref: "../../../admin"},
		{Space: Space, Repo: "up.test/a", Ref: "blobs/../../x"},
		{Space: Space, Repo: "up.test/a", Ref: "referrers/x"},
		{Space: Space, Repo: "up.test/a", Ref: "3?x=y"},
		{Space: Space, Repo: "up.test/a", Ref: ""},
	} {
		if _, _, err := u.Resolve(t.Context(), registry.Question{Name: n}); registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%v: %v", n, err)
		}
		if n.Repo == "up.test/a" {
			continue // what it wants is a digest
		}
		if _, err := u.Open(t.Context(), registry.Want{From: n, Descriptor: registry.Descriptor{Digest: d, Size: -1}, Length: -1}); registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("open by %v: %v", n, err)
		}
	}
	for _, ref := range []string{"3", "v1.0_a", string(d), blobsRef + string(d), tagsRef, referrersRef + string(d)} {
		if !validRef(ref) {
			t.Errorf("%q can be asked about", ref)
		}
	}
}
