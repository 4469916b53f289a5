package wan

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// window is how many bytes of a flow may be under way: at 80 ms one way
	// it is reached at 400 MB/s. A receiver that does not read stops the
	// sender after that.
	window = 32 << 20
	// lead is how far a flow may read ahead of its rate, so that a process that
	// gets no processor for a moment loses none of it.
	lead = 10 * time.Millisecond
	// batch is how many packets are written at once.
	batch = 16
	// own is up to what size a packet has memory of its own, instead of a
	// whole buffer of the pool.
	own = 4 << 10
)

// An ending is what comes after a flow's last byte.
type ending int

const (
	goesOn ending = iota
	closes        // FIN
	resets        // RST
)

// A packet is bytes that are under way, or a flow's end.
type packet struct {
	due  time.Time
	data []byte
	buf  *[]byte // of the pool, or nil
	end  ending
}

// A flow is one direction of a connection. One goroutine reads, one writes;
// between them is the queue of what is under way.
type flow struct {
	conn   *conn
	clock  *clock // the writer's
	pacer  *clock // the reader's
	link   *bucket
	own    bucket
	sent   *atomic.Int64
	limits func(*Shape) limits
	opened time.Time // before this nothing can be sent; set before it starts

	mu     sync.Mutex
	change *sync.Cond
	queue  []packet // guarded by mu
	bytes  int      // in queue; guarded by mu
	dead   bool     // guarded by mu
}

// limits are what a shape says of one direction.
type limits struct{ link, conn, reset int64 }

func upLimits(s *Shape) limits   { return limits{link: s.Up, conn: s.ConnUp} }
func downLimits(s *Shape) limits { return limits{link: s.Down, conn: s.ConnDown, reset: s.ResetAfter} }

func newFlow(c *conn, link *bucket, sent *atomic.Int64, of func(*Shape) limits) (*flow, error) {
	f := &flow{conn: c, link: link, sent: sent, limits: of}
	f.change = sync.NewCond(&f.mu)
	var err error
	if f.clock, err = newClock(); err != nil {
		return nil, err
	}
	if f.pacer, err = newClock(); err != nil {
		f.clock.close()
		return nil, err
	}
	return f, nil
}

// close ends both goroutines.
func (f *flow) close() {
	f.mu.Lock()
	f.dead = true
	f.mu.Unlock()
	f.change.Broadcast()
	f.clock.close()
	f.pacer.close()
}

// read puts what comes from src on the line, until src or the connection ends.
func (f *flow) read(src *net.TCPConn) {
	var total int64
	pool := &f.conn.link.pool
	for {
		shape := f.conn.link.shape.Load()
		lim := f.limits(shape)
		most := piece(lim.link, lim.conn)
		if lim.reset > 0 {
			if total >= lim.reset {
				f.push(packet{due: f.due(time.Now(), shape), end: resets})
				return
			}
			most = int(min(int64(most), lim.reset-total))
		}
		buf := f.conn.link.buffer()
		n, err := src.Read((*buf)[:most])
		now := time.Now()
		shape = f.conn.link.shape.Load() // it may have waited for long
		if n == 0 {
			pool.Put(buf)
		} else {
			total += int64(n)
			lim = f.limits(shape)
			out := later(f.link.take(now, n, lim.link), f.own.take(now, n, lim.conn))
			p := packet{due: f.due(out, shape), data: (*buf)[:n], buf: buf}
			if n <= own {
				p.data, p.buf = append([]byte(nil), p.data...), nil
				pool.Put(buf)
			}
			if !f.push(p) || !f.pacer.until(out.Add(-lead)) {
				return
			}
		}
		if err != nil {
			p := packet{due: f.due(now, shape), end: resets}
			if errors.Is(err, io.EOF) {
				p.end = closes
			}
			f.push(p)
			return
		}
	}
}

// due is when what is out at a time arrives.
func (f *flow) due(out time.Time, s *Shape) time.Time {
	return later(out, f.opened).Add(s.RTT / 2)
}

// push adds a packet, when there is room for it, and reports false if the
// connection has ended.
func (f *flow) push(p packet) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.bytes >= window && !f.dead {
		f.change.Wait()
	}
	if f.dead {
		return false
	}
	f.queue = append(f.queue, p)
	f.bytes += len(p.data)
	f.change.Broadcast()
	return true
}

// first is the next packet, when there is one.
func (f *flow) first() (packet, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.queue) == 0 && !f.dead {
		f.change.Wait()
	}
	if f.dead {
		return packet{}, false
	}
	return f.queue[0], true
}

// arrived takes the packets off the line that have arrived by now, one ending
// at the most, and that as the last.
func (f *flow) arrived(into []packet) []packet {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for n < len(f.queue) && n < batch && !f.queue[n].due.After(now) {
		n++
		if f.queue[n-1].end != goesOn {
			break
		}
	}
	into = append(into, f.queue[:n]...)
	for _, p := range into {
		f.bytes -= len(p.data)
	}
	clear(f.queue[:n])
	f.queue = f.queue[n:]
	f.change.Broadcast()
	return into
}

// write hands over what arrives to dst, until the flow or the connection ends.
func (f *flow) write(dst *net.TCPConn) {
	var packets []packet
	var out net.Buffers
	for {
		p, ok := f.first()
		if !ok || !f.clock.until(p.due) || !f.conn.pass() {
			return
		}
		packets, out = f.arrived(packets[:0]), out[:0]
		end := goesOn
		for _, p := range packets {
			if len(p.data) > 0 {
				out = append(out, p.data)
			}
			end = p.end
		}
		if len(out) > 0 {
			writing := out // WriteTo consumes it
			n, err := writing.WriteTo(dst)
			f.sent.Add(n)
			if err != nil {
				// The other end is gone, and the news of it takes its time.
				time.AfterFunc(f.conn.link.Shape().RTT/2, f.conn.abort)
				return
			}
		}
		for _, p := range packets {
			if p.buf != nil {
				f.conn.link.pool.Put(p.buf)
			}
		}
		switch end {
		case closes:
			_ = dst.CloseWrite()
			return
		case resets:
			drain(dst, f.clock)
			f.conn.abort()
			return
		}
	}
}
