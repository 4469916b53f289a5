package cachetiers_test

import (
	"context"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
)

// sent is a client to whom the kernel copies in no time: it measures what a
// reader costs beside the copying.
type sent struct{ n int64 }

func (w *sent) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	return len(p), nil
}

func (w *sent) ReadFrom(r io.Reader) (int64, error) {
	l, ok := r.(*io.LimitedReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{w}, r)
	}
	if _, err := l.R.(*os.File).Seek(l.N, io.SeekCurrent); err != nil {
		return 0, err
	}
	w.n += l.N
	return l.N, nil
}

// BenchmarkFlight is one cold blob of 256 MiB with 200 readers from the start,
// from a far side that gives 16 KiB at once, as TLS does: as fast as memory, and
// at some 100 MB/s, where what counts is the processor's time.
func BenchmarkFlight(b *testing.B) {
	data := conformance.Bytes(1, 256<<20)
	for name, f := range map[string]*far{
		"memory": {data: data, chunk: 16 << 10},
		"paced":  {data: data, chunk: 16 << 10, step: slow(time.Millisecond)},
	} {
		b.Run(name, func(b *testing.B) { benchFlight(b, data, f) })
	}
}

const readers = 200

// processor is how much time this process has had.
func processor() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchFlight(b *testing.B, data []byte, f *far) {
	w := want(data, 0, -1)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	before := processor()
	defer func() { b.ReportMetric(float64((processor()-before).Milliseconds())/float64(b.N), "cpu-ms/op") }()
	for b.Loop() {
		d, err := cachetiers.OpenDisk(b.TempDir(), cachetiers.DiskOptions{Limit: 1 << 30, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			b.Fatal(err)
		}
		tier := cachetiers.NewTier(d, f, cachetiers.Options{})
		var wg sync.WaitGroup
		for range readers {
			wg.Go(func() {
				blob, err := tier.Open(context.Background(), w)
				if err != nil {
					b.Error(err)
					return
				}
				defer blob.Close()
				if n, err := blob.WriteTo(new(sent)); err != nil || n != int64(len(data)) {
					b.Errorf("%d bytes, %v", n, err)
				}
			})
		}
		wg.Wait()
		d.Close()
	}
}
