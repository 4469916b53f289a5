package conformance_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
)

// ociNeverWrong fails the test if an answer looks whole and is not want: weir
// may give the right bytes, or an error, or break off, before the status line
// or after it.
func ociNeverWrong(t *testing.T, what string, a ociAnswer, want []byte) {
	t.Helper()
	switch {
	case a.err != nil && a.status < 300:
		if len(a.body) >= len(want) {
			t.Errorf("%s: all %d bytes came before the connection was cut", what, len(a.body))
		}
	case a.status < 300:
		a.right(t, what, 200, want)
	case a.status != 502 && a.status != 503:
		t.Errorf("%s: got %d (%.200q)", what, a.status, a.body)
	default:
		ociCheckError(t, what, a)
	}
}

// tryGet makes one request, of which nothing at all may come back.
func (b *ociBench) tryGet(path string) ociAnswer {
	a, err := ociAsk(b.client, "GET", b.URL+path)
	if err != nil {
		return ociAnswer{err: err}
	}
	return a
}

// TestOCIBrokenUpstreamAnswers has the upstream corrupt, cut short, end early
// and stall answers. Nothing wrong is ever served whole, and the next pull is
// right.
func TestOCIBrokenUpstreamAnswers(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	kept := map[string][]byte{}
	var cases []func(t *testing.T)
	for _, size := range []int{700, 300_000, 6 * mib} {
		last := int64(size) - 1
		for name, f := range map[string]lab.Fault{
			"wrong-first":  {Corrupt: true},
			"wrong-middle": {Corrupt: true, After: last / 2},
			"wrong-last":   {Corrupt: true, After: last},
			"cut-first":    {Truncate: true},
			"cut-middle":   {Truncate: true, After: last / 2},
			"cut-last":     {Truncate: true, After: last},
			"ends-first":   {Short: true},
			"ends-middle":  {Short: true, After: last / 2},
			"ends-last":    {Short: true, After: last},
		} {
			repo := fmt.Sprintf("library/%s-%d", name, size)
			blob := lab.Noise(repo, size)
			at := "/v2/" + repo + "/blobs/"
			path := at + b.pushBlobs(t, repo+":1", blob)[0]
			b.learn(t, repo, "1")
			kept[path] = blob
			cases = append(cases, func(t *testing.T) {
				t.Run(repo, func(t *testing.T) {
					t.Parallel()
					ask := func() ociAnswer { return b.tryGet(path) }
					b.proxy.InjectAt(at, f) // for every request
					ociNeverWrong(t, "while it is broken", ask(), blob)
					ociNeverWrong(t, "while it is broken, again", ask(), blob)
					once := f
					once.Times = 1
					b.proxy.InjectAt(at, once)
					ociNeverWrong(t, "broken once", ask(), blob)
					b.proxy.InjectAt(at)
					ask().right(t, "mended", 200, blob)
				})
			})
		}
	}
	t.Run("while", func(t *testing.T) {
		for _, c := range cases {
			c(t)
		}
	})
	b.proxy.Down()
	for path, blob := range kept {
		b.ask(t, "GET", path).right(t, "kept", 200, blob)
	}
}

// TestOCIBrokenManifests has the upstream corrupt and cut manifests.
func TestOCIBrokenManifests(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	for name, f := range map[string]lab.Fault{
		"wrong": {Corrupt: true, After: 40}, "cut": {Truncate: true, After: 40}, "short": {Short: true, After: 40},
	} {
		img := lab.MakeBlobs(t, []byte("layer of "+name))
		raw, err := img.RawManifest()
		if err != nil {
			t.Fatal(err)
		}
		digest := lab.Push(t, b.registry.Addr, "library/"+name+":1", img).String()
		for _, ref := range []string{digest, "1"} {
			path := "/v2/library/" + name + "/manifests/" + ref
			f.Path, f.Method = "/manifests/", "GET"
			b.proxy.Inject(f)
			ociNeverWrong(t, name+" by "+ref, b.tryGet(path), raw)
			b.proxy.Inject()
			lab.Eventually(t, 15*time.Second, name+" by "+ref+", mended", func() error {
				if a := b.ask(t, "GET", path); a.status != 200 || !bytes.Equal(a.body, raw) {
					return fmt.Errorf("got %d (%.200q)", a.status, a.body)
				}
				return nil
			})
		}
	}
}

// TestOCIStalledUpstream has the upstream stop in the middle of a body and
// keep the connection: the client gets the rest in time, or is cut off; it
// never waits for ever.
func TestOCIStalledUpstream(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	blob := lab.Noise("stalled", 8*mib)
	path := "/v2/library/stalled/blobs/" + b.pushBlobs(t, "library/stalled:1", blob)[0]
	b.learn(t, "library/stalled", "1")
	b.proxy.Inject(lab.Fault{Path: "/blobs/", Stall: true, After: 3 * mib, Times: 1})
	start := time.Now()
	a := b.tryGet(path)
	if took := time.Since(start); took > 50*time.Second {
		t.Errorf("the client waited %v", took)
	}
	ociNeverWrong(t, "stalled", a, blob)
	b.proxy.Inject()
	b.ask(t, "GET", path).right(t, "mended", 200, blob)
}

// ociKept finds the file under dir in which blob is kept.
func ociKept(t *testing.T, dir string, blob []byte) string {
	t.Helper()
	var found string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Size() < int64(len(blob)) {
			return nil
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, blob) {
			found = path
		}
		return nil
	})
	if err != nil || found == "" {
		t.Fatalf("no file under the data directory has the blob: %v", err)
	}
	return found
}

// TestOCIDamageOnDisk damages files of the cache, while weir runs and while it
// does not: the damage is noticed, not served, and the blob is fetched anew.
func TestOCIDamageOnDisk(t *testing.T) {
	t.Parallel()
	const size = 5*mib + 3
	r := lab.StartRegistry(t)
	edit := func(change func(b []byte) []byte) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			ociWrite(t, path, string(change([]byte(ociRead(t, path)))))
			// As if nobody had written: what rots on a disk leaves no date.
			if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(at int) func(t *testing.T, path string) {
		return edit(func(b []byte) []byte { b[at] ^= 0x10; return b })
	}
	for name, damage := range map[string]func(t *testing.T, path string){
		"a bit of the first byte": flip(0),
		"a bit in the middle":     flip(size / 2),
		"a bit of the last byte":  flip(size - 1),
		"a zero-length file":      edit(func(b []byte) []byte { return nil }),
		"half a file":             edit(func(b []byte) []byte { return b[:len(b)/2] }),
		"one byte too short":      edit(func(b []byte) []byte { return b[:len(b)-1] }),
		"a longer file":           edit(func(b []byte) []byte { return append(b, "more"...) }),
		"a missing file": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := startOCIBefore(t, r, "cache: {memory: 1MiB, disk: 1GiB}")
			blob := lab.Noise(name, size)
			repo := "library/" + strings.ReplaceAll(name, " ", "-")
			path := "/v2/" + repo + "/blobs/" + b.pushBlobs(t, repo+":1", blob)[0]
			b.learn(t, repo, "1")
			b.ask(t, "GET", path).right(t, "cold", 200, blob)
			b.ask(t, "GET", path).right(t, "warm", 200, blob)

			for _, when := range []string{"while weir runs", "while weir is stopped"} {
				if when == "while weir is stopped" {
					b.Stop()
				}
				damage(t, ociKept(t, b.Data, blob))
				if !b.Running() {
					b.Start()
				}
				b.proxy.Reset()
				ociNeverWrong(t, when, b.tryGet(path), blob)
				b.ask(t, "GET", path).right(t, when+", again", 200, blob)
				if b.proxy.Count("GET", "/blobs/") == 0 {
					t.Errorf("%s: nothing was fetched anew", when)
				}
				b.ask(t, "GET", path, "Range", fmt.Sprintf("bytes=%d-", size/2-10)).
					right(t, when+", a part", 206, blob[size/2-10:])
			}
			b.proxy.Down()
			b.ask(t, "GET", path).right(t, "healed", 200, blob)
		})
	}
}

// TestOCIDamageWithTheUpstreamGone damages a cached blob when it cannot be
// fetched anew: then there is an error, and never the damaged bytes.
func TestOCIDamageWithTheUpstreamGone(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "cache: {memory: 1MiB, disk: 1GiB}")
	blob := lab.Noise("damaged and gone", 9*mib)
	path := "/v2/library/gone/blobs/" + b.pushBlobs(t, "library/gone:1", blob)[0]
	b.learn(t, "library/gone", "1")
	b.ask(t, "GET", path).right(t, "cold", 200, blob)
	file := ociKept(t, b.Data, blob)
	damaged := []byte(ociRead(t, file))
	damaged[8*mib] ^= 1
	ociWrite(t, file, string(damaged))
	b.proxy.Down()
	for range 3 {
		a := b.tryGet(path)
		if a.status < 300 && a.err == nil {
			t.Fatalf("damaged bytes were served whole, or right ones came from nowhere: %d bytes", len(a.body))
		}
		ociNeverWrong(t, "damaged, upstream gone", a, blob)
	}
	b.proxy.Up()
	lab.Eventually(t, 15*time.Second, "the blob after the upstream came back", func() error {
		if a := b.ask(t, "GET", path); a.status != 200 || !bytes.Equal(a.body, blob) {
			return fmt.Errorf("got %d, %d bytes", a.status, len(a.body))
		}
		return nil
	})
}

// ociDirSize is how many bytes the regular files under dir have, without what is
// known of accounts.
func ociDirSize(t *testing.T, dir string) int64 {
	t.Helper()
	var n int64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed since it was listed
		}
		if err != nil || !d.Type().IsRegular() || d.Name() == "metadata.db" {
			return err
		}
		if info, err := d.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestOCIKillInMidFill kills weir with SIGKILL while a blob is coming in: what
// had come is neither served nor left lying about, and the next pull is right.
func TestOCIKillInMidFill(t *testing.T) {
	t.Parallel()
	b := startOCI(t, "")
	const size = 48 * mib
	blob := lab.Noise("killed", size)
	path := "/v2/library/killed/blobs/" + b.pushBlobs(t, "library/killed:1", blob)[0]
	manifest := b.learn(t, "library/killed", "1")
	b.proxy.Inject(lab.Fault{Path: "/blobs/", Stall: true, After: size / 2})
	if err := ociLeave(b.URL+path, size/4); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, 10*time.Second, "half of the blob on disk", func() error {
		if n := ociDirSize(t, b.Data); n < size/4 {
			return fmt.Errorf("%d bytes", n)
		}
		return nil
	})
	b.Kill9()
	b.Start()
	// The database is all that may be of any size.
	if n := ociDirSize(t, b.Data); n > 2*mib {
		t.Errorf("%d bytes of the killed fill are left", n)
	}
	b.proxy.Inject()
	b.proxy.Reset()
	b.ask(t, "GET", "/v2/library/killed/manifests/1").right(t, "the manifest after the kill", 200, manifest.body)
	b.ask(t, "GET", path).right(t, "after the kill", 200, blob)
	if n := b.proxy.Bytes("GET", "/blobs/"); n != size {
		t.Errorf("the upstream sent %d bytes of %d", n, size)
	}
	b.proxy.Down()
	b.Kill9() // with nothing going on
	b.Start()
	b.ask(t, "GET", path).right(t, "after a kill at rest", 200, blob)
}
