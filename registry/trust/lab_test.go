package trust

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/weir-registry/weir/registry"
)

// fakeClock is a clock that tests set.
type fakeClock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *fakeClock { return &fakeClock{at: time.Date(2031, 5, 6, 7, 8, 9, 5e8, time.UTC)} }

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// counter is a Meter that counts events.
type counter struct {
	registry.NoMeter
	mu     sync.Mutex
	events map[string]int
}

func (c *counter) Event(what, who string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.events == nil {
		c.events = map[string]int{}
	}
	c.events[what+": "+who]++
}

func (c *counter) count(what, who string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events[what+": "+who]
}

// buffer is a log that may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// testNode is a node that listens, or only has a directory.
type testNode struct {
	*Trust
	dir   string
	clock *fakeClock
	meter *counter
	log   *buffer
	addr  string        // host:port, if it listens
	inner int           // requests that were let through; guarded by mu
	last  *http.Request // guarded by mu; the last that was let through
	mu    sync.Mutex
}

// edit is a Trust as a command has it: another one on the same files.
func (n *testNode) edit(t testing.TB) *Trust {
	t.Helper()
	tr, err := Open(Options{Dir: n.dir, Now: n.clock.now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func newNode(t testing.TB, clock *fakeClock, change func(*Options)) *testNode {
	t.Helper()
	return nodeIn(t, filepath.Join(t.TempDir(), "tiers"), clock, change)
}

func nodeIn(t testing.TB, dir string, clock *fakeClock, change func(*Options)) *testNode {
	t.Helper()
	n := &testNode{dir: dir, clock: clock, meter: &counter{}, log: &buffer{}}
	o := Options{Dir: dir, Now: clock.now, Meter: n.meter, Log: slog.New(slog.NewTextHandler(n.log, nil))}
	if change != nil {
		change(&o)
	}
	tr, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	n.Trust = tr
	n.warnings, n.joins = rate.NewLimiter(1000, 1000), rate.NewLimiter(1000, 1000) // TestLimits is about those
	return n
}

// listen makes a node that others can reach. What they get is "hello NAME".
func listen(t testing.TB, clock *fakeClock, change func(*Options)) *testNode {
	t.Helper()
	n := newNode(t, clock, func(o *Options) {
		o.Listen = true
		if change != nil {
			change(o)
		}
	})
	n.serve(t)
	return n
}

func (n *testNode) serve(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.addr = l.Addr().String()
	srv := &http.Server{ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0), Handler: n.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		n.inner++
		n.last = r
		n.mu.Unlock()
		fmt.Fprintf(w, "hello %s", NodeOf(r))
	}))}
	go srv.Serve(tls.NewListener(l, n.Server()))
	t.Cleanup(func() { srv.Close() })
}

// admitsLast reports whether the node whose request was let through last would
// be now.
func (n *testNode) admitsLast() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.Admits(n.last)
}

func (n *testNode) served() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.inner
}

func (n *testNode) url() string { return "https://" + n.addr }

// invite is a code for a name.
func (n *testNode) invite(t testing.TB, o InviteOptions) string {
	t.Helper()
	o.Address = n.url()
	inv, err := n.edit(t).Invite(o)
	if err != nil {
		t.Fatal(err)
	}
	return inv.Code
}

// joined makes a node that has joined another.
func joined(t testing.TB, behind *testNode, name string) *testNode {
	t.Helper()
	n := newNode(t, behind.clock, nil)
	n.join(t, behind.invite(t, InviteOptions{Name: name}))
	return n
}

func (n *testNode) join(t testing.TB, code string) {
	t.Helper()
	if _, err := n.tryJoin(code); err != nil {
		t.Fatal(err)
	}
}

func (n *testNode) tryJoin(code string) (Joined, error) {
	return Join(context.Background(), JoinOptions{Dir: n.dir, Code: code, Now: n.clock.now})
}

// get asks a node something, over a transport that is kept if given.
func (n *testNode) get(t testing.TB, tr *http.Transport, url string) (int, string, error) {
	t.Helper()
	if tr == nil {
		tr = n.Transport()
		defer tr.CloseIdleConnections()
	}
	return fetch(tr, http.MethodGet, url, nil)
}

func fetch(tr *http.Transport, method, url string, body io.Reader) (int, string, error) {
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		return 0, "", err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, strings.TrimSpace(string(text)), err
}

// wantHello checks that a node is let in under its name.
func (n *testNode) wantHello(t testing.TB, behind *testNode, name string) {
	t.Helper()
	if code, text, err := n.get(t, nil, behind.url()+"/x"); err != nil || code != http.StatusOK || text != "hello "+name {
		t.Fatalf("%s asked: %d %q %v", name, code, text, err)
	}
}

// wantRefused checks that a node is not let in, and that this is counted.
func (n *testNode) wantRefused(t testing.TB, behind *testNode, reason, text string) {
	t.Helper()
	before, served := behind.meter.count("node refused", reason), behind.served()
	code, got, err := n.get(t, nil, behind.url()+"/x")
	if err == nil && (code != http.StatusForbidden || !strings.Contains(got, text) || strings.Contains(got, "\n")) {
		t.Fatalf("not refused (%s): %d %q", reason, code, got)
	}
	if err != nil && text != "" {
		t.Fatalf("refused with no text: %v", err)
	}
	if behind.served() != served || behind.meter.count("node refused", reason) != before+1 {
		t.Fatalf("refused (%s) %d times, let through %d; %v", reason, behind.meter.count("node refused", reason)-before, behind.served()-served, behind.meter.events)
	}
	if !strings.Contains(behind.log.String(), `level=WARN msg="node refused" reason="`+reason) && !strings.Contains(behind.log.String(), `level=WARN msg="node refused" reason=`+reason) {
		t.Fatalf("no log line says %s:\n%s", reason, behind.log)
	}
}
