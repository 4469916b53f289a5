package conformance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// TestOCIDiskStaysBounded pulls three times the cache's limit through weir: the
// directory never takes more than the limit and the fills in flight, and what
// is pulled again and again stays.
func TestOCIDiskStaysBounded(t *testing.T) {
	t.Parallel()
	const limit, size, count, atOnce = 64 * mib, 8 * mib, 24, 2
	b := startOCI(t, "cache: {memory: 1MiB, disk: 64MiB}")
	hot := lab.Noise("hot", 4*mib)
	blobs := make([][]byte, count)
	for i := range blobs {
		blobs[i] = lab.Noise(fmt.Sprint("bounded", i), size)
	}
	digests := b.pushBlobs(t, "library/bounded:1", append([][]byte{hot}, blobs...)...)
	b.learn(t, "library/bounded", "1")
	get := func(i int) ociAnswer { return b.ask(t, "GET", "/v2/library/bounded/blobs/"+digests[i]) }

	// What else is in the directory: the database and its like.
	rest := ociDirSize(t, b.Data) + 2*mib
	ctx, cancel := context.WithCancel(t.Context())
	var watch sync.WaitGroup
	var most int64
	watch.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			most = max(most, ociDirSize(t, b.Data))
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	get(0).right(t, "hot", 200, hot)
	for i := 0; i < count; i += atOnce {
		var pulls sync.WaitGroup
		for j := i; j < i+atOnce; j++ {
			pulls.Go(func() { get(1+j).right(t, fmt.Sprint("blob ", j), 200, blobs[j]) })
		}
		pulls.Wait()
		get(0).right(t, "hot", 200, hot)
	}
	cancel()
	watch.Wait()
	t.Logf("the data directory took %d MiB at most", most/mib)
	if allowed := int64(limit + atOnce*(size+mib)); most > allowed+rest {
		t.Errorf("the data directory took %d bytes, more than %d + %d", most, allowed, rest)
	}
	if most < limit/2 {
		t.Errorf("the data directory took no more than %d bytes: nothing was kept", most)
	}
	if n := b.proxy.Count("GET", digests[0]); n != 1 {
		t.Errorf("the blob that was pulled all the time was fetched %d times", n)
	}
	b.Restart()
	if n := ociDirSize(t, b.Data); n > limit+rest {
		t.Errorf("after a restart: %d bytes", n)
	}
	get(0).right(t, "hot, after a restart", 200, hot)
	get(1).right(t, "evicted, fetched anew", 200, blobs[0])
}

// TestOCIBlobLargerThanTheCache pulls what can never be kept: it passes
// through, right, for one client and for several at once.
func TestOCIBlobLargerThanTheCache(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "cache: {memory: 1MiB, disk: 16MiB}")
	blob := lab.Noise("larger", 40*mib)
	small := lab.Noise("smaller", 2*mib)
	digests := b.pushBlobs(t, "library/larger:1", blob, small)
	b.learn(t, "library/larger", "1")
	b.ask(t, "GET", "/v2/library/larger/blobs/"+digests[1]).right(t, "small", 200, small)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			if _, err := ociCompare(b.URL+"/v2/library/larger/blobs/"+digests[0], blob); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	all.Wait()
	lab.Eventually(t, 10*time.Second, "the directory to shrink", func() error {
		if n := ociDirSize(t, b.Data); n > 18*mib {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
	b.proxy.Reset()
	b.ask(t, "GET", "/v2/library/larger/blobs/"+digests[1]).right(t, "small, again", 200, small)
	if b.proxy.Count("GET", "/blobs/") != 0 {
		t.Errorf("a blob that is too large to keep drove out one that is not")
	}
}

// TestOCIFullDisk gives weir a file system smaller than what is pulled through
// it, then fills that to the last byte: clients get what they ask for all the
// same, and nothing is lost afterwards.
func TestOCIFullDisk(t *testing.T) {
	t.Parallel()
	data := filepath.Join(t.TempDir(), "small")
	ociTmpfs(t, data, "size=128m")
	r := lab.StartRegistry(t)
	p := lab.StartProxy(t, r.URL)
	b := &ociBench{
		Weir:     lab.StartWeirIn(t, data, ociConfig("cache: {memory: 4MiB, disk: 10GiB}", "docker.io", p.URL)),
		registry: r, proxy: p, client: ociClient(t),
	}
	const size = 30 * mib
	blobs := make([][]byte, 6)
	for i := range blobs {
		blobs[i] = lab.Noise(fmt.Sprint("full", i), size)
	}
	blobs[5] = lab.Noise("full5", 150*mib) // larger than the whole file system
	digests := b.pushBlobs(t, "library/full:1", blobs...)
	manifest := b.learn(t, "library/full", "1").body
	check := func(when string) {
		t.Helper()
		b.ask(t, "GET", "/v2/library/full/manifests/1").right(t, when, 200, manifest)
		for i, d := range digests {
			b.ask(t, "GET", "/v2/library/full/blobs/"+d).right(t, fmt.Sprintf("%s, blob %d", when, i), 200, blobs[i])
		}
	}
	check("smaller than what is pulled")
	check("again")

	ociFill(t, filepath.Join(data, "ballast"))
	lab.Push(t, r.Addr, "library/new:1", lab.MakeBlobs(t, []byte("pushed when the disk was full")))
	check("full")
	ociStale(t)
	b.ask(t, "GET", "/v2/library/full/manifests/1").right(t, "full, revalidated", 200, manifest)
	// What weir has nowhere to put it may give, or refuse in so many words.
	if a := b.ask(t, "GET", "/v2/library/new/manifests/1"); a.status != 200 {
		if a.status != 503 && a.status != 507 && a.status != 500 {
			t.Errorf("a new manifest on a full disk: %d (%.200q)", a.status, a.body)
		}
		ociCheckError(t, "a new manifest on a full disk", a)
	}
	if err := os.Remove(filepath.Join(data, "ballast")); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 15*time.Second, "the new manifest when there is room again", func() error {
		if a := b.ask(t, "GET", "/v2/library/new/manifests/1"); a.status != 200 {
			return fmt.Errorf("got %d (%.200q)", a.status, a.body)
		}
		return nil
	})
	check("with room again")
	b.Restart()
	check("after a restart")
	p.Down()
	ociStale(t)
	b.ask(t, "GET", "/v2/library/full/manifests/1").right(t, "with the upstream gone", 200, manifest)
}

// ociFill writes to path until the file system has no byte left.
func ociFill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, piece := range []int{mib, 4096, 1} {
		buf := bytes.Repeat([]byte{'x'}, piece)
		for err = nil; err == nil; {
			_, err = f.Write(buf)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
	}
}
