package conformance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// An Op is one question to an [Upstream], as its script sees it.
type Op struct {
	// Kind is "resolve" or "open".
	Kind string
	// Name is the one resolved, or the one a blob was asked through.
	Name registry.Name
	// Want is what is opened; zero when resolving.
	Want registry.Want
	// Have is what the caller of Resolve knew already.
	Have registry.Binding
	// Count is how many questions of this Kind there were, this one included.
	Count int
}

// A Fault is what goes wrong with one question. The zero Fault is none.
type Fault struct {
	// Err is the answer.
	Err error
	// Hang holds the answer back until the question's context is done.
	Hang bool
	// Cut, if positive, ends the bytes after so many of them with an error.
	Cut int64
	// Short, if positive, ends them after so many as if those were all.
	Short int64
	// Flip, if positive, is one more than the offset, in the run, of a byte
	// that comes out wrong.
	Flip int64
	// Gate, if not nil, is received from before each Chunk bytes (0: 32 KiB),
	// so that a test says when they come; once it is closed all come.
	Gate  <-chan struct{}
	Chunk int
}

// Upstream is an authority in memory, for tests of whatever asks one. Its zero
// value knows nothing and works; Put and PutBlob teach it. It counts what it is
// asked, fails as Script tells it to, and watches that it is used as
// registry.Upstream says: Verify reports what was not.
type Upstream struct {
	// Script decides on each question; nil: all goes well. Set it before the
	// first question, or by SetScript.
	Script func(Op) Fault

	mu         sync.Mutex
	names      map[registry.Name]registry.Binding // guarded by mu, as all below
	blobs      map[digest.Digest][]byte
	resolves   int
	opens      int
	bodies     int // opens that asked for bytes
	opened     map[digest.Digest]int
	resolved   map[registry.Name]int
	running    int
	violations []string

	given atomic.Int64 // bytes of blobs and documents
}

var _ registry.Upstream = (*Upstream)(nil)

// Put makes a name stand for a document and returns the binding that Resolve
// will give.
func (u *Upstream) Put(n registry.Name, mediaType string, doc []byte) registry.Binding {
	b := registry.Binding{Descriptor: Describe(mediaType, doc)}
	b.Validator = `"` + string(b.Digest)[len("sha256:"):][:16] + `"`
	u.PutAs(b.Digest, doc)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.names == nil {
		u.names = map[registry.Name]registry.Binding{}
	}
	u.names[n] = b
	return b
}

// PutBlob makes bytes known by their digest alone.
func (u *Upstream) PutBlob(data []byte) registry.Descriptor {
	d := Describe("application/octet-stream", data)
	u.PutAs(d.Digest, data)
	return d
}

// PutAs makes bytes known by a digest of any algorithm. A digest whose bytes
// change panics: that is a mistake of the test's; what goes wrong on the way
// is a Fault's to say.
func (u *Upstream) PutAs(d digest.Digest, data []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if old, ok := u.blobs[d]; ok && !bytes.Equal(old, data) {
		panic("conformance: " + string(d) + " stands for other bytes already")
	}
	if u.blobs == nil {
		u.blobs = map[digest.Digest][]byte{}
	}
	u.blobs[d] = bytes.Clone(data)
}

// Remove takes a name back; what it stood for can still be opened.
func (u *Upstream) Remove(n registry.Name) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.names, n)
}

// SetScript replaces Script while questions may be running.
func (u *Upstream) SetScript(script func(Op) Fault) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.Script = script
}

// Resolves is how many names were asked for.
func (u *Upstream) Resolves() int { u.mu.Lock(); defer u.mu.Unlock(); return u.resolves }

// Resolved is how often one name was asked for.
func (u *Upstream) Resolved(n registry.Name) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.resolved[n]
}

// Opens is how many blobs were opened, for their bytes or their descriptor.
func (u *Upstream) Opens() int { u.mu.Lock(); defer u.mu.Unlock(); return u.opens }

// Bodies is how many blobs were opened for their bytes.
func (u *Upstream) Bodies() int { u.mu.Lock(); defer u.mu.Unlock(); return u.bodies }

// Opened is how often one blob was opened.
func (u *Upstream) Opened(d digest.Digest) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.opened[d]
}

// Bytes is how many bytes were given, of blobs and of documents.
func (u *Upstream) Bytes() int64 { return u.given.Load() }

// Verify fails the test if the Upstream was used in a way that its contract
// does not allow, or if something it gave is not closed yet.
func (u *Upstream) Verify(t testing.TB) {
	t.Helper()
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, v := range u.violations {
		t.Errorf("upstream: %s", v)
	}
	if u.running != 0 {
		t.Errorf("upstream: %d bodies were not closed", u.running)
	}
}

func (u *Upstream) violation(format string, args ...any) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.violations = append(u.violations, fmt.Sprintf(format, args...))
}

// ask counts a question and lets the script decide on it.
func (u *Upstream) ask(ctx context.Context, op Op) (Fault, error) {
	u.mu.Lock()
	if op.Kind == "resolve" {
		u.resolves++
		op.Count = u.resolves
		if u.resolved == nil {
			u.resolved = map[registry.Name]int{}
		}
		u.resolved[op.Name]++
	} else {
		u.opens++
		op.Count = u.opens
		if op.Want.Length != 0 {
			u.bodies++
		}
		if u.opened == nil {
			u.opened = map[digest.Digest]int{}
		}
		u.opened[op.Want.Digest]++
	}
	script := u.Script
	u.mu.Unlock()
	var f Fault
	if script != nil {
		f = script(op)
	}
	if f.Hang {
		<-ctx.Done()
	}
	if err := ctx.Err(); err != nil {
		return f, registry.Wrap(registry.ErrUnavailable, err, op.Kind+" at the upstream")
	}
	return f, f.Err
}

// Resolve implements registry.Upstream. A have with the current Validator or
// Digest is confirmed without a document.
func (u *Upstream) Resolve(ctx context.Context, q registry.Question) (registry.Binding, io.ReadCloser, error) {
	n, have := q.Name, q.Have
	if n.Space == "" || n.Repo == "" {
		u.violation("resolve of the invalid name %q", n)
	}
	f, err := u.ask(ctx, Op{Kind: "resolve", Name: n, Have: have})
	if err != nil {
		return registry.Binding{}, nil, err
	}
	u.mu.Lock()
	b, ok := u.names[n]
	data := u.blobs[b.Digest]
	u.mu.Unlock()
	switch {
	case !ok:
		return registry.Binding{}, nil, registry.Errorf(registry.ErrNotFound, "%v is unknown to the authority", n)
	case have.Digest == b.Digest && have.Validator == b.Validator:
		return registry.Binding{Descriptor: have.Descriptor, Validator: have.Validator}, nil, nil
	}
	return b, u.body(ctx, f, data), nil
}

// Open implements registry.Source.
func (u *Upstream) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	if !registry.ValidDigest(w.Digest) {
		u.violation("open of the malformed digest %q", w.Digest)
	}
	if w.From.Space == "" || w.From.Repo == "" {
		u.violation("open of %s through no name: an upstream needs one", w.Digest)
	}
	f, err := u.ask(ctx, Op{Kind: "open", Name: w.From, Want: w})
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	data, ok := u.blobs[w.Digest]
	u.mu.Unlock()
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "%s is unknown to the authority", w.Digest)
	}
	offset, length, ok := w.Clip(int64(len(data)))
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "offset %d is not within %d bytes", w.Offset, len(data))
	}
	d := registry.Descriptor{Digest: w.Digest, Size: int64(len(data)), MediaType: w.MediaType}
	return &upstreamBlob{body: u.body(ctx, f, data[offset:offset+length]), d: d, offset: offset, length: length}, nil
}

func (u *Upstream) body(ctx context.Context, f Fault, data []byte) *body {
	u.mu.Lock()
	u.running++
	u.mu.Unlock()
	if f.Chunk <= 0 {
		f.Chunk = 32 << 10
	}
	if f.Short > 0 && f.Short < int64(len(data)) {
		data = data[:f.Short]
	}
	return &body{u: u, ctx: ctx, fault: f, data: data}
}

// A body gives data as its Fault says. One goroutine reads it.
type body struct {
	u      *Upstream
	ctx    context.Context // of the question; governs the body too
	fault  Fault
	data   []byte
	at     int
	let    int // how far the gate has let us
	busy   atomic.Bool
	closed atomic.Bool
}

func (b *body) Read(p []byte) (int, error) {
	if !b.busy.CompareAndSwap(false, true) {
		b.u.violation("a body was read by two goroutines at once")
	}
	defer b.busy.Store(false)
	if b.closed.Load() {
		b.u.violation("a body was read after Close")
		return 0, io.ErrClosedPipe
	}
	if err := b.ctx.Err(); err != nil {
		return 0, registry.Wrap(registry.ErrUnavailable, err, "read from the upstream")
	}
	if b.fault.Cut > 0 && int64(b.at) >= b.fault.Cut {
		return 0, &registry.Error{Kind: registry.ErrUnavailable, Text: "read from the upstream", Err: io.ErrUnexpectedEOF}
	}
	if b.at == len(b.data) || len(p) == 0 {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	end := min(b.at+len(p), len(b.data))
	if b.fault.Cut > 0 {
		end = min(end, int(b.fault.Cut))
	}
	if b.fault.Gate != nil {
		if b.at == b.let {
			select {
			case <-b.fault.Gate:
			case <-b.ctx.Done():
				return 0, registry.Wrap(registry.ErrUnavailable, b.ctx.Err(), "read from the upstream")
			}
			b.let += b.fault.Chunk
		}
		end = min(end, b.let)
	}
	n := copy(p, b.data[b.at:end])
	if flip := int(b.fault.Flip) - 1; flip >= b.at && flip < b.at+n {
		p[flip-b.at] ^= 0x20
	}
	b.at += n
	b.u.given.Add(int64(n))
	return n, nil
}

func (b *body) Close() error {
	if b.closed.CompareAndSwap(false, true) {
		b.u.mu.Lock()
		b.u.running--
		b.u.mu.Unlock()
	}
	return nil
}

// upstreamBlob is a body that knows which run of which blob it is.
type upstreamBlob struct {
	*body
	d              registry.Descriptor
	offset, length int64
}

func (b *upstreamBlob) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b.body})
}
func (b *upstreamBlob) Descriptor() registry.Descriptor { return b.d }
func (b *upstreamBlob) Span() (int64, int64)            { return b.offset, b.length }
func (b *upstreamBlob) Via() registry.Via               { return registry.Via{Fwd: "miss", Detail: "upstream"} }
