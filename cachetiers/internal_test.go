package cachetiers

import (
	"bytes"
	"hash/crc32"
	"slices"
	"testing"
)

func TestFileSizes(t *testing.T) {
	for size := int64(0); size < 5*chunkBytes; size += 4093 {
		for _, s := range []int64{size, size/chunkBytes*chunkBytes + 1, size / chunkBytes * chunkBytes} {
			if got, ok := blobSize(fileSize(s)); !ok || got != s {
				t.Fatalf("blobSize(fileSize(%d)) = %d, %v", s, got, ok)
			}
		}
	}
	for _, file := range []int64{-1, 0, footerBytes - 1, footerBytes + 1, footerBytes + 4} {
		if size, ok := blobSize(file); ok {
			t.Errorf("a file of %d bytes was taken for a blob of %d", file, size)
		}
	}
}

// FuzzTail: nothing but what appendTail wrote is taken for a table, and what is
// taken is what it wrote.
func FuzzTail(f *testing.F) {
	f.Add(appendTail(nil, "sha256:a", nil, 0), int64(0))
	f.Add(appendTail(nil, "sha256:a", []uint32{1}, 100), int64(100))
	f.Add(appendTail(nil, "sha256:a", []uint32{1, 2}, chunkBytes+1), int64(chunkBytes+1))
	f.Add([]byte(magic), int64(5))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < 0 || size > 1<<40 {
			return
		}
		sums, err := parseTail(b, "sha256:a", size)
		if err != nil {
			return
		}
		again := appendTail(nil, "sha256:a", sums, size)
		if !bytes.Equal(again, b) {
			t.Errorf("%x was read as %x", b, again)
		}
		if _, err := parseTail(b, "sha256:b", size); err == nil {
			t.Error("a table was taken for another blob's")
		}
	})
}

func TestSumsOfWrites(t *testing.T) {
	data := make([]byte, 3*chunkBytes+17)
	for i := range data {
		data[i] = byte(i * 7)
	}
	var s diskStage
	for rest := data; len(rest) > 0; {
		n := min(len(rest), 100_001)
		s.sum(rest[:n])
		s.n.Add(int64(n))
		rest = rest[n:]
	}
	got := append(slices.Clone(s.sums), s.crc)
	var want []uint32
	for c := range slices.Chunk(data, chunkBytes) {
		want = append(want, crc32.Checksum(c, castagnoli()))
	}
	if !slices.Equal(got, want) {
		t.Errorf("sums %v, want %v", got, want)
	}
}

// TestSieve: what was used stays, in the order SIEVE says.
func TestSieve(t *testing.T) {
	var s sieve[item, *item]
	es := make(map[string]*item)
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		es[name] = &item{key: name}
		s.push(es[name])
	}
	evict := func() string {
		steps := maxSteps
		e := s.candidate(0, &steps)
		if e == nil {
			return ""
		}
		s.remove(e)
		return e.key
	}
	es["a"].touch()
	es["c"].touch()
	var got []string
	got = append(got, evict(), evict()) // b, d: the hand passed a and c
	es["f"] = &item{key: "f"}
	s.push(es["f"])
	got = append(got, evict(), evict(), evict(), evict(), evict())
	if want := []string{"b", "d", "e", "f", "a", "c", ""}; !slices.Equal(got, want) {
		t.Errorf("evicted %v, want %v", got, want)
	}
	s.push(es["a"])
	if evict() != "a" || evict() != "" {
		t.Error("not usable after it was empty")
	}
}

// TestSieveSteps: when everything is in use the hand does not walk for ever.
func TestSieveSteps(t *testing.T) {
	var s sieve[item, *item]
	for range 100 {
		i := &item{}
		i.hits.Store(memoryUses)
		s.push(i)
	}
	steps := 10
	if e := s.candidate(0, &steps); e == nil || e.spend() == false || steps != 0 {
		t.Errorf("the hand stopped at %v with %d steps left", e, steps)
	}
}
