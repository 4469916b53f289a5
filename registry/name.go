package registry

import (
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Name is what a binding is found by. It is comparable; its zero value is
// invalid.
type Name struct {
	// Space is the protocol whose names these are: "oci" or "npm". Names of
	// two spaces never meet.
	Space string
	// Repo is the repository or package. In "oci" it begins with the upstream
	// it belongs to ("docker.io/library/alpine"), so that two upstreams with
	// the same repository never mix; in "npm" it is the package's name.
	Repo string
	// Ref is what is meant within Repo; its grammar is the protocol's. In
	// "oci" a tag, a manifest's digest, "blobs/DIGEST", "tags/list" or
	// "referrers/DIGEST"; in "npm" "" for the packument, or a tarball's file
	// name. What is derived from a document is under "view/…" in its Repo.
	Ref string
}

// String is for people and logs: "oci docker.io/library/alpine 3".
func (n Name) String() string {
	if n.Ref == "" {
		return n.Space + " " + n.Repo
	}
	return n.Space + " " + n.Repo + " " + n.Ref
}

// A Descriptor says which bytes: their digest, how many they are, and what
// they are for.
type Descriptor struct {
	// Digest is of any algorithm that [NewHash] knows. Empty: not known yet.
	Digest digest.Digest
	// Size is in bytes; negative: not known yet (an npm registry does not say
	// how long a tarball is until it is asked for it).
	Size int64
	// MediaType is passed on to clients exactly as it came.
	MediaType string
}

// A Binding is what a name stands for, and since when that is known.
type Binding struct {
	Descriptor
	// Checked is when the authority behind the name last said so.
	Checked time.Time
	// Fresh is until when no one needs to ask again; zero: this node is the
	// authority and the binding is never stale.
	Fresh time.Time
	// Validator is the upstream's ETag for a document, or the digest of the
	// document that a derived binding (a view, a tarball's entry) was made
	// from.
	Validator string
	// Location is the address of the bytes at the upstream, where the name
	// does not imply it. Whoever dials it checks it against its configuration.
	Location string
	// Listed reports that what the document lists has been bound too, so that
	// its repository is known to hold it.
	Listed bool
	// Shown reports that the repository is known to have these bytes, not only
	// to list their digest: they came from its own upstream, or that has said
	// that they are there.
	Shown bool
	// Rev is the opaque revision that [Names.Bind] compares. It is set by
	// Names and never by anyone else.
	Rev string
}

// Zero reports whether the binding stands for nothing.
func (b Binding) Zero() bool { return b.Digest == "" }

// A Call is one request as the guard sees it: first with the name alone, then
// with the binding it turned out to have.
type Call struct {
	Who    Principal
	Action Action
	Name   Name
	// Binding is, on the way in, what the caller knows already (for a name
	// that is a digest: that digest, and for a blob its media type); Service
	// sets it to what the name resolved to before the second admission.
	Binding Binding
	// Since asks for a binding that the authority confirmed at or after this
	// time; zero leaves it to the policy. A client that names a version
	// unknown here sets it, so that a fresh publish is seen at once.
	Since time.Time
	// Firm asks for a binding that is not past its time, if one can be had
	// while the caller waits: who asks keeps it for others.
	Firm bool
	// Whether says that nobody is about to do this: only whether it would be
	// admitted is of interest, and that is no event.
	Whether bool
	// Some says that this is about no one repository, as a search is: it is
	// admitted if there can be one in Name's space that Who may do it with. Repo
	// tells only the log what it is.
	Some  bool
	Addr  netip.Addr
	Agent string
}

// A Want asks a Source for bytes of one blob.
type Want struct {
	Descriptor
	// From is the name through which the digest became known. A Source that
	// is keyed by digest alone ignores it; an upstream needs it.
	From Name
	// Location is the binding's.
	Location string
	// Offset and Length say which bytes; a negative Length means to the end.
	// Bytes past the end are not an error: there are just fewer. An Offset
	// past the end is ErrInvalid. A Length of zero asks for the Descriptor
	// alone: nothing is filled, and an upstream answers it with a HEAD.
	Offset, Length int64
	// Ahead reports that the asker will want the rest of the blob too, in other
	// Wants: a Source that fills may go ahead.
	Ahead bool
	// Shown asks for bytes that From's repository has been shown to have, not only
	// to list, and of a node behind to see to that although it may let everyone
	// read everything itself. [Service] sets it.
	Shown bool
	// Background reports that no client waits for the bytes, so that an
	// upstream under load may let them wait, or refuse them, before others.
	Background bool
}

// Whole is the Want for all bytes of what a binding stands for.
func Whole(n Name, b Binding) Want {
	return Want{Descriptor: b.Descriptor, From: n, Location: b.Location, Length: -1}
}

// Clip resolves w's Offset and Length against a blob of size bytes (negative:
// unknown, then the length may come out negative too). ok is false if the
// Offset is negative or past the end.
func (w Want) Clip(size int64) (offset, length int64, ok bool) {
	if w.Offset < 0 || size >= 0 && w.Offset > size {
		return 0, 0, false
	}
	length = w.Length
	if size >= 0 {
		if rest := size - w.Offset; length < 0 || length > rest {
			length = rest
		}
	}
	return w.Offset, length, true
}
