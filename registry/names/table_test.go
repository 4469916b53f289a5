package names

import (
	"cmp"
	"strings"
	"testing"

	"github.com/weir-registry/weir/registry"
)

// FuzzTableKey: keys are valid, come back as the names they are of, and are in
// the order of these.
func FuzzTableKey(f *testing.F) {
	f.Add("oci", "a", "b", "a", "c")
	f.Add("oci", "a", "", "a!", "")
	f.Add("o\"", "a ", "\x7f", "a", "\xff~")
	f.Add("npm", "@s/p", "é", "@s/p\x01", "\"")
	f.Fuzz(func(t *testing.T, space, repo, ref, repo2, ref2 string) {
		a, b := registry.Name{Space: space, Repo: repo, Ref: ref}, registry.Name{Space: space, Repo: repo2, Ref: ref2}
		if check(a) != nil || check(b) != nil {
			return
		}
		keyA, keyB := tableKey(a), tableKey(b)
		if len(keyA) <= registry.MaxKey && registry.CheckKey(keyA) != nil {
			t.Fatalf("%q has the key %q", a, keyA)
		}
		if got, err := parseTableKey(keyA); err != nil || got != a {
			t.Fatalf("%q came back as %q, %v", a, got, err)
		}
		if want := cmp.Or(strings.Compare(repo, repo2), strings.Compare(ref, ref2)); strings.Compare(keyA, keyB) != want {
			t.Fatalf("%q and %q have the keys %q and %q", a, b, keyA, keyB)
		}
		if after := string(append(repoKey(space, repo), '!'+1)); after <= keyA || repo2 > repo && after >= keyB {
			t.Fatalf("%q is not between %q and %q", after, keyA, keyB)
		}
	})
}

// FuzzParseTableKey gives parseTableKey any key; what it takes is that of a name.
func FuzzParseTableKey(f *testing.F) {
	for _, key := range []string{"n/oci!a!b", "n/oci!a!", "n/oci!a", "n/oci!\"#!b", "n/oci!\x7fff!b", "n/oci!\x7f", "n/oci!\"!b", "!!", "n/oci!\x7f20!b"} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if n, err := parseTableKey(key); err == nil && tableKey(n) != key {
			t.Errorf("%q is taken for %q, whose key is %q", key, n, tableKey(n))
		}
	})
}
