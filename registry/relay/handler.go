package relay

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// writeTime is how long a node may take to read what was written to it at
	// once, and bodyTime how long a report or a question may take to arrive.
	writeTime = 15 * time.Second
	bodyTime  = 10 * time.Second
	// endTime is how long a stream that is to end may take for what it is at.
	endTime = 500 * time.Millisecond
	// maxAsking bounds the questions about accounts that are open at once.
	maxAsking = 256
	// maxSnapshots bounds the snapshots that are under way at once.
	maxSnapshots = 16
	// streamsPerNode bounds the streams of one node; of more the oldest ends.
	streamsPerNode = 4
)

// A Source is a copy of the entitlements that others follow. All may be called
// at once, and none waits for anything but memory and, in WriteSnapshot, the
// writer.
type Source interface {
	// State is how the copy is.
	State() registry.Standing
	// Changed is closed when there is a version that is newer than State was
	// after Changed had been called.
	Changed() <-chan struct{}
	// Deltas are the steps from a version to the newest; false if they are not,
	// or not all, known any more.
	Deltas(after uint64) ([]registry.Delta, bool)
	// WriteSnapshot writes one version, not older than State was before.
	WriteSnapshot(w io.Writer) error
}

// Config is what a Handler answers from. Source, Node and Board must be set.
type Config struct {
	Source Source
	// Logins and Tokens decide what nodes in front ask about accounts; nil: this
	// node cannot, and says ErrUnavailable.
	Logins registry.Logins
	Tokens registry.Tokens
	// Node is the name of the node that makes a request, by its certificate.
	Node func(*http.Request) string
	// Still reports whether that node may still be connected to this one. It is
	// asked every 250 ms for each stream. nil: a stream that has begun lasts for
	// a minute, whatever happens to who asked for it.
	Still func(*http.Request) bool
	// Board is told how the copies of nodes in front are.
	Board *Board
	// Used is told when tokens were used at nodes in front, by their IDs; nil:
	// nobody is. It must not wait.
	Used func(map[string]time.Time)
	// Followers bounds the streams at once; 0: 1024.
	Followers int
	Meter     registry.Meter   // nil: nobody is told
	Log       *slog.Logger     // nil: slog.Default()
	Now       func() time.Time // nil: time.Now
}

// A Handler answers nodes in front. Whoever mounts it has made sure that a
// request comes from one. It reads and writes with deadlines of its own, so the
// server should have none but for headers.
type Handler struct {
	c         Config
	asking    chan struct{} // has one for each open question about an account
	snapshots chan struct{} // has one for each snapshot that is under way
	shared    shared

	mu      sync.Mutex
	closed  bool                 // guarded by mu
	streams map[*stream]struct{} // guarded by mu
	byNode  map[string][]*stream // guarded by mu; oldest first
}

// New makes a Handler for the paths that this package is about.
func New(c Config) *Handler {
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Meter == nil {
		c.Meter = registry.NoMeter{}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Followers == 0 {
		c.Followers = 1024
	}
	return &Handler{c: c, asking: make(chan struct{}, maxAsking), snapshots: make(chan struct{}, maxSnapshots),
		streams: map[*stream]struct{}{}, byNode: map[string][]*stream{}}
}

// Close ends all streams, at once or, where a follower does not read, within
// half a second, and lets none begin. It does not wait for them, and is made for
// http.Server.RegisterOnShutdown: Shutdown waits for requests, and streams are
// without end. Reports and questions go on.
func (h *Handler) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.streams {
		s.end()
	}
}

// Followers is how many streams there are.
func (h *Handler) Followers() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.streams)
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	// A test's recorder has no deadlines. What the last request on a connection
	// left may be over; and what is buffered when this one ends is to be taken too.
	_ = rc.SetWriteDeadline(time.Now().Add(writeTime))
	defer func() { _ = rc.SetWriteDeadline(time.Now().Add(writeTime)) }()
	verb, account := strings.CutPrefix(r.URL.Path, accountPath)
	method := http.MethodPost
	if r.URL.Path == streamPath {
		method = http.MethodGet
	}
	if r.Method != method {
		w.Header().Set("Allow", method)
		refuse(w, undone(registry.ErrInvalid, "that is not a method here"))
		return
	}
	node := h.c.Node(r)
	switch {
	case node == "" || !shortText(node):
		refuse(w, undone(registry.ErrDenied, "the certificate says of no node"))
	case r.URL.Path == streamPath:
		h.stream(w, r, node)
	case r.URL.Path == seenPath:
		h.seen(w, r, node)
	case account:
		h.account(w, r, node, verb)
	default:
		refuse(w, undone(registry.ErrInvalid, "nodes are not asked this here; is this one of another version?"))
	}
}

// body reads the body of a request, bounded in size and time.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(time.Now().Add(bodyTime))
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	_ = rc.SetReadDeadline(time.Time{})
	if err != nil {
		return nil, &registry.Error{Kind: registry.ErrInvalid, Text: "read what a node sent", Public: "what was sent is too large, or did not arrive", Err: errUndone}
	}
	return text, nil
}

// seen takes a report.
func (h *Handler) seen(w http.ResponseWriter, r *http.Request, node string) {
	text, err := body(w, r, maxReport)
	if err != nil {
		refuse(w, err)
		return
	}
	rep, err := parseReport(text)
	if err != nil {
		refuse(w, err)
		return
	}
	if own := h.c.Source.State().Database; rep.Self.Database != "" && rep.Self.Database != own {
		refuse(w, registry.Errorf(registry.ErrConflict, "this node's entitlements are those of another database"))
		return
	}
	now := h.c.Now()
	if left := h.c.Board.take(node, rep, now); left > 0 {
		h.c.Meter.Event("standings left out", node)
		h.c.Log.Warn("there is no room to remember how nodes in front of a node are", "node", node, "left_out", left)
	}
	if h.c.Used != nil && len(rep.Used) > 0 {
		used := make(map[string]time.Time, len(rep.Used))
		for id, a := range rep.Used {
			used[id] = a.time(now)
		}
		h.c.Used(used)
	}
	w.WriteHeader(http.StatusNoContent)
}
