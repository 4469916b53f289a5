package peer

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/weir-registry/weir/registry"
)

const (
	// askOthers is for how long into a question another node may be asked
	// because one said that it could not get the answer.
	askOthers = 5 * time.Second
	// doubtFor is for how long a node is not asked for a blob of which it gave
	// wrong bytes.
	doubtFor = 10 * time.Minute
	// maxServed bounds what is remembered of who gave which blob.
	maxServed = 4096
	// smallBytes is up to what size a blob is hedged.
	smallBytes = 1 << 20
)

// A Dial connects to a node, "host:port", and makes sure who it is. The protocol
// that it agrees on is HTTP/1.1: several streams are to be several connections.
type Dial func(ctx context.Context, network, addr string) (net.Conn, error)

// Options are a Group's settings. Nodes and Dial must be set.
type Options struct {
	// Nodes are addresses, https://host:port, in any order. What belongs to
	// which of them follows from the addresses as they are written, so all who
	// ask must write them alike.
	Nodes []string
	// Self is this node's own address among Nodes, or "": what belongs to it
	// is asked of Beyond, and so is what belongs to a node that is dead and
	// would be this node's next.
	Self string
	// Dial connects to nodes.
	Dial Dial
	// Witness is told of what a node gave that was asked for what its repository
	// has been shown to have. nil: nobody is told.
	Witness *registry.Witness
	// Beyond answers when no node does; nil: nothing does.
	Beyond registry.Upstream
	Meter  registry.Meter // nil: nothing is counted
	Log    *slog.Logger   // nil: slog.Default()
}

// A Group is several nodes as one Source and Upstream: each blob and each
// repository belongs to one of them, by rendezvous hashing; a node that is dead
// is passed over, and noticed to be back within two seconds.
//
// A question about something small, whose node gives no sign of life for about
// twice its round trip, is put to the next node too; whichever answers first
// counts. Failures that a node reports, of what is behind it, are passed on
// with their kind; only if it could not get an answer is one more node asked,
// or Beyond.
type Group struct {
	o      Options
	nodes  []*node // in the order of addresses
	addrs  []string
	budget budget
	stop   context.CancelFunc
	ended  sync.WaitGroup

	mu      sync.Mutex
	served  map[digest.Digest]*node // guarded by mu; who gave a blob last
	doubted map[doubt]time.Time     // guarded by mu; until when
}

// A doubt is about what one node has of one blob, for those who know its size to
// be this. Another repository's manifest may say a wrong one, which casts no
// doubt on the node for others.
type doubt struct {
	n    *node
	d    digest.Digest
	size int64
}

var (
	_ registry.Upstream = (*Group)(nil)
	_ registry.Doubter  = (*Group)(nil)
)

// NewGroup makes a Group and begins to watch its nodes, until Close.
func NewGroup(o Options) (*Group, error) {
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	g := &Group{o: o, served: map[digest.Digest]*node{}, doubted: map[doubt]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	for _, addr := range o.Nodes {
		n := &node{self: addr == o.Self, log: o.Log, meter: o.Meter}
		if !n.self {
			c, err := newClient(addr, o.Dial, o.Meter)
			if err != nil {
				cancel()
				return nil, err
			}
			n.client = c
		}
		g.nodes, g.addrs = append(g.nodes, n), append(g.addrs, addr)
	}
	for _, n := range g.nodes {
		if !n.self {
			g.ended.Go(func() { n.watch(ctx) })
		}
	}
	return g, nil
}

// Close ends the watching. What is open can be read on.
func (g *Group) Close() error {
	g.stop()
	g.ended.Wait()
	return nil
}

// A State is what a Group knows of one node, for operators.
type State struct {
	Address string        `json:"address"`
	Self    bool          `json:"self,omitempty"`
	Up      bool          `json:"up"`
	RTT     time.Duration `json:"rtt_ns"`          // of the last ping; 0: none yet
	Since   time.Time     `json:"since,omitzero"`  // since when it is up, or not
	Error   string        `json:"error,omitempty"` // why it is not
}

// States is what is known of the nodes, in the order of Options.Nodes.
func (g *Group) States() []State {
	out := make([]State, len(g.nodes))
	for i, n := range g.nodes {
		out[i] = n.state()
		out[i].Address = g.addrs[i]
	}
	return out
}

// order is whom to ask about key, best first, and whether Beyond comes behind
// them as this node's own place. Nodes that are down are left out.
func (g *Group) order(key string, d registry.Descriptor) (ask []*node, own bool) {
	for _, i := range rank(g.addrs, key) {
		n := g.nodes[i]
		if n.self {
			return ask, true
		}
		if n.up() && !g.doubts(n, d) {
			ask = append(ask, n)
		}
	}
	return ask, false
}

// Open implements registry.Source.
func (g *Group) Open(ctx context.Context, w registry.Want) (registry.Blob, error) {
	small := w.Size >= 0 && w.Size <= smallBytes
	b, err := ask(ctx, g, string(w.Digest), w.Descriptor, small, question[registry.Blob]{
		put: func(ctx context.Context, n *node, limit time.Duration, signs func()) (registry.Blob, error) {
			b, err := n.client.open(ctx, w, limit, signs)
			if err == nil {
				g.gave(w.Digest, n)
				if g.o.Witness != nil && w.Shown {
					g.o.Witness.Saw(w.From, w.Digest)
				}
			}
			return b, err
		},
		beyond: func(ctx context.Context, up registry.Upstream) (registry.Blob, error) { return up.Open(ctx, w) },
		drop:   func(b registry.Blob) { b.Close() },
		own:    func(b registry.Blob, end func()) registry.Blob { return endingBlob{b, end} },
	})
	return b, err
}

// resolved is an answer to a question about a name.
type resolved struct {
	b   registry.Binding
	doc io.ReadCloser
}

// Resolve implements registry.Upstream.
func (g *Group) Resolve(ctx context.Context, q registry.Question) (registry.Binding, io.ReadCloser, error) {
	r, err := ask(ctx, g, q.Name.Space+" "+q.Name.Repo, registry.Descriptor{}, true, question[resolved]{
		put: func(ctx context.Context, n *node, limit time.Duration, signs func()) (resolved, error) {
			b, doc, err := n.client.resolve(ctx, q, limit, signs)
			return resolved{b, doc}, err
		},
		beyond: func(ctx context.Context, up registry.Upstream) (resolved, error) {
			b, doc, err := up.Resolve(ctx, q)
			return resolved{b, doc}, err
		},
		drop: func(r resolved) {
			if r.doc != nil {
				r.doc.Close()
			}
		},
		own: func(r resolved, end func()) resolved {
			if r.doc == nil {
				end()
			} else {
				r.doc = endingDoc{r.doc, end}
			}
			return r
		},
	})
	return r.b, r.doc, err
}

// A question is how to ask for a T, and what to do with one.
type question[T any] struct {
	put    func(ctx context.Context, n *node, limit time.Duration, signs func()) (T, error)
	beyond func(ctx context.Context, up registry.Upstream) (T, error)
	drop   func(T)           // gives up one that nobody needs
	own    func(T, func()) T // has one call a function when it is closed
}

// ask puts q to the nodes that key belongs to, one after the other.
func ask[T any](ctx context.Context, g *Group, key string, d registry.Descriptor, small bool, q question[T]) (T, error) {
	var none T
	nodes, own := g.order(key, d)
	begun := time.Now()
	var failed error
	for i := 0; i < len(nodes); i++ {
		var second *node
		if small && i+1 < len(nodes) {
			second = nodes[i+1]
		}
		// The last that can be asked is given more time than one beside which
		// there are others: a busy machine is no dead one.
		limit := silence
		if i+1 == len(nodes) && !own {
			limit = 2 * silence
		}
		g.budget.earn()
		v, both, err := hedged(ctx, g, nodes[i], second, limit, q)
		if err == nil {
			return v, nil
		}
		failed = err
		if both {
			i++
		}
		if !g.another(ctx, err, begun) {
			return none, err
		}
	}
	switch {
	case g.o.Beyond == nil && failed == nil:
		return none, &registry.Error{Kind: registry.ErrUnavailable, Text: "none of the nodes behind is up", Public: "no node behind answers", After: retryAfter}
	case g.o.Beyond == nil:
		return none, failed
	case !own:
		g.o.Meter.Event("nodes bypassed", "upstream")
	}
	return q.beyond(ctx, g.o.Beyond)
}

// another reports whether someone else is to be asked after a failure.
func (g *Group) another(ctx context.Context, err error, begun time.Time) bool {
	if ctx.Err() != nil {
		return false
	}
	if errors.Is(err, errDead) {
		return true
	}
	switch registry.KindOf(err) {
	case registry.ErrUnavailable, registry.ErrNoRoom, registry.ErrCorrupt:
		return time.Since(begun) < askOthers
	}
	return false
}

// gave notes who gave a blob, for Doubt.
func (g *Group) gave(d digest.Digest, n *node) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.served) >= maxServed {
		for other := range g.served { // any; it is only a note
			delete(g.served, other)
			break
		}
	}
	g.served[d] = n
}

// Doubt implements registry.Doubter: the node that gave the blob last is not
// asked for it for a while.
func (g *Group) Doubt(w registry.Want, via registry.Via) {
	now := time.Now()
	g.mu.Lock()
	n := g.served[w.Digest]
	for d, until := range g.doubted {
		if now.After(until) || len(g.doubted) >= maxServed {
			delete(g.doubted, d)
		}
	}
	if n != nil {
		g.doubted[doubt{n, w.Digest, w.Size}] = now.Add(doubtFor)
	}
	g.mu.Unlock()
	if n != nil {
		g.o.Meter.Event("wrong bytes from a node", n.client.host)
		g.o.Log.Warn("a node behind gave wrong bytes; it is not asked for this blob for a while", "node", n.client.host, "digest", w.Digest)
	}
	if next, ok := g.o.Beyond.(registry.Doubter); ok {
		next.Doubt(w, via)
	}
}

func (g *Group) doubts(n *node, d registry.Descriptor) bool {
	if d.Digest == "" {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	until, ok := g.doubted[doubt{n, d.Digest, d.Size}]
	return ok && time.Now().Before(until)
}

// endingBlob calls end when it is closed.
type endingBlob struct {
	registry.Blob
	end func()
}

// Close implements registry.Blob.
func (b endingBlob) Close() error {
	defer b.end()
	return b.Blob.Close()
}

// Widen implements registry.Widener: nodes give just the run.
func (b endingBlob) Widen() bool { return false }

// endingDoc likewise.
type endingDoc struct {
	io.ReadCloser
	end func()
}

// Close implements io.Closer.
func (d endingDoc) Close() error {
	defer d.end()
	return d.ReadCloser.Close()
}
