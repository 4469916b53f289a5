package origin

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// What the Via of bytes says that an upstream gave, and this store.
const (
	upstreamDetail = "upstream"
	originDetail   = "origin"
)

// KeeperOptions are a Keeper's settings; the zero value is right.
type KeeperOptions struct {
	// Name is the store's, for metrics: "s3"; "": "origin".
	Name string
	// Keep reports whether what a name stands for is kept in the store. What
	// is not is not looked for there either. nil: everything is.
	Keep func(from registry.Name) bool
	// Patience is for how long Open waits for the store before it goes on to
	// the next source; 0: 2 s.
	Patience time.Duration
	// Rest is for how long a store that has failed is left alone, before one
	// Open tries it again; 0: 5 s. If the store says when to come again it is
	// longer, up to a minute.
	Rest time.Duration
	// Queue is how many blobs may wait to be written; more are not kept. 0: 4096.
	Queue int
	// Workers is how many are written at once; 0: 2.
	Workers int
	// Backoff is the pause after a write that failed, which doubles with each
	// up to a minute; 0: 1 s.
	Backoff time.Duration
	// GiveUp is for how long a blob waits for a store that is not there; 0: 24 h.
	GiveUp time.Duration
	Meter  registry.Meter
	Log    *slog.Logger
}

func (o *KeeperOptions) fill() {
	for _, d := range []struct {
		v     *time.Duration
		value time.Duration
	}{{&o.Patience, 2 * time.Second}, {&o.Rest, 5 * time.Second}, {&o.Backoff, time.Second}, {&o.GiveUp, 24 * time.Hour}} {
		if *d.v <= 0 {
			*d.v = d.value
		}
	}
	if o.Name == "" {
		o.Name = "origin"
	}
	if o.Keep == nil {
		o.Keep = func(registry.Name) bool { return true }
	}
	if o.Queue <= 0 {
		o.Queue = 4096
	}
	if o.Workers <= 0 {
		o.Workers = 2
	}
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
}

// A Dropper is a Store that can be rid of a blob whose bytes are wrong.
type Dropper interface {
	Drop(ctx context.Context, d digest.Digest) error
}

// A Keeper is a Source that has a store for good in front of the next one, the
// upstreams, and writes to the store what came from those. The store costs no
// answer: what it has not, what it fails at and what it is too slow for comes
// from the next Source; after a failure nobody waits for it for some seconds.
//
// Writing never delays a reader: Landed puts a blob into a queue in memory, and
// goroutines of the Keeper copy it from a local Source, which is to have it.
// What is queued when the process dies is not written, until it is pulled
// through again. Events: "kept", "kept already", "keep dropped" (the queue was
// full, or the local source had it no more), "keep failed" (and will be tried
// again), "origin unavailable" (passed over), "origin size" (another
// than was wanted, by whoever's word) and "origin corrupt".
type Keeper struct {
	store registry.Store
	next  registry.Source
	o     KeeperOptions

	health health
	doubts doubts
	queue  queue
}

var _ registry.Source = (*Keeper)(nil)

// NewKeeper puts store in front of next, which may be nil: then there is
// nothing behind. The caller says by From where to copy blobs from, and calls
// Close.
func NewKeeper(store registry.Store, next registry.Source, o KeeperOptions) *Keeper {
	o.fill()
	k := &Keeper{store: store, next: next, o: o}
	k.health.rest = o.Rest
	k.queue.init(k, o)
	return k
}

// Open implements registry.Source.
func (k *Keeper) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	if !k.o.Keep(w.From) {
		return k.behind(ctx, w, nil)
	}
	if k.doubts.has(w.Digest) {
		return k.behind(ctx, w, errDoubted())
	}
	if !k.health.enter() {
		return k.behind(ctx, w, errResting())
	}
	b, err := k.ask(ctx, w)
	switch kind := registry.KindOf(err); {
	case err == nil:
		k.health.good()
		return b, nil
	case ctx.Err() != nil: // the reader has gone, which says nothing of the store
		k.health.leave()
		return nil, registry.Wrap(registry.ErrUnavailable, err, "the origin store")
	case kind == registry.ErrNotFound:
		k.health.good()
		return k.behind(ctx, w, nil)
	case kind == registry.ErrInvalid:
		k.health.good()
		return nil, err
	case kind == registry.ErrCorrupt:
		// Another size than w's, and which of the two is wrong nobody knows: a
		// manifest of anyone's may say so. No bytes have been seen, so there is
		// no doubt for others; an object that is too short is replaced when it
		// is written (Store.put).
		k.health.good()
		k.o.Meter.Event("origin size", k.o.Name)
		k.o.Log.Warn("the origin store has a blob in another size than is wanted", "store", k.o.Name, "name", w.From.String(), "err", err)
		return k.behind(ctx, w, errDoubted())
	}
	k.failed(err)
	return k.behind(ctx, w, err)
}

func errResting() error {
	return &registry.Error{Kind: registry.ErrUnavailable, Text: "the origin store failed a moment ago"}
}

func errDoubted() error {
	return &registry.Error{Kind: registry.ErrCorrupt, Text: "the blob is damaged in the origin store"}
}

// behind opens w in the next Source; why is what is wrong with the store, nil
// if it has not the blob.
func (k *Keeper) behind(ctx context.Context, w registry.Want, why error) (registry.Blob, error) {
	if k.next == nil {
		if why == nil {
			why = registry.Errorf(registry.ErrNotFound, "%s is not in the origin store", w.Digest)
		}
		return nil, why
	}
	b, err := k.next.Open(ctx, w)
	if why != nil && registry.KindOf(err) == registry.ErrNotFound {
		// The store may have had what the upstream has no more; that it gives
		// nothing does not mean that there is no such blob.
		return nil, &registry.Error{Kind: registry.ErrUnavailable, Err: why, After: k.o.Rest,
			Text: "the upstream has no " + string(w.Digest) + ", and the origin store does not give it"}
	}
	return b, err
}

// ask opens w in the store, within Patience.
func (k *Keeper) ask(ctx context.Context, w registry.Want) (registry.Blob, error) {
	type answer struct {
		b   registry.Blob
		err error
	}
	storeCtx, cancel := context.WithCancel(ctx)
	answers := make(chan answer, 1)
	go func() {
		b, err := k.store.Open(storeCtx, w)
		answers <- answer{b, err}
	}()
	timer := time.NewTimer(k.o.Patience)
	defer timer.Stop()
	var err error
	select {
	case a := <-answers:
		if a.err != nil {
			cancel()
			return nil, a.err
		}
		return &keptBlob{Blob: a.b, k: k, ctx: ctx, cancel: cancel}, nil
	case <-timer.C:
		err = &registry.Error{Kind: registry.ErrUnavailable, Text: "no answer within " + k.o.Patience.String()}
	case <-ctx.Done():
		err = ctx.Err()
	}
	cancel()
	go func() { // whatever it still says is not wanted
		if a := <-answers; a.b != nil {
			a.b.Close()
		}
	}()
	return nil, err
}

// failed notes a failure of the store, which is then left alone.
func (k *Keeper) failed(err error) {
	k.o.Meter.Event("origin unavailable", k.o.Name)
	if k.health.bad(registry.RetryAfter(err)) {
		k.o.Log.Warn("the origin store is passed over for a while", "store", k.o.Name, "err", err)
	}
}

// doubt says that the store gave wrong bytes for a blob, and how that was
// found. From now on the blob comes from the next Source, and when it has
// landed from there it replaces the one in the store. It does not wait.
func (k *Keeper) doubt(d digest.Digest, err error) {
	if k.doubts.add(d) {
		k.o.Meter.Event("origin corrupt", k.o.Name)
		k.o.Log.Error("a blob in the origin store is damaged; it will be replaced when it is pulled through again",
			"store", k.o.Name, "digest", d, "err", err)
	}
}

// Doubt implements registry.Doubter: what came from the store is doubted, and
// what came from behind it is told to that.
func (k *Keeper) Doubt(w registry.Want, via registry.Via) {
	if via.Detail == originDetail {
		k.doubt(w.Digest, registry.Errorf(registry.ErrCorrupt, "what the origin store gave is not %s", w.Digest))
		return
	}
	if next, ok := k.next.(registry.Doubter); ok {
		next.Doubt(w, via)
	}
}

// keptBlob is a blob that the store gave; failures in the middle of it count,
// so that whoever opens it again gets it from elsewhere.
type keptBlob struct {
	registry.Blob
	k      *Keeper
	ctx    context.Context // the reader's
	cancel context.CancelFunc
	told   bool
}

// Read implements io.Reader.
func (b *keptBlob) Read(p []byte) (int, error) {
	n, err := b.Blob.Read(p)
	b.note(err)
	return n, err
}

// WriteTo implements io.WriterTo; only Read's failures are the store's.
func (b *keptBlob) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{b}, make([]byte, copyBuffer))
}

func (b *keptBlob) note(err error) {
	if err == nil || err == io.EOF || b.told || b.ctx.Err() != nil {
		return
	}
	b.told = true
	if registry.KindOf(err) == registry.ErrCorrupt {
		b.k.doubt(b.Descriptor().Digest, err)
		return
	}
	b.k.failed(err)
}

// Close implements registry.Blob.
func (b *keptBlob) Close() error {
	err := b.Blob.Close()
	b.cancel()
	return err
}

// longestRest is the longest for which a store can ask to be left alone.
const longestRest = time.Minute

// health is whether the store is asked. After a failure it is left alone, and
// then one reader tries it; others do not wait for what he finds.
type health struct {
	rest time.Duration

	mu    sync.Mutex
	until time.Time // guarded by mu; zero: it is well
	trial bool      // guarded by mu; a reader is trying it
}

// enter reports whether to ask the store; who has entered says good, bad or
// leave.
func (h *health) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.until.IsZero() {
		return true
	}
	if h.trial || time.Now().Before(h.until) {
		return false
	}
	h.trial = true
	return true
}

func (h *health) good() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.trial || !time.Now().Before(h.until) {
		h.until = time.Time{}
	}
	h.trial = false
}

func (h *health) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.trial = false
}

// bad reports whether the store was well until now, or was tried again.
func (h *health) bad(after time.Duration) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	news := !now.Before(h.until)
	if until := now.Add(max(h.rest, min(after, longestRest))); until.After(h.until) {
		h.until = until
	}
	h.trial = false
	return news
}

// maxDoubts is how many damaged blobs are remembered; of more than that none
// are.
const maxDoubts = 4096

// doubts are the blobs that are damaged in the store.
type doubts struct {
	mu  sync.Mutex
	all map[digest.Digest]bool // guarded by mu
}

func (d *doubts) has(dg digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[dg]
}

// add reports whether it is a new one.
func (d *doubts) add(dg digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all[dg] || len(d.all) >= maxDoubts {
		return false
	}
	if d.all == nil {
		d.all = make(map[digest.Digest]bool)
	}
	d.all[dg] = true
	return true
}

func (d *doubts) remove(dg digest.Digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, dg)
}
