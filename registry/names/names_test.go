package names_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

// TestHot has few bindings held in memory, so that they are dropped all the
// time, and checks that no reader sees one that a Bind has replaced.
func TestHot(t *testing.T) {
	db, err := names.Open(filepath.Join(t.TempDir(), "names.db"), names.Options{Volatile: true, Hot: 32})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	var latest [64]atomic.Int64
	var work sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		work.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				at := i % len(latest)
				least := latest[at].Load()
				b, err := db.Lookup(ctx, name(at))
				if least > 0 && err != nil || b.Size < least {
					t.Errorf("name %d: looked up %d, %v after %d was bound", at, b.Size, err, least)
					return
				}
			}
		})
	}
	for i := range 4000 {
		at := i * 7 % len(latest)
		old, err := db.Lookup(ctx, name(at))
		if err != nil && !errors.Is(err, registry.ErrNotFound) {
			t.Fatal(err)
		}
		if _, err := db.Bind(ctx, name(at), old, binding(i+1, time.Time{})); err != nil {
			t.Fatal(err)
		}
		latest[at].Store(int64(i + 1))
	}
	close(stop)
	work.Wait()
}

func TestMemory(t *testing.T) {
	conformance.TestNames(t, func(*testing.T) registry.Names { return new(names.Memory) })
}

func TestBolt(t *testing.T) {
	for _, volatile := range []bool{false, true} {
		t.Run(fmt.Sprintf("volatile=%v", volatile), func(t *testing.T) {
			conformance.TestNames(t, func(t *testing.T) registry.Names {
				return open(t, filepath.Join(t.TempDir(), "names.db"), volatile)
			})
		})
	}
}

func open(t testing.TB, path string, volatile bool) *names.Bolt {
	t.Helper()
	db, err := names.Open(path, names.Options{Volatile: volatile})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func name(i int) registry.Name {
	return registry.Name{Space: "oci", Repo: "docker.io/library/alpine", Ref: fmt.Sprintf("%07d", i)}
}

func binding(i int, fresh time.Time) registry.Binding {
	return registry.Binding{
		Descriptor: registry.Descriptor{Digest: digest.FromString(fmt.Sprint(i)), Size: int64(i), MediaType: "application/vnd.oci.image.manifest.v1+json"},
		Checked:    time.Unix(1700000000, 5), Fresh: fresh, Validator: `"etag"`,
	}
}

func fill(t testing.TB, db registry.Names, from, to int, fresh time.Time) {
	t.Helper()
	for i := from; i < to; i++ {
		if _, err := db.Bind(context.Background(), name(i), registry.Binding{}, binding(i, fresh)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReopen(t *testing.T) {
	for _, volatile := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "names.db")
		db := open(t, path, volatile)
		fill(t, db, 0, 100, time.Unix(1800000000, 0))
		before, err := db.Lookup(context.Background(), name(99))
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = open(t, path, volatile)
		after, err := db.Lookup(context.Background(), name(99))
		if err != nil || after != before {
			t.Errorf("after reopening: %+v, %v; want %+v", after, err, before)
		}
		next, err := db.Bind(context.Background(), name(99), after, binding(5, time.Time{}))
		if err != nil || next.Rev == after.Rev {
			t.Errorf("bind after reopening: %+v, %v", next, err)
		}
	}
}

func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "names.db")
	open(t, path, true)
	_, err := names.Open(path, names.Options{Volatile: true, Timeout: time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "in use by another process") || strings.Contains(err.Error(), "\n") {
		t.Errorf("opened twice: %v", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("a database in use was moved away: %v", err)
	}
}

func TestNoDirectory(t *testing.T) {
	for _, volatile := range []bool{false, true} {
		_, err := names.Open(filepath.Join(t.TempDir(), "none", "names.db"), names.Options{Volatile: volatile})
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("no directory: %v", err)
		}
	}
}

// TestDamaged breaks a database in many ways: one that is a cache begins anew
// and keeps the evidence, one that is the truth refuses.
func TestDamaged(t *testing.T) {
	sound := filepath.Join(t.TempDir(), "names.db")
	db := open(t, sound, true)
	fill(t, db, 0, 3000, time.Time{})
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(sound)
	if err != nil {
		t.Fatal(err)
	}
	value := strings.Index(string(data), "sha256:"+digest.FromString("1234").Encoded())
	if value < 0 {
		t.Fatal("a binding is not in the file as expected")
	}
	for what, damage := range map[string]func(data []byte) []byte{
		"both headers are gone":     func(d []byte) []byte { clear(d[:8192]); return d },
		"it is text":                func([]byte) []byte { return []byte("this is not a database\n") },
		"it is text of a page":      func([]byte) []byte { return []byte(strings.Repeat("nonsense", 4096)) },
		"it was cut short":          func(d []byte) []byte { return d[:len(d)/8] },
		"it was cut to its headers": func(d []byte) []byte { return d[:8192] },
		"a page is zero":            func(d []byte) []byte { at := value &^ 4095; clear(d[at : at+4096]); return d },
		"a page is another's":       func(d []byte) []byte { at := value &^ 4095; copy(d[at:at+4096], d[:4096]); return d },
		"a digest has a wrong bit":  func(d []byte) []byte { d[value+20] ^= 1; return d },
	} {
		t.Run(what, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "names.db")
			if err := os.WriteFile(path, damage(append([]byte(nil), data...)), 0o600); err != nil {
				t.Fatal(err)
			}
			if db, err := names.Open(path, names.Options{}); err == nil {
				db.Close()
				t.Fatal("opened as if it were sound")
			}
			if _, err := os.Stat(path); err != nil {
				t.Fatalf("a durable database was moved: %v", err)
			}
			db := open(t, path, true)
			if _, err := db.Lookup(context.Background(), name(1)); !errors.Is(err, registry.ErrNotFound) {
				t.Errorf("begun anew: %v", err)
			}
			fill(t, db, 0, 10, time.Time{})
			if aside, _ := filepath.Glob(path + ".damaged-*"); len(aside) != 1 {
				t.Errorf("set aside: %v", aside)
			}
		})
	}
}

func TestSweep(t *testing.T) {
	now := time.Unix(1800000000, 0)
	for what, db := range map[string]interface {
		registry.Names
		Sweep(context.Context, time.Time) (int, error)
	}{"memory": new(names.Memory), "bolt": open(t, filepath.Join(t.TempDir(), "names.db"), true)} {
		t.Run(what, func(t *testing.T) {
			fill(t, db, 0, 2500, now.Add(-time.Second))
			fill(t, db, 2500, 2600, now)
			fill(t, db, 2600, 2700, time.Time{})
			other := registry.Name{Space: "npm", Repo: "a"}
			if _, err := db.Bind(context.Background(), other, registry.Binding{}, binding(1, now.Add(-time.Hour))); err != nil {
				t.Fatal(err)
			}
			if n, err := db.Sweep(context.Background(), now); n != 2501 || err != nil {
				t.Fatalf("swept %d, %v; want 2501", n, err)
			}
			left := 0
			for n, err := range db.List(context.Background(), "oci", "", "") {
				if err != nil || n != name(2500+left) {
					t.Fatalf("left: %v, %v", n, err)
				}
				left++
			}
			if left != 200 {
				t.Errorf("%d are left, want 200", left)
			}
			if n, err := db.Sweep(context.Background(), now); n != 0 || err != nil {
				t.Errorf("swept again: %d, %v", n, err)
			}
		})
	}
}

func TestSweepStops(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "names.db"), true)
	fill(t, db, 0, 10, time.Unix(1, 0))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if n, err := db.Sweep(ctx, time.Now()); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("swept %d, %v", n, err)
	}
}

func BenchmarkLookup(b *testing.B) {
	cold, err := names.Open(filepath.Join(b.TempDir(), "names.db"), names.Options{Volatile: true, Hot: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer cold.Close()
	for what, db := range map[string]registry.Names{"memory": new(names.Memory), "bolt-cold": cold,
		"bolt-hot": open(b, filepath.Join(b.TempDir(), "names.db"), true)} {
		b.Run(what, func(b *testing.B) {
			fill(b, db, 0, 100_000, time.Unix(1800000000, 0))
			some := make([]registry.Name, 1000)
			for i := range some {
				some[i] = name(i * 100)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, err := db.Lookup(context.Background(), some[i%1000]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBind(b *testing.B) {
	for _, volatile := range []bool{true, false} {
		b.Run(fmt.Sprintf("volatile=%v", volatile), func(b *testing.B) {
			db := open(b, filepath.Join(b.TempDir(), "names.db"), volatile)
			fill(b, db, 0, 1000, time.Unix(1800000000, 0))
			for i := 0; b.Loop(); i++ {
				if _, err := db.Bind(context.Background(), name(1000+i), registry.Binding{}, binding(i, time.Time{})); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
