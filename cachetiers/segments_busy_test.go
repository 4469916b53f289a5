package cachetiers_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
)

// busySource gives runs of data to a few at once and refuses the others.
type busySource struct {
	data    []byte
	room    int64
	slow    time.Duration // a run takes this long
	open    atomic.Int64
	refused atomic.Int64
}

func (s *busySource) Open(_ context.Context, w registry.Want) (registry.Blob, error) {
	if s.open.Add(1) > s.room {
		s.open.Add(-1)
		s.refused.Add(1)
		return nil, &registry.Error{Kind: registry.ErrUnavailable, Text: "busy", After: 2e9}
	}
	d := w.Descriptor
	d.Size = int64(len(s.data))
	return &busyBlob{registry.NewBytesBlob(s.data, d, w.Offset, w.Length, registry.Via{Fwd: "miss", Detail: "upstream"}), s, s.slow}, nil
}

type busyBlob struct {
	registry.Blob
	s    *busySource
	slow time.Duration // the first read still takes this long
}

func (b *busyBlob) Read(p []byte) (int, error) {
	<-time.After(b.slow)
	b.slow = 0
	return b.Blob.Read(p)
}

func (b *busyBlob) Close() error { b.s.open.Add(-1); return b.Blob.Close() }

// TestBusyUpstream: a fill that has begun does not end because the upstream
// has no room for all of its segments at once, for a while or for good.
func TestBusyUpstream(t *testing.T) {
	for name, far := range map[string]*busySource{"for a while": {room: 2, slow: 3 * time.Second}, "for good": {room: 1, slow: time.Minute}} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, func(t *testing.T) { testBusyUpstream(t, far) }) })
	}
}

func testBusyUpstream(t *testing.T, far *busySource) {
	far.data = bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MiB, 16 segments
	disk, err := cachetiers.OpenDisk(t.TempDir(), cachetiers.DiskOptions{Limit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	tier := cachetiers.NewTier(disk, far, cachetiers.Options{SegmentFrom: 1 << 20, Segment: 256 << 10, Streams: 8, Patience: time.Hour,
		Log: slog.New(slog.DiscardHandler)})
	b, err := tier.Open(t.Context(), registry.Want{Descriptor: registry.Descriptor{Digest: digest.FromBytes(far.data), Size: int64(len(far.data))}, Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(b)
	b.Close()
	if err != nil || !bytes.Equal(got, far.data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	synctest.Wait()
	if far.refused.Load() == 0 {
		t.Error("nothing was refused")
	}
}
