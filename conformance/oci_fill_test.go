package conformance_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

const mib = 1 << 20

// TestOCIColdBlobForAHundred has a hundred clients ask at once for one cold
// blob of 256 MiB behind a slow upstream, and the one who came first leave. All
// get it right, each byte read upstream once, as early as the upstream gives it.
func TestOCIColdBlobForAHundred(t *testing.T) {
	const clients = 100
	b := startOCI(t, "cache: {memory: 64MiB, disk: 2GiB}")
	blob := lab.Noise("a hundred", 256*mib)
	path := "/v2/library/big/blobs/" + b.pushBlobs(t, "library/big:1", blob)[0]
	b.learn(t, "library/big", "1")
	b.proxy.Reset()
	b.proxy.Inject(lab.Fault{Path: "/blobs/", Delay: 100 * time.Millisecond, Rate: 64 * mib})

	var leaver sync.WaitGroup
	leaver.Go(func() {
		if err := ociLeave(b.URL+path, 1); err != nil {
			t.Errorf("the first client: %v", err)
		}
	})
	lab.Eventually(t, 5*time.Second, "the first client's fill", func() error {
		if b.proxy.Count("GET", "/blobs/") == 0 {
			return errors.New("nothing has been asked upstream")
		}
		return nil
	})
	firsts := make([]time.Time, clients)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			var err error
			if firsts[i], err = ociCompare(b.URL+path, blob); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	all.Wait()
	leaver.Wait()

	gets := b.proxy.Seen("GET", "/blobs/")
	if err := ociOnce(gets, int64(len(blob))); err != nil || b.proxy.Count("", "") != len(gets) {
		t.Fatalf("a cold blob for %d clients cost more than one read of %d bytes: %v\n%s", clients, len(blob), err, b.proxy.Story())
	}
	var worst time.Duration
	for _, first := range firsts {
		worst = max(worst, first.Sub(gets[0].First))
	}
	t.Logf("the last client's first byte came %v after the upstream's", worst)
	if worst > time.Second {
		t.Errorf("a client's first byte came %v after the upstream's", worst)
	}
	if n := b.Metric("weir_collapsed_total"); n < clients/2 {
		t.Errorf("weir counts %v collapsed readers of %d", n, clients)
	}
}

// ociOnce finds out whether gets read each byte of a blob once, and no others.
func ociOnce(gets []lab.Seen, size int64) error {
	type run struct{ first, last int64 }
	var runs []run
	bytes := int64(0)
	for _, g := range gets {
		r := run{0, size - 1}
		if ranged := g.Header.Get("Range"); ranged != "" {
			if _, err := fmt.Sscanf(ranged, "bytes=%d-%d", &r.first, &r.last); err != nil {
				return fmt.Errorf("range %q: %w", ranged, err)
			}
		}
		runs = append(runs, r)
		bytes += g.Bytes
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.first, b.first) })
	at := int64(0)
	for _, r := range runs {
		if r.first != at {
			return fmt.Errorf("a run begins at %d where %d bytes had been asked for", r.first, at)
		}
		at = r.last + 1
	}
	if at != size || bytes != size {
		return fmt.Errorf("%d bytes were asked for and %d given, of %d", at, bytes, size)
	}
	return nil
}

// ociLeave gets url, reads n bytes and hangs up.
func ociLeave(url string, n int64) error {
	tr := &http.Transport{DisableCompression: true}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.CopyN(io.Discard, resp.Body, n)
	return err
}

// ociCompare gets url and compares what it gives with want, whose digest is the
// one in the url: the same bytes have the same digest, and comparing is fast
// enough for a hundred clients on two cores. It says when the first byte came.
func ociCompare(url string, want []byte) (first time.Time, err error) {
	tr := &http.Transport{DisableCompression: true, ReadBufferSize: 64 << 10}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		return first, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return first, fmt.Errorf("got %s", resp.Status)
	}
	buf := make([]byte, 256<<10)
	at := 0
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 && first.IsZero() {
			first = time.Now()
		}
		if at+n > len(want) || !bytes.Equal(buf[:n], want[at:at+n]) {
			return first, fmt.Errorf("wrong bytes after byte %d", at)
		}
		at += n
		if err == io.EOF {
			break
		}
		if err != nil {
			return first, fmt.Errorf("after %d bytes: %w", at, err)
		}
	}
	if at != len(want) {
		return first, fmt.Errorf("got %d bytes of %d", at, len(want))
	}
	return first, nil
}

// TestOCIHeadOfAColdBlob asks for a blob's size: what a manifest has told weir
// costs no request at all, anything else no bytes.
func TestOCIHeadOfAColdBlob(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	blob := lab.Noise("head", 5*mib)
	digest := b.pushBlobs(t, "library/head:1", blob)[0]
	b.learn(t, "library/head", "1")
	b.proxy.Reset()
	head := func(what string) {
		t.Helper()
		a := b.ask(t, "HEAD", "/v2/library/head/blobs/"+digest)
		if a.status != 200 || a.header.Get("Content-Length") != fmt.Sprint(len(blob)) ||
			a.header.Get("Docker-Content-Digest") != digest || a.header.Get("Accept-Ranges") != "bytes" {
			t.Errorf("%s: got %d, %v", what, a.status, a.header)
		}
	}
	head("known from the manifest")
	if b.proxy.Count("", "") != 0 {
		t.Errorf("the upstream was asked what the manifest says:\n%s", b.proxy.Story())
	}

	// A weir that has never seen a manifest of this repository.
	b.Stop()
	b.Weir = lab.StartWeir(t, ociConfig("", "docker.io", b.proxy.URL))
	head("not known")
	if b.proxy.Bytes("", "/blobs/") != 0 || b.proxy.Count("GET", "/blobs/") != 0 {
		t.Errorf("a HEAD cost bytes:\n%s", b.proxy.Story())
	}
}

// TestOCIRangeOfAColdBlob asks for parts of blobs that weir does not have yet,
// then of the same blobs once it does, then with the upstream gone.
func TestOCIRangeOfAColdBlob(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	const size = 3*mib + 17
	cases := []struct {
		ask        string
		start, end int // end is one past the last
	}{
		{"bytes=0-0", 0, 1},
		{"bytes=1000-1999", 1000, 2000},
		{"bytes=2000000-", 2000000, size},
		{"bytes=-500", size - 500, size},
		{fmt.Sprintf("bytes=%d-", size-1), size - 1, size},
		{"bytes=3000000-99999999", 3000000, size},
		{"bytes=0-", 0, size},
	}
	blobs := make([][]byte, len(cases))
	for i := range cases {
		blobs[i] = lab.Noise(fmt.Sprint("range", i), size)
	}
	digests := b.pushBlobs(t, "library/range:1", blobs...)
	b.learn(t, "library/range", "1")
	check := func(when string) {
		t.Helper()
		for i, c := range cases {
			a := b.ask(t, "GET", "/v2/library/range/blobs/"+digests[i], "Range", c.ask)
			a.right(t, when+", "+c.ask, http.StatusPartialContent, blobs[i][c.start:c.end])
			want := fmt.Sprintf("bytes %d-%d/%d", c.start, c.end-1, size)
			if got := a.header.Get("Content-Range"); got != want {
				t.Errorf("%s, %s: Content-Range %q, want %q", when, c.ask, got, want)
			}
			a = b.ask(t, "GET", "/v2/library/range/blobs/"+digests[i], "Range", fmt.Sprintf("bytes=%d-", size))
			a.refused(t, when+", past the end", http.StatusRequestedRangeNotSatisfiable)
			if got := a.header.Get("Content-Range"); got != fmt.Sprintf("bytes */%d", size) {
				t.Errorf("%s, past the end: Content-Range %q", when, got)
			}
		}
	}
	b.proxy.Reset()
	check("cold")
	for i := range cases {
		b.ask(t, "GET", "/v2/library/range/blobs/"+digests[i]).right(t, "whole", 200, blobs[i])
	}
	if got, limit := b.proxy.Bytes("GET", "/blobs/"), int64(len(cases))*size*11/10; got > limit {
		t.Errorf("the upstream sent %d bytes, more than %d:\n%s", got, limit, b.proxy.Story())
	}
	b.proxy.Down()
	check("with the upstream gone")
	b.Restart()
	check("after a restart")
}

// TestOCIParallelRanges reads a cold blob as containerd 2.1 does: many
// open-ended ranges at once, each hung up on when its part has come.
func TestOCIParallelRanges(t *testing.T) {
	b := startOCI(t, "")
	const parts, size = 16, 64 * mib
	blob := lab.Noise("parallel", size)
	path := "/v2/library/parallel/blobs/" + b.pushBlobs(t, "library/parallel:1", blob)[0]
	b.learn(t, "library/parallel", "1")
	b.proxy.Reset()
	b.proxy.Inject(lab.Fault{Path: "/blobs/", Delay: 50 * time.Millisecond, Rate: 64 * mib})

	var all sync.WaitGroup
	for i := range parts {
		const part = size / parts
		all.Go(func() {
			req, _ := http.NewRequest("GET", b.URL+path, nil)
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", i*part))
			resp, err := b.client.Do(req)
			if err != nil {
				t.Errorf("part %d: %v", i, err)
				return
			}
			defer resp.Body.Close()
			got := make([]byte, part)
			if _, err := io.ReadFull(resp.Body, got); err != nil || resp.StatusCode != http.StatusPartialContent {
				t.Errorf("part %d: %s, %v", i, resp.Status, err)
			} else if !bytes.Equal(got, blob[i*part:(i+1)*part]) {
				t.Errorf("part %d: wrong bytes", i)
			}
		})
	}
	all.Wait()
	b.ask(t, "GET", path).right(t, "whole", 200, blob)
	if got := b.proxy.Bytes("GET", "/blobs/"); got > size*11/10 {
		t.Errorf("the upstream sent %.2f times the blob:\n%s", float64(got)/size, b.proxy.Story())
	}
}

// TestOCIClientLeaves has a client hang up early and another in the middle:
// what has been fetched by then is not fetched again.
func TestOCIClientLeaves(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	const size = 32 * mib
	for _, after := range []int64{size / 10, size / 2} {
		seed := fmt.Sprint("leaves after ", after)
		blob := lab.Noise(seed, size)
		repo := fmt.Sprintf("library/leaves%d", after)
		path := "/v2/" + repo + "/blobs/" + b.pushBlobs(t, repo+":1", blob)[0]
		b.learn(t, repo, "1")
		b.proxy.Reset()
		b.proxy.Inject(lab.Fault{Path: "/blobs/", Rate: 32 * mib})
		if err := ociLeave(b.URL+path, after); err != nil {
			t.Fatal(err)
		}
		b.ask(t, "GET", path).right(t, seed, 200, blob)
		if got := b.proxy.Bytes("GET", "/blobs/"); got > size {
			t.Errorf("%s: the upstream sent %d bytes of a blob of %d:\n%s", seed, got, size, b.proxy.Story())
		}
	}
}

// TestOCISlowReader has one client read nothing while others read all: it
// slows nobody.
func TestOCISlowReader(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	blob := lab.Noise("slow reader", 48*mib)
	path := "/v2/library/slow/blobs/" + b.pushBlobs(t, "library/slow:1", blob)[0]
	b.learn(t, "library/slow", "1")
	b.proxy.Reset()
	resp, err := b.client.Get(b.URL + path) // and not read, until the others are done
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			if _, err := ociCompare(b.URL+path, blob); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	all.Wait()
	got, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Equal(got, blob) {
		t.Errorf("the slow one: %d bytes, %v", len(got), err)
	}
	if n := b.proxy.Count("GET", "/blobs/"); n != 1 {
		t.Errorf("%d upstream GETs:\n%s", n, b.proxy.Story())
	}
	if cs := b.ask(t, "GET", path).header.Get("Cache-Status"); !strings.HasPrefix(cs, "weir; hit") {
		t.Errorf("Cache-Status of a cached blob: %q", cs)
	}
}
