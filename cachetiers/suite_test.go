package cachetiers_test

import (
	"context"
	"testing"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// nothing is a far side that has nothing.
type nothing struct{}

func (nothing) Open(context.Context, registry.Want) (registry.Blob, error) {
	return nil, registry.Errorf(registry.ErrNotFound, "nothing is here")
}

func openDisk(t *testing.T, dir string, limit int64) *cachetiers.Disk {
	t.Helper()
	d, err := cachetiers.OpenDisk(dir, cachetiers.DiskOptions{Limit: limit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestMemoryIsAStore(t *testing.T) {
	conformance.TestStore(t, func(*testing.T) registry.Store { return new(cachetiers.Memory) })
}

func TestDiskIsAStore(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T) registry.Store { return openDisk(t, t.TempDir(), 1<<30) })
}

func TestTierIsAStore(t *testing.T) {
	conformance.TestStore(t, func(t *testing.T) registry.Store {
		disk := cachetiers.NewTier(openDisk(t, t.TempDir(), 1<<30), nothing{}, cachetiers.Options{Name: "disk"})
		return cachetiers.NewTier(new(cachetiers.Memory), disk, cachetiers.Options{Name: "memory",
			Keep: func(w registry.Want) bool { return w.Size >= 0 && w.Size <= 1<<20 }})
	})
}
