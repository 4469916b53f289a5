package peer

import (
	"context"
	"errors"
	"sync"
	"time"
)

// hedged puts q to first, and to second too if first gives no sign of life for
// a while; second may be nil. It reports whether both were asked and have
// failed. The first answer that counts ends it, a failure too if nobody else is to
// be asked because of it, and the other is dropped. Nodes that
// are dead are marked so.
func hedged[T any](ctx context.Context, g *Group, first, second *node, limit time.Duration, q question[T]) (v T, both bool, err error) {
	if second == nil {
		v, err = put(ctx, first, limit, nil, q)
		return v, false, err
	}
	begun := time.Now()
	answers := make(chan answer[T], 2) // room for both: none waits for a taker
	begin := func(n *node, signs func()) context.CancelFunc {
		ctx, cancel := context.WithCancel(ctx)
		go func() {
			v, err := put(ctx, n, limit, signs, q)
			answers <- answer[T]{v, err, n}
		}()
		return cancel
	}
	alive := make(chan struct{})
	var once sync.Once
	cancels := map[*node]context.CancelFunc{first: begin(first, func() { once.Do(func() { close(alive) }) })}
	timer := time.NewTimer(first.patience())
	defer timer.Stop()
	hedge := timer.C
	for {
		select {
		case <-alive:
			alive, hedge = nil, nil // it is at work
		case <-hedge:
			if hedge = nil; g.budget.spend() {
				both = true
				g.o.Meter.Event("hedged", first.client.host)
				cancels[second] = begin(second, nil)
			}
		case a := <-answers:
			cancel := cancels[a.from]
			delete(cancels, a.from)
			if a.err != nil {
				cancel()
				if len(cancels) > 0 && g.another(ctx, a.err, begun) {
					continue // the other may still have it
				}
			}
			for _, other := range cancels {
				other()
				go func() { // its answer may be on its way
					if a := <-answers; a.err == nil {
						q.drop(a.v)
					}
				}()
			}
			if a.err != nil {
				return a.v, both, a.err
			}
			return q.own(a.v, cancel), both, nil
		}
	}
}

// put puts q to one node, and marks one that is dead.
func put[T any](ctx context.Context, n *node, limit time.Duration, signs func(), q question[T]) (T, error) {
	v, err := q.put(ctx, n, limit, signs)
	if err != nil && errors.Is(err, errDead) && ctx.Err() == nil {
		n.failed(err)
	}
	return v, err
}

// answer is what came of asking one node.
type answer[T any] struct {
	v    T
	err  error
	from *node
}

// budget lets a small share of questions be hedged: one in twenty, and a few
// that have been saved up, so that many slow nodes are not asked twice as much.
type budget struct {
	mu     sync.Mutex
	tokens float64 // guarded by mu
}

const (
	earned = 0.05
	saved  = 10
)

func (b *budget) earn() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tokens = min(b.tokens+earned, saved)
}

func (b *budget) spend() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
