package registry

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

// Service is the one path of a call: admit, resolve the name, admit again,
// open the digest. Both protocols go through it and neither can skip a step.
//
// Set the fields before the first call; they are not changed afterwards. The
// zero value of those that say so is right.
type Service struct {
	Names Names
	// Blobs is the topmost tier. Documents and views are staged in it.
	Blobs Store
	// Spaces says for each protocol what is behind it and what its rules are.
	Spaces map[string]Space
	// Guard admits every call twice; it must be set.
	Guard Guard
	// Prove reports whether n's repository must be shown to have a blob before it
	// is given through it: because not everyone may read every repository, and a
	// digest can be listed by whoever knows it. What came from the repository's
	// own upstream is shown by that; what is here because of another repository
	// costs its first pull one HEAD. Nodes behind are asked to see to it as well,
	// whatever is so there. nil: no repository must, as is right where all may read
	// all.
	Prove func(n Name) bool
	// Witness is told by what is behind Blobs whose upstream gave what. nil:
	// each first pull costs a HEAD of its own, of what Prove is true for.
	Witness *Witness
	// Kept is told of each document that came with an upstream's answer, once
	// it is stored. It must not wait. nil: nobody is told.
	Kept  func(n Name, d Descriptor)
	Meter Meter        // nil: nothing is counted
	Log   *slog.Logger // nil: slog.Default()
	// DeriveBytes bounds the documents being derived from at once, together
	// (a document larger than this is derived from alone); 0: 256 MiB.
	DeriveBytes int64

	once     sync.Once
	resolves singleflight.Group // by Name.String, and so one question at a time per name
	derives  singleflight.Group
	proofs   singleflight.Group  // whether a repository has a digest
	heavy    *semaphore.Weighted // by DeriveBytes
	spare    *semaphore.Weighted // background revalidations
	asking   *semaphore.Weighted // questions, whoever waits for them
	recent   recent
	work     pending // background work, for Drain
}

// A Space is what Service needs to know of one protocol's names.
type Space struct {
	Upstream Upstream
	// Authority is whom to ask whether a repository has a digest, as Service.Prove
	// wants it: no cache of this node's may answer for it. nil: Upstream.
	Authority Source
	// Policy is how long an answer about n counts.
	Policy func(n Name) Policy
	// Documents reports whether n stands for a document, so that an answer
	// about it comes with bytes; nil: everything does.
	Documents func(n Name) bool
	// Serves reports whether n is a name that Upstream is configured for: a node
	// in front that asks for another has another configuration, which says
	// nothing about whether n exists. nil: every name is.
	Serves func(n Name) bool
	// Means is the digest that n itself names; "" if it names none. Who answers
	// with another one is not believed. nil: none does.
	Means func(n Name) digest.Digest
	// Owns reports whether a binding kept earlier still counts: false when
	// configuration has since given the name to another upstream. nil: it does.
	Owns func(n Name, b Binding) bool
	// Lists gives what a document makes its repository hold (a manifest's
	// config, layers and children). nil: nothing. Errors other than ErrInvalid
	// mean that the document could not be read; ErrInvalid, that it makes no
	// sense: then it is passed on all the same and lists nothing.
	Lists func(n Name, b Binding, doc io.Reader) ([]Held, error)
}

// Held is a digest that a repository holds, as the document that lists it
// says: never opened without a binding of its own.
type Held struct {
	Ref string
	Descriptor
}

// A Policy says how long an answer about a name counts, and how long to wait
// for a new one.
type Policy struct {
	// Fresh is for how long an answer counts without asking again.
	Fresh time.Duration
	// Refresh is for how long after that the old answer is still given at
	// once while the new one is fetched in the background.
	Refresh time.Duration
	// Stale is for how long after Fresh the old answer is given when there is
	// no new one to be had.
	Stale time.Duration
	// Negative is for how long ErrNotFound is remembered (in memory).
	Negative time.Duration
	// Patience is how long a client that could have an old answer waits for a
	// new one before it gets the old one; 0: 3 s.
	Patience time.Duration
	// Wait is how long a client for whom there is nothing waits; 0: 20 s.
	// The question goes on, so that the client's next try finds the answer.
	Wait time.Duration
	// MaxDoc is how many bytes a document may have; 0: 8 MiB.
	MaxDoc int64
}

const (
	defaultPatience    = 3 * time.Second
	defaultWait        = 20 * time.Second
	defaultMaxDoc      = 8 << 20
	defaultDeriveBytes = 256 << 20
	// askLimit is how long one question to an upstream may take in all, its
	// document included: 64 MB at 1 Mbit/s.
	askLimit = 10 * time.Minute
	// spareQuestions is how many revalidations may run that no client waits
	// for; beyond it the old answer stays until the next request.
	spareQuestions = 64
	// openQuestions is how many questions may be open at once: they outlive
	// those who asked, and nobody else bounds them.
	openQuestions = 1024
	// afterFailure is for how long a name whose revalidation failed is
	// answered from what is here without asking again, unless the upstream
	// named a time of its own.
	afterFailure = 5 * time.Second
	// longestPenalty bounds what an upstream's Retry-After can do.
	longestPenalty = time.Minute
)

func (s *Service) setup() {
	s.once.Do(func() {
		if s.Meter == nil {
			s.Meter = NoMeter{}
		}
		if s.Log == nil {
			s.Log = slog.Default()
		}
		if s.DeriveBytes <= 0 {
			s.DeriveBytes = defaultDeriveBytes
		}
		s.heavy = semaphore.NewWeighted(s.DeriveBytes)
		s.spare = semaphore.NewWeighted(spareQuestions)
		s.asking = semaphore.NewWeighted(openQuestions)
	})
}

func (s *Service) space(n Name) (Space, Policy, error) {
	sp, ok := s.Spaces[n.Space]
	if !ok || sp.Upstream == nil || sp.Policy == nil {
		return Space{}, Policy{}, Errorf(ErrNotFound, "nothing is configured for %q", clip(n.Space))
	}
	p := sp.Policy(n)
	if p.Patience <= 0 {
		p.Patience = defaultPatience
	}
	if p.Wait <= 0 {
		p.Wait = defaultWait
	}
	if p.MaxDoc <= 0 {
		p.MaxDoc = defaultMaxDoc
	}
	return sp, p, nil
}

// Open admits c, whose Binding [Service.Resolve] has set, once more, and
// opens length bytes of what it is bound to from offset on (a negative length:
// to the end; 0: for the descriptor alone). The caller closes the Blob. If the
// Guard is a Warden the Blob fails, with the kind that it says, as soon as c is
// revoked, also while a [Cutter] is being written to that takes nothing.
func (s *Service) Open(ctx context.Context, c *Call, offset, length int64) (Blob, error) {
	s.setup()
	if c.Binding.Zero() {
		return nil, Errorf(ErrNotFound, "%v is not bound", c.Name)
	}
	if err := s.Guard.Admit(ctx, c); err != nil {
		return nil, err
	}
	w := Whole(c.Name, c.Binding)
	w.Offset, w.Length = offset, length
	ctx, r := s.watch(ctx, c)
	b, err := s.fetchFor(ctx, c, w)
	return r.over(b, err)
}

// fetchFor opens w, all of which but the run is c's binding, for c, which has been
// admitted.
func (s *Service) fetchFor(ctx context.Context, c *Call, w Want) (Blob, error) {
	b, err := s.give(ctx, c, w)
	if KindOf(err) == ErrCorrupt && !c.Binding.Fresh.IsZero() {
		// Either the upstream sends wrong bytes or what it said of them before,
		// their size for one, was wrong: the next call asks again.
		if _, uerr := s.Names.Bind(ctx, c.Name, c.Binding, Binding{}); uerr == nil {
			s.Log.Warn("unbound a name whose bytes do not match it", "name", c.Name.String(), "err", err)
		}
	}
	return b, err
}

// Document resolves c and opens all of what it is bound to: a manifest, a
// packument. What the document lists is bound before it is given away. A
// document that is no longer in any tier and cannot be had by digest is asked
// for by name again.
func (s *Service) Document(ctx context.Context, c *Call) (Blob, Via, error) {
	_, via, err := s.Resolve(ctx, c)
	if err != nil {
		return nil, via, err
	}
	b, err := s.Open(ctx, c, 0, -1)
	if KindOf(err) == ErrNotFound && via.Fwd != "miss" {
		if via, err = s.again(ctx, c); err == nil {
			b, err = s.Open(ctx, c, 0, -1)
		}
	}
	if err != nil {
		return nil, via, err
	}
	if b, err = s.list(ctx, c, b); err != nil {
		return nil, via, err
	}
	return b, via.Over(b.Via()), nil
}

// again resolves c's name as if nothing were known of it.
func (s *Service) again(ctx context.Context, c *Call) (Via, error) {
	sp, p, err := s.space(c.Name)
	if err != nil {
		return Via{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.Wait)
	defer cancel()
	b, collapsed, err := s.ask(ctx, sp, p, Question{Name: c.Name}, true)
	c.Binding = b
	return Via{Fwd: "miss", Detail: "upstream", Collapsed: collapsed}, err
}

// Drain waits until no background work is left, or ctx is done.
func (s *Service) Drain(ctx context.Context) error {
	select {
	case <-s.work.none():
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pending counts work that runs. It is no WaitGroup, because work may begin
// while Drain waits: a request that is cut off leaves a question behind.
type pending struct {
	mu   sync.Mutex
	n    int           // guarded by mu
	idle chan struct{} // guarded by mu; closed when n falls to 0; nil: nobody waits
}

func (p *pending) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
}

func (p *pending) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n--; p.n == 0 && p.idle != nil {
		close(p.idle)
		p.idle = nil
	}
}

// none is closed once no work is left.
func (p *pending) none() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if p.idle == nil {
		p.idle = make(chan struct{})
	}
	return p.idle
}
