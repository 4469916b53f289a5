package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"
)

// Resolve admits c and finds what its name stands for, which it sets as
// c.Binding and returns. A fresh binding is given at once. One that is stale is
// given while it is being revalidated, or after a short wait, or when nothing
// newer is to be had; its Via says so. Errors are the guard's or the
// upstream's, by kind.
func (s *Service) Resolve(ctx context.Context, c *Call) (Binding, Via, error) {
	s.setup()
	if err := s.Guard.Admit(ctx, c); err != nil {
		return Binding{}, Via{}, err
	}
	sp, p, err := s.space(c.Name)
	if err != nil {
		return Binding{}, Via{}, err
	}
	b, err := s.Names.Lookup(ctx, c.Name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Binding{}, Via{}, Wrap(ErrUnavailable, err, "look up "+c.Name.String())
	}
	var via Via
	if err != nil || sp.Owns != nil && !sp.Owns(c.Name, b) {
		b, via, err = s.first(ctx, sp, p, c, b)
	} else {
		b, via, err = s.known(ctx, sp, p, c, b)
	}
	if err != nil {
		return Binding{}, via, err
	}
	c.Binding = b
	return b, via, nil
}

// known answers a name that is bound to b here.
func (s *Service) known(ctx context.Context, sp Space, p Policy, c *Call, b Binding) (Binding, Via, error) {
	now := time.Now()
	stale := now.Sub(b.Fresh)
	if b.Fresh.IsZero() || stale < 0 && !b.Checked.Before(c.Since) {
		return b, Via{}, nil
	}
	old := Via{Stale: max(stale, 0)}
	if failed := s.recent.get(c.Name, now); failed != nil && KindOf(failed) != ErrNotFound {
		return s.old(p, c, b, stale, failed)
	}
	if stale < p.Refresh && c.Since.IsZero() && !c.Firm {
		s.background(ctx, sp, p, c.Name, b)
		return b, old, nil
	}
	patience := p.Patience
	if stale > p.Stale {
		patience = p.Wait // there is no old answer to fall back on
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	fresh, collapsed, err := s.ask(wait, sp, p, Question{Name: c.Name, Have: b, Since: c.Since}, false)
	switch {
	case err == nil && !fresh.Fresh.IsZero() && fresh.Fresh.Before(now):
		return s.old(p, c, fresh, now.Sub(fresh.Fresh), staleBehind())
	case err == nil:
		return fresh, Via{Fwd: "stale", Detail: "upstream", Collapsed: collapsed}, nil
	case KindOf(err) == ErrNotFound:
		return Binding{}, Via{Fwd: "stale", Detail: "upstream", Collapsed: collapsed}, err
	case ctx.Err() != nil:
		return Binding{}, Via{Fwd: "stale", Detail: "upstream", Collapsed: collapsed}, Wrap(ErrUnavailable, ctx.Err(), "resolve "+c.Name.String())
	case wait.Err() != nil:
		// One client has waited; the others need not while the question goes
		// on. If it is answered meanwhile the binding is fresh, which counts
		// before this does.
		s.recent.put(c.Name, err, now.Add(p.Patience+afterFailure), now)
	}
	return s.old(p, c, b, stale, err)
}

// old gives b although it is stale and could not be revalidated because of err.
func (s *Service) old(p Policy, c *Call, b Binding, stale time.Duration, err error) (Binding, Via, error) {
	via := Via{Fwd: "stale", Detail: "upstream", Stale: max(stale, 0)}
	if stale > p.Stale {
		return Binding{}, via, Wrap(ErrUnavailable, err, "revalidate "+c.Name.String())
	}
	via.Warning = "served from cache, could not be revalidated: " + Public(err)
	return b, via, nil
}

// first answers a name of which nothing is known here; c.Binding is what the
// caller knows, kept is a binding of another upstream's, if there was one.
func (s *Service) first(ctx context.Context, sp Space, p Policy, c *Call, kept Binding) (Binding, Via, error) {
	if err := s.recent.get(c.Name, time.Now()); err != nil && c.Since.IsZero() {
		return Binding{}, Via{}, err
	}
	have := c.Binding
	have.Rev = kept.Rev
	wait, cancel := context.WithTimeout(ctx, p.Wait)
	defer cancel()
	b, collapsed, err := s.ask(wait, sp, p, Question{Name: c.Name, Have: have, Since: c.Since}, false)
	via := Via{Fwd: "miss", Detail: "upstream", Collapsed: collapsed}
	if err == nil && !b.Fresh.IsZero() && b.Fresh.Before(time.Now()) {
		via.Stale, via.Warning = time.Since(b.Fresh), "served from cache: "+Public(staleBehind())
	}
	return b, via, err
}

// background revalidates n when there is room for it.
func (s *Service) background(ctx context.Context, sp Space, p Policy, n Name, b Binding) {
	if !s.spare.TryAcquire(1) {
		return
	}
	s.work.begin()
	go func() {
		defer s.work.end()
		defer s.spare.Release(1)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askLimit)
		defer cancel()
		if _, _, err := s.ask(ctx, sp, p, Question{Name: n, Have: b, Background: true}, false); err != nil {
			s.Log.Warn("revalidate in the background", "name", n.String(), "err", err)
		}
	}()
}

// ask puts one question about a name to the upstream, however many are asking, and
// waits for the answer as long as ctx allows; the question itself goes on for
// the sake of the next. anew says that what is bound is to be ignored.
func (s *Service) ask(ctx context.Context, sp Space, p Policy, q Question, anew bool) (Binding, bool, error) {
	n, have := q.Name, q.Have
	key := n.String()
	if anew {
		key += "\x00anew"
	}
	leader := false
	answer := s.resolves.DoChan(key, func() (any, error) {
		leader = true
		if !s.asking.TryAcquire(1) {
			return nil, &Error{Kind: ErrUnavailable, Text: "resolve " + n.String() + ": too many open questions",
				Public: "too many questions are waiting for what is behind", After: afterFailure}
		}
		defer s.asking.Release(1)
		// The question belongs to nobody's request: it keeps ctx's values,
		// for traces, and neither its cancellation nor its deadline.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askLimit)
		defer cancel()
		s.work.begin()
		defer s.work.end()
		// Between the caller's look and now the last question may have ended.
		if b, err := s.Names.Lookup(ctx, n); err == nil && !anew && b.Rev != have.Rev && time.Now().Before(b.Fresh) {
			return b, nil
		}
		return s.answer(ctx, sp, p, q)
	})
	select {
	case r := <-answer:
		if !leader {
			s.Meter.Collapsed()
		}
		if r.Err != nil {
			return Binding{}, !leader, r.Err
		}
		return r.Val.(Binding), !leader, nil
	case <-ctx.Done():
		return Binding{}, false, &Error{Kind: ErrUnavailable, Text: "resolve " + n.String() + ": no answer in time",
			Public: "what is behind did not answer in time", After: afterFailure, Err: ctx.Err()}
	}
}

// answer asks the upstream and keeps what it says.
func (s *Service) answer(ctx context.Context, sp Space, p Policy, q Question) (Binding, error) {
	n, have := q.Name, q.Have
	b, doc, err := sp.Upstream.Resolve(ctx, q)
	if doc != nil {
		defer doc.Close()
	}
	if err == nil && sp.Means != nil {
		if d := sp.Means(n); d != "" && b.Digest != "" && b.Digest != d {
			err = &Error{Kind: ErrUnavailable, Text: "it was answered with " + string(b.Digest), Public: "what is behind answers nonsense"}
		} else if d != "" {
			b.Digest = d
		}
	}
	if err == nil && doc != nil {
		var listed bool
		if b.Descriptor, listed, err = s.keep(ctx, sp, p, n, b, doc); err == nil {
			b.Listed, b.Shown = listed, true
		}
	}
	if err != nil {
		return Binding{}, s.failed(ctx, p, n, have, err)
	}
	if b.Digest == have.Digest {
		b.Listed = b.Listed || have.Listed
		b.Shown = b.Shown || have.Shown
	}
	now := time.Now()
	if b.Checked.IsZero() || b.Checked.After(now) {
		b.Checked = now
	}
	b.Fresh = b.Checked.Add(p.Fresh)
	s.recent.forget(n)
	if b.Fresh.Before(now) {
		// The one behind gave an old answer, because it could get no other.
		s.recent.put(n, staleBehind(), now.Add(afterFailure), now)
	}
	return s.bind(ctx, n, b)
}

// staleBehind is why an answer from behind is not fresh.
func staleBehind() error {
	return &Error{Kind: ErrUnavailable, Text: "the node behind has an old answer only", Public: "what is behind could not be asked"}
}

// failed remembers a failure for as long as it counts.
func (s *Service) failed(ctx context.Context, p Policy, n Name, have Binding, err error) error {
	err = Wrap(ErrUnavailable, err, "resolve "+n.String())
	now := time.Now()
	switch {
	case KindOf(err) == ErrNotFound:
		s.recent.put(n, err, now.Add(p.Negative), now)
		// The authority took the name back: what is bound here must not be
		// served again when it stops answering.
		if old, lerr := s.Names.Lookup(ctx, n); lerr == nil && !old.Fresh.IsZero() {
			if _, lerr = s.Names.Bind(ctx, n, old, Binding{}); lerr != nil && !errors.Is(lerr, ErrConflict) {
				s.Log.Error("unbind a name that its upstream no longer has", "name", n.String(), "err", lerr)
			}
		}
	case RetryAfter(err) > 0:
		s.recent.put(n, err, now.Add(min(RetryAfter(err), longestPenalty)), now)
	case have.Rev != "":
		s.recent.put(n, err, now.Add(afterFailure), now)
	}
	return err
}

// bind makes n stand for b, whatever it stood for. A conflict means that
// another question about n was answered in the meantime: the newer one wins.
func (s *Service) bind(ctx context.Context, n Name, b Binding) (Binding, error) {
	for range 8 {
		old, err := s.Names.Lookup(ctx, n)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Binding{}, Wrap(ErrUnavailable, err, "look up "+n.String())
		}
		if err == nil && old.Fresh.IsZero() {
			return old, nil // an authoritative binding is not an upstream's to replace
		}
		kept, err := s.Names.Bind(ctx, n, old, b)
		if err == nil {
			return kept, nil
		}
		if errors.Is(err, ErrConflict) {
			continue
		}
		// A table that cannot be written must not stop what can be served.
		s.Log.Error("keep a binding", "name", n.String(), "err", err)
		return b, nil
	}
	return b, nil
}

// keep stores a document that came with an answer, verified, and binds what
// it lists: bytes first, then names.
func (s *Service) keep(ctx context.Context, sp Space, p Policy, n Name, b Binding, doc io.Reader) (Descriptor, bool, error) {
	expect := b.Descriptor
	if expect.Digest == "" {
		expect.Size = -1
	}
	if expect.Size > p.MaxDoc {
		return Descriptor{}, false, Errorf(ErrTooLarge, "the document of %v has %d bytes, over the limit of %d", n, expect.Size, p.MaxDoc)
	}
	stage, err := s.Blobs.Stage(ctx, expect)
	if err != nil {
		return Descriptor{}, false, err
	}
	defer stage.Close()
	size, err := io.Copy(stage, io.LimitReader(doc, p.MaxDoc+1))
	if err != nil {
		return Descriptor{}, false, err
	}
	if size > p.MaxDoc {
		return Descriptor{}, false, Errorf(ErrTooLarge, "the document of %v is over the limit of %d bytes", n, p.MaxDoc)
	}
	d, err := stage.Commit(ctx)
	if err != nil {
		return Descriptor{}, false, err
	}
	d.MediaType = b.MediaType
	if s.Kept != nil {
		s.Kept(n, d)
	}
	b.Descriptor = d
	err = s.listed(ctx, sp, p, n, b, io.NewSectionReader(stage, 0, size))
	return d, err == nil, err
}

// list binds what c's document lists, if that has not been done: when its
// name was bound by another document, and its bytes came from a tier.
func (s *Service) list(ctx context.Context, c *Call, blob Blob) (Blob, error) {
	sp, p, err := s.space(c.Name)
	if err != nil || c.Binding.Listed || sp.Lists == nil {
		return blob, err
	}
	if size := blob.Descriptor().Size; size > p.MaxDoc {
		blob.Close()
		return nil, Errorf(ErrTooLarge, "the document of %v has %d bytes, over the limit of %d", c.Name, size, p.MaxDoc)
	}
	doc, err := io.ReadAll(io.LimitReader(blob, p.MaxDoc+1))
	if err == nil && int64(len(doc)) > p.MaxDoc {
		err = Errorf(ErrTooLarge, "the document of %v is over the limit of %d bytes", c.Name, p.MaxDoc)
	}
	if err == nil {
		err = s.listed(ctx, sp, p, c.Name, c.Binding, bytes.NewReader(doc))
	}
	d, via := blob.Descriptor(), blob.Via()
	blob.Close()
	if err != nil {
		return nil, err
	}
	done := c.Binding
	done.Listed = true
	if kept, err := s.Names.Bind(ctx, c.Name, c.Binding, done); err == nil {
		c.Binding = kept
	}
	d.Size = int64(len(doc))
	return s.Hold(c, NewBytesBlob(doc, d, 0, -1, via)), nil
}

// listed binds the digests that a document makes n's repository hold. doc has been
// shown to be n's.
func (s *Service) listed(ctx context.Context, sp Space, p Policy, n Name, b Binding, doc io.Reader) error {
	if sp.Lists == nil {
		return nil
	}
	held, err := sp.Lists(n, b, doc)
	if errors.Is(err, ErrInvalid) {
		s.Log.Warn("a document lists nothing that makes sense", "name", n.String(), "digest", b.Digest, "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	now := time.Now()
	changes := make([]Change, 0, len(held))
	for _, h := range held {
		name := Name{Space: n.Space, Repo: n.Repo, Ref: h.Ref}
		hp := sp.Policy(name)
		hb := Binding{Descriptor: h.Descriptor, Checked: now, Fresh: now.Add(hp.Fresh)}
		// The document itself has just been here; of all else there is its word.
		hb.Shown = h.Digest == b.Digest
		old, err := s.Names.Lookup(ctx, name)
		if err == nil {
			// The document's digest vouches for the size; a HEAD's does not.
			sized := old.Digest == h.Digest && old.Size == h.Size
			if old.Fresh.IsZero() || sized && old.Fresh.Sub(now) > hp.Fresh/2 && (old.Shown || !hb.Shown) {
				continue // known, and will be for long enough
			}
			hb.Listed = old.Listed
			hb.Shown = hb.Shown || old.Shown && old.Digest == h.Digest
		}
		changes = append(changes, Change{name, old, hb})
	}
	return Wrap(ErrUnavailable, s.bindAll(ctx, changes), "bind what "+n.String()+" lists")
}

// bindAll makes changes; of those that are in conflict the other one wins.
func (s *Service) bindAll(ctx context.Context, changes []Change) error {
	if len(changes) == 0 {
		return nil
	}
	if many, ok := s.Names.(ManyNames); ok {
		return many.BindAll(ctx, changes)
	}
	for _, c := range changes {
		if _, err := s.Names.Bind(ctx, c.Name, c.Old, c.New); err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return nil
}
