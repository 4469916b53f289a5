package cachetiers_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
)

// damage is what a disk does to a file of size bytes, of which a blob is the
// first: a bit anywhere, and now and then worse.
func damage(t *testing.T, rng *rand.Rand, path string, blob int64) string {
	info, err := os.Stat(path)
	check(t, err)
	size := info.Size()
	switch n := rng.IntN(100); {
	case n < 70:
		flip(rng.Int64N(size))(t, path)
		return "a bit"
	case n < 80:
		flip(blob+rng.Int64N(size-blob))(t, path)
		return "a bit of checksums and footer"
	case n < 85:
		flip(size-1-rng.Int64N(24))(t, path)
		return "a bit of the footer"
	case n < 94:
		cut(rng.Int64N(size))(t, path)
		return "truncated"
	case n < 97:
		cut(0)(t, path)
		return "empty"
	}
	check(t, os.Remove(path))
	return "missing"
}

// served reads w and reports whether all of it came, and whether any byte that
// came was wrong.
func served(src registry.Source, w registry.Want, data []byte, byWriteTo bool) (whole, wrong bool, err error) {
	b, err := src.Open(context.Background(), w)
	if err != nil {
		return false, false, err
	}
	defer b.Close()
	var got bytes.Buffer
	if byWriteTo {
		_, err = b.WriteTo(&got)
	} else {
		_, err = got.ReadFrom(struct{ io.Reader }{b})
	}
	return err == nil && got.Len() == len(data), !bytes.HasPrefix(data, got.Bytes()), err
}

// TestThousandFlips damages 1,000 random places of a disk tier and of a durable
// store, while they are used and over restarts: each is detected, none reaches
// a reader, and all are healed from behind.
func TestThousandFlips(t *testing.T) {
	var sizes []int
	for i := range 40 {
		sizes = append(sizes, []int{700, 30_000, 4000, 262_144, 280_000, 9000, 60_000, 1}[i%8]+i)
	}
	sizes = append(sizes, 256<<10, 4<<20+100_000) // whole chunks; more than is checked at once
	quiet := slog.New(slog.DiscardHandler)
	for name, o := range map[string]cachetiers.DiskOptions{"disk tier": {Limit: 1 << 30, Log: quiet}, "durable store": {Durable: true, Log: quiet}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lib := newLibrary(5, sizes...)
			dir := tmpfs(t, "size=256m")
			rng := rand.New(rand.NewPCG(1, 2))
			var d *cachetiers.Disk
			var tier *cachetiers.Tier
			open := func() {
				var err error
				d, err = cachetiers.OpenDisk(dir, o)
				check(t, err)
				tier = cachetiers.NewTier(d, lib, cachetiers.Options{Name: name, Log: quiet})
			}
			open()
			for _, w := range lib.wants {
				read(t, tier, w)
			}
			const flips = 1000
			detected, wrongs, healed := 0, 0, 0
			kinds := map[string]int{}
			for i := range flips {
				w := lib.wants[rng.IntN(len(lib.wants))]
				data := lib.blobs[w.Digest]
				over := i%50 == 0 // a restart
				if over {
					check(t, d.Close())
				}
				kind := damage(t, rng, blobFile(dir, w), w.Size)
				kinds[kind]++
				if over {
					open()
				}
				before := lib.opens.Load()
				whole, wrong, err := served(tier, w, data, i%2 == 0)
				if wrong || !whole {
					wrongs++
					t.Errorf("%d, %s of %s: whole %v, wrong %v: %v", i, kind, w.Digest, whole, wrong, err)
				}
				if lib.opens.Load() == before+1 {
					detected++
				} else {
					t.Errorf("%d, %s of %s (%d bytes): not detected", i, kind, w.Digest, w.Size)
				}
				if got, err := readErr(d, w); err == nil && bytes.Equal(got, data) {
					healed++
				} else if !errors.Is(err, registry.ErrNotFound) {
					t.Errorf("%d, %s: %v", i, kind, err)
				}
			}
			check(t, d.Close())
			t.Logf("%d damages %v: %d detected, %d served, %d healed", flips, kinds, detected, wrongs, healed)
			if detected != flips || wrongs != 0 || healed != flips {
				t.Error("not all of them")
			}
		})
	}
}
