package registry

import (
	"context"
	"io"
	"iter"
	"net/netip"
	"os"
	"time"
)

// A Source supplies blobs. Memory, disk, a peer, a bucket and an upstream are
// Sources, and so is a tier of a near Store in front of a far Source.
//
// Open returns when the first bytes are at hand or certain to come, and not
// later than ctx allows; ctx governs the whole life of the Blob. The caller
// closes the Blob. Retries are the Source's own business; a caller does not
// retry. Sources at the far end do not verify, they only carry: whoever
// stores bytes verifies them (Stage.Commit), and a tier passes on no last byte
// of a blob that has not been verified.
//
// Errors: ErrNotFound if the Source has no such blob, ErrInvalid for an Offset
// past the end, or what the authority answered (ErrUnauthenticated, ErrDenied,
// ErrLimited, ErrUnavailable); never ErrNotFound for a failure.
type Source interface {
	Open(ctx context.Context, w Want) (Blob, error)
}

// A Blob is an open run of bytes of one blob. It is used by one goroutine.
//
// Read and WriteTo end with io.EOF (WriteTo: nil) only when every byte of the
// run has been given and, as far as this Source verifies, is right. Otherwise
// they fail: with ErrCorrupt for bytes that turned out wrong, whereupon the
// reader must treat all it has got as void and cut its own reader off.
// WriteTo lets the kernel copy where it can (sendfile).
type Blob interface {
	io.Reader
	io.WriterTo
	io.Closer
	// Descriptor is the whole blob's; its Size may be negative if even the
	// upstream did not say.
	Descriptor() Descriptor
	// Span is the offset of the run and its length, which is negative exactly
	// if the blob's size is unknown.
	Span() (offset, length int64)
	// Via says how the bytes came to be at hand.
	Via() Via
}

// A Store is a Source that takes blobs too.
//
// Stage begins a blob. What is known of it beforehand is in expect: with a
// Digest the bytes are hashed by its algorithm and must match; without one
// they are hashed by SHA-256. With a Size (not negative) room for it is
// reserved, and a different number of bytes is ErrCorrupt. Errors: ErrNoRoom
// if the store cannot take it.
type Store interface {
	Source
	Stage(ctx context.Context, expect Descriptor) (Stage, error)
}

// A Stage is a blob on its way into a Store. One goroutine writes it, commits
// it and closes it; any number may ReadAt what has been written, from the
// return of that Write until Close, and after a Commit too.
//
// Write hashes and stores; ErrNoRoom if there is no room. Commit verifies:
// only after it has returned nil does Open find the blob, and it returns the
// descriptor found. A mismatch is ErrCorrupt and leaves nothing. How durable
// a committed blob is is the Store's own to say. Close frees what was not
// committed; it must be called, and may be called twice.
type Stage interface {
	io.Writer
	io.ReaderAt
	Commit(ctx context.Context) (Descriptor, error)
	io.Closer
}

// A FileStage is a Stage whose bytes are in a file from the first one on, so
// that readers of a running fill can have the kernel copy them.
type FileStage interface {
	Stage
	// File opens the staged bytes for one reader, who closes it. The file's
	// length is not the blob's: read only what is known to be written.
	File() (*os.File, error)
}

// Names keeps bindings: the only mutable truth weir has.
//
// Lookup gives ErrNotFound for a name that is not bound. Bind is
// compare-and-swap: it succeeds only while the name's revision is old.Rev (a
// zero old: while it is not bound), else ErrConflict; a zero new unbinds. It
// returns the binding as kept, with its Rev. List gives the bound names of one
// repository in the order of their Ref, those after the given one; with an
// empty repo, those of the space in the order of Repo and Ref. How durable a
// bound name is is the implementation's to say. All may be called at once.
type Names interface {
	Lookup(ctx context.Context, n Name) (Binding, error)
	Bind(ctx context.Context, n Name, old, new Binding) (Binding, error)
	List(ctx context.Context, space, repo, after string) iter.Seq2[Name, error]
}

// A ManyNames is a Names that binds several names at the cost of about one.
//
// BindAll does what Bind does for each change, in any order; a change that is in
// conflict is left out without an error. Errors are Bind's others, and then any
// of the changes may have been made.
type ManyNames interface {
	Names
	BindAll(ctx context.Context, changes []Change) error
}

// A Change is one compare-and-swap.
type Change struct {
	Name     Name
	Old, New Binding
}

// An Upstream is an authority behind this node: a registry, or the next tier.
//
// Resolve asks what a name stands for now. If what the question says is known
// already still holds, the answer is its Descriptor and Validator again with a
// nil doc, at the cost of a HEAD or a 304 where the upstream can do that. Else
// the answer is a new Binding, and doc, if not nil, are its bytes (a manifest,
// a packument), which the caller reads once, closes and verifies; with a nil
// doc they are to be had from Open. The Binding's Digest may be empty if there
// is a doc, and is then what the doc hashes to. An Upstream that is a cache
// itself says in Checked when the authority last confirmed the answer; zero is
// now. Shown says that the authority was asked for the very digest, and has it.
// Fresh and Rev are left to the caller.
//
// Errors are truthful: ErrNotFound only if the authority said so. The
// Upstream does its own retries and keeps its own time limits within ctx's.
type Upstream interface {
	Source
	Resolve(ctx context.Context, q Question) (b Binding, doc io.ReadCloser, err error)
}

// A Question asks an Upstream about one name.
type Question struct {
	Name Name
	// Have is what is known already; zero if nothing is.
	Have Binding
	// Since asks for an answer that the authority confirmed at or after this
	// time; zero leaves it to whoever answers. It matters only to an Upstream
	// that is a cache itself.
	Since time.Time
	// Background reports that nobody waits for the answer, so that an Upstream
	// under load may let it wait, or refuse it, before others.
	Background bool
}

// A Widener is a Blob whose Source may have given more than the run it was
// asked for, because it cannot give less: an HTTP server that ignores Range.
// Widen, called before the first Read, then makes the run the whole blob and
// reports true; it reports false if the Source gave just the run.
type Widener interface {
	Blob
	Widen() bool
}

// A Doubter is a Source that may have its bytes from several places. Doubt
// tells it that what it gave for w, by way of via, was not what w's digest
// names, so that it asks elsewhere next time. It does not wait.
type Doubter interface {
	Source
	Doubt(w Want, via Via)
}

// A Guard decides whether a call may go on. Admit answers from memory: it must
// not wait on the network or a disk. Errors: ErrUnauthenticated, ErrDenied,
// ErrLimited.
type Guard interface {
	Admit(ctx context.Context, c *Call) error
}

// A Warden is a Guard that may take back what it has admitted.
type Warden interface {
	Guard
	// Watch calls revoked once, from another goroutine and with what Admit would
	// now say, when c, which has been admitted, no longer would be; at once, if it
	// no longer is when Watch is called. c must not change meanwhile. stop must be called; once it has returned revoked is not
	// called any more.
	Watch(c *Call, revoked func(error)) (stop func())
}

// Identities knows, from memory, who presents what: it waits on nothing.
type Identities interface {
	// Token is the principal that an opaque token stands for when it is used
	// from addr. ErrUnauthenticated, whose public text a person can act upon, if
	// it is malformed, unknown, expired or not for that address.
	Token(secret string, addr netip.Addr) (Principal, error)
	// Current is what p, identified earlier, stands for now when it is used from
	// addr: ErrUnauthenticated if its account or its token is gone or has expired,
	// if its password is another now, or if its token is not for that address.
	Current(p Principal, addr netip.Addr) error
	// Account is the account with a name.
	Account(name string) (Account, bool)
	// Keys are the keys that short-lived tokens are signed with, the one to sign
	// with first. None: this node knows no accounts yet.
	Keys() []SigningKey
}

// Logins turns what people and machines present once into tokens. The node
// that has the metadata database does it; the others pass it on to that one.
// A token that a method returns is known on this node when it returns.
//
// Errors: ErrUnauthenticated for anything wrong about what is presented, and
// never a word about whether it was the name or the password; ErrLimited, with
// After, when there were too many wrong ones; ErrUnavailable when the node that
// decides cannot be asked.
type Logins interface {
	// Password checks a name and a password.
	Password(ctx context.Context, name, password string, from netip.Addr) (Principal, error)
	// Exchange turns a JWT of a configured issuer into a token (RFC 8693).
	Exchange(ctx context.Context, jwt string, from netip.Addr) (NewToken, error)
	// Begin begins a login that is approved in a browser: it returns what the
	// client claims the token with. It lasts for ten minutes.
	Begin(ctx context.Context, from netip.Addr) (id string, err error)
	// Approve gives a login that has begun to p.
	Approve(ctx context.Context, id string, p Principal) error
	// Claim is the token of an approved login, once. ErrNotFound if there is no
	// such login, or no longer; ErrConflict if it has not been approved yet.
	Claim(ctx context.Context, id string, from netip.Addr) (NewToken, error)
}

// Tokens are those of one principal, who manages them itself. Where they are
// kept, and the errors, are as with Logins.
type Tokens interface {
	// CreateToken makes a token of by's own. A token that is narrower than its
	// owner makes none that is wider than itself: then ErrDenied.
	CreateToken(ctx context.Context, by Principal, spec TokenSpec) (NewToken, error)
	// RevokeToken ends one of by's own tokens. ErrNotFound if it has none of
	// that ID.
	RevokeToken(ctx context.Context, by Principal, id string) error
	// ListTokens are by's own, oldest first.
	ListTokens(ctx context.Context, by Principal) ([]Token, error)
}
