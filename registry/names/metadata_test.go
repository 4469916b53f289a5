package names_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

func TestMemoryMetadata(t *testing.T) {
	conformance.TestMetadata(t, func(*testing.T) registry.Metadata { return new(names.MemoryMetadata) })
	conformance.TestMetadataTrimmed(t, &names.MemoryMetadata{Keep: 10}, 10)
}

func TestAlternating(t *testing.T) {
	conformance.TestMetadata(t, func(*testing.T) registry.Metadata {
		m := new(names.MemoryMetadata)
		return conformance.Alternating(m, &conformance.FaultyMetadata{Metadata: m}, m)
	})
}

// TestFaultyMetadata shows that each fault is what it says.
func TestFaultyMetadata(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var next conformance.MetadataFault
		under := new(names.MemoryMetadata)
		m := &conformance.FaultyMetadata{Metadata: under, Choose: func(string, string) conformance.MetadataFault { return next }}
		for i, c := range []struct {
			fault             conformance.MetadataFault
			fails, now, later bool
		}{
			{conformance.Sound, false, true, true}, {conformance.Refused, true, false, false}, {conformance.Lost, true, true, true},
			{conformance.Late, false, true, true}, {conformance.Afterwards, true, false, true},
		} {
			next = c.fault
			key := fmt.Sprint(i)
			start := time.Now()
			_, err := m.Put(t.Context(), key, 0, []byte("v"))
			if c.fails != errors.Is(err, registry.ErrUnavailable) || (time.Since(start) > 0) != (c.fault == conformance.Late) {
				t.Errorf("fault %d: %v after %v", c.fault, err, time.Since(start))
			}
			if _, err := under.Get(t.Context(), key); c.now != (err == nil) {
				t.Errorf("fault %d: it has happened: %v", c.fault, err == nil)
			}
			if m.Wait(); c.later != (func() bool { _, err := under.Get(t.Context(), key); return err == nil }()) {
				t.Errorf("fault %d: it has happened later: %v", c.fault, !c.later)
			}
			if _, err := m.Get(t.Context(), "0"); c.fails != errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("fault %d: get: %v", c.fault, err)
			}
			failed := 0
			for _, err := range m.List(t.Context(), "", "") {
				if err != nil {
					failed++
				}
			}
			if c.fails != (failed == 1) {
				t.Errorf("fault %d: list failed %d times", c.fault, failed)
			}
		}
	})
}

// boltMetadata is one that can be reopened.
type boltMetadata struct {
	*names.BoltMetadata
	path string
}

func (b boltMetadata) Reopen(t *testing.T) registry.Metadata {
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	return openMetadata(t, b.path, 0)
}

func openMetadata(t testing.TB, path string, keep int) boltMetadata {
	t.Helper()
	m, err := names.OpenMetadata(path, names.MetadataOptions{Keep: keep})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return boltMetadata{m, path}
}

func TestBoltMetadata(t *testing.T) {
	conformance.TestMetadata(t, func(t *testing.T) registry.Metadata {
		return openMetadata(t, filepath.Join(t.TempDir(), "metadata.db"), 0)
	})
	conformance.TestMetadataTrimmed(t, openMetadata(t, filepath.Join(t.TempDir(), "metadata.db"), 10), 10)
}

// TestBoltMetadataKeepsFewer opens a database with a smaller Keep.
func TestBoltMetadataKeepsFewer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	m := openMetadata(t, path, 0)
	put := func(m registry.Metadata, n int) (last uint64) {
		for range n {
			r, err := m.Put(t.Context(), "k", last, []byte("v"))
			if err == nil {
				r, err = m.Put(t.Context(), "k", r.Rev, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			last = 0
		}
		return last
	}
	put(m, 50)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = openMetadata(t, path, 5)
	put(m, 10)
	var kept []uint64
	for r, err := range m.Changes(t.Context(), 115) {
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, r.Rev)
	}
	if fmt.Sprint(kept) != "[116 117 118 119 120]" {
		t.Errorf("kept: %v", kept)
	}
	for _, err := range m.Changes(t.Context(), 114) {
		if !errors.Is(err, registry.ErrGone) {
			t.Errorf("changes after 114: %v", err)
		}
	}
}

func TestMetadataInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	openMetadata(t, path, 0)
	_, err := names.OpenMetadata(path, names.MetadataOptions{Timeout: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "the metadata database "+path+" is in use by another process") {
		t.Errorf("opened twice: %v", err)
	}
	_, err = names.OpenMetadata(filepath.Join(t.TempDir(), "none", "metadata.db"), names.MetadataOptions{})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	other := filepath.Join(t.TempDir(), "names.db")
	db := open(t, other, false)
	fill(t, db, 0, 1, time.Time{})
	db.Close()
	if _, err = names.OpenMetadata(other, names.MetadataOptions{}); err == nil || !strings.Contains(err.Error(), other) {
		t.Errorf("a names database is opened as one of metadata: %v", err)
	}
}

// TestMetadataDamaged breaks a database in many ways: none may be opened, and
// the error must name the file, which stays as it is.
func TestMetadataDamaged(t *testing.T) {
	sound := filepath.Join(t.TempDir(), "metadata.db")
	m := openMetadata(t, sound, 1000)
	var group sync.WaitGroup
	for i := range 2000 { // those at once share an fsync
		group.Go(func() {
			if _, err := m.Put(t.Context(), fmt.Sprintf("e/account/%05d", i), 0, fmt.Appendf(nil, "value %05d", i)); err != nil {
				t.Error(err)
			}
		})
		if i%200 == 199 {
			group.Wait()
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(sound)
	if err != nil {
		t.Fatal(err)
	}
	first, last := bytes.Index(data, []byte("value 01234")), bytes.LastIndex(data, []byte("value 01234"))
	old := bytes.Index(data, []byte("value 00123")) // no longer in the log
	if first < 0 || first == last || old < 0 {
		t.Fatal("the values are not in the file as expected")
	}
	for what, damage := range map[string]func(d []byte) []byte{
		"both headers are gone":     func(d []byte) []byte { clear(d[:8192]); return d },
		"it is text":                func([]byte) []byte { return []byte("this is not a database\n") },
		"it was cut short":          func(d []byte) []byte { return d[:old&^4095] },
		"it was cut to its headers": func(d []byte) []byte { return d[:8192] },
		"pages are zero": func(d []byte) []byte {
			at := first &^ 4095
			clear(d[at : at+4096])
			at = last &^ 4095
			clear(d[at : at+4096])
			return d
		},
		"a value has a wrong bit": func(d []byte) []byte { d[first+8] ^= 1; d[last+8] ^= 1; return d },
		"a key has a wrong bit": func(d []byte) []byte {
			for at := 0; ; at++ {
				next := bytes.Index(d[at:], []byte("e/account/01234"))
				if next < 0 {
					return d
				}
				at += next
				d[at+14] ^= 1
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "metadata.db")
			broken := damage(bytes.Clone(data))
			if err := os.WriteFile(path, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			m, err := names.OpenMetadata(path, names.MetadataOptions{})
			if err == nil {
				m.Close()
				t.Fatal("opened as if it were sound")
			}
			if !strings.Contains(err.Error(), path) {
				t.Errorf("the error does not name the file: %v", err)
			}
			if is, err := os.ReadFile(path); err != nil || !bytes.Equal(is, broken) {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}

func TestTable(t *testing.T) {
	conformance.TestNames(t, func(t *testing.T) registry.Names {
		m := new(names.MemoryMetadata)
		for _, key := range []string{"e/account/anna", "m", "n", "n0", "o"} { // are none of its business
			if _, err := m.Put(t.Context(), key, 0, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		return names.NewTable(m)
	})
}

// TestTableErrors: the kinds of the database's failures stay, and what cannot be
// a name or a binding is noticed.
func TestTableErrors(t *testing.T) {
	m := new(names.MemoryMetadata)
	var fault conformance.MetadataFault
	table := names.NewTable(&conformance.FaultyMetadata{Metadata: m, Choose: func(string, string) conformance.MetadataFault { return fault }})
	ctx := t.Context()
	want := func(what string, err, kind error) {
		t.Helper()
		if !errors.Is(err, kind) {
			t.Errorf("%s: %v, want %v", what, err, kind)
		}
	}
	n := name(1)
	n.Repo = strings.Repeat("r", registry.MaxKey-len("n/oci!!")-len(n.Ref))
	kept, err := table.Bind(ctx, n, registry.Binding{}, binding(1, time.Time{}))
	if err != nil {
		t.Errorf("bind the longest name: %v", err)
	}
	kept.Rev = "no number!"
	_, err = table.Bind(ctx, n, kept, registry.Binding{})
	want("bind at another table's revision", err, registry.ErrConflict)
	n.Repo += "r"
	_, err = table.Bind(ctx, n, registry.Binding{}, binding(1, time.Time{}))
	want("bind a name that is too long", err, registry.ErrInvalid)
	_, err = table.Lookup(ctx, n)
	want("look up a name that is too long", err, registry.ErrNotFound)
	fault = conformance.Lost
	_, err = table.Bind(ctx, name(2), registry.Binding{}, binding(2, time.Time{}))
	want("bind, and the answer is lost", err, registry.ErrUnavailable)
	_, err = table.Lookup(ctx, name(2))
	want("look up, and the answer is lost", err, registry.ErrUnavailable)
	fault = conformance.Sound
	if b, err := table.Lookup(ctx, name(2)); err != nil || b.Size != 2 {
		t.Errorf("what was bound is %+v, %v", b, err)
	}
	for key, value := range map[string]string{"n/oci!docker.io!x": "no binding", "n/oci!nonsense": "x"} {
		if _, err := m.Put(ctx, key, 0, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = table.Lookup(ctx, registry.Name{Space: "oci", Repo: "docker.io", Ref: "x"})
	want("look up what is damaged", err, registry.ErrCorrupt)
	for _, err = range table.List(ctx, "oci", "", "library") {
	}
	want("list what is no name", err, registry.ErrUnavailable)
}

const metadataChildEnv = "WEIR_METADATA_CHILD"

// putForEver changes records and prints the number of each change that Put has
// acknowledged. Every record and the feed follow from the number.
func putForEver(path string) error {
	m, err := names.OpenMetadata(path, names.MetadataOptions{Keep: 50})
	if err != nil {
		return err
	}
	defer m.Close()
	ctx := context.Background()
	for {
		head, err := m.Head(ctx)
		if err != nil {
			return err
		}
		key, value := changeOf(head + 1)
		old, err := m.Get(ctx, key)
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			return err
		}
		r, err := m.Put(ctx, key, old.Rev, value)
		if err != nil {
			return err
		}
		fmt.Println(r.Rev)
	}
}

// changeOf is what the change of a number is: of seven keys in turn, each third
// time a removal.
func changeOf(n uint64) (key string, value []byte) {
	if key = fmt.Sprintf("k%d", n%7); n/7%3 == 2 {
		return key, nil
	}
	return key, fmt.Appendf(nil, "%d", n)
}

// TestMetadataKill kills a process while it puts, many times over one file. All
// it has acknowledged must be there, and the three things that a Put writes must
// belong together.
func TestMetadataKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metadata.db")
	rounds, _ := strconv.Atoi(os.Getenv("WEIR_SOAK"))
	for round := range max(5, rounds) {
		acknowledged := killedWith(t, 20+31*(round%7), metadataChildEnv+"="+path)
		m := openMetadata(t, path, 0)
		head, err := m.Head(t.Context())
		if err != nil || head < uint64(acknowledged) || head > uint64(acknowledged)+1 {
			t.Errorf("head is %d, %v; %d was acknowledged", head, err, acknowledged)
		}
		next := max(head, 40) - 40
		for r, err := range m.Changes(t.Context(), next) {
			next++
			if key, value := changeOf(next); err != nil || r.Rev != next || r.Key != key || !bytes.Equal(r.Value, value) {
				t.Fatalf("change %d is %+v, %v", next, r, err)
			}
		}
		if next != head {
			t.Errorf("the feed ends at %d, head is %d", next, head)
		}
		for n := max(head, 7) - 6; n <= head; n++ {
			key, value := changeOf(n)
			r, err := m.Get(t.Context(), key)
			if value == nil && !errors.Is(err, registry.ErrNotFound) || value != nil && (err != nil || r.Rev != n || !bytes.Equal(r.Value, value)) {
				t.Errorf("%s at %d: %+v, %v", key, n, r, err)
			}
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// BenchmarkMetadataPut puts from several goroutines, which share the wait for
// the disk.
func BenchmarkMetadataPut(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			m := openMetadata(b, filepath.Join(b.TempDir(), "metadata.db"), 0)
			var group sync.WaitGroup
			for w := range writers {
				group.Go(func() {
					var rev uint64
					for range b.N / writers {
						r, err := m.Put(context.Background(), fmt.Sprint(w), rev, []byte("value"))
						if err != nil {
							b.Error(err)
							return
						}
						rev = r.Rev
					}
				})
			}
			group.Wait()
		})
	}
}
