package wan

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// drainLimit is how long a reset waits for the bytes before it to arrive.
const drainLimit = 200 * time.Millisecond

// A conn is one connection over a link: two flows, one in each direction.
type conn struct {
	link   *Link
	client *net.TCPConn
	born   time.Time
	up     *flow
	down   *flow

	mu     sync.Mutex
	server *net.TCPConn // nil until the target has answered; guarded by mu
	dead   bool         // guarded by mu
	done   chan struct{}
	cancel context.CancelFunc // of the dial; guarded by mu
}

func newConn(l *Link, client *net.TCPConn) (*conn, error) {
	c := &conn{link: l, client: client, born: time.Now(), done: make(chan struct{})}
	var err error
	if c.up, err = newFlow(c, &l.up, &l.sentUp, upLimits); err != nil {
		return nil, err
	}
	if c.down, err = newFlow(c, &l.down, &l.sentDown, downLimits); err != nil {
		c.up.close()
		return nil, err
	}
	return c, nil
}

// run carries the connection to its end.
func (c *conn) run() {
	defer c.abort() // what is closed in good order already does not mind
	opened := c.born
	if c.link.passage() != nil {
		if !c.pass() {
			return
		}
		opened = time.Now() // the handshake begins now
	}
	shape := c.link.Shape()
	if !shape.Instant {
		opened = opened.Add(shape.RTT)
	}
	server, err := c.dial()
	if err != nil {
		c.up.clock.until(opened) // a refusal takes a round trip too
		return
	}
	// The client's first bytes can leave when its handshake is over, the
	// server's when that has reached it.
	c.up.opened, c.down.opened = opened, opened
	if !shape.Instant {
		c.down.opened = opened.Add(shape.RTT / 2)
	}
	var all sync.WaitGroup
	all.Go(func() { c.up.read(c.client) })
	all.Go(func() { c.up.write(server) })
	all.Go(func() { c.down.read(server) })
	all.Go(func() { c.down.write(c.client) })
	all.Wait()
	c.finish()
}

// dial connects to the target.
func (c *conn) dial() (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
	defer cancel()
	c.mu.Lock()
	if c.dead {
		cancel()
	}
	c.cancel = cancel
	c.mu.Unlock()
	nc, err := (&net.Dialer{Control: reno}).DialContext(ctx, "tcp", c.link.target)
	if err != nil {
		return nil, err
	}
	server := nc.(*net.TCPConn)
	_ = server.SetReadBuffer(socketBuffer)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		server.Close()
		return nil, net.ErrClosed
	}
	c.server = server
	return server, nil
}

// pass waits until the line is whole, and reports false if the connection has
// ended before.
func (c *conn) pass() bool {
	for {
		gate := c.link.passage()
		if gate == nil {
			return true
		}
		select {
		case <-gate:
		case <-c.done:
			return false
		}
	}
}

// abort resets both ends now.
func (c *conn) abort() { c.end(true) }

// finish closes both ends in good order.
func (c *conn) finish() { c.end(false) }

func (c *conn) end(reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return
	}
	c.dead = true
	close(c.done)
	if c.cancel != nil {
		c.cancel()
	}
	for _, s := range []*net.TCPConn{c.client, c.server} {
		if s == nil {
			continue
		}
		if reset {
			_ = s.SetLinger(0)
		}
		s.Close()
	}
	c.up.close()
	c.down.close()
}

// drain waits until the kernel has handed over all that was written to s, for
// a while.
func drain(s *net.TCPConn, timer *clock) {
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	for start := time.Now(); time.Since(start) < drainLimit; {
		left := 0
		if err := raw.Control(func(fd uintptr) { left, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil || left == 0 {
			return
		}
		if !timer.until(time.Now().Add(time.Millisecond)) {
			return
		}
	}
}
