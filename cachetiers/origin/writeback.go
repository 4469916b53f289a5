package origin

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

// longestBackoff is the longest pause after a failed write.
const longestBackoff = time.Minute

// A job is a blob that is to be written to the store.
type job struct {
	d     registry.Descriptor
	from  registry.Name
	since time.Time
}

// queue is what is to be written, and who writes it. A job that fails goes to
// the end, so that one that always fails does not keep others waiting.
type queue struct {
	k       *Keeper
	limit   int
	ctx     context.Context // of all writing
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu      sync.Mutex
	wake    chan struct{}          // guarded by mu; closed and replaced when anything below changes
	local   registry.Source        // guarded by mu; nil: not known yet, nothing is written
	jobs    []job                  // guarded by mu
	pending map[digest.Digest]bool // guarded by mu; in jobs, or being written
	closing bool                   // guarded by mu
}

func (q *queue) init(k *Keeper, o KeeperOptions) {
	q.k, q.limit, q.pending, q.wake = k, o.Queue, make(map[digest.Digest]bool), make(chan struct{})
	q.ctx, q.cancel = context.WithCancel(context.Background())
	for range o.Workers {
		q.workers.Go(q.work)
	}
}

// From sets the Source that blobs are copied from: the tier they land in.
// Until it is set they wait.
func (k *Keeper) From(local registry.Source) {
	q := &k.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	q.local = local
	q.changedLocked()
}

// Landed is told that a blob has been filled into the tier in front and is
// whole, by which name it was asked for, and where it came from. If that was
// an upstream whose blobs are kept, it is queued. It does not wait: a full
// queue drops it. It is for cachetiers.Options.Landed.
func (k *Keeper) Landed(d registry.Descriptor, from registry.Name, via registry.Via) {
	if via.Detail != upstreamDetail || d.Size < 0 || !k.o.Keep(from) {
		return
	}
	if !k.queue.add(job{d: d, from: from, since: time.Now()}) {
		k.o.Meter.Event("keep dropped", k.o.Name)
		k.o.Log.Debug("not kept: too many blobs wait for the origin store", "digest", d.Digest, "name", from.String())
	}
}

// Waiting is how many blobs are queued or being written.
func (k *Keeper) Waiting() int {
	k.queue.mu.Lock()
	defer k.queue.mu.Unlock()
	return len(k.queue.pending)
}

// Close writes what is queued, each blob being tried once more at most, and
// stops; blobs that land from now on are not kept. When ctx ends before that,
// writing is broken off. The error says how many blobs were not written.
func (k *Keeper) Close(ctx context.Context) error {
	q := &k.queue
	q.mu.Lock()
	q.closing = true
	q.changedLocked()
	q.mu.Unlock()
	defer context.AfterFunc(ctx, q.cancel)()
	q.workers.Wait()
	q.cancel()
	if n := k.Waiting(); n > 0 {
		return registry.Errorf(registry.ErrUnavailable, "%d blobs that were to be kept in %s were not", n, k.o.Name)
	}
	return nil
}

func (q *queue) changedLocked() {
	close(q.wake)
	q.wake = make(chan struct{})
}

// add reports whether j is queued, or was.
func (q *queue) add(j job) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pending[j.d.Digest] {
		return true
	}
	if q.closing || len(q.pending) >= q.limit {
		return false
	}
	q.pending[j.d.Digest] = true
	q.jobs = append(q.jobs, j)
	q.changedLocked()
	return true
}

// take waits for a job; ok is false when there will be none any more.
func (q *queue) take() (j job, local registry.Source, ok bool) {
	for {
		q.mu.Lock()
		if len(q.jobs) > 0 && q.local != nil {
			j, q.jobs = q.jobs[0], q.jobs[1:]
			local = q.local
			q.mu.Unlock()
			return j, local, q.ctx.Err() == nil
		}
		wake, closing := q.wake, q.closing
		q.mu.Unlock()
		if closing {
			return job{}, nil, false
		}
		<-wake
	}
}

// over is the end of a job.
func (q *queue) over(j job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.pending, j.d.Digest)
}

// again queues a job that failed; while closing it stays undone.
func (q *queue) again(j job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closing {
		q.jobs = append(q.jobs, j)
		q.changedLocked()
	}
}

// pause waits, or until the queue is closing.
func (q *queue) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		q.mu.Lock()
		wake, closing := q.wake, q.closing
		q.mu.Unlock()
		if closing {
			return
		}
		select {
		case <-timer.C:
			return
		case <-wake:
		}
	}
}

// work writes jobs, one after another.
func (q *queue) work() {
	backoff := q.k.o.Backoff
	for {
		j, local, ok := q.take()
		if !ok {
			return
		}
		err := q.k.keep(q.ctx, local, j)
		if err == nil {
			backoff = q.k.o.Backoff
			q.over(j)
			continue
		}
		if !mayHeal(err) || time.Since(j.since) > q.k.o.GiveUp {
			q.k.o.Meter.Event("keep dropped", q.k.o.Name)
			q.k.o.Log.Warn("not kept in the origin store", "store", q.k.o.Name, "digest", j.d.Digest, "name", j.from.String(), "err", err)
			q.over(j)
			continue
		}
		q.k.o.Meter.Event("keep failed", q.k.o.Name)
		q.k.o.Log.Info("not kept in the origin store yet", "store", q.k.o.Name, "digest", j.d.Digest, "again", backoff.String(), "err", err)
		q.again(j)
		q.pause(max(backoff, min(registry.RetryAfter(err), longestBackoff)))
		backoff = min(2*backoff, longestBackoff)
	}
}

// mayHeal reports whether a write is worth trying again. A local source that
// has the blob no more, or has it damaged, will not have it later; a store
// that refuses it for what it is will do so again.
func mayHeal(err error) bool {
	switch registry.KindOf(err) {
	case registry.ErrNotFound, registry.ErrCorrupt, registry.ErrInvalid, registry.ErrTooLarge:
		return false
	}
	return true
}

// keep copies a blob from local to the store, unless it is there.
func (k *Keeper) keep(ctx context.Context, local registry.Source, j job) error {
	w := registry.Want{Descriptor: j.d, From: j.from}
	damaged := k.doubts.has(j.d.Digest)
	if !damaged {
		b, err := k.store.Open(ctx, w) // a Want of no bytes: is it there?
		if err == nil {
			b.Close()
			k.o.Meter.Event("kept already", k.o.Name)
			return nil
		}
		if kind := registry.KindOf(err); kind != registry.ErrNotFound && kind != registry.ErrCorrupt {
			return registry.Wrap(registry.ErrUnavailable, err, "look for it in the store")
		}
	}
	if err := k.copy(ctx, local, j, damaged); err != nil {
		return err
	}
	k.doubts.remove(j.d.Digest)
	k.o.Meter.Event("kept", k.o.Name)
	return nil
}

// copy writes a blob to the store. What is damaged there goes only when the
// one that replaces it is at hand.
func (k *Keeper) copy(ctx context.Context, local registry.Source, j job, damaged bool) error {
	w := registry.Want{Descriptor: j.d, From: j.from, Length: -1}
	b, err := local.Open(ctx, w)
	if err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "open it in the tier in front")
	}
	defer b.Close()
	stage, err := k.store.Stage(ctx, j.d)
	if err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "begin to write it")
	}
	defer stage.Close()
	if _, err := io.CopyBuffer(struct{ io.Writer }{stage}, struct{ io.Reader }{b}, make([]byte, copyBuffer)); err != nil {
		return registry.Wrap(registry.ErrUnavailable, err, "copy it")
	}
	if damaged {
		dropper, ok := k.store.(Dropper)
		if !ok {
			return registry.Errorf(registry.ErrInvalid, "a store that cannot drop damaged blobs")
		}
		if err := dropper.Drop(ctx, j.d.Digest); err != nil {
			return registry.Wrap(registry.ErrUnavailable, err, "drop the damaged one")
		}
	}
	if _, err := stage.Commit(ctx); err != nil {
		return fmt.Errorf("commit it: %w", err)
	}
	return nil
}
