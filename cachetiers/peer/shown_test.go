package peer_test

import (
	"io"
	"testing"
	"time"

	"github.com/weir-registry/weir/cachetiers"
	"github.com/weir-registry/weir/cachetiers/peer"
	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
	"github.com/weir-registry/weir/registry/names"
)

// edgeOf is a node in front of s, whose repositories must show what they have.
func edgeOf(t *testing.T, s *shield, dial peer.Dial) *registry.Service {
	t.Helper()
	w := new(registry.Witness)
	g := group(t, peer.Options{Nodes: []string{s.url()}, Dial: dial, Witness: w})
	return &registry.Service{Names: new(names.Memory), Guard: &everyone{}, Witness: w, Prove: func(registry.Name) bool { return true },
		Blobs: cachetiers.NewTier(cachetiers.NewMemory(64<<20), g, cachetiers.Options{Name: "memory"}),
		Spaces: map[string]registry.Space{"oci": {Upstream: g, Policy: func(registry.Name) registry.Policy { return s.policy },
			Documents: func(n registry.Name) bool { return n.Ref != "blob" }}}}
}

// TestShownBehind: a node behind gives through a repository only what that has, so
// that a node in front that is given it need not ask.
func TestShownBehind(t *testing.T) {
	server, client := pki(t)
	s := startShield(t, server, new(conformance.Upstream))
	s.service.Prove, s.service.Witness = func(registry.Name) bool { return true }, new(registry.Witness)
	s.service.Blobs = cachetiers.NewTier(cachetiers.NewMemory(64<<20), s.service.Witness.Over(s.up), cachetiers.Options{Name: "memory"})
	secret := []byte("a secret layer")
	d := s.up.PutBlob(secret)
	theirs := registry.Name{Space: "oci", Repo: "theirs/app", Ref: "blob"}
	ours := registry.Name{Space: "oci", Repo: "ours/app", Ref: "blob"}
	s.up.SetScript(func(o conformance.Op) conformance.Fault {
		if o.Kind == "open" && o.Name.Repo == ours.Repo {
			return conformance.Fault{Err: registry.Errorf(registry.ErrNotFound, "not theirs")}
		}
		return conformance.Fault{}
	})
	pull := func(svc *registry.Service, n registry.Name, length int64) ([]byte, error) {
		// As if a manifest had listed it a moment ago.
		c := &registry.Call{Action: registry.Pull, Name: n, Binding: registry.Binding{Descriptor: d, Fresh: time.Now().Add(time.Hour)}}
		b, err := svc.Open(t.Context(), c, 0, length)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		return io.ReadAll(b)
	}
	first, second := edgeOf(t, s, client), edgeOf(t, s, client)
	for i, svc := range []*registry.Service{first, first, second, second} {
		data, err := pull(svc, theirs, -1)
		if err != nil {
			t.Fatal(i, err)
		}
		same(t, "what they pull", data, secret)
	}
	if n := s.up.Opens(); n != 1 {
		t.Errorf("four pulls at two nodes cost %d questions of the upstream", n)
	}
	if n := s.asked.Load(); n != 2 {
		t.Errorf("four pulls at two nodes cost %d questions of the shield", n)
	}
	third := edgeOf(t, s, client) // which has nothing itself
	for _, svc := range []*registry.Service{first, third} {
		for _, length := range []int64{-1, 0, 3} {
			if data, err := pull(svc, ours, length); registry.KindOf(err) != registry.ErrNotFound {
				t.Errorf("%d bytes asked for: %q, %v", length, data, err)
			}
		}
	}
	// Nor does the shield give it to one that asks no questions.
	blind := edgeOf(t, s, client)
	blind.Prove = nil
	if data, err := pull(blind, ours, -1); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("%q, %v", data, err)
	}
}

// TestClaimsStayClaims: that a node behind knows of a digest from a list is not
// taken for more.
func TestClaimsStayClaims(t *testing.T) {
	server, client := pki(t)
	s := startShield(t, server, new(conformance.Upstream))
	g := group(t, peer.Options{Nodes: []string{s.url()}, Dial: client})
	n := registry.Name{Space: "oci", Repo: "r", Ref: "blob"}
	b := registry.Binding{Descriptor: conformance.Describe("", []byte("x")), Checked: time.Now(), Fresh: time.Now().Add(time.Hour)}
	for _, shown := range []bool{false, true} {
		old, _ := s.service.Names.Lookup(t.Context(), n)
		b.Shown = shown
		if _, err := s.service.Names.Bind(t.Context(), n, old, b); err != nil {
			t.Fatal(err)
		}
		got, _, err := g.Resolve(t.Context(), registry.Question{Name: n})
		if err != nil || got.Shown != shown {
			t.Errorf("shown %v arrived as %+v, %v", shown, got, err)
		}
	}
}

// TestShownForWhoAsksForIt: a node behind where everybody may read everything still
// sees to it that a repository has what it is asked for by one in front where they
// may not.
func TestShownForWhoAsksForIt(t *testing.T) {
	server, client := pki(t)
	s := startShield(t, server, new(conformance.Upstream))
	s.service.Witness = new(registry.Witness) // and no Prove
	s.service.Blobs = cachetiers.NewTier(cachetiers.NewMemory(64<<20), s.service.Witness.Over(s.up), cachetiers.Options{Name: "memory"})
	d := s.up.PutBlob([]byte("a secret layer"))
	ours := registry.Name{Space: "oci", Repo: "ours/app", Ref: "blob"}
	s.up.SetScript(func(o conformance.Op) conformance.Fault {
		if o.Kind == "open" && o.Name.Repo == ours.Repo {
			return conformance.Fault{Err: registry.Errorf(registry.ErrNotFound, "not theirs")}
		}
		return conformance.Fault{}
	})
	pull := func(svc *registry.Service, n registry.Name) error {
		c := &registry.Call{Action: registry.Pull, Name: n, Binding: registry.Binding{Descriptor: d, Fresh: time.Now().Add(time.Hour)}}
		b, err := svc.Open(t.Context(), c, 0, -1)
		if err != nil {
			return err
		}
		defer b.Close()
		_, err = io.Copy(io.Discard, b)
		return err
	}
	if err := pull(edgeOf(t, s, client), registry.Name{Space: "oci", Repo: "theirs/app", Ref: "blob"}); err != nil {
		t.Fatal(err)
	}
	if err := pull(edgeOf(t, s, client), ours); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("a node in front was given what the repository it asked for has not: %v", err)
	}
	// What is open to all is given as it is, so the difference is what was asked for.
	open := edgeOf(t, s, client)
	open.Prove = nil
	if err := pull(open, ours); err != nil {
		t.Errorf("where everybody may read everything: %v", err)
	}
	// And it shows nothing once they no longer may.
	open.Prove = func(registry.Name) bool { return true }
	if err := pull(open, ours); registry.KindOf(err) != registry.ErrNotFound {
		t.Errorf("what was given while everybody might read everything: %v", err)
	}
}
