package registry

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// A Witness notes which repository was given which digest by what is behind this
// node: by its own upstream, or by a node that has it checked the same. It is in
// memory, and forgets what is old: Service keeps what it needs in Names. The zero
// value works.
type Witness struct {
	mu       sync.Mutex
	now, old map[witnessed]struct{} // guarded by mu
}

// maxWitnessed is how many of the newest notes are kept at least, and half of how
// many at most.
const maxWitnessed = 16384

type witnessed struct {
	space, repo string
	digest      digest.Digest
}

// Saw notes that n's repository was given d, or told that it is there, by whom it
// belongs to.
func (w *Witness) Saw(n Name, d digest.Digest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.now) >= maxWitnessed {
		w.old, w.now = w.now, nil
	}
	if w.now == nil {
		w.now = make(map[witnessed]struct{})
	}
	w.now[witnessed{n.Space, n.Repo, d}] = struct{}{}
}

func (w *Witness) saw(n Name, d digest.Digest) bool {
	if w == nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	key := witnessed{n.Space, n.Repo, d}
	_, now := w.now[key]
	_, old := w.old[key]
	return now || old
}

// Over is up, whose every answer to a Want is noted. up must be one that asks the
// authorities themselves: a cache in between would be believed.
func (w *Witness) Over(up Upstream) Upstream { return &overseen{up, w} }

type overseen struct {
	Upstream
	w *Witness
}

// Open implements Source.
func (o *overseen) Open(ctx context.Context, w Want) (Blob, error) {
	b, err := o.Upstream.Open(ctx, w)
	if err == nil && sized(b, w) == nil {
		o.w.Saw(w.From, w.Digest)
	}
	return b, err
}

// sized is what is wrong with b if it is not as long as w says: whatever has
// answered, a page of a proxy's for one, it is not what w's digest names.
func sized(b Blob, w Want) error {
	if size := b.Descriptor().Size; size >= 0 && w.Size >= 0 && size != w.Size {
		return Errorf(ErrCorrupt, "%s has %d bytes where %d were announced", w.Digest, size, w.Size)
	}
	return nil
}

// Supply admits c and opens w, which says through which name and is another
// node's to choose: c.Binding is only what that node claims. What w's repository
// has not been shown to have is not given. The caller closes the Blob.
func (s *Service) Supply(ctx context.Context, c *Call, w Want) (Blob, error) {
	s.setup()
	if err := s.Guard.Admit(ctx, c); err != nil {
		return nil, err
	}
	ctx, r := s.watch(ctx, c)
	return r.over(s.give(ctx, c, w))
}

// give opens w for c, which has been admitted, if w's repository has it: that it
// is here says nothing, another repository may have brought it.
//
// The bytes are looked for first, because if they have to be fetched for this
// repository, it is shown by that at no price, which the Witness tells. How the
// bytes came says less: they may be those of a fill that another repository began,
// of the beginning of one that is left on the disk, or of the origin store. Only
// what came without this repository's upstream having been asked costs a HEAD.
func (s *Service) give(ctx context.Context, c *Call, w Want) (Blob, error) {
	w.Shown = w.Shown || s.Prove != nil && s.Prove(w.From)
	switch {
	case !w.Shown:
		return s.Blobs.Open(ctx, w)
	case c.Binding.Shown && c.Name == w.From || s.shown(ctx, w):
		b, err := s.Blobs.Open(ctx, w)
		if err == nil && sized(b, w) != nil {
			// What its upstream has under that digest is something else.
			defer b.Close()
			return nil, sized(b, w)
		}
		return b, err
	}
	if w.Length == 0 {
		// What is asked is only whether it is there, which is the proof itself, and
		// must not be answered from what others have.
		b, err := s.stat(ctx, w)
		if err == nil {
			s.show(ctx, c, w)
		}
		return b, err
	}
	b, err := s.Blobs.Open(ctx, w)
	seen := s.Witness.saw(w.From, w.Digest)
	switch {
	case err != nil && (seen || !tells(err)):
		return nil, err
	case !seen:
		asked := w
		if b != nil {
			asked.Size = b.Descriptor().Size // which the digest vouches for
		}
		if proof := s.confirm(ctx, asked); proof != nil {
			if b != nil {
				b.Close()
			}
			return nil, proof
		}
		if err != nil {
			return nil, err
		}
		b = confirmed{b}
	}
	s.show(ctx, c, w)
	return b, nil
}

// tells reports whether a failure to open may be about bytes that are here: of
// another size than was claimed, or damaged.
func tells(err error) bool {
	switch KindOf(err) {
	case ErrNotFound, ErrUnauthenticated, ErrDenied, ErrLimited, ErrUnavailable:
		return false
	}
	return true
}

// shown reports whether it is known here that w's repository has w's bytes.
func (s *Service) shown(ctx context.Context, w Want) bool {
	b, err := s.Names.Lookup(ctx, w.From)
	return err == nil && b.Digest == w.Digest && (b.Shown || b.Fresh.IsZero() || s.bytesBound(w.From))
}

// bytesBound reports whether n is a name that only its own bytes are ever bound
// to: a tag or a packument, whose document came with the answer, or what this node
// made of one. The others are names of digests, which anyone can list.
func (s *Service) bytesBound(n Name) bool {
	if strings.HasPrefix(n.Ref, viewRef) {
		return true
	}
	sp := s.Spaces[n.Space]
	return (sp.Documents == nil || sp.Documents(n)) && (sp.Means == nil || sp.Means(n) == "")
}

// show keeps that w's repository has w's bytes. That it could not be kept costs
// the next pull a question.
func (s *Service) show(ctx context.Context, c *Call, w Want) {
	sp, p, err := s.space(w.From)
	if err != nil || s.bytesBound(w.From) || sp.Means != nil && sp.Means(w.From) != "" && sp.Means(w.From) != w.Digest {
		return // it stands for what its authority says
	}
	old, err := s.Names.Lookup(ctx, w.From)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return
	}
	b := old
	if err != nil || old.Digest != w.Digest {
		now := time.Now()
		b = Binding{Descriptor: w.Descriptor, Location: w.Location, Checked: now, Fresh: now.Add(p.Fresh)}
	}
	b.Shown = true
	kept, err := s.Names.Bind(ctx, w.From, old, b)
	switch {
	case err == nil && c.Name == w.From && c.Binding.Rev != "":
		c.Binding = kept
	case err != nil && !errors.Is(err, ErrConflict):
		s.Log.Error("keep that a repository has a blob", "name", w.From.String(), "err", err)
	}
}

// confirm asks w's upstream whether w's repository has w's bytes. Who asks at once
// asks together.
func (s *Service) confirm(ctx context.Context, w Want) error {
	answer := s.proofs.DoChan(w.From.String()+"\x00"+string(w.Digest)+"\x00"+w.Location, func() (any, error) {
		_, p, err := s.space(w.From)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.Wait)
		defer cancel()
		s.work.begin()
		defer s.work.end()
		b, err := s.stat(ctx, w)
		if err != nil {
			return nil, err
		}
		return nil, b.Close()
	})
	select {
	case r := <-answer:
		return r.Err
	case <-ctx.Done():
		return Wrap(ErrUnavailable, ctx.Err(), "ask whether "+w.From.Repo+" has "+string(w.Digest))
	}
}

// stat opens no bytes of w where its repository belongs.
func (s *Service) stat(ctx context.Context, w Want) (Blob, error) {
	sp, _, err := s.space(w.From)
	if err != nil {
		return nil, err
	}
	w.Length = 0
	authority := sp.Authority
	if authority == nil {
		authority = sp.Upstream
	}
	b, err := authority.Open(ctx, w)
	if err != nil {
		return nil, Wrap(ErrUnavailable, err, "ask whether "+w.From.Repo+" has "+string(w.Digest))
	}
	if err := sized(b, w); err != nil {
		b.Close()
		return nil, err
	}
	if s.Witness != nil {
		s.Witness.Saw(w.From, w.Digest)
	}
	return b, nil
}

// confirmed is a Blob that was here, and given only after something behind had
// been asked.
type confirmed struct{ Blob }

// Via implements Blob.
func (b confirmed) Via() Via {
	v := b.Blob.Via()
	if v.Fwd == "" {
		v.Fwd = "stale"
	}
	return v
}
