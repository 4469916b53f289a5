package registry

import (
	"context"
	"io"
	"sync"
)

// A Cutter is a writer towards a client that can be ended while another
// goroutine is in the middle of writing to it, in the kernel too. Cut does not
// wait; each write that is under way or comes after it fails with why. It may be
// called from any goroutine, and more than once.
//
// A writer that is given to a Blob's WriteTo should be one: the Blob of a call
// that is revoked then ends a client that does not read.
type Cutter interface {
	io.Writer
	Cut(why error)
}

// Hold makes b, which a front end has made itself of what c is bound to, fail
// when c is revoked, like one that Open gave. c has been admitted. The caller
// closes the Blob that is returned, which closes b.
func (s *Service) Hold(c *Call, b Blob) Blob {
	s.setup()
	_, r := s.watch(context.Background(), c)
	if r == nil {
		return b
	}
	return &held{Blob: b, r: r}
}

// watch has c, which has been admitted, watched from now on: when it is revoked
// the context that is returned is cancelled. Whoever calls it calls over or end.
// Without a Warden it costs nothing, and the revocation is nil.
func (s *Service) watch(ctx context.Context, c *Call) (context.Context, *revocation) {
	warden, ok := s.Guard.(Warden)
	if !ok {
		return ctx, nil
	}
	r := &revocation{meter: s.Meter, space: c.Name.Space}
	ctx, r.cancel = context.WithCancel(ctx)
	call := *c // which the caller goes on to use
	r.stop = warden.Watch(&call, r.revoke)
	return ctx, r
}

// A revocation is what one admitted call waits for and hopes not to see.
type revocation struct {
	cancel context.CancelFunc
	stop   func()
	meter  Meter
	space  string

	mu  sync.Mutex
	why error  // guarded by mu; nil: still admitted
	out Cutter // guarded by mu; what is being written to
}

// revoke is what the Warden calls.
func (r *revocation) revoke(err error) {
	r.mu.Lock()
	if r.why != nil {
		r.mu.Unlock()
		return
	}
	r.why = Wrap(ErrDenied, err, "revoked")
	if r.out != nil {
		// With the lock, so that WriteTo does not return before: the connection
		// may be another request's then.
		r.out.Cut(r.why)
	}
	r.mu.Unlock()
	r.cancel()
	r.meter.Event("transfer cut", r.space)
}

// told is why the call is not admitted any more, or else err.
func (r *revocation) told(err error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.why != nil {
		return r.why
	}
	return err
}

// writing says what is being written to, nil for nothing.
func (r *revocation) writing(to Cutter) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out = to
	return r.why
}

// end must be called once the call's bytes are no longer needed. It is not called
// with r.mu held: stop may wait for revoke.
func (r *revocation) end() {
	r.stop()
	r.cancel()
}

// over is b, or err, as the call that r is about may have it. r may be nil.
func (r *revocation) over(b Blob, err error) (Blob, error) {
	if r == nil {
		return b, err
	}
	if err = r.told(err); err != nil {
		if b != nil {
			b.Close()
		}
		r.end()
		return nil, err
	}
	return &held{Blob: b, r: r}, nil
}

// held is a Blob for as long as the call it is for is admitted.
type held struct {
	Blob
	r     *revocation
	ended bool
}

var _ Widener = (*held)(nil)

// Read implements io.Reader. What is read while the call is revoked is not given.
func (b *held) Read(p []byte) (int, error) {
	if err := b.r.told(nil); err != nil {
		return 0, err
	}
	n, err := b.Blob.Read(p)
	if why := b.r.told(nil); why != nil {
		return 0, why
	}
	return n, err
}

// WriteTo implements io.WriterTo. w goes to the Blob as it is, so that the kernel
// can copy; only one that cannot be cut is looked after write by write.
func (b *held) WriteTo(w io.Writer) (int64, error) {
	out, ok := w.(Cutter)
	if !ok {
		return b.Blob.WriteTo(checked{w, b.r})
	}
	if err := b.r.writing(out); err != nil {
		return 0, err
	}
	n, err := b.Blob.WriteTo(w)
	_ = b.r.writing(nil)
	return n, b.r.told(err)
}

// Widen implements Widener.
func (b *held) Widen() bool {
	w, ok := b.Blob.(Widener)
	return ok && w.Widen()
}

// Close implements io.Closer.
func (b *held) Close() error {
	err := b.Blob.Close()
	if !b.ended {
		b.ended = true
		b.r.end()
	}
	return err
}

// checked writes while the call is admitted.
type checked struct {
	w io.Writer
	r *revocation
}

// Write implements io.Writer.
func (c checked) Write(p []byte) (int, error) {
	if err := c.r.told(nil); err != nil {
		return 0, err
	}
	return c.w.Write(p)
}
