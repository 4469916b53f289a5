package conformance

import (
	"context"
	"iter"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

// A MetadataFault is what goes wrong with one call of a [FaultyMetadata].
type MetadataFault int

// The faults. All but Late are ErrUnavailable to the caller, who cannot tell
// them apart. What is asked cannot be lost, so with a Get, Head, List or Changes
// Lost and Afterwards are as Refused.
const (
	// Sound is no fault.
	Sound MetadataFault = iota
	// Refused: it did not happen. A List or Changes gives some and then fails.
	Refused
	// Lost: it happened, and the answer was lost.
	Lost
	// Late: it happened, and the answer comes after Delay; if the context ends
	// before, it is lost.
	Late
	// Afterwards: it fails now and happens after Delay, if it still can.
	Afterwards
)

// A FaultyMetadata is a Metadata that answers late, or not at all, and says
// that it could not do what it has done or will do. It keeps the contract, so
// users of Metadata are tested with it.
type FaultyMetadata struct {
	registry.Metadata
	// Choose says what goes wrong with a call: op is the method's name, key what
	// it is about (List: the prefix, Head and Changes: ""). It may be called by
	// many at once. Nil: nothing goes wrong.
	Choose func(op, key string) MetadataFault
	// Delay is for Late and Afterwards; 0: 50 ms.
	Delay time.Duration

	later sync.WaitGroup // what happens Afterwards
}

// RandomFaults has so many of a hundred calls go wrong, in a way that depends on
// seed alone as long as one goroutine calls.
func RandomFaults(seed uint64, percent int) func(op, key string) MetadataFault {
	var mu sync.Mutex
	random := rand.New(rand.NewPCG(seed, 1))
	return func(string, string) MetadataFault {
		mu.Lock()
		defer mu.Unlock()
		if random.IntN(100) >= percent {
			return Sound
		}
		return Refused + MetadataFault(random.IntN(int(Afterwards)))
	}
}

func (m *FaultyMetadata) choose(op, key string) MetadataFault {
	if m.Choose == nil {
		return Sound
	}
	return m.Choose(op, key)
}

func (m *FaultyMetadata) delay() time.Duration {
	if m.Delay > 0 {
		return m.Delay
	}
	return 50 * time.Millisecond
}

// answer waits if the fault is Late, and says whether there is an answer.
func (m *FaultyMetadata) answer(ctx context.Context, f MetadataFault) error {
	switch f {
	case Sound:
		return nil
	case Late:
		timer := time.NewTimer(m.delay())
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return registry.Wrap(registry.ErrUnavailable, ctx.Err(), "wait for an answer that is late")
		}
	}
	return registry.Errorf(registry.ErrUnavailable, "an injected failure")
}

// Wait waits until all that happens Afterwards has happened.
func (m *FaultyMetadata) Wait() { m.later.Wait() }

// Get implements registry.Metadata.
func (m *FaultyMetadata) Get(ctx context.Context, key string) (registry.Record, error) {
	r, err := m.Metadata.Get(ctx, key)
	if fault := m.answer(ctx, m.choose("Get", key)); fault != nil {
		return registry.Record{}, fault
	}
	return r, err
}

// Put implements registry.Metadata.
func (m *FaultyMetadata) Put(ctx context.Context, key string, rev uint64, value []byte) (registry.Record, error) {
	fault := m.choose("Put", key)
	switch {
	case fault == Afterwards && ctx.Err() == nil:
		value := ownValue(value)
		m.later.Go(func() {
			time.Sleep(m.delay())
			_, _ = m.Metadata.Put(context.WithoutCancel(ctx), key, rev, value)
		})
		return registry.Record{}, m.answer(ctx, fault)
	case fault == Refused:
		return registry.Record{}, m.answer(ctx, fault)
	}
	r, err := m.Metadata.Put(ctx, key, rev, value)
	if fault := m.answer(ctx, fault); fault != nil {
		return registry.Record{}, fault
	}
	return r, err
}

// ownValue is a copy, nil of nil alone.
func ownValue(value []byte) []byte {
	if value == nil {
		return nil
	}
	return append([]byte{}, value...)
}

// List implements registry.Metadata.
func (m *FaultyMetadata) List(ctx context.Context, prefix, after string) iter.Seq2[registry.Record, error] {
	return m.walk(ctx, "List", prefix, m.Metadata.List(ctx, prefix, after))
}

// Changes implements registry.Metadata.
func (m *FaultyMetadata) Changes(ctx context.Context, after uint64) iter.Seq2[registry.Record, error] {
	return m.walk(ctx, "Changes", "", m.Metadata.Changes(ctx, after))
}

// walk gives what seq gives, or some of it and then a failure.
func (m *FaultyMetadata) walk(ctx context.Context, op, key string, seq iter.Seq2[registry.Record, error]) iter.Seq2[registry.Record, error] {
	return func(yield func(registry.Record, error) bool) {
		fault := m.choose(op, key)
		some := 0
		if fault != Sound && fault != Late {
			some = rand.IntN(4)
		}
		for r, err := range seq {
			if some--; some < 0 || err != nil {
				if fault := m.answer(ctx, fault); fault != nil {
					yield(registry.Record{}, fault)
					return
				}
				fault = Sound
			}
			if !yield(r, err) {
				return
			}
		}
		if err := m.answer(ctx, fault); err != nil {
			yield(registry.Record{}, err)
		}
	}
}

// Head implements registry.Metadata.
func (m *FaultyMetadata) Head(ctx context.Context) (uint64, error) {
	n, err := m.Metadata.Head(ctx)
	if fault := m.answer(ctx, m.choose("Head", "")); fault != nil {
		return 0, fault
	}
	return n, err
}

// Woken implements registry.Metadata. Where the call is at fault nobody is ever
// woken, or at once and for nothing.
func (m *FaultyMetadata) Woken() <-chan struct{} {
	switch m.choose("Woken", "") {
	case Sound:
		return m.Metadata.Woken()
	case Late:
		woken := make(chan struct{})
		close(woken)
		return woken
	}
	return make(chan struct{})
}

// Alternating is one Metadata whose calls go to several in turn: nodes that
// share a database must be as good as one.
func Alternating(nodes ...registry.Metadata) registry.Metadata {
	return &alternating{nodes: nodes}
}

type alternating struct {
	nodes []registry.Metadata
	mu    sync.Mutex
	next  int // guarded by mu
}

func (a *alternating) node() registry.Metadata {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = (a.next + 1) % len(a.nodes)
	return a.nodes[a.next]
}

func (a *alternating) Get(ctx context.Context, key string) (registry.Record, error) {
	return a.node().Get(ctx, key)
}

func (a *alternating) Put(ctx context.Context, key string, rev uint64, value []byte) (registry.Record, error) {
	return a.node().Put(ctx, key, rev, value)
}

func (a *alternating) List(ctx context.Context, prefix, after string) iter.Seq2[registry.Record, error] {
	return a.node().List(ctx, prefix, after)
}

func (a *alternating) Head(ctx context.Context) (uint64, error) { return a.node().Head(ctx) }

func (a *alternating) Changes(ctx context.Context, after uint64) iter.Seq2[registry.Record, error] {
	return a.node().Changes(ctx, after)
}

// Woken is closed when any of the nodes says so.
func (a *alternating) Woken() <-chan struct{} {
	woken := make(chan struct{})
	var once sync.Once
	for _, n := range a.nodes {
		theirs := n.Woken()
		go func() {
			select {
			case <-theirs:
				once.Do(func() { close(woken) })
			case <-woken:
			}
		}()
	}
	return woken
}
