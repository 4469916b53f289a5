package dynamo

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"golang.org/x/sync/errgroup"

	"github.com/weir-registry/weir/registry"
)

const (
	// A batch has at most maxChanges changes, as they are applied one after the
	// other, and about maxBytes bytes: an item may have 400 KB.
	maxChanges = 16
	maxBytes   = 300 << 10
	// readsAtOnce is how many items are read at once for a batch.
	readsAtOnce = 8
	// A writer that was beaten waits up to firstWait, and then up to twice as
	// long each time, up to longestWait.
	firstWait   = 2 * time.Millisecond
	longestWait = 100 * time.Millisecond
)

// A put is one Put that waits for its answer.
type put struct {
	ctx   context.Context
	key   string
	rev   uint64
	value []byte
	done  chan answer // has room for the one answer

	incarnation []byte // of the item, once that is known; the flusher's
}

type answer struct {
	record registry.Record
	err    error
}

func (p *put) answer(r registry.Record, err error) { p.done <- answer{r, err} }

func (p *put) fail(err error) {
	p.answer(registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "put "+p.key))
}

// Put implements registry.Metadata.
func (m *DB) Put(ctx context.Context, key string, rev uint64, value []byte) (registry.Record, error) {
	if err := registry.CheckPut(key, value); err != nil {
		return registry.Record{}, err
	}
	if err := ctx.Err(); err != nil {
		return registry.Record{}, registry.Wrap(registry.ErrUnavailable, err, "put "+key)
	}
	p := &put{ctx: ctx, key: key, rev: rev, value: bytes.Clone(value), done: make(chan answer, 1)}
	m.mu.Lock()
	m.queue = append(m.queue, p)
	if !m.flushing {
		m.flushing = true
		m.work.Go(m.flush)
	}
	m.mu.Unlock()
	select {
	case a := <-p.done:
		return a.record, a.err
	case <-ctx.Done():
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.queue = slices.DeleteFunc(m.queue, func(q *put) bool { return q == p })
	return registry.Record{}, registry.Wrap(registry.ErrUnavailable, ctx.Err(), "put "+key)
}

// flush makes batches of what is queued until nothing is.
func (m *DB) flush() {
	for puts := m.take(); puts != nil; puts = m.take() {
		m.commit(puts)
	}
}

// take takes what fits into a batch off the queue; nil if there is nothing.
func (m *DB) take() (puts []*put) {
	m.mu.Lock()
	defer m.mu.Unlock()
	size := 0
	keys := map[string]bool{}
	m.queue = slices.DeleteFunc(m.queue, func(p *put) bool {
		need := len(p.key) + len(p.value)
		if keys[p.key] || len(puts) == maxChanges || size > 0 && size+need > maxBytes {
			keys[p.key] = true // none of this key overtakes it
			return false
		}
		keys[p.key] = true
		size += need
		puts = append(puts, p)
		return true
	})
	if len(puts) == 0 {
		m.flushing = false
	}
	return puts
}

// shared is a context that lasts until those of all puts are done, or stop is
// called.
func shared(puts []*put) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(puts[0].ctx))
	left := make(chan struct{}, len(puts))
	stops := []func() bool{}
	for _, p := range puts {
		stops = append(stops, context.AfterFunc(p.ctx, func() {
			if left <- struct{}{}; len(left) == cap(left) {
				cancel()
			}
		}))
	}
	return ctx, func() {
		for _, stop := range stops {
			stop()
		}
		cancel()
	}
}

// commit makes one batch of puts, or finds out why not, and answers them.
func (m *DB) commit(puts []*put) {
	ctx, stop := shared(puts)
	defer stop()
	failed := func(err error) {
		for _, p := range puts {
			p.fail(err)
		}
	}
	end, found := m.known()
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		var err error
		if !found {
			if end, err = m.current(ctx); err != nil {
				failed(err)
				return
			}
		}
		if puts, err = m.compare(ctx, puts); err != nil {
			failed(err)
			return
		}
		if len(puts) == 0 {
			return
		}
		b := newBatch(end.batch+1, puts)
		won, err := m.append(ctx, b)
		if err != nil {
			m.doubt()
			failed(err)
			return
		}
		if won {
			m.finish(ctx, b, puts)
			return
		}
		found = false
		pause(ctx, wait)
	}
}

func newBatch(n uint64, puts []*put) batch {
	b := batch{n: n, writer: random()}
	for _, p := range puts {
		b.changes = append(b.changes, change{p.key, p.incarnation, p.value})
	}
	return b
}

func random() []byte {
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	return id
}

// pause waits for a random time up to limit, or until ctx is done.
func pause(ctx context.Context, limit time.Duration) {
	timer := time.NewTimer(mathrand.N(limit))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// compare reads the items of the puts' records and answers those that are in
// conflict, that change nothing or that nobody waits for. The others, which it
// returns, have items of which they know the incarnation.
func (m *DB) compare(ctx context.Context, puts []*put) (rest []*put, err error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	found := make([]kept, len(puts))
	for i, p := range puts {
		group.Go(func() (err error) {
			found[i], err = m.place(ctx, p)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return puts, err
	}
	for i, p := range puts {
		p.incarnation = found[i].incarnation
		switch {
		case p.ctx.Err() != nil:
			p.fail(p.ctx.Err())
		case found[i].Rev != p.rev:
			p.answer(registry.Record{}, &registry.Error{Kind: registry.ErrConflict, Text: fmt.Sprintf("%q was changed in the meantime", p.key)})
		case p.rev == 0 && p.value == nil:
			p.answer(registry.Record{Key: p.key}, nil)
		default:
			rest = append(rest, p)
		}
	}
	return rest, nil
}

// place reads the item of p's record, and makes it if it is needed. The request
// that makes it is sent once: were it sent again after the record has been
// removed, an old incarnation would come back.
func (m *DB) place(ctx context.Context, p *put) (k kept, err error) {
	for try := range attempts {
		if try > 0 && !conditionFailed(err) {
			pause(ctx, m.backoff)
		}
		k, readErr := m.kept(ctx, p.key)
		if readErr != nil || k.incarnation != nil || p.rev != 0 || p.value == nil {
			return k, readErr
		}
		it := itemKey(partRecord, []byte(p.key))
		k.incarnation = random()
		it[attrNumber], it[attrIncarnation] = number(0), blob(k.incarnation)
		if err = m.putIf(ctx, it, "attribute_not_exists(#p)", map[string]string{"#p": attrPart}, nil, once); err == nil {
			return k, nil
		}
	}
	return kept{}, err
}

// once keeps the library from sending a request again by itself.
func once(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} }

// append puts a batch at the end of the log, and reports whether it is there;
// an error if that is not known. The library must not try again by itself: it
// would not say that the condition failed at its second attempt.
func (m *DB) append(ctx context.Context, b batch) (won bool, err error) {
	condition, names, values := "attribute_not_exists(#p)", map[string]string{"#p": attrPart}, item(nil)
	if b.n > m.slots {
		condition, names, values = "#n = :n", map[string]string{"#n": attrNumber}, item{":n": number(b.n - m.slots)}
	}
	it := m.encodeBatch(b)
	for try := range attempts {
		if try > 0 {
			pause(ctx, m.backoff)
		}
		if err = m.putIf(ctx, it, condition, names, values, once); err == nil {
			return true, nil
		}
		is, writer, lookErr := m.slot(ctx, b.n)
		switch {
		case lookErr != nil:
			return false, errors.Join(err, lookErr)
		case is == b.n:
			return bytes.Equal(writer, b.writer), nil
		case is > b.n && try == 0 && conditionFailed(err):
			return false, nil // the log has gone on for rounds
		case is > b.n:
			return false, fmt.Errorf("batch %d is no longer kept, and it is not known whose it was: %w", b.n, err)
		}
	}
	return false, err
}

// finish applies a batch that is in the log, and answers.
func (m *DB) finish(ctx context.Context, b batch, puts []*put) {
	err := m.apply(ctx, b)
	if err == nil {
		m.learn(b.at())
		m.wake()
	} else {
		m.doubt()
	}
	for place, p := range puts {
		if err != nil {
			p.fail(err)
			continue
		}
		p.answer(b.record(place), nil)
	}
	if b.n%hintEvery == 0 {
		m.putHint(ctx, b.n)
	}
}
