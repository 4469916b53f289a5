package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// TestStore checks what registry.Store and registry.Stage promise. fresh
// returns an empty store for each case, with room for at least 16 MiB, and
// closes it by t.Cleanup.
func TestStore(t *testing.T, fresh func(t *testing.T) registry.Store) {
	for _, c := range []struct {
		name string
		run  func(t *testing.T, store registry.Store)
	}{
		{"MissingIsNotFound", missingIsNotFound},
		{"MalformedDigest", malformedDigest},
		{"CommitThenOpen", commitThenOpen},
		{"Ranges", ranges},
		{"OffsetPastTheEnd", offsetPastTheEnd},
		{"LengthZeroIsDescriptor", lengthZeroIsDescriptor},
		{"EmptyBlob", emptyBlob},
		{"EveryAlgorithm", everyAlgorithm},
		{"NoDigestIsSHA256", noDigestIsSHA256},
		{"WrongDigest", wrongDigest},
		{"WrongSize", wrongSize},
		{"WrongLeavesTheRight", wrongLeavesTheRight},
		{"NotFoundBeforeCommit", notFoundBeforeCommit},
		{"CloseWithoutCommit", closeWithoutCommit},
		{"CloseTwice", closeTwice},
		{"ReadAtWhileWriting", readAtWhileWriting},
		{"FileWhileWriting", fileWhileWriting},
		{"ReadersDuringWrites", readersDuringWrites},
		{"WriteToEqualsRead", writeToEqualsRead},
		{"BlobsAreIndependent", blobsAreIndependent},
		{"CommitTwoOfTheSame", commitTwoOfTheSame},
		{"ConcurrentSameDigest", concurrentSameDigest},
		{"ConcurrentManyDigests", concurrentManyDigests},
		{"WriteDoesNotKeepTheBuffer", writeDoesNotKeepTheBuffer},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, fresh(t)) })
	}
}

// put stages data as expect in writes of chunk bytes and commits it.
func put(store registry.Store, expect registry.Descriptor, data []byte, chunk int) (registry.Descriptor, error) {
	stage, err := store.Stage(context.Background(), expect)
	if err != nil {
		return registry.Descriptor{}, err
	}
	defer stage.Close()
	for rest := data; len(rest) > 0; {
		n, err := stage.Write(rest[:min(chunk, len(rest))])
		if err != nil {
			return registry.Descriptor{}, err
		}
		rest = rest[n:]
	}
	return stage.Commit(context.Background())
}

func mustPut(t *testing.T, store registry.Store, expect registry.Descriptor, data []byte) registry.Descriptor {
	t.Helper()
	d, err := put(store, expect, data, 4096)
	if err != nil {
		t.Fatalf("put %d bytes: %v", len(data), err)
	}
	if want := descriptorOf(registry.AlgorithmOf(expect.Digest), data); d.Digest != want.Digest || d.Size != want.Size {
		t.Fatalf("Commit returned %+v, want %+v", d, want)
	}
	return d
}

func mustStage(t *testing.T, store registry.Store, expect registry.Descriptor) registry.Stage {
	t.Helper()
	stage, err := store.Stage(context.Background(), expect)
	if err != nil {
		t.Fatalf("stage: %v", err)
	}
	t.Cleanup(func() { stage.Close() })
	return stage
}

func mustOpen(t *testing.T, src registry.Source, w registry.Want) registry.Blob {
	t.Helper()
	b, err := src.Open(context.Background(), w)
	if err != nil {
		t.Fatalf("open %s [%d,+%d]: %v", w.Digest, w.Offset, w.Length, err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func readAll(t *testing.T, b registry.Blob) []byte {
	t.Helper()
	data, err := io.ReadAll(b)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return data
}

// wantOf asks for a run of d, by digest alone as a store needs it.
func wantOf(d registry.Descriptor, offset, length int64) registry.Want {
	return registry.Want{Descriptor: d, From: registry.Name{Space: "oci", Repo: "docker.io/a", Ref: string(d.Digest)},
		Offset: offset, Length: length}
}

func wantMissing(t *testing.T, store registry.Store, d registry.Descriptor, when string) {
	t.Helper()
	b, err := store.Open(context.Background(), wantOf(d, 0, -1))
	if err == nil {
		b.Close()
	}
	wantKind(t, err, registry.ErrNotFound, "open "+when)
}

func missingIsNotFound(t *testing.T, store registry.Store) {
	wantMissing(t, store, descriptorOf("", []byte("a")), "what was never stored")
	_, err := store.Open(context.Background(), wantOf(descriptorOf("", []byte("a")), 0, 0))
	wantKind(t, err, registry.ErrNotFound, "ask for the descriptor of what was never stored")
}

func malformedDigest(t *testing.T, store registry.Store) {
	hex := string(descriptorOf("", nil).Digest)[len("sha256:"):]
	for _, d := range []string{"", "sha256:", "sha256:../../../etc/passwd", "sha256:" + hex[1:], "md5:" + hex[:32],
		"sha256:" + hex + "0", "../x:" + hex, hex, "sha512:" + hex, "sha256:" + "G" + hex[1:]} {
		desc := registry.Descriptor{Digest: digest.Digest(d), Size: -1}
		b, err := store.Open(context.Background(), wantOf(desc, 0, -1))
		if err == nil {
			b.Close()
		}
		if !errors.Is(err, registry.ErrNotFound) && !errors.Is(err, registry.ErrInvalid) {
			t.Errorf("open digest %q: %v, want ErrInvalid or ErrNotFound", d, err)
		}
		if d == "" {
			continue
		}
		stage, err := store.Stage(context.Background(), desc)
		if err == nil {
			stage.Close()
		}
		wantKind(t, err, registry.ErrInvalid, fmt.Sprintf("stage digest %q", d))
	}
}

func commitThenOpen(t *testing.T, store registry.Store) {
	data := Bytes(1, 300_001)
	d := mustPut(t, store, descriptorOf("", data), data)
	for _, size := range []int64{d.Size, -1} { // a Want need not know the size
		w := wantOf(d, 0, -1)
		w.Size = size
		b := mustOpen(t, store, w)
		if got := b.Descriptor(); got.Digest != d.Digest || got.Size != d.Size {
			t.Errorf("opened %+v, want %+v", got, d)
		}
		if o, l := b.Span(); o != 0 || l != d.Size {
			t.Errorf("span [%d,+%d], want [0,+%d]", o, l, d.Size)
		}
		equalBytes(t, readAll(t, b), data, "whole blob")
		if n, err := b.Read(make([]byte, 8)); n != 0 || err != io.EOF {
			t.Errorf("read after the end: %d, %v", n, err)
		}
	}
}

func ranges(t *testing.T, store registry.Store) {
	data := Bytes(2, 100_000)
	d := mustPut(t, store, descriptorOf("", data), data)
	for _, r := range []struct{ offset, length, want int64 }{
		{0, 1, 1}, {0, 100_000, 100_000}, {0, 1 << 40, 100_000}, {1, -1, 99_999}, {99_999, -1, 1}, {99_999, 5, 1},
		{4095, 2, 2}, {4096, 4096, 4096}, {32_767, 32_770, 32_770}, {100_000, -1, 0}, {100_000, 7, 0}, {65_536, 34_464, 34_464},
	} {
		for _, writeTo := range []bool{false, true} {
			what := fmt.Sprintf("[%d,+%d]", r.offset, r.length)
			b := mustOpen(t, store, wantOf(d, r.offset, r.length))
			if o, l := b.Span(); o != r.offset || l != r.want {
				t.Errorf("%s: span [%d,+%d], want length %d", what, o, l, r.want)
			}
			if got := b.Descriptor(); got.Size != d.Size {
				t.Errorf("%s: the descriptor's size is %d, want the whole blob's", what, got.Size)
			}
			var got []byte
			if writeTo {
				var buf bytes.Buffer
				if _, err := b.WriteTo(&buf); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				got = buf.Bytes()
			} else {
				got = readAll(t, b)
			}
			equalBytes(t, got, data[r.offset:r.offset+r.want], what)
		}
	}
}

func offsetPastTheEnd(t *testing.T, store registry.Store) {
	d := mustPut(t, store, descriptorOf("", []byte("abc")), []byte("abc"))
	for _, offset := range []int64{4, 1 << 40, -1} {
		for _, length := range []int64{-1, 1} {
			b, err := store.Open(context.Background(), wantOf(d, offset, length))
			if err == nil {
				b.Close()
			}
			wantKind(t, err, registry.ErrInvalid, fmt.Sprintf("open [%d,+%d] of 3 bytes", offset, length))
		}
	}
}

func lengthZeroIsDescriptor(t *testing.T, store registry.Store) {
	data := Bytes(3, 5000)
	d := mustPut(t, store, descriptorOf("", data), data)
	w := wantOf(d, 0, 0)
	w.Size = -1
	b := mustOpen(t, store, w)
	if got := b.Descriptor(); got.Digest != d.Digest || got.Size != d.Size {
		t.Errorf("descriptor %+v, want %+v", got, d)
	}
	if got := readAll(t, b); len(got) != 0 {
		t.Errorf("a Want of no bytes gave %d", len(got))
	}
}

func emptyBlob(t *testing.T, store registry.Store) {
	d := mustPut(t, store, descriptorOf("", nil), nil)
	b := mustOpen(t, store, wantOf(d, 0, -1))
	if got := readAll(t, b); len(got) != 0 {
		t.Errorf("the empty blob has %d bytes", len(got))
	}
	var buf bytes.Buffer
	if n, err := mustOpen(t, store, wantOf(d, 0, -1)).WriteTo(&buf); n != 0 || err != nil {
		t.Errorf("WriteTo of the empty blob: %d, %v", n, err)
	}
	if got := b.Descriptor().Size; got != 0 {
		t.Errorf("its size is %d", got)
	}
}

func everyAlgorithm(t *testing.T, store registry.Store) {
	data := Bytes(4, 10_000)
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512, registry.SHA1} {
		d := descriptorOf(alg, data)
		wantMissing(t, store, d, "the same bytes under another algorithm")
		mustPut(t, store, d, data)
		equalBytes(t, readAll(t, mustOpen(t, store, wantOf(d, 0, -1))), data, string(alg))
		wrong := descriptorOf(alg, data[1:])
		wrong.Size = -1
		_, err := put(store, wrong, data, 1000)
		wantKind(t, err, registry.ErrCorrupt, "commit wrong bytes as "+string(alg))
	}
}

func noDigestIsSHA256(t *testing.T, store registry.Store) {
	data := Bytes(5, 10_000)
	d := mustPut(t, store, registry.Descriptor{Size: -1}, data)
	equalBytes(t, readAll(t, mustOpen(t, store, wantOf(d, 0, -1))), data, "staged without a digest")
	d = mustPut(t, store, registry.Descriptor{Size: 9}, data[:9])
	equalBytes(t, readAll(t, mustOpen(t, store, wantOf(d, 0, -1))), data[:9], "staged with a size alone")
}

func wrongDigest(t *testing.T, store registry.Store) {
	data := Bytes(6, 10_000)
	for _, size := range []int64{-1, int64(len(data))} {
		expect := descriptorOf("", data)
		expect.Size = size
		flipped := bytes.Clone(data)
		flipped[5000] ^= 1
		_, err := put(store, expect, flipped, 4096)
		wantKind(t, err, registry.ErrCorrupt, "commit with one bit flipped")
		wantMissing(t, store, expect, "what was refused")
		wantMissing(t, store, descriptorOf("", flipped), "the wrong bytes under their own digest")
	}
}

func wrongSize(t *testing.T, store registry.Store) {
	data := Bytes(7, 10_000)
	for _, n := range []int{0, 1, 9_999} {
		_, err := put(store, descriptorOf("", data), data[:n], 4096)
		wantKind(t, err, registry.ErrCorrupt, fmt.Sprintf("commit %d of 10,000 bytes", n))
	}
	_, err := put(store, descriptorOf("", data[:100]), data, 64)
	wantKind(t, err, registry.ErrCorrupt, "commit more bytes than expected")
	_, err = put(store, registry.Descriptor{Size: 5}, data[:6], 64)
	wantKind(t, err, registry.ErrCorrupt, "commit 6 bytes where 5 were expected, with no digest")
	right := descriptorOf("", data)
	right.Size++
	_, err = put(store, right, data, 4096)
	wantKind(t, err, registry.ErrCorrupt, "commit the right bytes with the wrong size")
	wantMissing(t, store, descriptorOf("", data), "what was refused for its size")
	wantMissing(t, store, descriptorOf("", data[:100]), "what was refused for its size")
}

// wrongLeavesTheRight: a failed stage of a digest does not hurt a blob that is
// there under it already.
func wrongLeavesTheRight(t *testing.T, store registry.Store) {
	data := Bytes(8, 10_000)
	d := mustPut(t, store, descriptorOf("", data), data)
	_, err := put(store, d, Bytes(9, 10_000), 4096)
	wantKind(t, err, registry.ErrCorrupt, "commit wrong bytes over a good blob")
	stage := mustStage(t, store, d)
	stage.Write(data[:10])
	stage.Close()
	equalBytes(t, readAll(t, mustOpen(t, store, wantOf(d, 0, -1))), data, "the good blob")
}

func notFoundBeforeCommit(t *testing.T, store registry.Store) {
	data := Bytes(10, 10_000)
	stage := mustStage(t, store, descriptorOf("", data))
	if _, err := stage.Write(data); err != nil {
		t.Fatal(err)
	}
	wantMissing(t, store, descriptorOf("", data), "what is written but not committed")
	if _, err := stage.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	equalBytes(t, readAll(t, mustOpen(t, store, wantOf(descriptorOf("", data), 0, -1))), data, "after Commit, before Close")
}

func closeWithoutCommit(t *testing.T, store registry.Store) {
	data := Bytes(11, 10_000)
	stage := mustStage(t, store, descriptorOf("", data))
	if _, err := stage.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := stage.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := stage.Commit(context.Background()); err == nil {
		t.Error("Commit after Close succeeded")
	}
	wantMissing(t, store, descriptorOf("", data), "what was closed without a commit")
}

func closeTwice(t *testing.T, store registry.Store) {
	data := []byte("twice")
	for _, commit := range []bool{false, true} {
		stage := mustStage(t, store, descriptorOf("", data))
		if _, err := stage.Write(data); err != nil {
			t.Fatal(err)
		}
		if commit {
			if _, err := stage.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := stage.Close(); err != nil {
				t.Errorf("close (committed: %v): %v", commit, err)
			}
		}
	}
	b := mustOpen(t, store, wantOf(descriptorOf("", data), 0, -1))
	equalBytes(t, readAll(t, b), data, "after closing twice")
	for range 2 {
		if err := b.Close(); err != nil {
			t.Errorf("close a blob: %v", err)
		}
	}
}

func readAtWhileWriting(t *testing.T, store registry.Store) {
	data := Bytes(12, 200_000)
	stage := mustStage(t, store, descriptorOf("", data))
	check := func(upTo int) {
		t.Helper()
		for _, off := range []int{0, upTo / 3, upTo - 1} {
			got := make([]byte, upTo-off)
			if n, err := stage.ReadAt(got, int64(off)); n != len(got) || err != nil && err != io.EOF {
				t.Fatalf("ReadAt(%d bytes, %d) with %d written: %d, %v", len(got), off, upTo, n, err)
			}
			equalBytes(t, got, data[off:upTo], "staged bytes")
		}
		if n, err := stage.ReadAt(make([]byte, 1), int64(upTo)); n != 0 || err == nil {
			t.Errorf("ReadAt at the end of what is written: %d, %v", n, err)
		}
	}
	for at := 0; at < len(data); at += 33_333 {
		end := min(at+33_333, len(data))
		if _, err := stage.Write(data[at:end]); err != nil {
			t.Fatal(err)
		}
		check(end)
	}
	if _, err := stage.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	check(len(data))
}

// fileWhileWriting is about stores whose stages are files; others pass, for
// they promise nothing here.
func fileWhileWriting(t *testing.T, store registry.Store) {
	data := Bytes(13, 100_000)
	stage := mustStage(t, store, descriptorOf("", data))
	files, ok := stage.(registry.FileStage)
	if !ok {
		return
	}
	if _, err := stage.Write(data[:60_000]); err != nil {
		t.Fatal(err)
	}
	early, err := files.File()
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
	got := make([]byte, 60_000)
	if _, err := io.ReadFull(early, got); err != nil {
		t.Fatal(err)
	}
	equalBytes(t, got, data[:60_000], "the file while it is written")
	if _, err := stage.Write(data[60_000:]); err != nil {
		t.Fatal(err)
	}
	if _, err := stage.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	stage.Close()
	got = make([]byte, 40_000)
	if _, err := early.ReadAt(got, 60_000); err != nil { // a reader keeps its file past Commit and Close
		t.Fatal(err)
	}
	equalBytes(t, got, data[60_000:], "the file after Commit and Close")
}

// readersDuringWrites is for the race detector: readers at every offset that
// is known to be written while the one writer goes on.
func readersDuringWrites(t *testing.T, store registry.Store) {
	data := Bytes(14, 256<<10)
	stage := mustStage(t, store, descriptorOf("", data))
	const step = 16 << 10
	var group sync.WaitGroup
	for at := 0; at < len(data); at += step {
		if _, err := stage.Write(data[at : at+step]); err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			got := make([]byte, at+step)
			if _, err := stage.ReadAt(got, 0); err != nil && err != io.EOF {
				t.Error(err)
			}
			if !bytes.Equal(got, data[:at+step]) {
				t.Errorf("the first %d bytes are wrong", at+step)
			}
		})
	}
	if _, err := stage.Commit(context.Background()); err != nil {
		t.Error(err)
	}
	group.Wait()
}

func writeToEqualsRead(t *testing.T, store registry.Store) {
	data := Bytes(15, 150_000)
	d := mustPut(t, store, descriptorOf("", data), data)
	b := mustOpen(t, store, wantOf(d, 10, -1))
	head := make([]byte, 1000)
	if _, err := io.ReadFull(b, head); err != nil {
		t.Fatal(err)
	}
	var rest bytes.Buffer
	n, err := b.WriteTo(&rest)
	if err != nil || n != int64(rest.Len()) {
		t.Fatalf("WriteTo: %d, %v; %d written", n, err, rest.Len())
	}
	equalBytes(t, append(head, rest.Bytes()...), data[10:], "Read and then WriteTo")
	if n, err := b.WriteTo(&rest); n != 0 || err != nil {
		t.Errorf("WriteTo at the end: %d, %v", n, err)
	}
	refusal := errors.New("refused")
	if _, err := mustOpen(t, store, wantOf(d, 0, -1)).WriteTo(refuser{refusal}); !errors.Is(err, refusal) {
		t.Errorf("WriteTo a writer that fails: %v", err)
	}
}

type refuser struct{ err error }

func (r refuser) Write([]byte) (int, error) { return 0, r.err }

func blobsAreIndependent(t *testing.T, store registry.Store) {
	data := Bytes(16, 50_000)
	d := mustPut(t, store, descriptorOf("", data), data)
	a, b := mustOpen(t, store, wantOf(d, 0, -1)), mustOpen(t, store, wantOf(d, 0, -1))
	if _, err := io.CopyN(io.Discard, a, 20_000); err != nil {
		t.Fatal(err)
	}
	a.Close()
	equalBytes(t, readAll(t, b), data, "one blob after another was closed half-read")
}

func commitTwoOfTheSame(t *testing.T, store registry.Store) {
	data := Bytes(17, 50_000)
	one, two := mustStage(t, store, descriptorOf("", data)), mustStage(t, store, descriptorOf("", data))
	for _, stage := range []registry.Stage{one, two} {
		if _, err := stage.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, stage := range []registry.Stage{one, two} {
		if _, err := stage.Commit(context.Background()); err != nil {
			t.Errorf("commit: %v", err)
		}
	}
	one.Close()
	got := make([]byte, len(data))
	if _, err := two.ReadAt(got, 0); err != nil && err != io.EOF {
		t.Errorf("the other stage's bytes after one was closed: %v", err)
	}
	equalBytes(t, got, data, "the other stage")
	two.Close()
	equalBytes(t, readAll(t, mustOpen(t, store, wantOf(descriptorOf("", data), 0, -1))), data, "committed twice")
}

func concurrentSameDigest(t *testing.T, store registry.Store) {
	data := Bytes(18, 100_000)
	d := descriptorOf("", data)
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			switch i % 4 {
			case 0: // abandoned
				if stage, err := store.Stage(context.Background(), d); err == nil {
					stage.Write(data[:50_000])
					stage.Close()
				}
				return
			case 1: // wrong
				if _, err := put(store, d, Bytes(19, 100_000), 9000); !errors.Is(err, registry.ErrCorrupt) {
					t.Errorf("wrong bytes: %v", err)
				}
				return
			}
			if _, err := put(store, d, data, 7000+i); err != nil {
				t.Errorf("commit: %v", err)
				return
			}
			b, err := store.Open(context.Background(), wantOf(d, 0, -1))
			if err != nil {
				t.Errorf("open after commit: %v", err)
				return
			}
			defer b.Close()
			if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
				t.Errorf("read after commit: %d bytes, %v", len(got), err)
			}
		})
	}
	group.Wait()
}

func concurrentManyDigests(t *testing.T, store registry.Store) {
	var group sync.WaitGroup
	for i := range 64 {
		group.Go(func() {
			data := Bytes(uint64(100+i), 1000+i*997)
			d := descriptorOf("", data)
			if _, err := put(store, d, data, 4096); err != nil {
				t.Errorf("put %d: %v", i, err)
				return
			}
			b, err := store.Open(context.Background(), wantOf(d, int64(i), -1))
			if err != nil {
				t.Errorf("open %d: %v", i, err)
				return
			}
			defer b.Close()
			if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data[i:]) {
				t.Errorf("read %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	group.Wait()
}

func writeDoesNotKeepTheBuffer(t *testing.T, store registry.Store) {
	data := Bytes(20, 64_000)
	stage := mustStage(t, store, descriptorOf("", data))
	buf := make([]byte, 1000)
	for at := 0; at < len(data); at += len(buf) {
		copy(buf, data[at:])
		if _, err := stage.Write(buf); err != nil {
			t.Fatal(err)
		}
		clear(buf)
	}
	if _, err := stage.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	equalBytes(t, readAll(t, mustOpen(t, store, wantOf(descriptorOf("", data), 0, -1))), data, "written from a buffer used again")
}
