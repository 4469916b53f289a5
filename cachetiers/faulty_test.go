package cachetiers_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/conformance"
	"github.com/weir-registry/weir/registry"
)

// faults is what is wrong with which directories: the first rule for an
// operation decides.
type faults struct {
	mu    sync.Mutex
	rules []faultRule // guarded by mu
	hits  int         // guarded by mu; operations that a rule failed
}

type faultRule struct {
	dir string
	ops string // separated by spaces
	err error
	did bool // the operation happens all the same
}

func (f *faults) set(rules ...faultRule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules, f.hits = rules, 0
}

func (f *faults) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hits
}

// inject is for DiskOptions.Injected.
func (f *faults) inject(op, path string, do func() error) error {
	f.mu.Lock()
	var rule *faultRule
	for i, r := range f.rules {
		if strings.HasPrefix(path+"/", r.dir+"/") && strings.Contains(" "+r.ops+" ", " "+op+" ") {
			rule = &f.rules[i]
			f.hits++
			break
		}
	}
	f.mu.Unlock()
	if rule == nil {
		return do()
	}
	if rule.did {
		do()
	}
	return rule.err
}

// events is a Meter that counts events.
type events struct {
	registry.NoMeter
	mu   sync.Mutex
	seen map[string]int // guarded by mu
}

func (e *events) Event(what, who string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.seen == nil {
		e.seen = map[string]int{}
	}
	e.seen[what+" "+who]++
}

func (e *events) count(what, who string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seen[what+" "+who]
}

// logged is a log whose lines are counted.
type logged struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) log() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// lines are those that hold all of words.
func (l *logged) lines(words ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
lines:
	for line := range strings.Lines(l.text.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue lines
			}
		}
		found = append(found, line)
	}
	return found
}

// eventually waits for ok to give nil, and fails the test after 30 s.
func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ok()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// library is a far side of many blobs.
type library struct {
	blobs map[digest.Digest][]byte
	wants []registry.Want
	opens atomic.Int64
	bytes atomic.Int64
	gate  func(ctx context.Context, w registry.Want, at int64) // nil: as fast as it can
}

// newLibrary has one blob of each size.
func newLibrary(seed uint64, sizes ...int) *library {
	l := &library{blobs: map[digest.Digest][]byte{}}
	for i, size := range sizes {
		data := conformance.Bytes(seed<<20+uint64(i), size)
		w := want(data, 0, -1)
		l.blobs[w.Digest] = data
		l.wants = append(l.wants, w)
	}
	return l
}

func (l *library) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	l.opens.Add(1)
	data, ok := l.blobs[w.Digest]
	if !ok {
		return nil, registry.Errorf(registry.ErrNotFound, "not in the library")
	}
	off, n, ok := w.Clip(int64(len(data)))
	if !ok {
		return nil, registry.Errorf(registry.ErrInvalid, "past the end")
	}
	w.Size = int64(len(data))
	b := registry.NewBytesBlob(data, w.Descriptor, off, n, registry.Via{Fwd: "miss", Detail: "upstream"})
	return &libraryBlob{Blob: b, l: l, ctx: ctx, w: w, at: off}, nil
}

type libraryBlob struct {
	registry.Blob
	l   *library
	ctx context.Context
	w   registry.Want
	at  int64
}

func (b *libraryBlob) Read(p []byte) (int, error) {
	if b.l.gate != nil {
		b.l.gate(b.ctx, b.w, b.at)
	}
	n, err := b.Blob.Read(p[:min(len(p), 64<<10)])
	b.at += int64(n)
	b.l.bytes.Add(int64(n))
	return n, err
}

func (b *libraryBlob) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{b})
}

// pull reads a random run of a random blob through src, by Read or WriteTo.
func (l *library) pull(src registry.Source, rng *rand.Rand) error {
	w := l.wants[rng.IntN(len(l.wants))]
	data := l.blobs[w.Digest]
	if rng.IntN(3) == 0 {
		w.Offset = rng.Int64N(w.Size + 1)
		w.Length = rng.Int64N(w.Size + 1)
		data = data[w.Offset:min(w.Offset+w.Length, w.Size)]
	}
	b, err := src.Open(context.Background(), w)
	if err != nil {
		return fmt.Errorf("open %s: %w", w.Digest, err)
	}
	defer b.Close()
	var got bytes.Buffer
	if rng.IntN(2) == 0 {
		_, err = got.ReadFrom(struct{ io.Reader }{b})
	} else {
		_, err = b.WriteTo(&got)
	}
	if err != nil {
		return fmt.Errorf("read %s from %d of %d: %w", w.Digest, w.Offset, w.Size, err)
	}
	if !bytes.Equal(got.Bytes(), data) {
		return fmt.Errorf("%s from %d: wrong bytes", w.Digest, w.Offset)
	}
	return nil
}

// load pulls with several clients until stop is called, which returns how many
// requests there were and how many failed.
func (l *library) load(t *testing.T, src registry.Source, clients int) (requests func() int64, stop func() (all, failed int64)) {
	var all, failed atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 7))
			for {
				select {
				case <-done:
					return
				default:
				}
				all.Add(1)
				if err := l.pull(src, rng); err != nil {
					failed.Add(1)
					t.Errorf("client %d: %v", i, err)
				}
			}
		})
	}
	return all.Load, func() (int64, int64) {
		close(done)
		wg.Wait()
		return all.Load(), failed.Load()
	}
}
