// Package names keeps bindings: what a tag, a package or a held digest stands
// for. [Memory] forgets when the process ends; [Bolt] is the embedded database.
//
// It keeps the metadata database too, which has a feed of its changes:
// [MemoryMetadata] forgets, [BoltMetadata] is a file. A [Table] is bindings in a
// metadata database, whichever it is.
//
// It knows revisions, compare-and-swap and listing, and nothing of what a tag
// is, of blobs, or of who may see them.
//
// Revisions are numbers that only grow within one table, so that one that has
// been replaced or unbound never comes back.
package names

import (
	"strings"

	"github.com/weir-registry/weir/registry"
)

// maxKey bounds a repository and a reference together; bbolt takes keys of up
// to 32 KiB, and no protocol has names that are nearly so long.
const maxKey = 16 << 10

// check refuses names that cannot be keys: Repo and Ref are kept with a zero
// byte between them, so that they sort as (Repo, Ref) pairs do.
func check(n registry.Name) error {
	switch {
	case n.Space == "" || n.Repo == "":
		return registry.Errorf(registry.ErrInvalid, "a name without a space or a repository")
	case strings.IndexByte(n.Repo, 0) >= 0 || strings.IndexByte(n.Ref, 0) >= 0:
		return registry.Errorf(registry.ErrInvalid, "a name with a zero byte in it")
	case len(n.Space)+len(n.Repo)+len(n.Ref) >= maxKey:
		return registry.Errorf(registry.ErrInvalid, "a name of more than %d bytes", maxKey)
	}
	return nil
}

// checkBind is check, and for a binding to something that its digest is one.
func checkBind(n registry.Name, b registry.Binding) error {
	if err := check(n); err != nil {
		return err
	}
	if !b.Zero() && !registry.ValidDigest(b.Digest) {
		return registry.Errorf(registry.ErrInvalid, "%.200v cannot be bound to the malformed digest %.200q", n, b.Digest)
	}
	return nil
}

func notBound(n registry.Name) error {
	return &registry.Error{Kind: registry.ErrNotFound, Text: "name is not bound: " + n.String()}
}

func conflict(n registry.Name) error {
	return &registry.Error{Kind: registry.ErrConflict, Text: "name was bound anew in the meantime: " + n.String()}
}
