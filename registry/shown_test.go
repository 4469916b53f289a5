package registry_test

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

// shownBy is a Service whose blobs come from up by way of what between makes of it,
// and in which two repositories list d; "ours" has it only while has is true.
func shownBy(t *testing.T, up *conformance.Upstream, d registry.Descriptor, between func(registry.Source) registry.Source) (s *registry.Service, theirs, ours *registry.Call) {
	t.Helper()
	s = &registry.Service{Names: new(names.Memory), Guard: new(guard), Witness: new(registry.Witness), Prove: func(registry.Name) bool { return true }}
	policy := func(registry.Name) registry.Policy { return registry.Policy{Fresh: time.Hour, Stale: time.Hour} }
	s.Spaces = map[string]registry.Space{"oci": {Upstream: up, Policy: policy, Documents: func(registry.Name) bool { return false },
		Means: func(n registry.Name) digest.Digest { return digest.Digest(strings.TrimPrefix(n.Ref, "blobs/")) }}}
	store, ok := between(s.Witness.Over(up)).(registry.Store)
	if !ok {
		t.Fatal("no store")
	}
	s.Blobs = store
	call := func(repo string) *registry.Call {
		n := registry.Name{Space: "oci", Repo: repo, Ref: "blobs/" + string(d.Digest)}
		b, err := s.Names.Bind(t.Context(), n, registry.Binding{}, registry.Binding{Descriptor: d, Checked: time.Now(), Fresh: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		return &registry.Call{Action: registry.Pull, Name: n, Binding: b}
	}
	return s, call("theirs"), call("ours")
}

// onlyTheirs is a Script for an upstream of which "ours" has nothing.
func onlyTheirs(o conformance.Op) conformance.Fault {
	if o.Name.Repo == "ours" {
		return conformance.Fault{Err: registry.Errorf(registry.ErrNotFound, "not theirs")}
	}
	return conformance.Fault{}
}

// TestRunningFill: who joins a fill that another repository began is shown nothing
// of it, and who has the blob itself needs no second one.
func TestRunningFill(t *testing.T) {
	for _, has := range []bool{false, true} {
		data := conformance.Bytes(3, 4<<20)
		d := conformance.Describe("", data)
		gate := make(chan struct{})
		up := new(conformance.Upstream)
		up.PutBlob(data)
		up.SetScript(func(o conformance.Op) conformance.Fault {
			if !has {
				if f := onlyTheirs(o); f.Err != nil {
					return f
				}
			}
			return conformance.Fault{Gate: gate, Chunk: 1 << 20}
		})
		s, theirs, ours := shownBy(t, up, d, func(far registry.Source) registry.Source {
			return cachetiers.NewTier(cachetiers.NewMemory(64<<20), far, cachetiers.Options{})
		})
		first, err := s.Open(t.Context(), theirs, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		second, err := s.Open(t.Context(), ours, 0, -1)
		if !has && registry.KindOf(err) != registry.ErrNotFound {
			t.Errorf("joined: %v", err)
		}
		close(gate)
		for _, b := range []registry.Blob{first, second} {
			if b == nil {
				continue
			}
			if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			b.Close()
		}
		if up.Bodies() != 1 || up.Opens() != 2 {
			t.Errorf("has %v: %d opens, %d of them for bytes", has, up.Opens(), up.Bodies())
		}
	}
}

// TestPartsLeft: the beginning of a fill that is left on the disk is not given to a
// repository whose upstream has not been asked for the rest.
func TestPartsLeft(t *testing.T) {
	const segment = 1 << 20
	data := conformance.Bytes(4, 8*segment)
	d := conformance.Describe("", data)
	up := new(conformance.Upstream)
	up.PutBlob(data)
	up.SetScript(func(o conformance.Op) conformance.Fault {
		f := onlyTheirs(o)
		if o.Kind == "open" && o.Want.Offset >= 4*segment {
			f.Err = registry.Errorf(registry.ErrLimited, "enough for today")
		}
		return f
	})
	disk, err := cachetiers.OpenDisk(t.TempDir(), cachetiers.DiskOptions{Limit: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	s, theirs, ours := shownBy(t, up, d, func(far registry.Source) registry.Source {
		return cachetiers.NewTier(disk, far, cachetiers.Options{SegmentFrom: 1, Segment: segment, Streams: 1})
	})
	read := func(c *registry.Call, length int64) ([]byte, error) {
		b, err := s.Open(context.Background(), c, 0, length)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		return io.ReadAll(b)
	}
	if _, err := read(theirs, -1); registry.KindOf(err) != registry.ErrLimited {
		t.Fatalf("the fill was to be cut off: %v", err)
	}
	if up.Opens() != up.Bodies() {
		t.Errorf("a cold pull in segments cost a question: %d opens, %d for bytes", up.Opens(), up.Bodies())
	}
	// It is there: they are given it without more being fetched.
	given := up.Bytes()
	if got, err := read(theirs, segment); err != nil || !bytes.Equal(got, data[:segment]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if up.Bytes() != given {
		t.Fatalf("%d bytes were fetched that should have been left", up.Bytes()-given)
	}
	if got, err := read(ours, segment); registry.KindOf(err) != registry.ErrNotFound || len(got) > 0 {
		t.Errorf("given %d bytes of it, %v", len(got), err)
	}
}

// TestStoreInBetween: what a store for good has because of others shows nothing.
func TestStoreInBetween(t *testing.T) {
	data := conformance.Bytes(5, 100_000)
	d := conformance.Describe("", data)
	up := new(conformance.Upstream)
	up.PutBlob(data)
	up.SetScript(onlyTheirs)
	kept := cachetiers.NewMemory(64 << 20)
	s, theirs, ours := shownBy(t, up, d, func(far registry.Source) registry.Source {
		return cachetiers.NewTier(cachetiers.NewMemory(64<<20), cachetiers.NewTier(kept, far, cachetiers.Options{}), cachetiers.Options{})
	})
	b, err := s.Open(t.Context(), theirs, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, b); err != nil {
		t.Fatal(err)
	}
	b.Close()
	s.Blobs = cachetiers.NewTier(cachetiers.NewMemory(64<<20), kept, cachetiers.Options{})
	if _, err := s.Open(t.Context(), ours, 0, -1); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("from the store: %v", err)
	}
	again, err := s.Open(t.Context(), theirs, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if up.Opens() != 2 {
		t.Errorf("%d opens", up.Opens())
	}
}
