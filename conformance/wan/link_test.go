package wan_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weir-registry/weir/conformance/lab"
	"github.com/weir-registry/weir/conformance/wan"
)

// serve runs handle for each connection to a listener of the test's own.
func serve(t *testing.T, handle func(c *net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().String()
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// pour sends bytes until the other end has had enough.
func pour(c *net.TCPConn) {
	b := make([]byte, 256<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func dial(t *testing.T, l *wan.Link) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// ping sends a byte to an echo and waits for it.
func ping(t *testing.T, c net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return time.Since(start)
}

// tries is how often something may be slower than it should: this machine may
// be busy. Faster it may never be.
const tries = 8

// between measures until what it gets is at most high; below low it fails the
// test at once.
func between[N time.Duration | float64](t *testing.T, what string, low, high N, measure func() N) {
	t.Helper()
	var got N
	for range tries {
		if got = measure(); got < low {
			break
		}
		if got <= high {
			t.Logf("%s: %v", what, got)
			return
		}
	}
	t.Errorf("%s: %v, want %v to %v", what, got, low, high)
}

// warm is the median round trip of a connection that is open.
func warm(t *testing.T, c net.Conn) func() time.Duration {
	return func() time.Duration {
		var all []time.Duration
		for range 15 {
			all = append(all, ping(t, c))
		}
		return wan.Median(all)
	}
}

func TestLinkRoundTrip(t *testing.T) {
	const ms = time.Millisecond
	l := wan.StartLink(t, serve(t, echo), wan.Shape{RTT: 60 * ms})
	between(t, "a new connection's first answer, two round trips of 60 ms", 119*ms, 125*ms,
		func() time.Duration { return ping(t, dial(t, l)) })
	c := dial(t, l)
	ping(t, c)
	between(t, "a round trip of 60 ms", 60*ms, 62*ms, warm(t, c))
	l.SetShape(wan.Shape{RTT: 5 * ms, Instant: true})
	ping(t, c)
	between(t, "a round trip changed to 5 ms", 5*ms, 7*ms, warm(t, c))
	between(t, "an instant connection's first answer", 5*ms, 9*ms, func() time.Duration { return ping(t, dial(t, l)) })
}

func TestLinkTraffic(t *testing.T) {
	l := wan.StartLink(t, serve(t, echo), wan.Shape{})
	a, b := dial(t, l), dial(t, l)
	for _, c := range []net.Conn{a, b, b} {
		ping(t, c)
	}
	a.Close()
	ended := func(open int64) {
		t.Helper()
		lab.Eventually(t, 5*time.Second, "a connection's end", func() error {
			if n := l.Traffic().Open; n != open {
				return fmt.Errorf("%d are open", n)
			}
			return nil
		})
	}
	ended(1)
	b.Close()
	ended(0)
	ping(t, dial(t, l))
	if tr := l.Traffic(); tr.Opened != 3 || tr.Peak != 2 || tr.Up != 4 || tr.Down != 4 {
		t.Errorf("traffic %+v", tr)
	}
}

// TestLinkRates has connections of a limited line, each limited and together.
func TestLinkRates(t *testing.T) {
	l := wan.StartLink(t, serve(t, pour), wan.Shape{RTT: 20 * time.Millisecond, ConnDown: 10e6})
	measure := func(conns int, took time.Duration) float64 {
		var all sync.WaitGroup
		before := l.Traffic().Down
		for range conns {
			c := dial(t, l)
			c.Write([]byte{1})
			all.Go(func() {
				c.SetDeadline(time.Now().Add(took + 40*time.Millisecond)) // the handshake, and one way
				io.Copy(io.Discard, c)
				c.SetLinger(0)
				c.Close()
			})
		}
		all.Wait()
		return float64(l.Traffic().Down-before) / took.Seconds()
	}
	// Seconds a MB, so that too much is what may never be.
	slowness := func(conns int) func() float64 {
		return func() float64 { return 1e6 / measure(conns, time.Second) }
	}
	between(t, "one connection of 10 MB/s", 0.94/10, 1.05/10, slowness(1))
	between(t, "three connections of 10 MB/s", 0.94/30, 1.07/30, slowness(3))
	l.SetShape(wan.Shape{RTT: 20 * time.Millisecond, ConnUp: 1e6, ConnDown: 10e6, Down: 15e6})
	between(t, "three connections of a line of 15 MB/s", 0.94/15, 1.05/15, slowness(3))
}

// TestLinkIsFast has a line with delay carry all that two connections take.
func TestLinkIsFast(t *testing.T) {
	const want, took = 400e6, time.Second
	addr := serve(t, pour)
	between(t, "seconds for 400 MB at 40 ms", 0, 1, func() float64 {
		l := wan.StartLink(t, addr, wan.Shape{RTT: 40 * time.Millisecond})
		var all sync.WaitGroup
		before := processor()
		for range 2 {
			c := dial(t, l)
			all.Go(func() {
				buf := make([]byte, 256<<10)
				c.SetDeadline(time.Now().Add(took + 60*time.Millisecond))
				for err := error(nil); err == nil; {
					_, err = c.Read(buf)
				}
				c.SetLinger(0)
				c.Close()
			})
		}
		all.Wait()
		sent := float64(l.Traffic().Down)
		t.Logf("%.0f MB/s, %.2f s of processor time per GB, sender and receiver included",
			sent/took.Seconds()/1e6, (processor()-before).Seconds()/(sent/1e9))
		return want * took.Seconds() / sent
	})
}

// processor is the processor time that this process has used.
func processor() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestLinkResetsAfter(t *testing.T) {
	const after = 1_000_000
	l := wan.StartLink(t, serve(t, pour), wan.Shape{RTT: 2 * time.Millisecond, ResetAfter: after})
	for range 3 {
		n, err := io.Copy(io.Discard, dial(t, l))
		if n != after || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%d bytes, then %v; want %d, then a reset", n, err, after)
		}
	}
	if tr := l.Traffic(); tr.Down != 3*after {
		t.Errorf("traffic %+v", tr)
	}
}

// TestLinkEnds passes on how an end closes: in good order or not.
func TestLinkEnds(t *testing.T) {
	const body = 300_000
	l := wan.StartLink(t, serve(t, func(c *net.TCPConn) {
		n, err := io.Copy(io.Discard, c) // until the client has closed its half
		fmt.Fprint(c, n, err)
	}), wan.Shape{RTT: 10 * time.Millisecond})
	c := dial(t, l)
	c.Write(make([]byte, body))
	c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != fmt.Sprint(body, error(nil)) {
		t.Errorf("after half was closed: %q, %v", got, err)
	}
	l = wan.StartLink(t, serve(t, func(c *net.TCPConn) {
		c.Write(make([]byte, 100))
		io.ReadFull(c, make([]byte, 1))
		c.SetLinger(0)
	}), wan.Shape{RTT: 10 * time.Millisecond})
	c = dial(t, l)
	c.Write([]byte{1})
	if n, err := io.Copy(io.Discard, c); n != 100 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a server that resets: %d bytes, %v", n, err)
	}
	lab.Eventually(t, time.Second, "both connections' end", func() error {
		if n := l.Traffic().Open; n != 0 {
			return fmt.Errorf("%d are open", n)
		}
		return nil
	})
	dead := wan.StartLink(t, lab.FreeAddr(t), wan.Shape{RTT: 30 * time.Millisecond})
	start := time.Now()
	if _, err := io.Copy(io.Discard, dial(t, dead)); !errors.Is(err, syscall.ECONNRESET) || time.Since(start) < 30*time.Millisecond {
		t.Errorf("nothing behind: %v after %v", err, time.Since(start))
	}
}

func TestLinkPartition(t *testing.T) {
	l := wan.StartLink(t, serve(t, echo), wan.Shape{RTT: 4 * time.Millisecond})
	old := dial(t, l)
	ping(t, old)
	for _, how := range []wan.Partition{wan.Hang, wan.Refuse} {
		l.Block(how)
		old.SetDeadline(time.Now().Add(50 * time.Millisecond))
		old.Write([]byte{1})
		if _, err := io.ReadFull(old, make([]byte, 1)); !isTimeout(err) {
			t.Errorf("an old connection did not hang: %v", err)
		}
		c, err := net.Dial("tcp", l.Addr)
		switch how {
		case wan.Refuse:
			if !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a new connection was not refused: %v", err)
			}
		case wan.Hang:
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte{1})
			c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); !isTimeout(err) {
				t.Errorf("a new connection did not hang: %v", err)
			}
		}
		l.Heal()
		old.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(old, make([]byte, 1)); err != nil {
			t.Errorf("what was sent meanwhile did not arrive: %v", err)
		}
		if how == wan.Hang {
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Errorf("a connection of meanwhile did not come about: %v", err)
			}
		}
		ping(t, dial(t, l))
	}
	l.Cut()
	if _, err := old.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a cut: %v", err)
	}
	ping(t, dial(t, l))
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// TestLinkRatesUp limits what a client sends, and not what it gets.
func TestLinkRatesUp(t *testing.T) {
	const body = 1_000_000
	l := wan.StartLink(t, serve(t, echo), wan.Shape{ConnUp: 2 * body, Up: 4 * body})
	between(t, "3 MB at 4 MB/s", 730*time.Millisecond, 790*time.Millisecond, func() time.Duration {
		return up(t, l, body)
	})
}

// up has three connections send body bytes each, and get them back.
func up(t *testing.T, l *wan.Link, body int64) time.Duration {
	t.Helper()
	start := time.Now()
	var all sync.WaitGroup
	for range 3 {
		c := dial(t, l)
		all.Go(func() {
			c.Write(make([]byte, body))
			c.CloseWrite()
		})
		all.Go(func() {
			if n, err := io.Copy(io.Discard, c); n != body || err != nil {
				t.Errorf("%d bytes came back, %v", n, err)
			}
		})
	}
	all.Wait()
	return time.Since(start)
}
