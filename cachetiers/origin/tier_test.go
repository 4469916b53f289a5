package origin_test

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/origin"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// TestTwoRegions wires nodes as main does: a tier, a Keeper, the upstreams. The
// second region fills from the bucket; and a blob that is damaged in the bucket
// is refused once, had from the upstream, and replaced.
func TestTwoRegions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bucket := new(origin.MemoryBucket)
		data := conformance.Bytes(1, 300_000)
		up := newShelf("upstream", data)
		d := conformance.Describe("", data)
		meter := new(events)
		region := func() *cachetiers.Tier {
			keeper := origin.NewKeeper(newStore(t, bucket), up, origin.KeeperOptions{Name: "test", Meter: meter})
			near := new(cachetiers.Memory)
			keeper.From(near)
			t.Cleanup(func() { keeper.Close(context.Background()) })
			return cachetiers.NewTier(near, keeper, cachetiers.Options{Landed: keeper.Landed})
		}
		pull := func(tier *cachetiers.Tier) ([]byte, error) {
			got, err := read(tier, d, 0, -1)
			synctest.Wait()
			return got, err
		}
		for i, opens := range []int64{1, 1, 1} {
			if got, err := pull(region()); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("region %d: %d bytes, %v", i, len(got), err)
			}
			if n := up.opens.Load(); n != opens {
				t.Errorf("region %d: the upstream was asked %d times, want %d", i, n, opens)
			}
		}
		wrong := bytes.Clone(data)
		wrong[0] ^= 1
		bucket.Spoil(keyOf(d), wrong)
		tier := region()
		// If it is found out before the reader has been given anything, the tier
		// asks again by itself; else the reader is cut off.
		if got, err := pull(tier); err == nil && !bytes.Equal(got, data) {
			t.Error("wrong bytes, whole")
		} else if err != nil {
			wantKind(t, err, registry.ErrCorrupt, "damaged in the bucket")
		}
		if got, err := pull(tier); err != nil || !bytes.Equal(got, data) || up.opens.Load() != 2 {
			t.Errorf("again: %d bytes, %v, upstream asked %d times", len(got), err, up.opens.Load())
		}
		if got, err := pull(region()); err != nil || !bytes.Equal(got, data) || up.opens.Load() != 2 {
			t.Errorf("the next region: %d bytes, %v, upstream asked %d times", len(got), err, up.opens.Load())
		}
		if meter.count("origin corrupt") != 1 || meter.count("kept") != 2 {
			t.Errorf("events: %v", meter.n)
		}
	})
}
