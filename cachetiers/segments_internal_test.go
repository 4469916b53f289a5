package cachetiers

import (
	"bytes"
	"context"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// FuzzParsePartial: nothing is read from a log that goes beyond the blob, and a
// log of another blob is not read at all.
func FuzzParsePartial(f *testing.F) {
	const segment = 256 << 10
	log := func(d registry.Descriptor, records ...[3]uint32) []byte {
		b := partialHead(d, segment)
		for _, r := range records {
			b = appendRecord(b, d.Digest, int(r[0]), int64(r[1]), r[2])
		}
		return b
	}
	d := registry.Descriptor{Digest: "sha256:a", Size: 3*segment + 5}
	f.Add(log(d), d.Size)
	f.Add(log(d, [3]uint32{0, segment, 7}, [3]uint32{3, 5, 8}, [3]uint32{3, 4, 9}), d.Size)
	f.Add(log(d, [3]uint32{3, 6, 1}, [3]uint32{1 << 31, 1, 1}, [3]uint32{4, 0, 1}, [3]uint32{0, segment + 1, 1}), d.Size)
	f.Add(append(log(d, [3]uint32{1, 1, 1}), "torn"...), d.Size)
	f.Add(log(registry.Descriptor{Digest: "sha256:a", Size: 1 << 43}, [3]uint32{1<<25 - 1, segment, 1}), int64(1<<43))
	f.Add([]byte(partialMagic), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 0 || size > maxSegmented {
			return
		}
		d := registry.Descriptor{Digest: "sha256:a", Size: size}
		found, ok := parsePartial(b, d, segment)
		if ok != bytes.HasPrefix(b, partialHead(d, segment)) {
			t.Errorf("a log that begins with %x: %v", b[:min(len(b), partialHeader)], ok)
		}
		for k, p := range found {
			if k < 0 || p.have < 0 || p.have > segment || int64(k)*segment+p.have > size {
				t.Errorf("%d bytes of segment %d of a blob of %d", p.have, k, size)
			}
		}
		if len(found) > len(b)/partialRecord {
			t.Errorf("%d records in %d bytes", len(found), len(b))
		}
		if ok {
			other := registry.Descriptor{Digest: "sha256:b", Size: size}
			for _, o := range []registry.Descriptor{other, {Digest: d.Digest, Size: size + 1}} {
				if _, ok := parsePartial(b, o, segment); ok {
					t.Errorf("a log of %v was read as one of %v", d, o)
				}
			}
			if _, ok := parsePartial(b, d, 2*segment); ok {
				t.Error("a log was read for segments of another size")
			}
		}
	})
}

// TestParsePartial: of several records about a segment the last counts, and
// those that make no sense are passed over.
func TestParsePartial(t *testing.T) {
	const segment = 256 << 10
	d := registry.Descriptor{Digest: "sha256:a", Size: 2*segment + 5}
	b := partialHead(d, segment)
	for _, r := range [][3]uint32{{0, 10, 1}, {2, 6, 2}, {0, 20, 3}, {3, 1, 4}, {1, segment, 5}, {1, segment + 1, 6}, {2, 5, 7}} {
		b = appendRecord(b, d.Digest, int(r[0]), int64(r[1]), r[2])
	}
	found, ok := parsePartial(b, d, segment)
	want := map[int]partial{0: {20, 3}, 1: {segment, 5}, 2: {5, 7}}
	if !ok || len(found) != len(want) {
		t.Fatalf("%v, %v", found, ok)
	}
	for k, p := range want {
		if found[k] != p {
			t.Errorf("segment %d: %v, want %v", k, found[k], p)
		}
	}
}

// source gives data and counts what it gives.
type source struct {
	data  []byte
	bytes atomic.Int64
	fails error
}

func (s *source) Open(_ context.Context, w registry.Want) (registry.Blob, error) {
	if s.fails != nil {
		return nil, s.fails
	}
	d := w.Descriptor
	d.Size = int64(len(s.data))
	off, n, ok := w.Clip(d.Size)
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "past the end")
	}
	return &counted{registry.NewBytesBlob(s.data, d, off, n, registry.Via{Fwd: "miss"}), s}, nil
}

type counted struct {
	registry.Blob
	s *source
}

func (b *counted) Read(p []byte) (int, error) {
	n, err := b.Blob.Read(p[:min(len(p), 10_000)])
	b.s.bytes.Add(int64(n))
	return n, err
}

// fills is a Disk that is full, as its file system says, after so many bytes
// of a blob in segments.
type fills struct {
	*Disk
	room atomic.Int64
}

func (d *fills) stageSegments(ctx context.Context, expect registry.Descriptor, segment int64) (segmentStage, map[int]partial, error) {
	s, left, err := d.Disk.stageSegments(ctx, expect, segment)
	if err != nil {
		return nil, nil, err
	}
	return &filling{s, d}, left, nil
}

type filling struct {
	segmentStage
	d *fills
}

func (s *filling) place(p []byte, off int64) error {
	if s.d.room.Add(-int64(len(p))) < 0 {
		return registry.Errorf(registry.ErrNoRoom, "no space left on device")
	}
	return s.segmentStage.place(p, off)
}

func testOptions() Options {
	return Options{Name: "disk", SegmentFrom: 1 << 20, Segment: chunkBytes, Streams: 4}
}

func testWant(data []byte, off, n int64) registry.Want {
	return registry.Want{Descriptor: registry.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}, Offset: off, Length: n}
}

func testRead(t *testing.T, src registry.Source, data []byte, off, n int64) {
	t.Helper()
	b, err := src.Open(t.Context(), testWant(data, off, n))
	if err != nil {
		t.Error(err)
		return
	}
	defer b.Close()
	got, err := io.ReadAll(b)
	if n < 0 {
		n = int64(len(data)) - off
	}
	if err != nil || !bytes.Equal(got, data[off:off+n]) {
		t.Errorf("%d bytes at %d of %d, %v", len(got), off, n, err)
	}
}

// TestFullInTheMiddle: when there is no room for the rest, readers go on from
// the far side; what is there is not lost when there is room again.
func TestFullInTheMiddle(t *testing.T) {
	d, err := OpenDisk(t.TempDir(), DiskOptions{Limit: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	data := conformance.Bytes(1, 3<<20)
	near := &fills{Disk: d}
	near.room.Store(1 << 20)
	f := &source{data: data}
	tier := NewTier(near, f, testOptions())
	var wg sync.WaitGroup
	for i := range int64(8) {
		wg.Go(func() { testRead(t, tier, data, i*300_000, -1) })
		wg.Go(func() { testRead(t, tier, data, i*300_000, 100_000) })
	}
	wg.Wait()
	near.room.Store(1 << 30)
	f.bytes.Store(0)
	testRead(t, tier, data, 0, -1)
	if got := f.bytes.Load(); got > int64(len(data))-(1<<20)+4*10_000 {
		t.Errorf("%d bytes were fetched of which 1 MiB was there", got)
	}
	testRead(t, d, data, 0, -1)
}

// TestAllThere: what was cut off with all its bytes there, just before it was
// made a blob, becomes one without the far side, whatever run is asked for.
func TestAllThere(t *testing.T) {
	dir := t.TempDir()
	d, err := OpenDisk(dir, DiskOptions{Limit: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	data := conformance.Bytes(2, 2<<20+1)
	w := testWant(data, 0, -1)
	s, _, err := d.stageSegments(t.Context(), w.Descriptor, chunkBytes)
	if err != nil {
		t.Fatal(err)
	}
	for k := range 9 {
		part := data[k*chunkBytes : min((k+1)*chunkBytes, len(data))]
		if err := s.place(part, int64(k)*chunkBytes); err != nil {
			t.Fatal(err)
		}
		s.mark(k, int64(len(part)), crc32.Checksum(part, castagnoli()))
	}
	s.park()
	s.Close()
	tier := NewTier(d, &source{fails: registry.Errorf(registry.ErrUnavailable, "down")}, testOptions())
	landed := make(chan struct{})
	tier.o.Landed = func(registry.Descriptor, registry.Name, registry.Via) { close(landed) }
	testRead(t, tier, data, 5*chunkBytes, 10)
	<-landed
	testRead(t, d, data, 0, -1)
}
