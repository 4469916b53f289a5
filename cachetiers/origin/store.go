package origin

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

const (
	// spoolPrefix is how temporary files of a Store are called.
	spoolPrefix = "spool-"
	// lookAgain is for how long a Store asks whether a Put whose answer it did
	// not get was done nevertheless.
	lookAgain = 10 * time.Second
)

// StoreOptions are a Store's settings; the zero value is right but for Spool.
type StoreOptions struct {
	// Spool is the directory that blobs are written to on their way into the
	// bucket, of this Store's own. It is made if it is not there.
	Spool string
	// Answer is for how long Open and a look at an object may take in all
	// until the bucket has answered; 0: 20 s.
	Answer time.Duration
	// Idle is for how long a body that somebody waits for may be silent; 0: 15 s.
	Idle time.Duration
	// PutIdle is for how long a Put may ask for no more bytes, which includes
	// the time in which the bucket makes an object of them; 0: 60 s.
	PutIdle time.Duration
	Log     *slog.Logger
}

// A Store is a registry.Store of blobs in a Bucket, under
// "blobs/sha256/ab/abcdef…", for good.
//
// A stage is a file in StoreOptions.Spool. Commit verifies it and only then
// puts it into the bucket; when it has returned nil, the blob is durable there.
// It asks first whether the blob is there already, so that a blob is sent once.
// Open gives what the bucket gives, verified by size alone: a body that ends
// early is ErrUnavailable, an object of another size than wanted ErrCorrupt.
type Store struct {
	bucket Bucket
	o      StoreOptions
}

var _ registry.Store = (*Store)(nil)

// NewStore is a Store in b. What an earlier run left in o.Spool is removed.
// The bucket is not asked: it need not be reachable. ErrNoRoom if the
// directory cannot be written.
func NewStore(b Bucket, o StoreOptions) (*Store, error) {
	for _, d := range []struct {
		v     *time.Duration
		value time.Duration
	}{{&o.Answer, 20 * time.Second}, {&o.Idle, 15 * time.Second}, {&o.PutIdle, time.Minute}} {
		if *d.v <= 0 {
			*d.v = d.value
		}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := os.MkdirAll(o.Spool, 0o700); err != nil {
		return nil, registry.Wrap(registry.ErrNoRoom, err, "make the directory for blobs on their way to "+b.String())
	}
	left, err := os.ReadDir(o.Spool)
	if err != nil {
		return nil, registry.Wrap(registry.ErrNoRoom, err, "read the directory for blobs on their way to "+b.String())
	}
	for _, f := range left {
		if !strings.HasPrefix(f.Name(), spoolPrefix) {
			continue
		}
		if err := os.Remove(filepath.Join(o.Spool, f.Name())); err != nil {
			return nil, registry.Wrap(registry.ErrNoRoom, err, "remove what an earlier run left")
		}
	}
	return &Store{bucket: b, o: o}, nil
}

// String is the bucket's address.
func (s *Store) String() string { return s.bucket.String() }

// blobKey is where a blob is; ErrInvalid for what is no digest.
func blobKey(d digest.Digest) (string, error) {
	if !registry.ValidDigest(d) {
		_, err := registry.NewHash(d) // which says what is wrong with it
		return "", err
	}
	hex := d.Encoded()
	return "blobs/" + d.Algorithm().String() + "/" + hex[:2] + "/" + hex, nil
}

// Open implements registry.Source: one request to the bucket.
func (s *Store) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	key, err := blobKey(w.Digest)
	if err != nil {
		return nil, err
	}
	if _, _, ok := w.Clip(w.Size); !ok {
		return nil, pastTheEnd(w)
	}
	if w.Length == 0 || w.Size >= 0 && w.Offset == w.Size {
		return s.describe(ctx, key, w)
	}
	watch := newWatch(ctx, s.o.Answer)
	o, err := s.bucket.Get(watch.ctx, key, w.Offset, w.Length)
	watch.pause()
	if err != nil {
		err = watch.explain(err, "open "+key+" in "+s.String())
		watch.stop()
		if registry.KindOf(err) == registry.ErrInvalid { // behind the end, or just at it
			return s.describe(ctx, key, w)
		}
		return nil, err
	}
	b := &run{watch: watch, idle: s.o.Idle, body: o.Body, what: key + " in " + s.String()}
	if err := b.fit(w, o.Size); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// describe answers a Want of no bytes.
func (s *Store) describe(ctx context.Context, key string, w registry.Want) (registry.Blob, error) {
	size, err := s.stat(ctx, key)
	if err != nil {
		return nil, err
	}
	b := &run{what: key + " in " + s.String()}
	if err := b.fit(w, size); err != nil {
		return nil, err
	}
	if b.left > 0 {
		return nil, &registry.Error{Kind: registry.ErrUnavailable, Text: b.what + ": refused a range that the object has"}
	}
	return b, nil
}

func (s *Store) stat(ctx context.Context, key string) (int64, error) {
	watch := newWatch(ctx, s.o.Answer)
	defer watch.stop()
	size, err := s.bucket.Stat(watch.ctx, key)
	return size, watch.explain(err, "look at "+key+" in "+s.String())
}

// Drop removes a blob whose bytes have turned out to be wrong, so that the
// next Commit of its digest writes it anew.
func (s *Store) Drop(ctx context.Context, d digest.Digest) error {
	key, err := blobKey(d)
	if err != nil {
		return err
	}
	watch := newWatch(ctx, s.o.Answer)
	defer watch.stop()
	return watch.explain(s.bucket.Delete(watch.ctx, key), "delete "+key+" in "+s.String())
}

// put makes f the blob d, unless it is there.
func (s *Store) put(ctx context.Context, d registry.Descriptor, f *os.File) error {
	key, err := blobKey(d.Digest)
	if err != nil {
		return err
	}
	switch size, err := s.stat(ctx, key); {
	case err == nil && size == d.Size:
		return nil
	case err == nil:
		s.o.Log.Warn("replace an object of the wrong size", "bucket", s.String(), "key", key, "size", size, "want", d.Size)
	case registry.KindOf(err) != registry.ErrNotFound:
		return err
	}
	watch := newWatch(ctx, s.o.PutIdle)
	err = s.bucket.Put(watch.ctx, key, &watchedAt{f, watch, s.o.PutIdle}, d.Size)
	err = watch.explain(err, "put "+key+" into "+s.String())
	watch.stop()
	if err == nil || ctx.Err() != nil {
		return err
	}
	// It may have happened although we were told that it did not. What is
	// under a blob's key was verified by whoever put it there.
	ctx, cancel := context.WithTimeout(ctx, min(lookAgain, s.o.Answer))
	defer cancel()
	if size, again := s.stat(ctx, key); again == nil && size == d.Size {
		s.o.Log.Info("an object is there although putting it failed", "bucket", s.String(), "key", key, "err", err)
		return nil
	}
	return err
}

func pastTheEnd(w registry.Want) error {
	return registry.Errorf(registry.ErrInvalid, "offset %d is past the end of %s", w.Offset, w.Digest)
}

// errSilent is why a watch gives up.
var errSilent = errors.New("no answer in time")

// A watch cancels what is done under its ctx when it makes no progress.
type watch struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// newWatch begins to count; the caller stops it.
func newWatch(ctx context.Context, limit time.Duration) *watch {
	w := &watch{}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(limit, func() { w.cancel(errSilent) })
	return w
}

// again counts from here on; pause does not count.
func (w *watch) again(limit time.Duration) { w.timer.Reset(limit) }
func (w *watch) pause()                    { w.timer.Stop() }

// stop ends what is done under ctx.
func (w *watch) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// explain says what was being done when err happened, and whether it is the
// watch that ended it.
func (w *watch) explain(err error, doing string) error {
	if err == nil {
		return nil
	}
	if context.Cause(w.ctx) == errSilent {
		return &registry.Error{Kind: registry.ErrUnavailable, Err: err,
			Text: doing + ": no answer in time; is the endpoint right, and does a firewall let it through"}
	}
	return registry.Wrap(registry.ErrUnavailable, err, doing)
}
