package peer_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

func TestNames(t *testing.T) {
	s, g := pair(t)
	want := s.up.Put(tag, "application/vnd.oci.image.index.v1+json", []byte("one"))
	b, doc, err := g.Resolve(t.Context(), registry.Question{Name: tag})
	if err != nil || doc == nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(doc)
	if err != nil || doc.Close() != nil {
		t.Fatal(err)
	}
	same(t, "the document", data, []byte("one"))
	if b.Descriptor != want.Descriptor || b.Validator != want.Validator || time.Since(b.Checked) > time.Minute {
		t.Errorf("got %+v, want %+v", b, want)
	}
	b, doc, err = g.Resolve(t.Context(), registry.Question{Name: tag, Have: b})
	if err != nil || doc != nil || b.Descriptor != want.Descriptor {
		t.Errorf("what is known already: %+v, %v", b, err)
	}
	if n := s.up.Resolves(); n != 1 {
		t.Errorf("the authority was asked %d times while the shield's answer was fresh", n)
	}
	if s.guard.nodes.Load() == 0 {
		t.Error("the guard was not told that a node asks")
	}
	// A name of bytes that are had from Open comes without them.
	blob := tag
	blob.Ref = "blob"
	s.up.Put(blob, "application/octet-stream", []byte("layer"))
	if b, doc, err = g.Resolve(t.Context(), registry.Question{Name: blob}); err != nil || doc != nil || b.Size != 5 {
		t.Errorf("a blob's name: %+v, %v", b, err)
	}
}

// TestAges: how old an answer is survives clocks that differ, and what the
// asker knows to be newer is asked for.
func TestAges(t *testing.T) {
	s, g := pair(t)
	s.up.Put(tag, "application/json", []byte("one"))
	old, err := s.service.Names.Bind(t.Context(), tag, registry.Binding{}, registry.Binding{Descriptor: conformance.Describe("application/json", []byte("zero")),
		Checked: time.Now().Add(-30 * time.Minute), Fresh: time.Now().Add(30 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := g.Resolve(t.Context(), registry.Question{Name: tag, Have: old})
	if age := time.Since(b.Checked); err != nil || age < 29*time.Minute || age > 31*time.Minute {
		t.Errorf("an answer of half an hour ago came as one of %v ago, %v", age, err)
	}
	b, doc, err := g.Resolve(t.Context(), registry.Question{Name: tag, Have: old, Since: time.Now().Add(-time.Minute)})
	if err != nil || doc == nil || b.Digest != digest.FromString("one") {
		t.Fatalf("%+v, %v", b, err)
	}
	doc.Close()
}

// TestKinds: failures keep their kind, their text for clients and their time.
func TestKinds(t *testing.T) {
	s, g := pair(t)
	for _, kind := range []error{registry.ErrInvalid, registry.ErrNotFound, registry.ErrUnauthenticated, registry.ErrDenied,
		registry.ErrLimited, registry.ErrTooLarge, registry.ErrUnavailable, registry.ErrCorrupt} {
		n := registry.Name{Space: "oci", Repo: "r", Ref: kind.Error()}
		s.up.SetScript(func(conformance.Op) conformance.Fault {
			return conformance.Fault{Err: &registry.Error{Kind: kind, Text: "secret", Public: "told", After: 7 * time.Second}}
		})
		_, _, err := g.Resolve(t.Context(), registry.Question{Name: n})
		if registry.KindOf(err) != kind || registry.Public(err) != "told" || registry.RetryAfter(err) != 7*time.Second {
			t.Errorf("%v arrived as %v, %q, after %v", kind, registry.KindOf(err), registry.Public(err), registry.RetryAfter(err))
		}
		_, err = g.Open(t.Context(), whole(conformance.Describe("", []byte(kind.Error()))))
		if registry.KindOf(err) != kind {
			t.Errorf("opening: %v arrived as %v", kind, err)
		}
	}
}

// TestOthersAreNotBelieved: a 404 that is no node's own is no "not found".
func TestOthersAreNotBelieved(t *testing.T) {
	server, client := pki(t)
	s := startShield(t, server, new(conformance.Upstream))
	for _, answer := range []func(w http.ResponseWriter){
		func(w http.ResponseWriter) { http.Error(w, "nothing here", 404) },
		func(w http.ResponseWriter) { w.Header().Set("Weir-Error", "marvellous"); w.WriteHeader(404) },
		func(w http.ResponseWriter) { w.WriteHeader(200) },
		func(w http.ResponseWriter) { w.Header().Set("Weir-Run", "5 1 4"); w.WriteHeader(200) },
		func(w http.ResponseWriter) { w.Header().Set("Weir-Binding", "digest=x"); w.WriteHeader(200) },
		func(w http.ResponseWriter) { w.WriteHeader(302) },
	} {
		s.intercept(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/weir/v1/ping" {
				answer(w)
			}
			return r.URL.Path != "/weir/v1/ping"
		})
		fresh := func() *peer.Group { return group(t, peer.Options{Nodes: []string{s.url()}, Dial: client}) }
		if _, _, err := fresh().Resolve(t.Context(), registry.Question{Name: tag}); registry.KindOf(err) != registry.ErrUnavailable {
			t.Errorf("resolve: %v", err)
		}
		if _, err := fresh().Open(t.Context(), whole(conformance.Describe("", []byte("hello")))); registry.KindOf(err) != registry.ErrUnavailable {
			t.Errorf("open: %v", err)
		}
	}
}

func TestRuns(t *testing.T) {
	s, g := pair(t)
	data := conformance.Bytes(1, 3<<20+17)
	d := s.up.PutBlob(data)
	size := int64(len(data))
	for _, known := range []bool{true, false} {
		for _, run := range [][2]int64{{0, -1}, {0, 1}, {5, 100}, {1 << 20, -1}, {size - 1, -1}, {size - 3, 100}, {size, -1}, {size, 5}, {0, 0}, {7, 0}} {
			w := whole(d)
			w.Offset, w.Length = run[0], run[1]
			if !known {
				w.Size = -1
			}
			b, err := g.Open(t.Context(), w)
			if err != nil {
				t.Fatalf("%v of known size %v: %v", run, known, err)
			}
			offset, length, _ := w.Clip(size)
			if at, n := b.Span(); at != offset || n != length || b.Descriptor().Size != size {
				t.Errorf("%v: span %d, %d of %d", run, at, n, b.Descriptor().Size)
			}
			got, err := io.ReadAll(b)
			if err != nil {
				t.Error(err)
			}
			same(t, fmt.Sprint(run), got, data[offset:offset+length])
			b.Close()
		}
		w := whole(d)
		w.Offset = size + 1
		if _, err := g.Open(t.Context(), w); registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("past the end: %v", err)
		}
	}
	empty := s.up.PutBlob(nil)
	if got := readAll(t, g, whole(empty)); len(got) != 0 {
		t.Errorf("an empty blob has %d bytes", len(got))
	}
	if b, err := g.Open(t.Context(), whole(d)); err != nil || b.Via().Detail != "shield" || b.Via().Fwd != "miss" {
		t.Errorf("via %v, %v", b.Via(), err)
	} else {
		b.Close()
	}
}

// TestCut: what breaks off is never a whole body.
func TestCut(t *testing.T) {
	s, g := pair(t)
	d := s.up.PutBlob(conformance.Bytes(1, 200_000))
	s.service.Blobs = passing{s.up} // the shield keeps nothing, and does not reopen
	s.up.SetScript(func(op conformance.Op) conformance.Fault { return conformance.Fault{Cut: 150_000} })
	b, err := g.Open(t.Context(), whole(d))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(b); registry.KindOf(err) != registry.ErrUnavailable {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// passing is a store that keeps nothing.
type passing struct{ registry.Source }

func (passing) Stage(context.Context, registry.Descriptor) (registry.Stage, error) {
	return nil, registry.Errorf(registry.ErrNoRoom, "nothing is kept")
}

// TestFedThroughTiers: edges before one shield ask at once, all are fed while
// it arrives, and the authority gives it once.
func TestFedThroughTiers(t *testing.T) {
	server, client := pki(t)
	s := startShield(t, server, new(conformance.Upstream))
	data := conformance.Bytes(2, 8<<20)
	d := s.up.PutBlob(data)
	gate := make(chan struct{})
	s.up.SetScript(func(conformance.Op) conformance.Fault { return conformance.Fault{Gate: gate, Chunk: 64 << 10} })
	var first, done sync.WaitGroup
	for range 4 {
		edge := cachetiers.NewTier(cachetiers.NewMemory(64<<20), group(t, peer.Options{Nodes: []string{s.url()}, Dial: client}), cachetiers.Options{Name: "memory"})
		for range 8 {
			first.Add(1)
			done.Go(func() {
				b, err := edge.Open(context.Background(), whole(d))
				if err != nil {
					t.Error(err)
					first.Done()
					return
				}
				defer b.Close()
				one := make([]byte, 1)
				if _, err := io.ReadFull(b, one); err != nil {
					t.Error(err)
				}
				first.Done()
				rest, err := io.ReadAll(b)
				if err != nil {
					t.Error(err)
				}
				same(t, "a reader", append(one, rest...), data)
			})
		}
	}
	gate <- struct{}{} // 64 KiB of 8 MiB
	first.Wait()
	close(gate)
	done.Wait()
	if s.up.Bodies() != 1 || s.up.Bytes() != int64(len(data)) {
		t.Errorf("the authority gave %d bodies, %d bytes", s.up.Bodies(), s.up.Bytes())
	}
}

// TestSlowIsNotDead: a shield that waits for something slow behind it says so,
// and is waited for.
func TestSlowIsNotDead(t *testing.T) {
	s, g := pair(t)
	d := s.up.PutBlob([]byte("late"))
	release := make(chan struct{})
	s.up.SetScript(func(conformance.Op) conformance.Fault { return conformance.Fault{Gate: release} })
	s.service.Blobs = slowOpen{s.service.Blobs, release}
	done := make(chan []byte)
	go func() { done <- readAll(t, g, whole(d)) }()
	timer := time.NewTimer(4 * time.Second) // more than any silence that is put up with
	select {
	case <-done:
		t.Error("answered before it was there")
	case <-timer.C:
	}
	close(release)
	same(t, "the blob", <-done, []byte("late"))
	if s.asked.Load() != 1 || !g.States()[0].Up {
		t.Errorf("asked %d times, %+v", s.asked.Load(), g.States())
	}
}

// slowOpen opens nothing before it may.
type slowOpen struct {
	registry.Store
	may <-chan struct{}
}

func (s slowOpen) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	select {
	case <-s.may:
	case <-ctx.Done():
	}
	return s.Store.Open(ctx, w)
}
