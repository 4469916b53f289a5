package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/registry"
)

func TestDocumentListsWhatItsRepositoryHolds(t *testing.T) {
	f := newFixture()
	inner := "inner " + string(digest.FromString("leaf"))
	f.up.docs[latest] = "outer " + string(digest.FromString(inner))
	innerName := registry.Name{Space: "oci", Repo: "r", Ref: string(digest.FromString(inner))}
	f.get(t, latest)
	if _, err := f.names.Lookup(context.Background(), innerName); err != nil {
		t.Fatalf("the child was not bound: %v", err)
	}
	leaf := registry.Name{Space: "oci", Repo: "r", Ref: string(digest.FromString("leaf"))}
	if _, err := f.names.Lookup(context.Background(), leaf); err == nil {
		t.Fatal("the grandchild was bound before the child was read")
	}
	f.up.docs[registry.Name{Space: "oci", Repo: "r", Ref: "z"}] = inner // has it by digest
	asked := f.up.resolves.Load()
	b, err := f.names.Lookup(context.Background(), innerName)
	if err != nil {
		t.Fatal(err)
	}
	b.Size = int64(len(inner))
	if _, err := f.names.Bind(context.Background(), innerName, b, b); err != nil {
		t.Fatal(err)
	}
	f.get(t, innerName)
	if _, err := f.names.Lookup(context.Background(), leaf); err != nil {
		t.Errorf("the grandchild is not bound: %v", err)
	}
	f.wantResolves(t, asked, "a child that is held")
	opens := f.up.opens.Load()
	f.get(t, innerName)
	if f.up.opens.Load() != opens {
		t.Error("the child was fetched twice")
	}
	other := registry.Name{Space: "oci", Repo: "other", Ref: innerName.Ref}
	if _, _, err := f.getErr(other); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("a digest was readable through a repository that does not hold it: %v", err)
	}
}

// TestManifestCorrectsSize: the document's digest vouches for a size, and what
// an upstream said of it before does not stand against that.
func TestManifestCorrectsSize(t *testing.T) {
	f := newFixture()
	leaf := digest.FromString("leaf")
	n := registry.Name{Space: "oci", Repo: "r", Ref: string(leaf)}
	told := registry.Binding{Descriptor: registry.Descriptor{Digest: leaf, Size: 17}, Checked: time.Now(), Fresh: time.Now().Add(time.Hour)}
	if _, err := f.names.Bind(context.Background(), n, registry.Binding{}, told); err != nil {
		t.Fatal(err)
	}
	f.up.docs[latest] = "lists " + string(leaf)
	f.get(t, latest)
	if b, err := f.names.Lookup(context.Background(), n); err != nil || b.Size != 7 {
		t.Errorf("%+v, %v: not the size the document gives", b, err)
	}
}

func TestDocumentThatMakesNoSenseIsPassedOn(t *testing.T) {
	f := newFixture()
	f.up.docs[latest] = "nonsense sha256:x"
	if doc, _ := f.get(t, latest); doc != "nonsense sha256:x" {
		t.Errorf("%q", doc)
	}
}

func TestDocumentLimits(t *testing.T) {
	f := newFixture()
	f.up.docs[latest] = strings.Repeat("x", 1000)
	f.get(t, latest)
	big := registry.Name{Space: "oci", Repo: "r", Ref: "big"}
	f.up.docs[big] = strings.Repeat("x", 1001)
	if _, _, err := f.getErr(big); !errors.Is(err, registry.ErrTooLarge) {
		t.Errorf("one byte over: %v", err)
	}
}

// TestEvictedDocument: a document that is in no tier and cannot be had by
// digest is asked for by name.
func TestEvictedDocument(t *testing.T) {
	f := newFixture()
	packument := registry.Name{Space: "oci", Repo: "p"}
	f.up.docs[packument] = "doc"
	f.get(t, packument)
	f.Blobs = cachetiers.NewTier(new(cachetiers.Memory), f.up, cachetiers.Options{})
	if doc, _ := f.get(t, packument); doc != "doc" {
		t.Errorf("%q", doc)
	}
	f.wantResolves(t, 2, "evicted")
}

// TestEvictedDocumentUnchangedUpstream: "it has not changed" is no answer to
// one who does not have it any more; and a failure then is no "not found".
func TestEvictedDocumentUnchangedUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		packument := registry.Name{Space: "oci", Repo: "p"}
		f.up.docs[packument] = "doc"
		f.get(t, packument)
		f.Blobs = cachetiers.NewTier(new(cachetiers.Memory), f.up, cachetiers.Options{})
		pass(10 * time.Minute)
		if doc, _ := f.get(t, packument); doc != "doc" {
			t.Errorf("%q", doc)
		}
		f.Blobs = cachetiers.NewTier(new(cachetiers.Memory), nobody{}, cachetiers.Options{})
		f.up.fail = registry.Errorf(registry.ErrUnavailable, "gone")
		pass(10 * time.Minute)
		if _, _, err := f.getErr(packument); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("evicted, and upstream gone: %v", err)
		}
	})
}

// nobody has no blobs.
type nobody struct{}

// TestWrongSizeHeals: a size that the upstream told wrong once is not believed
// for ever.
func TestWrongSizeHeals(t *testing.T) {
	f := newFixture()
	f.up.docs[latest] = "one"
	f.get(t, latest)
	f.Blobs = cachetiers.NewTier(new(cachetiers.Memory), f.up, cachetiers.Options{})
	b, err := f.names.Lookup(context.Background(), latest)
	if err != nil {
		t.Fatal(err)
	}
	wrong := b
	wrong.Size = 17
	if _, err := f.names.Bind(context.Background(), latest, b, wrong); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.getErr(latest); !errors.Is(err, registry.ErrCorrupt) {
		t.Errorf("a wrong size: %v", err)
	}
	if doc, _ := f.get(t, latest); doc != "one" {
		t.Errorf("%q", doc)
	}
}

func TestView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		f.up.docs[latest] = "one"
		var made atomic.Int64
		view := func() (string, registry.Binding) {
			c := &registry.Call{Name: latest}
			if _, _, err := f.Resolve(context.Background(), c); err != nil {
				t.Fatal(err)
			}
			vb, b, _, err := f.View(context.Background(), c, "upper", func(_ context.Context, doc registry.Blob, w io.Writer) (string, error) {
				made.Add(1)
				pass(time.Second)
				d, err := io.ReadAll(doc)
				if err == nil {
					_, err = w.Write(bytes.ToUpper(d))
				}
				return "text/upper", err
			})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			got, err := io.ReadAll(b)
			if err != nil {
				t.Fatal(err)
			}
			return string(got), vb
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if got, vb := view(); got != "ONE" || vb.MediaType != "text/upper" || vb.Digest != digest.FromString("ONE") {
					t.Errorf("%q %+v", got, vb)
				}
			})
		}
		wg.Wait()
		if made.Load() != 1 {
			t.Errorf("made %d times for 20 readers", made.Load())
		}
		f.up.docs[latest] = "two"
		pass(10 * time.Minute)
		if got, _ := view(); got != "TWO" || made.Load() != 2 {
			t.Errorf("%q, made %d times", got, made.Load())
		}
		// Evicted, document and view: both are had again.
		f.Blobs = cachetiers.NewTier(new(cachetiers.Memory), f.up, cachetiers.Options{})
		if got, _ := view(); got != "TWO" {
			t.Errorf("%q", got)
		}
	})
}

func TestCorruptDocument(t *testing.T) {
	f := newFixture()
	f.Spaces["oci"] = registry.Space{Policy: f.Spaces["oci"].Policy, Upstream: liar{f.up}}
	if _, _, err := f.getErr(latest); !errors.Is(err, registry.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	if _, err := f.names.Lookup(context.Background(), latest); err == nil {
		t.Error("a name stands for bytes that failed verification")
	}
}

// liar sends other bytes than it announces.
type liar struct{ *authority }

// TestKept: documents that an upstream gave are told of, once, by name.
func TestKept(t *testing.T) {
	f := newFixture()
	f.up.docs[latest] = "one"
	var kept []string
	f.Kept = func(n registry.Name, d registry.Descriptor) { kept = append(kept, n.String()+" "+string(d.Digest)) }
	f.get(t, latest)
	f.get(t, latest)
	if want := latest.String() + " " + string(digest.FromString("one")); len(kept) != 1 || kept[0] != want {
		t.Errorf("%q, want %q", kept, want)
	}
}
