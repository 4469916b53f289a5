package npm

import (
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// TestNamesOfNodes: what another node asks about is put into no address, with
// this node's credentials, unless a client could have asked it.
func TestNamesOfNodes(t *testing.T) {
	u, err := NewUpstreams([]Registry{{Name: "public", URL: "http://127.0.0.1:1", Packages: []string{"*"}}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []registry.Name{
		{Repo: "-", Ref: "-/npm/v1/tokens"},
		{Repo: "a", Ref: "-/whoami"},
		{Repo: "a", Ref: keysPath},
		{Repo: "../-/whoami", Ref: ""},
		{Repo: "a?b", Ref: ""},
		{Repo: "a", Ref: attestationsPath + ".."},
		{Repo: "a", Ref: attestationsPath + "a@.."},
		{Repo: "a", Ref: attestationsPath + "../b@1"},
	} {
		if _, _, err := u.Resolve(t.Context(), registry.Question{Name: n}); registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("%v: %v", n, err)
		}
	}
	for _, repo := range []string{"-/npm/v1/tokens?", "a/../b"} {
		w := registry.Want{From: registry.Name{Space: space, Repo: repo, Ref: "a-1.tgz"}, Descriptor: registry.Descriptor{Digest: digest.FromString("x"), Size: -1}, Length: -1}
		if _, err := u.Open(t.Context(), w); registry.KindOf(err) != registry.ErrInvalid {
			t.Errorf("open by %q: %v", repo, err)
		}
	}
	for _, n := range []registry.Name{{Repo: "a"}, {Repo: "@s/n"}, {Repo: "-", Ref: keysPath}, {Repo: "@s/n", Ref: attestationsPath + "@s/n@1.0.0"}} {
		if !validDocument(n) {
			t.Errorf("%v can be asked about", n)
		}
	}
}
