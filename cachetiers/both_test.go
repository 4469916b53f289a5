package cachetiers_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// TestStagedNearToo: a small blob that is staged is behind, which counts, and
// near at once; a large one, one of unknown size and one that turns out wrong are
// not near.
func TestStagedNearToo(t *testing.T) {
	disk := openDisk(t, t.TempDir(), 1<<30)
	memory := new(cachetiers.Memory)
	tier := cachetiers.NewTier(memory, cachetiers.NewTier(disk, nothing{}, cachetiers.Options{}), cachetiers.Options{
		Keep: func(w registry.Want) bool { return w.Size >= 0 && w.Size <= 1000 }})
	for name, c := range map[string]struct {
		size, announced int64
		wrong, near     bool
	}{
		"small":   {size: 1000, announced: 1000, near: true},
		"large":   {size: 1001, announced: 1001},
		"unknown": {size: 10, announced: -1},
		"wrong":   {size: 10, announced: 10, wrong: true},
	} {
		data := conformance.Bytes(uint64(c.size), int(c.size))
		d := registry.Descriptor{Digest: digest.FromBytes(data), Size: c.announced}
		if c.wrong {
			d.Digest = digest.FromString("something else")
		}
		stage, err := tier.Stage(context.Background(), d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stage.Write(data); err != nil {
			t.Fatal(err)
		}
		if _, err := memory.Open(context.Background(), registry.Want{Descriptor: d, Length: -1}); err == nil {
			t.Errorf("%s: near before it was committed", name)
		}
		_, err = stage.Commit(context.Background())
		if stage.Close(); (err != nil) != c.wrong {
			t.Fatalf("%s: %v", name, err)
		}
		d.Size = c.size
		w := registry.Want{Descriptor: d, Length: -1}
		if b, err := memory.Open(context.Background(), w); (err == nil) != c.near {
			t.Errorf("%s is near: %v", name, err == nil)
		} else if err == nil {
			b.Close()
		}
		if c.wrong {
			continue
		}
		if got := read(t, disk, w); !bytes.Equal(got, data) {
			t.Errorf("%s: not behind", name)
		}
	}
}

// TestStagedNearFails: a near store without room costs the one behind nothing.
func TestStagedNearFails(t *testing.T) {
	disk := openDisk(t, t.TempDir(), 1<<30)
	data := conformance.Bytes(1, 5000)
	w := want(data, 0, -1)
	tier := cachetiers.NewTier(cachetiers.NewMemory(4000), cachetiers.NewTier(disk, nothing{}, cachetiers.Options{}), cachetiers.Options{
		Keep: func(registry.Want) bool { return true }})
	stage, err := tier.Stage(context.Background(), w.Descriptor)
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Close()
	for _, part := range [][]byte{data[:2500], data[2500:]} {
		if _, err := stage.Write(part); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := stage.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, disk, w); !bytes.Equal(got, data) {
		t.Error("not behind")
	}
}
