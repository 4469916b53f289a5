package wan

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weir-registry/weir/conformance/lab"
)

const (
	// dialLimit is how long a link waits for its target, which is on this machine.
	dialLimit = 5 * time.Second
	// socketBuffer is what the kernel may hold on the target's side. What it
	// holds has left the server and has not crossed the line; a connection
	// that is reset loses it.
	socketBuffer = 128 << 10
)

// A Shape says what a line is like. The zero value is a line without delay and
// limits. Rates are bytes of payload a second; 0 is no limit.
//
// Not modelled are packet loss and the growth of a sender's window: a stream
// is at its rate from its first byte on.
type Shape struct {
	// RTT is the round-trip time. Half of it passes before a byte is at the
	// other end, in either direction; any number of bytes may be under way.
	RTT time.Duration
	// Instant leaves out the TCP handshake's round trip. Without it the first
	// bytes of a new connection are held back by one RTT: the client has its
	// connection at once, as it is with a proxy, and cannot use it earlier
	// than it could on a real line. Round trips of TLS need no modelling.
	Instant bool
	// Up and Down limit all connections of the link together, from client to
	// server and from server to client.
	Up, Down int64
	// ConnUp and ConnDown limit each connection.
	ConnUp, ConnDown int64
	// ResetAfter resets a connection (RST) once it has carried so many bytes
	// from server to client, and those have arrived; 0: never.
	ResetAfter int64
}

// A Partition says what a line does with new connections while nothing passes.
type Partition int

const (
	// Hang leaves them waiting: the first bytes get no answer. (A client's
	// connect itself succeeds, which on a real line would hang too.)
	Hang Partition = iota
	// Refuse refuses them.
	Refuse
)

// Traffic is what has passed a [Link].
type Traffic struct {
	// Opened is how many connections there have been, Open how many there
	// are, Peak how many there were at once.
	Opened, Open, Peak int64
	// Up and Down are the bytes that have arrived, at the server and at the
	// client.
	Up, Down int64
}

// A Link is a line to one address: a proxy that listens on a loopback address
// of its own. Its methods may be called at any time.
type Link struct {
	// Addr is its host:port, where clients connect.
	Addr string

	t      testing.TB
	target string
	shape  atomic.Pointer[Shape]
	up     bucket
	down   bucket
	pool   sync.Pool // of *[]byte, pieceMost long

	opened, open, peak, sentUp, sentDown atomic.Int64

	mu       sync.Mutex
	listener net.Listener   // nil while connections are refused; guarded by mu
	gate     chan struct{}  // nil, or closed when the line is whole again; guarded by mu
	conns    map[*conn]bool // guarded by mu
	closed   bool           // guarded by mu
	running  sync.WaitGroup
}

// StartLink starts a link to target, a host:port on which nothing needs to
// listen yet: clients that come before are reset after a round trip, as they
// are when a server has died.
func StartLink(t testing.TB, target string, s Shape) *Link {
	t.Helper()
	l := &Link{t: t, target: target, conns: map[*conn]bool{}}
	l.shape.Store(&s)
	var err error
	for range 100 {
		l.Addr = freeLoopback()
		if l.listener, err = listenReno(l.Addr); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("link to %s: %v", target, err)
	}
	go l.accept(l.listener)
	t.Cleanup(l.close)
	return l
}

// freeLoopback is an address of 127.0.0.0/8 that hardly anyone else has: of
// 16 million hosts one, and a port that the kernel does not give out itself.
func freeLoopback() string {
	return fmt.Sprintf("127.%d.%d.%d:%d", 16+rand.IntN(200), rand.IntN(256), 1+rand.IntN(254), 10240+rand.IntN(22000-240))
}

// reno keeps the kernel from pacing the loopback, as bbr does where it is the
// default: the line's rate is the link's to decide.
func reno(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno") // not everywhere there
	})
}

func listenReno(addr string) (net.Listener, error) {
	return (&net.ListenConfig{Control: reno}).Listen(context.Background(), "tcp", addr)
}

func (l *Link) buffer() *[]byte {
	if b, ok := l.pool.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, pieceMost)
	return &b
}

// Shape is what the line is like now.
func (l *Link) Shape() Shape { return *l.shape.Load() }

// SetShape changes the line. Bytes that are under way arrive as they would
// have; ResetAfter counts from each connection's beginning.
func (l *Link) SetShape(s Shape) { l.shape.Store(&s) }

// Traffic is what has passed so far.
func (l *Link) Traffic() Traffic {
	return Traffic{Opened: l.opened.Load(), Open: l.open.Load(), Peak: l.peak.Load(), Up: l.sentUp.Load(), Down: l.sentDown.Load()}
}

// Block breaks the line: nothing arrives any more at either end, connections
// stay open and hang, and new ones fare as p says. Bytes that are sent
// meanwhile arrive after [Link.Heal], as those do that TCP sends again.
func (l *Link) Block(p Partition) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gate == nil {
		l.gate = make(chan struct{})
	}
	if p == Refuse && l.listener != nil {
		l.listener.Close()
		l.listener = nil
	}
}

// Heal mends what [Link.Block] broke.
func (l *Link) Heal() {
	l.t.Helper()
	l.mu.Lock()
	listening, closed := l.listener != nil, l.closed
	if l.gate != nil {
		close(l.gate)
		l.gate = nil
	}
	l.mu.Unlock()
	if listening || closed {
		return
	}
	// A child that is being started may hold the old listener until it has
	// executed its program.
	var again net.Listener
	lab.Eventually(l.t, 5*time.Second, "listen again on "+l.Addr, func() (err error) {
		again, err = listenReno(l.Addr)
		return err
	})
	l.mu.Lock()
	l.listener = again
	l.mu.Unlock()
	go l.accept(again)
}

// Cut resets every connection that is open now. New ones are taken.
func (l *Link) Cut() {
	for _, c := range l.current() {
		c.abort()
	}
}

func (l *Link) current() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*conn
	for c := range l.conns {
		all = append(all, c)
	}
	return all
}

// close ends the link at the end of the test.
func (l *Link) close() {
	l.mu.Lock()
	l.closed = true
	if l.listener != nil {
		l.listener.Close()
	}
	l.mu.Unlock()
	l.Cut()
	l.running.Wait()
}

// passage is nil while the line is whole; else it is closed when it is again.
func (l *Link) passage() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gate
}

func (l *Link) accept(from net.Listener) {
	for {
		client, err := from.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			l.t.Errorf("link %s: %v", l.Addr, err)
			return
		}
		c, err := newConn(l, client.(*net.TCPConn))
		if err != nil {
			client.Close()
			l.t.Errorf("link %s: %v", l.Addr, err)
			continue
		}
		if !l.add(c) {
			c.abort()
			continue
		}
		go func() {
			defer l.running.Done()
			c.run()
			l.remove(c)
		}()
	}
}

func (l *Link) add(c *conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.running.Add(1)
	l.conns[c] = true
	l.opened.Add(1)
	if n := l.open.Add(1); n > l.peak.Load() {
		l.peak.Store(n) // under mu, so no larger one is lost
	}
	return true
}

func (l *Link) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	l.open.Add(-1)
}

// Sum adds up the traffic of several links, each once however often it is
// given. Peak is the sum of peaks, which need not have been at one time.
func Sum(links ...*Link) Traffic {
	var all Traffic
	for i, l := range links {
		if slices.Contains(links[:i], l) {
			continue
		}
		t := l.Traffic()
		all.Opened, all.Open, all.Peak = all.Opened+t.Opened, all.Open+t.Open, all.Peak+t.Peak
		all.Up, all.Down = all.Up+t.Up, all.Down+t.Down
	}
	return all
}
