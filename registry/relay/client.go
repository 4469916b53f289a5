package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/weir-registry/weir/registry"
)

const (
	// passedFor is for how long a node of another database is left alone.
	passedFor = 30 * time.Second
	// firstPause and longestPause are how long nobody is asked after nobody has
	// answered.
	firstPause   = 100 * time.Millisecond
	longestPause = time.Second
	// steady is how long a stream must have lasted for its end to be no reason to
	// wait.
	steady = time.Second
)

var (
	// errSilent is a node that gave no sign of life.
	errSilent = errors.New("no sign of life")
	// errSwitch ends a stream because another node is better.
	errSwitch = errors.New("another node is followed from now on")
	// errBye is the end of a stream that may be asked for again.
	errBye = errors.New("the stream has lasted its time")
)

// A Copy is a copy of the entitlements that follows. Its methods are called by
// one goroutine but for State, Wait and Uses. What they take is in memory when
// they return; they do not wait for a disk.
type Copy interface {
	// State is how the copy is.
	State() registry.Standing
	// ReadSnapshot replaces the copy by a snapshot, once that is found to be
	// right. ErrCorrupt if it is not; ErrConflict if it is of another database,
	// or older than the copy.
	ReadSnapshot(r io.Reader) error
	// Apply makes changes, all or none. ErrGone if they do not follow up what
	// the copy is.
	Apply(deltas []registry.Delta) error
	// Confirm notes what the node with the database confirmed at s.Confirmed;
	// nothing, if that was before what it noted last. ErrGone if the copy is not
	// what s says.
	Confirm(s registry.Standing) error
	// Wait waits until the copy has a version, or for ctx.
	Wait(ctx context.Context, version uint64) error
	// Uses says when tokens were last used, since it was last called.
	Uses() map[string]time.Time
}

// Options are those of a Client. Nodes, Dial and Copy must be set.
type Options struct {
	// Nodes are those behind, "https://host:port", the one to follow first.
	Nodes []string
	// Dial connects to them and makes sure who they are.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Copy Copy
	// Board is how the nodes in front of this one are, to be passed on; nil:
	// there are none.
	Board *Board
	// Prefer is how often a node that comes before the one that is followed is
	// asked whether it can be followed again; 0: every 10 s.
	Prefer time.Duration
	Meter  registry.Meter   // nil: nobody is told
	Log    *slog.Logger     // nil: slog.Default()
	Now    func() time.Time // nil: time.Now
}

// A Client keeps a copy of the entitlements like that of the nodes behind, and
// asks them what this node cannot decide: it is its Logins and its Tokens.
//
// It follows one node at a time: the first that answers. One that gives no sign
// of life for 1.5 s, or fails, is left for the next at once; if none answers all
// are asked again within a second. While it follows a node that is not the first
// it asks those before it every ten seconds whether they are back, and while the
// one it follows has heard nothing of the node with the database for two seconds
// it looks for one that has. A node of another database is passed over.
type Client struct {
	o     Options
	nodes []*behind
	rt    *http.Transport

	applied chan struct{} // has one if there is something new to report

	mu       sync.Mutex
	followed *behind              // guarded by mu; nil: none
	left     *behind              // guarded by mu; followed before, and to be told so; nil: none
	uses     map[string]time.Time // guarded by mu; not reported yet
}

var (
	_ registry.Logins = (*Client)(nil)
	_ registry.Tokens = (*Client)(nil)
)

// behind is a node behind, and what is known of it. It is the goroutine's that
// follows, but for what never changes and what is guarded.
type behind struct {
	index   int
	address string // https://host:port
	host    string // host:port, for people
	lost    bool   // it has been said that it does not answer

	mu     sync.Mutex
	passed time.Time // guarded by mu; it is left alone until then
	other  bool      // guarded by mu; it was of another database when last asked
}

// NewClient makes a Client. It does nothing before Run, except for questions
// about accounts.
func NewClient(o Options) (*Client, error) {
	if o.Meter == nil {
		o.Meter = registry.NoMeter{}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Prefer == 0 {
		o.Prefer = 10 * time.Second
	}
	if len(o.Nodes) == 0 || o.Dial == nil || o.Copy == nil {
		return nil, registry.Errorf(registry.ErrInvalid, "entitlements come from no node")
	}
	c := &Client{o: o, applied: make(chan struct{}, 1), uses: map[string]time.Time{}, rt: &http.Transport{
		DialTLSContext:         o.Dial,
		DisableCompression:     true,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        5 * time.Minute,
		MaxResponseHeaderBytes: 64 << 10,
		ReadBufferSize:         64 << 10,
	}}
	for i, address := range o.Nodes {
		u, err := url.Parse(address)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return nil, registry.Errorf(registry.ErrInvalid, "%q is not the address of a node", address)
		}
		c.nodes = append(c.nodes, &behind{index: i, address: "https://" + u.Host, host: u.Host})
	}
	return c, nil
}

// Following is the host and port of the node that is followed; "" if none is.
func (c *Client) Following() string {
	if n := c.current(); n != nil {
		return n.host
	}
	return ""
}

// Others are the hosts and ports of nodes that are not followed because they have
// the entitlements of another database than the copy, or of an earlier state of
// it: a person has to decide which is right.
func (c *Client) Others() []string {
	var hosts []string
	for _, n := range c.nodes {
		n.mu.Lock()
		if n.other {
			hosts = append(hosts, n.host)
		}
		n.mu.Unlock()
	}
	return hosts
}

func (c *Client) current() *behind {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.followed
}

func (c *Client) setCurrent(n *behind) (was *behind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was, c.followed = c.followed, n
	return was
}

// passedOver reports whether the node is left alone.
func (n *behind) passedOver(now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return now.Before(n.passed)
}

// pass leaves the node alone for a while. It reports whether it was not before.
func (n *behind) pass(now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.passed
	n.passed, n.other = now.Add(passedFor), true
	return now.Sub(was) > passedFor
}

// forgive notes that the node can be followed.
func (n *behind) forgive() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.other = false
}

// Run follows and reports until ctx is done.
func (c *Client) Run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { c.follow(ctx) })
	wg.Go(func() { c.report(ctx) })
	wg.Wait()
	c.rt.CloseIdleConnections()
}

// watch ends a request that brings no sign of life for a while.
type watch struct {
	mu       sync.Mutex
	timer    *time.Timer // guarded by mu
	answered bool        // guarded by mu
}

func newWatch(silent func()) *watch { return &watch{timer: time.AfterFunc(silence, silent)} }

// sign is a sign of life before the answer. One that comes later does not count:
// a dial that another connection has overtaken goes on.
func (w *watch) sign() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.answered {
		w.timer.Reset(silence)
	}
}

// begin lets the time run, now that there is an answer, and pause stops it.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answered = true
	w.timer.Reset(silence)
}

func (w *watch) pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answered = true
	w.timer.Stop()
}

// line is an open stream from a node. It is one goroutine's.
type line struct {
	frames
	n      *behind
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	watch  *watch
}

// open asks a node for a stream. A node that refuses is an error of the kind it
// says.
func (c *Client) open(ctx context.Context, n *behind, at where) (*line, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := newWatch(func() { cancel(errSilent) })
	trace := &httptrace.ClientTrace{
		ConnectDone: func(string, string, error) { w.sign() },
		GotConn:     func(httptrace.GotConnInfo) { w.sign() },
	}
	fail := func(err error) (*line, error) {
		w.pause()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, registry.Wrap(registry.ErrUnavailable, err, "ask "+n.host+" for entitlements")
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), http.MethodGet, n.address+at.url(), nil)
	if err != nil {
		return fail(err)
	}
	resp, err := c.rt.RoundTrip(req)
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get(kindHeader) != "" {
		w.begin()
		err := failed(resp, n.host)
		resp.Body.Close()
		return fail(err)
	}
	l := &line{n: n, ctx: ctx, cancel: cancel, body: resp.Body, watch: w}
	l.frames.r = l
	return l, nil
}

// Read implements io.Reader for the frames of the line. The time between two
// Reads does not count.
func (l *line) Read(b []byte) (int, error) {
	l.watch.begin()
	n, err := l.body.Read(b)
	l.watch.pause()
	if err != nil && err != io.EOF {
		if cause := context.Cause(l.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

// frame is the next frame. Bytes that trickle are no sign of life for ever.
func (l *line) frame() (kind byte, payload []byte, err error) {
	timer := time.AfterFunc(frameTime, func() { l.cancel(errSilent) })
	defer timer.Stop()
	kind, payload, err = l.frames.next()
	if err != nil && err != io.EOF && registry.KindOf(err) == nil {
		err = fmt.Errorf("read from %s: %w", l.n.host, err)
	}
	return kind, payload, err
}

// hello reads how the copy of the node is.
func (l *line) hello(now func() time.Time) (registry.Standing, error) {
	kind, payload, err := l.frame()
	if err != nil {
		return registry.Standing{}, err
	}
	if kind != helloFrame {
		return registry.Standing{}, registry.Errorf(registry.ErrCorrupt, "a stream of %s that begins with something else", l.n.host)
	}
	return parseState(payload, now())
}

func (l *line) close() {
	l.watch.pause()
	l.cancel(nil)
	l.body.Close()
}

// probe asks how the copy of a node is.
func (c *Client) probe(ctx context.Context, n *behind) (registry.Standing, error) {
	at := where{state: c.o.Copy.State(), probe: true}
	l, err := c.open(ctx, n, at)
	if err != nil {
		return registry.Standing{}, err
	}
	defer l.close()
	is, err := l.hello(c.o.Now)
	if err == nil {
		_, _, _ = l.frame() // to its end, so that the connection can be used again
	}
	return is, err
}

// order is whom to ask about accounts: the node that is followed, which is known
// to live, then the others in their order.
func (c *Client) order() []*behind {
	var list []*behind
	now := c.o.Now()
	for _, n := range c.nodes {
		if !n.passedOver(now) {
			list = append(list, n)
		}
	}
	if cur := c.current(); cur != nil {
		if i := slices.Index(list, cur); i > 0 {
			list = slices.Insert(slices.Delete(list, i, i+1), 0, cur)
		}
	}
	return list
}
