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

func TestLinkRoundTrip(t *testing.T) {
	l := wan.StartLink(t, serve(t, echo), wan.Shape{RTT: 60 * time.Millisecond})
	c := dial(t, l)
	first := ping(t, c)
	if first < 120*time.Millisecond || first > 130*time.Millisecond {
		t.Errorf("a new connection's first answer after %v, want two round trips of 60 ms", first)
	}
	var all []time.Duration
	for range 25 {
		all = append(all, ping(t, c))
	}
	if m := wan.Median(all); m < 60*time.Millisecond || m > 62*time.Millisecond {
		t.Errorf("median round trip %v, want 60 to 62 ms: %v", m, all)
	} else {
		t.Logf("60 ms measured as %v", m)
	}
	l.SetShape(wan.Shape{RTT: 5 * time.Millisecond, Instant: true})
	all = nil
	for range 25 {
		all = append(all, ping(t, c))
	}
	if m := wan.Median(all); m < 5*time.Millisecond || m > 7*time.Millisecond {
		t.Errorf("median round trip %v after the change, want 5 to 7 ms", m)
	}
	if d := ping(t, dial(t, l)); d > 15*time.Millisecond {
		t.Errorf("an instant connection's first answer after %v", d)
	}
	if tr := l.Traffic(); tr.Opened != 2 || tr.Peak != 2 || tr.Up != 52 || tr.Down != 52 {
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
	if r := measure(1, time.Second); r < 9.5e6 || r > 10.5e6 {
		t.Errorf("one connection of 10 MB/s carries %.2f MB/s", r/1e6)
	}
	if r := measure(3, time.Second); r < 28e6 || r > 32e6 {
		t.Errorf("three connections of 10 MB/s carry %.2f MB/s", r/1e6)
	}
	l.SetShape(wan.Shape{RTT: 20 * time.Millisecond, ConnDown: 10e6, Down: 15e6})
	if r := measure(3, time.Second); r < 14e6 || r > 16.5e6 {
		t.Errorf("three connections of a line of 15 MB/s carry %.2f MB/s", r/1e6)
	}
}

// TestLinkIsFast has a line with delay carry all that two connections take.
func TestLinkIsFast(t *testing.T) {
	const want, took = 400e6, time.Second
	l := wan.StartLink(t, serve(t, pour), wan.Shape{RTT: 40 * time.Millisecond})
	var all sync.WaitGroup
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
	var before, after syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	all.Wait()
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	rate := float64(l.Traffic().Down) / took.Seconds()
	cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	t.Logf("%.0f MB/s at 40 ms, %.2f s of processor time per GB, sender and receiver included",
		rate/1e6, cpu.Seconds()/(float64(l.Traffic().Down)/1e9))
	if rate < want {
		t.Errorf("carries %.0f MB/s, want %.0f", rate/1e6, want/1e6)
	}
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
