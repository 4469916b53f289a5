package peer

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// pingUp and pingDown are how often a node is pinged; one that refuses as
	// often as one that is up, for its log's sake.
	pingUp   = 5 * time.Second
	pingDown = time.Second
	// warm is how many connections are kept open to a node, so that no fill
	// waits for a handshake; warmEvery is how often they are used for that.
	warm      = 8
	warmEvery = 2 * time.Minute
	// leastPatience is for how long a node is waited for, beside its round
	// trips, before another is asked too.
	leastPatience = 100 * time.Millisecond
)

// node is one node of a Group, and what is known of it.
type node struct {
	self   bool
	client *client // nil: self
	log    *slog.Logger
	meter  registry.Meter

	mu    sync.Mutex
	down  error         // guarded by mu; nil: it is up, as far as is known
	since time.Time     // guarded by mu
	rtt   time.Duration // guarded by mu; of the last ping
	again chan struct{} // guarded by mu; wakes watch; nil: it is not waiting
}

func (n *node) up() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.down == nil
}

func (n *node) state() State {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := State{Self: n.self, Up: n.down == nil, RTT: n.rtt, Since: n.since}
	if n.down != nil {
		s.Error = n.down.Error()
	}
	return s
}

// patience is for how long the node may give no sign before another is asked.
func (n *node) patience() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return leastPatience + 2*n.rtt
}

// failed notes that the node cannot be reached; watch finds out when it can.
func (n *node) failed(err error) {
	n.mu.Lock()
	was := n.down
	n.down = err
	if was == nil {
		n.since = time.Now()
		if n.again != nil {
			close(n.again)
			n.again = nil
		}
	}
	n.mu.Unlock()
	if was == nil {
		// Those that are idle lead to what is not there.
		n.client.rt.CloseIdleConnections()
		n.meter.Event("node down", n.client.host)
		n.log.Warn("a node cannot be reached and is passed over", "node", n.client.host, "err", err)
	}
}

// back notes that the node answers, after rtt.
func (n *node) back(rtt time.Duration) (wasDown bool) {
	n.mu.Lock()
	wasDown = n.down != nil
	n.down, n.rtt = nil, rtt
	if wasDown || n.since.IsZero() {
		n.since = time.Now()
	}
	n.mu.Unlock()
	if wasDown {
		n.meter.Event("node up", n.client.host)
		n.log.Info("a node answers again", "node", n.client.host)
	}
	return wasDown
}

// watch pings the node until ctx is done, and keeps connections to it open.
func (n *node) watch(ctx context.Context) {
	var warmed time.Time
	for ctx.Err() == nil {
		begun := time.Now()
		err := n.client.ping(ctx)
		rtt := time.Since(begun)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			n.failed(err)
		default:
			if n.back(rtt) || time.Since(warmed) > warmEvery {
				warmed = time.Now()
				n.keepWarm(ctx)
			}
		}
		n.rest(ctx)
	}
}

// rest waits until it is time for the next ping.
func (n *node) rest(ctx context.Context) {
	n.mu.Lock()
	every, again := pingDown, (chan struct{})(nil)
	if n.down == nil {
		every, again = pingUp, make(chan struct{})
		n.again = again
	} else if errors.Is(n.down, errRefused) {
		every = pingUp
	}
	n.mu.Unlock()
	timer := time.NewTimer(every)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-again:
		// It failed just now: the next ping is due as if that had been one.
		timer.Reset(pingDown)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
}

// keepWarm has several pings under way at once, each on a connection of its own.
func (n *node) keepWarm(ctx context.Context) {
	var wg sync.WaitGroup
	for range warm {
		wg.Go(func() { _ = n.client.ping(ctx) }) // the next ping tells
	}
	wg.Wait()
}
