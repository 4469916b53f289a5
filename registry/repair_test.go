package registry_test

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
)

// TestRepair: what a tier has lost comes back through any name that stands for
// it, and only that.
func TestRepair(t *testing.T) {
	f := newFixture()
	other := registry.Name{Space: "oci", Repo: "r", Ref: "other"}
	f.up.docs[latest], f.up.docs[other] = "one", "two"
	f.get(t, latest)
	f.get(t, other)
	// The tier is lost, the names are not.
	f.Blobs = cachetiers.NewTier(new(cachetiers.Memory), f.up, cachetiers.Options{})
	unknown := digest.FromString("nobody's")
	repaired, err := f.Repair(t.Context(), []digest.Digest{digest.FromString("one"), unknown})
	if err != nil || len(repaired) != 1 || repaired[0] != digest.FromString("one") {
		t.Fatalf("repaired %v, %v", repaired, err)
	}
	if n := f.up.opens.Load(); n != 1 {
		t.Errorf("the upstream was asked for %d blobs, want 1", n)
	}
	if b, err := f.Blobs.Open(t.Context(), registry.Want{Descriptor: registry.Descriptor{Digest: digest.FromString("one"), Size: -1}}); err != nil || !b.Via().Hit() {
		t.Errorf("not in the tier again: %v", err)
	} else {
		b.Close()
	}
	f.up.fail = registry.Errorf(registry.ErrUnavailable, "down")
	if repaired, err := f.Repair(t.Context(), []digest.Digest{digest.FromString("two")}); err != nil || len(repaired) != 0 {
		t.Errorf("repaired %v from an upstream that is down, %v", repaired, err)
	}
}
